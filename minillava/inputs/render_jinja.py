"""Renders a folder's chat template; run as a process of its own, since a template is a program that a stranger wrote.

stdin: {"template": text, "conversations": [messages, ...]} as JSON -> stdout: a list of strings, or null where a
rendering failed. Jinja's sandbox keeps the template from Python; the limits keep it from the machine: 1 second of
computing, 0.5 GB of memory, 50,000 characters. This file imports nothing of ours, so that it starts quickly.
"""

import json
import sys
from datetime import datetime

from jinja2 import TemplateError
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS, BYTES, CHARACTERS = 1, 1 << 29, 50_000


class Generation(Extension):
    """transformers' {% generation %} ... {% endgeneration %}, which marks what a model learns: here, what it holds."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's name)

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


def environment() -> ImmutableSandboxedEnvironment:
    """As transformers sets Jinja up."""
    jinja = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    jinja.filters["tojson"] = lambda value, indent=None, **_: json.dumps(value, ensure_ascii=False, indent=indent)
    jinja.globals["raise_exception"] = _raise
    jinja.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return jinja


def _raise(message):
    raise TemplateError(str(message))


def render(template, messages) -> str | None:
    """The text, or None if the template fails on these messages."""
    given = dict(messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>", tools=None)
    text = ""
    try:
        for piece in template.generate(**given):
            text += piece
            if len(text) > CHARACTERS:
                return None
    except Exception:  # whatever it runs into, it is the template's
        return None
    return text


def limit() -> None:
    """Windows has no such limits; there, the time that the caller waits is the only one."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))


if __name__ == "__main__":
    limit()
    asked = json.load(sys.stdin)
    compiled = environment().from_string(asked["template"])
    json.dump([render(compiled, messages) for messages in asked["conversations"]], sys.stdout)
