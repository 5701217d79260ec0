"""Keeping a key off the screen and out of files."""

import re
from collections.abc import Iterable
from urllib.parse import parse_qsl, urlsplit

SHORTEST = 12  # characters of a key of which a part is a secret, too; "ollama" or "none" is none


def secrets_of(key: str, url: str) -> list[str]:
    """The key, and what else is secret in an endpoint's address: a password, and values such as ?key=..."""
    parts = urlsplit(url)
    found = [key, parts.password or "", *(value for _, value in parse_qsl(parts.query))]
    return sorted((secret for secret in found if len(secret) > 3), key=len, reverse=True)


def hidden(text: str, secrets: Iterable[str], part: int) -> str:
    """The text without the secrets, and without the words that hold `part` characters of one, as a masked echo does:
    "sk-ab****yz12".
    """
    for secret in secrets:
        text = text.replace(secret, "***")
        if len(secret) >= SHORTEST:
            parts = {secret[i : i + part] for i in range(len(secret) - part + 1)}
            text = re.sub(r"\S+", lambda word, parts=parts: "***" if _holds(word[0], parts, part) else word[0], text)
    return text


def _holds(word: str, parts: set[str], length: int) -> bool:
    return any(word[i : i + length] in parts for i in range(len(word) - length + 1))
