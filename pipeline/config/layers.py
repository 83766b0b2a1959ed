"""The layers of a configuration, put over each other; all that is wrong in them, reported at once.

Each value remembers the place it came from (file and line, or the command line), so that an error
found in the merged result still points at what the user typed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pipeline.config import Config
from pipeline.config.help import (
    SCHEMA,
    expected,
    is_mapping,
    mismatch,
    shown,
    suggest_key,
    suggest_section,
)
from pipeline.config.types import holds_credential
from pipeline.errors import ConfigError
from pipeline.redact import redact

Tree = Mapping[str, object]
KeyPath = tuple[str, ...]
Origin = Callable[[KeyPath], str]
"""The place of a path of keys, for messages."""

MAX_PROBLEMS = 50
_NAME_CHARS = 80


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Args:
        name: the key or section, or empty.
        text: what is wrong with it.
        origin: where it was given.
    """

    name: str
    text: str
    origin: str


@dataclass
class Layers:
    """The layers so far.

    Args:
        values: section -> key -> value of the last layer that has it; known keys only.
        origins: dotted key -> where that value is from.
        problems: what was wrong so far, the first `MAX_PROBLEMS` and one more.
    """

    values: dict[str, dict[str, object]] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def full(self) -> bool:
        """Whether further problems would not be listed, so need not be looked for."""
        return len(self.problems) > MAX_PROBLEMS

    def refuse(self, path: Sequence[str], text: str, origin: str) -> None:
        """Note what is wrong with a path of keys."""
        if not self.full:
            self.problems.append(Problem(dotted(path), text, origin))

    def add(self, tree: Tree, origin: Origin, prefix: KeyPath = ()) -> None:
        """Put a layer of sections on top.

        Args:
            tree: section -> key -> value; unknown names and non-sections become problems.
            origin: gives the place of (section, key).
            prefix: where the layer stands in its file, for messages.
        """
        for section, body in tree.items():
            if self.full:
                return
            place = origin((section,))
            if section not in SCHEMA:
                is_section = isinstance(body, dict)
                hint = suggest_section(section[:_NAME_CHARS], is_section=is_section)
                text = f"unknown {'section' if is_section else 'key'}{hint}"
                self.refuse((*prefix, section), text, place)
            elif isinstance(body, dict):
                for key, value in body.items():
                    self._set((*prefix, section, key), value, origin((section, key)))
            elif body is not None:  # a section whose keys are all commented out is null
                self.refuse((*prefix, section), f"expected keys below it, got {shown(body)}", place)

    def override(self, path: KeyPath, value: object, place: str) -> None:
        """Set section.key, or one name of a mapping, whose other names stay as they are."""
        section, key, *name = path
        if name:
            below = self.values.get(section, {}).get(key, SCHEMA[section][key]["default"])
            value = {**(below if isinstance(below, dict) else {}), name[0]: value}
        self.add({section: {key: value}}, lambda _: place)

    def _set(self, path: KeyPath, value: object, place: str) -> None:
        section, key = path[-2:]
        if key in SCHEMA[section]:
            self.values.setdefault(section, {})[key] = value
            self.origins[f"{section}.{key}"] = place
        elif not self.full:
            self.refuse(path, f"unknown key{suggest_key(section, key[:_NAME_CHARS])}", place)

    def add_preset(self, presets: object, chosen: object, origin: Origin, chosen_from: str) -> None:
        """Put the chosen preset on top; names in the other presets are checked as well.

        Args:
            presets: name -> section -> key -> value, or None.
            chosen: the name of one, or None for no preset.
            origin: gives the place of a path of keys that starts at the top of the file.
            chosen_from: where the choice was made.
        """
        if presets is not None and not isinstance(presets, dict):
            text = f"expected names of presets below it, got {shown(presets)}"
            self.refuse(("presets",), text, origin(("presets",)))
            return
        known: dict[str, object] = presets or {}
        for name, body in known.items():
            at = ("presets", name)
            if body is not None and not isinstance(body, dict):
                self.refuse(at, f"expected sections below it, got {shown(body)}", origin(at))
                continue
            layers = self if name == chosen else Layers(problems=self.problems)
            layers.add(body or {}, lambda path, at=at: origin((*at, *path)), at)  # type: ignore[misc]
        if chosen is not None and not (isinstance(chosen, str) and chosen in known):
            near = difflib.get_close_matches(str(chosen), known, n=1)
            if near:
                hint = f"did you mean {near[0]}?"
            else:
                names = ", ".join(dotted((name,)) for name in known)
                hint = f"presets are {names}" if known else "there are no presets here"
            self.refuse(("preset",), f"unknown preset {shown(chosen)}; {hint}", chosen_from)

    def build(self) -> Config:
        """Return the validated configuration.

        Raises:
            ConfigError: all problems of all layers, and those of the merged values.
        """
        config = None
        try:
            config = Config.model_validate(self.values)
        except ValidationError as error:
            for entry in error.errors(include_url=False):
                self._translate(entry)
        if config is None or self.problems:
            raise config_error(self.problems)
        return config

    def _translate(self, entry: ErrorDetails) -> None:
        (section, key), rest = map(str, entry["loc"][:2]), list(entry["loc"][2:])
        index = [part for part in rest if isinstance(part, int)]  # else: a branch of a choice
        if entry["type"] == "too_short" and entry["input"]:
            return  # refused entries do not count; they have problems of their own
        name = key
        if is_mapping(section, key):
            if rest:
                name = ".".join(dotted((str(part),)) for part in (key, rest[0]))
        else:
            name += "".join(f"[{number}]" for number in index)
        if entry["type"] == "value_error":
            text = str(entry["ctx"]["error"])
        elif entry["type"] == "extra_forbidden" or rest[1:] == ["[key]"]:
            text = f"unknown name; expected {expected(section, key)}"
        else:
            item = bool(index) and "items" in SCHEMA[section][key]
            text = mismatch(section, key, entry["input"], item=item)
        if not any(problem.name == f"{section}.{name}" for problem in self.problems):
            origin = self.origins.get(f"{section}.{key}", "default value")
            self.refuse((section, name), text, origin)


def config_error(problems: Sequence[Problem]) -> ConfigError:
    """Return one error of the first `MAX_PROBLEMS` problems, each with its line and place."""
    more = len(problems) > MAX_PROBLEMS
    problems = problems[:MAX_PROBLEMS]
    lines = [f"{p.name}: {p.text}" if p.name else p.text for p in problems]
    if more:
        lines.append(f"only the first {MAX_PROBLEMS} problems are listed")
    names: dict[str, list[str]] = {}
    for problem in problems:
        names.setdefault(problem.origin, []).append(problem.name)
    places = (
        f"{origin} ({', '.join(filter(None, found))})" if len(names) > 1 and any(found) else origin
        for origin, found in names.items()
    )
    where = ", ".join(places)
    todo = "correct what is named above; --help-keys lists every key, its range and default"
    return ConfigError("E-CONFIG-011", "\n".join(lines), where=redact(where, {}), todo=todo)


def dotted(path: Sequence[str]) -> str:
    """Write `section.key`; mask parts that are long or may hold a secret."""
    return ".".join(
        "***" if len(part) > _NAME_CHARS or holds_credential(part) else part for part in path
    )
