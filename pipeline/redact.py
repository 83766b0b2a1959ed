"""Removal of secrets from everything that a person may read later.

A secret is the value of an environment variable named like one, the user part of a URL, or what
follows `password=` and the like. It is replaced by `***`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

MASK = "***"
_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|KEY", re.IGNORECASE)
# Switches such as TOKENIZERS_PARALLELISM=false match by name; masking "false" would spoil a config.
_NOT_SECRET = frozenset({"true", "false", "none", "null", "auto", "token", "default", "disabled"})
_MIN_SECRET_CHARS = 4
_USERINFO = re.compile(r"(?<=://)[^\s/?#'\"@]*(?:@[^\s/?#'\"@]*)*@")
_ASSIGNED = re.compile(
    r"((?:secret|token|passw(?:or)?d|api_?key|access_?key|credential|signature)[\w.-]*"
    r"\s*[=:]\s*)(?!\s|null\b|None\b|\*\*\*)([^\s&'\",;]+)",
    re.IGNORECASE,
)


def secrets_of(env: Mapping[str, str]) -> list[str]:
    """Return values of variables named *SECRET*, *TOKEN*, *PASSWORD* or *KEY*, longest first.

    Values under 4 characters and plain words (`true`, `auto` ...) are left out: they occur in
    ordinary text and hide nothing.
    """
    found = {
        value
        for name, value in env.items()
        if _SECRET_NAME.search(name)
        and len(value) >= _MIN_SECRET_CHARS
        and value.lower() not in _NOT_SECRET
    }
    found |= {quote(value, safe="") for value in found}
    return sorted(found, key=lambda value: (-len(value), value))


def redact(text: str, env: Mapping[str, str] | None = None) -> str:
    """Mask secrets in a text: environment values, URL userinfo and `password=...`.

    Args:
        text: anything a person may read later.
        env: the variables to look in; None = this process's environment.
    """
    return _mask(text, secrets_of(os.environ if env is None else env))


def redact_tree(value: Any, env: Mapping[str, str] | None = None) -> Any:
    """Apply `redact` to every string value inside nested dicts and lists; keys stay."""
    return _mask_tree(value, secrets_of(os.environ if env is None else env))


def _mask(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, MASK)
    text = _USERINFO.sub(MASK + "@", text)
    return _ASSIGNED.sub(rf"\g<1>{MASK}", text)


def _mask_tree(value: Any, secrets: Sequence[str]) -> Any:
    if isinstance(value, str):
        return _mask(value, secrets)
    if isinstance(value, dict):
        return {key: _mask_tree(item, secrets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mask_tree(item, secrets) for item in value]
    return value
