"""Command-line flags from the fields of a config, so that default, type, help and log have one source."""

import argparse
from contextlib import suppress
from dataclasses import field, fields

from minillava.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse, whose errors are one sentence like all others."""

    def error(self, message: str):
        raise UserError(f"{message}; --help lists the options")


def whole_number(least: int, most: int):
    """An argparse type: a whole number in this range."""

    def number(text: str) -> int:
        with suppress(ValueError):
            if least <= int(text) <= most:
                return int(text)
        raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}, not {text}")

    return number


def option(default, help: str, **more):
    """A dataclass field that is also a flag; `more` goes to argparse (choices, ...)."""
    return field(default=default, metadata={"help": help, **more})


def expect(config, name: str, fits: bool, allowed: str) -> None:
    """UserError where the value of a config's field is not what is `allowed`; a config may have this as a method."""
    if not fits:
        raise UserError(f"--{name.replace('_', '-')} must be {allowed}, not {getattr(config, name)}")


def add_flags(parser: argparse.ArgumentParser, config: type) -> None:
    """--kebab-case for each field; a flag that is not given leaves the field's default."""
    for item in fields(config):
        flag, more = "--" + item.name.replace("_", "-"), dict(item.metadata)
        default = "" if item.default in (None, "", False) else f" (default {item.default})"
        more["help"] += default
        if item.default is False:
            parser.add_argument(flag, dest=item.name, action="store_true", default=None, help=more["help"])
        else:
            parser.add_argument(
                flag, dest=item.name, type=str if item.default is None else type(item.default), default=None, **more
            )


def from_flags(config: type, flags: argparse.Namespace, **defaults):
    """The config of the flags that were given, over `defaults`, over the class's own."""
    given = {item.name: getattr(flags, item.name) for item in fields(config) if getattr(flags, item.name) is not None}
    return config(**{**defaults, **given})
