"""Parts of the schema's sections: their base class, and types of their values.

Errors never contain the text they refuse when it may be a secret.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipeline.redact import redact
from pipeline.storage.place import check as check_place

MAX_TEXT_CHARS = 4096

# `redact` covers userinfo without slashes and `password=...`; secret keys of S3 may hold slashes,
# so anything between a colon that starts no port and an @ counts as well.
_USERINFO = re.compile(r"://[^/@\s]*:(?!\d+(/|$))[^@\s]*@")
_ACCESS_KEY_ID = re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b")


def holds_credential(text: str) -> bool:
    """Return whether text may hold a credential: URL userinfo, `password=...`, a key id."""
    return bool(_USERINFO.search(text) or _ACCESS_KEY_ID.search(text) or redact(text, {}) != text)


def clean_text(text: str) -> str:
    """Return the text, or raise ValueError if it has a credential or control character."""
    if holds_credential(text):
        raise ValueError("looks like it holds a credential (value not shown)")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise ValueError("expected text without control characters")
    return text


def without_repeats(items: tuple[str, ...]) -> tuple[str, ...]:
    """Return the items, or raise ValueError if one occurs twice."""
    if len(set(items)) < len(items):
        raise ValueError(f"expected each entry once, got {', '.join(items)}")
    return items


Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARS), AfterValidator(clean_text)]
# A path, file:///path or s3://bucket/path; every key that names a place has this type.
Place = Annotated[Text, AfterValidator(check_place)]
# Lists of YAML become tuples, which a frozen model can hash; their items stay strict.
Texts = Annotated[tuple[Text, ...], Field(strict=False)]
Places = Annotated[tuple[Place, ...], Field(strict=False)]
Choices = Field(strict=False, min_length=1)

Pair = Annotated[tuple[float, float], Field(strict=False)]
"""Two numbers, the least and the most."""

_Count = Annotated[int, Field(ge=1)]
Range = Annotated[tuple[_Count, _Count], Field(strict=False)]
"""Two whole numbers, the least and the most."""

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


class Section(BaseModel):
    """Frozen, strict, without unknown keys, infinities or NaN."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, validate_default=True,
        hide_input_in_errors=True,
    )  # fmt: skip
