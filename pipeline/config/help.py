"""The configuration in words: what a key expects, what was probably meant, the table for --help."""

from __future__ import annotations

import difflib
import math
import textwrap
from typing import Any

from pipeline.config import Config
from pipeline.config.strict_yaml import write_value
from pipeline.config.types import MAX_TEXT_CHARS, holds_credential

_WIDTH = 98
_SHOWN_CHARS = 60
_SEARCHED_CHARS = 4096  # the search for credentials is quadratic in the worst case
_TYPES = {"integer": "a whole number", "number": "a number", "string": "text", "null": "null"}
_BOUNDS = (
    ("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"),
)  # fmt: skip
# Likeness of names, 0..1. In another section only a slip of the finger counts as meant.
_CLOSE, _CLOSE_ELSEWHERE = 0.6, 0.8
_SHARED_WORD_BONUS, _AS_CLOSE = 0.3, 0.1


def _properties() -> dict[str, dict[str, dict[str, Any]]]:
    schema = Config.model_json_schema()
    refs = {name: entry["$ref"].rsplit("/", 1)[1] for name, entry in _sections(schema).items()}
    return {name: schema["$defs"][ref]["properties"] for name, ref in refs.items()}


def _sections(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    # A default beside a reference may wrap the reference in a list of one.
    return {
        name: entry["allOf"][0] if "allOf" in entry else entry
        for name, entry in schema["properties"].items()
    }


SCHEMA = _properties()
"""Section -> key -> its entry in JSON schema."""


def expected(section: str, key: str, *, item: bool = False) -> str:
    """Describe what a key takes, e.g. `a number > 0`; with `item`, an entry of its list."""
    schema = SCHEMA[section][key]
    return _words(schema["items"] if item else schema)


def is_mapping(section: str, key: str) -> bool:
    """Return whether a key takes names of its own with a value each."""
    schema = SCHEMA[section].get(key, {})
    return schema.get("type") == "object" or "$ref" in schema or "allOf" in schema


def _words(schema: dict[str, Any]) -> str:
    if "words" in schema:
        return str(schema["words"])
    if "anyOf" in schema:
        options = " or ".join(_words(option) for option in schema["anyOf"])
        return options.replace("true or false or", "true, false or")
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(str(choice) for choice in schema["enum"])
    kind = schema["type"]
    if kind == "boolean":
        return "true or false"
    if kind == "array":
        size = "a list" if schema.get("minItems", 0) == 0 else "a list with at least one entry"
        return f"{size}, each {_words(schema['items'])}"
    bounds = [f"{sign} {schema[name]}" for name, sign in _BOUNDS if name in schema]
    return " ".join([_TYPES[kind], " and ".join(bounds)]).rstrip()


def mismatch(section: str, key: str, value: object, *, item: bool = False) -> str:
    """Write `expected ..., got ...`, with a hint when the mistake is a common one."""
    text = f"expected {expected(section, key, item=item)}, got {shown(value)}"
    schema = SCHEMA[section][key]
    schema = schema["items"] if item else schema
    options = schema.get("anyOf", [schema])
    kinds = {option.get("type") for option in options if "const" not in option}
    if isinstance(value, float) and not math.isfinite(value):
        return f"{text}; it must be finite"
    if isinstance(value, float) and "integer" in kinds and value.is_integer():
        return f"{text}; write {int(value)}"
    if isinstance(value, bool | int | float) and "string" in kinds and "enum" not in schema:
        return f"{text}; to mean the text, put it in quotes: '\"{write_value(value)}\"'"
    if isinstance(value, str):
        if kinds == {"string"} | kinds & {"null"} and len(value) > MAX_TEXT_CHARS:
            return f"{text}; at most {MAX_TEXT_CHARS} characters"
        if kinds & {"integer", "number"} and _is_number(value):
            return f"{text}; remove the quotes"
        near = difflib.get_close_matches(value, map(str, schema.get("enum", ())), n=1)
        return f"{text}; did you mean {near[0]}?" if near else text
    return text


def shown(value: object) -> str:
    """Format a value as it is typed, shortened; mask it when it may hold a secret."""
    if isinstance(value, str | list | dict) and len(value) > _SEARCHED_CHARS:
        return f"a value of length {len(value)}"
    text = repr(value) if isinstance(value, str) else write_value(value)
    if len(text) > _SEARCHED_CHARS:
        return "a long value"
    if holds_credential(text):
        return "a value that may hold a credential (not shown)"
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def suggest_key(section: str, key: str) -> str:
    """Write `; did you mean ...?` for an unknown key: near ones here, equal ones elsewhere."""
    own = [f"{section}.{name}" for name in _near(key, list(SCHEMA.get(section, ())), _CLOSE)]
    equal = [f"{other}.{key}" for other, keys in SCHEMA.items() if key in keys]
    if not own and not equal:
        names = sorted({name for keys in SCHEMA.values() for name in keys})
        near = _near(key, names, _CLOSE_ELSEWHERE)
        equal = [f"{other}.{n}" for n in near for other, keys in SCHEMA.items() if n in keys]
    if own or equal:
        return f"; did you mean {' or '.join([*own, *equal])}?"
    return f"; {section} has {', '.join(SCHEMA[section])}" if section in SCHEMA else ""


def suggest_section(name: str, *, is_section: bool) -> str:
    """Write `; did you mean ...?` for an unknown name at the top level."""
    near = difflib.get_close_matches(name, [*SCHEMA, "preset", "presets"], n=1)
    if not is_section or not near:
        found = suggest_key("", name)
        if found:
            return found
    return f"; did you mean {near[0]}?" if near else f"; sections are {', '.join(SCHEMA)}"


def _near(name: str, names: list[str], least: float) -> list[str]:
    """Find the two closest names by letters, words (batch_size) or initials (learning_rate)."""
    words = name.split("_")

    def closeness(other: str) -> float:
        others = other.split("_")
        if others[0] == _initials(words) or name == _initials(others):
            return 1.0
        ratio = difflib.SequenceMatcher(None, name, other).ratio()
        return ratio + _SHARED_WORD_BONUS * bool(set(words) & set(others))

    best = max(map(closeness, names), default=0.0)
    # `batch_size` is as near to one batch key as to another: both are named.
    near = [name for name in names if closeness(name) >= max(least, best - _AS_CLOSE)]
    return sorted(near, key=closeness, reverse=True)[:2]


def _initials(words: list[str]) -> str:
    return "".join(word[:1] for word in words) if len(words) > 1 else ""


def describe_keys(*sections: str) -> str:
    """Describe all keys by section: name, default, what it takes, what it means."""
    blocks = []
    for section in sections or SCHEMA:
        keys = SCHEMA[section]
        kind: Any = Config.model_fields[section].annotation
        lines = [f"{section}: {kind.__doc__}"]
        for key, schema in keys.items():
            words = f"{_words(schema)}. {schema.get('description', '')}"
            lines.append(f"  {section}.{key} = {write_value(schema['default'])}")
            lines += textwrap.wrap(
                words, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6,
                break_on_hyphens=False,
            )  # fmt: skip
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"
