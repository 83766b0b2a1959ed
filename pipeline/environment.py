"""Forms of environment variables that libraries read: a wrong one is named before it is used.

Values are never part of a message: some are secrets.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Variable:
    """Variables of one form.

    Args:
        name: a regular expression that the whole name matches.
        form: what the value looks like, in words.
        fits: whether a value has that form.
    """

    name: str
    form: str
    fits: Callable[[str], bool]


@dataclass(frozen=True)
class Misfit:
    """A variable whose value does not have its form."""

    name: str
    form: str

    @property
    def what(self) -> str:
        """The fact, for an error."""
        return f"the environment variable {self.name} is not {self.form}"

    @property
    def todo(self) -> str:
        """The fix, for an error."""
        return f"set {self.name} to {self.form}, or unset it"


def find_misfit(variables: Iterable[Variable]) -> Misfit | None:
    """Return the first variable that is set, not empty, and of a wrong form."""
    for variable in variables:
        for name in sorted(os.environ):
            value = os.environ[name]
            if value and re.fullmatch(variable.name, name) and not variable.fits(value):
                return Misfit(name, variable.form)
    return None


def named_in(text: str, pattern: str) -> list[str]:
    """Return the variables that a message is about: by their name, or by their value in it.

    Args:
        text: of a library's error.
        pattern: a regular expression that the whole name matches.
    """
    names = [name for name in sorted(os.environ) if re.fullmatch(pattern, name)]
    by_name = [name for name in names if name in text]
    by_value = [n for n in names if len(os.environ[n].strip()) > 1 and os.environ[n] in text]
    return by_name or by_value


def is_url(value: str, *schemes: str) -> bool:
    """Return whether a value is SCHEME://HOST[:PORT][/PATH] of one of the schemes."""
    try:
        parts = urlsplit(value)
        named = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return named and value.isascii() and not re.search(r"\s", value)


def is_number(value: str) -> bool:
    """Return whether a value is a finite number from 0 on."""
    return bool(re.fullmatch(r"\d+(\.\d+)?([eE][+-]?\d+)?", value))


def is_whole(value: str) -> bool:
    """Return whether a value is a whole number from 0 on."""
    return bool(re.fullmatch(r"[0-9]{1,18}", value))


def is_token(value: str) -> bool:
    """Return whether a value is printable ASCII without blanks, as HTTP headers need it."""
    return value.isascii() and value.isprintable() and " " not in value
