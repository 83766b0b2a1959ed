"""YAML for configurations: the plain part of YAML 1.2, and a writer whose output reads back equal.

PyYAML on its own reads `1e-3` as text, `on` as True, `010` as 8 and `1:30` as 90, keeps the last of
two equal keys, and expands aliases without limit. Here a plain scalar is null, true, false, a
decimal number or text; a key given twice, a tag, an anchor, an alias and a second document are
refused. Only the parser of PyYAML is used: no constructor runs, so no text can make an object.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import JsonValue
from yaml.events import AliasEvent, CollectionStartEvent, ScalarEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_BYTES = 1 << 20
MAX_DEPTH = 20
MAX_NODES = 20_000
"""Keys and values of one text. With the other limits: a hostile text is refused within seconds."""

Path = tuple[str, ...]

_TAG = "tag:yaml.org,2002:"
_NULL, _BOOL, _INT, _FLOAT, _STR = (_TAG + kind for kind in ("null", "bool", "int", "float", "str"))
_FLOAT_PATTERN = (
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
# In this order: every whole number also matches the pattern of floats. 4,000 digits is below the
# length at which Python refuses to convert text to int.
_SCALARS = (
    (_NULL, re.compile(r"(null|Null|NULL|~|)\Z"), [*list("nN~"), ""]),
    (_BOOL, re.compile(r"(true|false)\Z"), list("tf")),
    (_INT, re.compile(r"[-+]?[0-9]{1,4000}\Z"), list("-+0123456789")),
    (_FLOAT, re.compile(rf"({_FLOAT_PATTERN})\Z"), list("-+0123456789.")),
)


class YamlRefusedError(ValueError):
    """The text is not acceptable YAML.

    Args:
        problems: (line counted from 1, what is wrong) for each place found.
    """

    def __init__(self, problems: list[tuple[int, str]]) -> None:
        super().__init__("; ".join(f"line {line}: {text}" for line, text in problems))
        self.problems = problems


class _Loader(yaml.SafeLoader):
    """Loader that composes nodes; it notes tags, anchors and aliases and follows none."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - as the base has it

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.problems: list[tuple[int, str]] = []
        self._depth = self._num_nodes = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        """Return the next node, stripped of its tag and anchor; null in place of an alias."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if isinstance(event, AliasEvent):
            self.problems.append((line, "aliases (*name) are not allowed; repeat the value"))
            self.get_event()  # type: ignore[no-untyped-call]
            return ScalarNode(_NULL, "")
        self._strip(event, line)
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES:
            raise YamlRefusedError([(line, f"more than {MAX_NODES} keys and values")])
        if self._depth >= MAX_DEPTH:
            raise YamlRefusedError([(line, f"nested deeper than {MAX_DEPTH} levels")])
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def _strip(self, event: ScalarEvent | CollectionStartEvent, line: int) -> None:
        if event.anchor is not None:
            self.problems.append((line, "anchors (&name) are not allowed; repeat the value"))
            event.anchor = None
        if event.tag is not None:
            self.problems.append((line, "tags (!name) are not allowed; write the plain value"))
            event.tag = None


class _Dumper(yaml.SafeDumper):
    """Dumper that quotes text which this loader or a YAML 1.1 reader could misread."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as the base has it
        first: list(found) for first, found in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)
_Dumper.add_representer(
    list, lambda dumper, data: dumper.represent_sequence(_TAG + "seq", data, flow_style=True)
)


def read(text: str) -> tuple[JsonValue, dict[Path, int]]:
    """Read plain values (None, bool, int, float, str, list, dict) and the lines of keys.

    Returns:
        The value, and the line (from 1) of each mapping key by its path of keys.

    Raises:
        YamlRefusedError: bad syntax, or anything named in the module's head. All such places are
            collected, except that bad syntax or too deep nesting ends the search.
    """
    loader = _Loader("")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        raise YamlRefusedError([*loader.problems, _syntax_problem(error, text)]) from None
    lines: dict[Path, int] = {}
    value = None if node is None else _plain(node, (), lines, loader.problems)
    if loader.problems:
        raise YamlRefusedError(sorted(loader.problems))
    return value, lines


def write(tree: Mapping[str, object]) -> str:
    """Write plain values as YAML; `read(write(tree))[0] == tree` for finite numbers."""
    text = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return str(text)


def write_value(value: object) -> str:
    """Write one value on one line, as it would be after `key: `."""
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=2**31
    )
    return str(text).removesuffix("\n").removesuffix("\n...").rstrip()


def _plain(
    node: Node, path: Path, lines: dict[Path, int], problems: list[tuple[int, str]]
) -> JsonValue:
    if isinstance(node, ScalarNode):
        return _scalar(node)
    if isinstance(node, SequenceNode):
        return [
            _plain(item, (*path, str(index)), lines, problems)
            for index, item in enumerate(node.value)
        ]
    assert isinstance(node, MappingNode)
    mapping: dict[str, JsonValue] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, ScalarNode) or key_node.tag != _STR:
            problems.append((line, "a key must be text; put it in quotes if it is meant"))
            continue
        key = key_node.value
        if key in mapping:
            name, first = ".".join((*path, key)), lines[(*path, key)]
            problems.append((line, f"{name} is given twice, first in line {first}"))
            continue
        lines[(*path, key)] = line
        mapping[key] = _plain(value_node, (*path, key), lines, problems)
    return mapping


def _scalar(node: ScalarNode) -> JsonValue:
    text: str = node.value
    if node.tag == _NULL:
        return None
    if node.tag == _BOOL:
        return text == "true"
    if node.tag == _INT:
        return int(text)
    if node.tag == _FLOAT:
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _syntax_problem(error: yaml.YAMLError, text: str) -> tuple[int, str]:
    """Return line and reason only: PyYAML's own message quotes text that may be secret."""
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        reason = getattr(error, "problem", None) or getattr(error, "context", None) or "bad syntax"
        if "but found another document" in reason:
            reason = "a second document starts here; only one is allowed"
        return mark.line + 1, f"not YAML: {reason}"
    position = getattr(error, "position", None)  # of a character that YAML does not allow
    line = text.count("\n", 0, position) + 1 if isinstance(position, int) else 1
    return line, "not YAML: a control character"
