"""Reading, writing and comparing configurations.

A configuration is made of four layers, later ones win: defaults of the schema, the file, the chosen
preset of the file, `section.key=value` overrides. A file may hold, besides sections,

    preset: fair                     # the default choice; on the command line `preset=official`
    presets:                         # chooses another one and `preset=null` none
      fair: {train: {drop_last: true}}

The result holds no presets. Everything that is wrong is reported at once, with the place of each.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue

from pipeline.config import Config
from pipeline.config.help import (
    SCHEMA,
    describe_keys,
    is_mapping,
    shown,
    suggest_key,
    suggest_section,
)
from pipeline.config.layers import KeyPath, Layers, Problem, config_error, dotted
from pipeline.config.strict_yaml import MAX_BYTES, YamlRefusedError, read, write, write_value
from pipeline.config.types import holds_credential
from pipeline.errors import ConfigError
from pipeline.redact import redact

__all__ = [
    "changed_keys", "config_hash", "describe_keys", "dump_config", "load_config", "parse_config",
]  # fmt: skip

_COMMAND_LINE = "command line"
SHIPPED = Path(__file__).resolve().parents[2] / "tune_configs"
_REASON_CHARS = 500
# A run may be renamed and moved between its interruption and its resumption, and its models may be
# used in other ways than at first. Who follows it changes nothing.
_PLACE = {"root", "name", "trackers"}
# Nor does it matter where the data set is kept: its manifest's hash says what is in it.
_DATA_PLACE = {"root", "download"}
# Nor do budgets and deadlines, what is kept, and by how many the batches are shared change what is
# trained: after a loss a run may resume with fewer workers.
_OPERATION = {
    "workers", "max_failures", "collective_timeout_s", "stop_grace_s", "checkpoint_every_s",
    "keep_checkpoints", "keep_every_epochs", "keep_best",
}  # fmt: skip
_NOT_HASHED: dict[str, set[str] | bool] = {
    "run": _PLACE, "data": _DATA_PLACE, "train": _OPERATION, "placement": True,
    "evaluate": True, "export": True, "mine": True, "tune": True, "cost": True,
}  # fmt: skip
# What may change between two invocations of one sweep: it can be made longer, and run elsewhere.
_NOT_OF_SWEEP: dict[str, set[str] | bool] = {
    "run": _PLACE,
    "data": _DATA_PLACE,
    "export": True,
    "mine": True,
    "tune": {"trials", "retrain_seeds"},
    "cost": True,
}


def load_config(path: str | None, overrides: Sequence[str] = ()) -> Config:
    """Load a local YAML file (None = the defaults) and overrides.

    Args:
        path: a file of at most 1 MiB, UTF-8.
        overrides: as in `parse_config`.

    Raises:
        ConfigError: the file cannot be read, or anything in it or in the overrides is wrong.
    """
    text = None if path is None else text_of(path)
    return parse_config(text, origin=path or "", overrides=overrides)


def parse_config(text: str | None, *, origin: str, overrides: Sequence[str] = ()) -> Config:
    """Parse text as `load_config` parses a file.

    Args:
        text: YAML as in `pipeline.config.strict_yaml`, or None for the defaults.
        origin: file or URI that the text is from, for messages.
        overrides: `section.key=value` with the value in YAML, or `preset=name`; each key once.

    Raises:
        ConfigError: one line for each problem. Text that is not acceptable YAML is reported before
            its values are looked at.
    """
    layers = Layers()
    given = _parse_overrides(overrides, layers)
    document, lines = _document(text, origin, layers.problems)

    def place(path: KeyPath) -> str:
        return f"{origin} line {lines[path]}" if path in lines else origin

    presets, chosen = document.pop("presets", None), document.pop("preset", None)
    layers.add(document, place)
    if ("preset",) in given:
        chosen, chosen_from = given.pop(("preset",)), _COMMAND_LINE
    else:
        chosen_from = place(("preset",))
    layers.add_preset(presets, chosen, place, chosen_from)
    for path, value in given.items():
        layers.override(path, value, _COMMAND_LINE)
    return layers.build()


def config_hash(config: Config, *, sweep: bool = False) -> str:
    """Return the SHA-256 in hex of the values as canonical JSON, without `_NOT_HASHED`.

    So it names what a run trains, not where it is kept; equal hashes may be resumed. The hash of a
    sweep covers its section and the evaluation as well, but for the number of trials.
    """
    values = config.model_dump(mode="json", exclude=_NOT_OF_SWEEP if sweep else _NOT_HASHED)
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def dump_config(config: Config) -> str:
    """Write YAML with every key; `parse_config` of it gives an equal configuration."""
    return write(config.model_dump(mode="json"))


def changed_keys(a: Config, b: Config, *, sweep: bool = False) -> list[str]:
    """List `train.lr_per_256: 0.5 -> 0.3` for every changed key that changes what is trained.

    Those are the hashed keys, and `train.workers` where a batch on fewer workers is another one.
    """
    before, after = dict(_flat(a, sweep)), dict(_flat(b, sweep))
    changes = [f"{k}: {before[k]} -> {after[k]}" for k in before if before[k] != after[k]]
    workers = a.train.workers, b.train.workers
    if not sweep and workers[0] != workers[1] and _depends_on_workers(a):
        changes.append(
            f"train.workers: {workers[0]} -> {workers[1]} (it may change with "
            "train.sync_batchnorm, train.drop_last, and without train.micro_batch)"
        )
    return changes


def _depends_on_workers(config: Config) -> bool:
    """Return whether statistics of batches, or the last batch, depend on how many share them."""
    t = config.train
    return not t.sync_batchnorm or not t.drop_last or t.micro_batch is not None


def _flat(config: Config, sweep: bool) -> Iterator[tuple[str, str]]:
    excluded = _NOT_OF_SWEEP if sweep else _NOT_HASHED
    values: Mapping[str, Mapping[str, object]] = config.model_dump(mode="json", exclude=excluded)
    for section, body in values.items():
        for key, value in body.items():
            yield f"{section}.{key}", write_value(value)


def _shipped(path: str) -> str:
    """Return where tune_configs/NAME is installed, unless the working folder has such a file."""
    there = SHIPPED / Path(path).name
    is_name = Path(path).parent == Path("tune_configs")
    return str(there) if is_name and not Path(path).exists() and there.is_file() else path


def text_of(path: str) -> str:
    """Return the text of a local configuration file; `tune_configs/NAME` may be an installed one.

    Raises:
        ConfigError: it cannot be read, is no regular file, no UTF-8, or larger than 1 MiB.
    """
    path = _shipped(path)
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # reading a pipe could block for ever
            problem = "the configuration is not a regular file"
        else:
            with open(path, "rb") as file:
                content = file.read(MAX_BYTES + 1)
            if len(content) <= MAX_BYTES:
                return content.decode("utf-8-sig")
            problem = f"the configuration is larger than {MAX_BYTES} bytes"
    except FileNotFoundError:
        problem = "the configuration file does not exist"
    except UnicodeDecodeError as error:
        problem = f"the configuration is not UTF-8 text: byte {error.start}"
    except OSError as error:
        problem = f"the configuration could not be read: {error.strerror}"
    except ValueError:
        problem = "the configuration could not be read: not a file name"
    raise ConfigError(
        "E-CONFIG-010", problem, where=redact(path), todo="give the path of a YAML file"
    )


def _document(
    text: str | None, origin: str, problems: Sequence[Problem]
) -> tuple[dict[str, JsonValue], dict[KeyPath, int]]:
    if text is None:
        return {}, {}
    try:
        document, lines = read(text)
    except YamlRefusedError as error:
        found = [
            Problem("", _without_secret(what), f"{origin} line {line}")
            for line, what in error.problems
        ]
        raise config_error([*problems, *found]) from None
    if not isinstance(document, dict):
        got = "nothing" if document is None else shown(document)
        what = f"expected sections such as `train:` at the top level, got {got}"
        raise config_error([*problems, Problem("", what, origin)])
    return document, lines


def _without_secret(text: str) -> str:
    if len(text) > _REASON_CHARS or holds_credential(text):
        return "not acceptable YAML; the reason is not shown, as it may hold a credential"
    return text


def _parse_overrides(overrides: Sequence[str], layers: Layers) -> dict[KeyPath, JsonValue]:
    """Parse the well-formed overrides by (section, key) or ("preset",); refuse the rest."""
    given: dict[KeyPath, JsonValue] = {}
    seen: set[KeyPath] = set()
    for override in overrides:
        name, equals, text = override.partition("=")
        path = tuple(name.strip().split("."))
        problem = _name_problem(path, has_value=bool(equals))
        if not problem and path in seen:
            problem = "given twice; give it once"
        if not problem:
            seen.add(path)
            try:
                given[path] = _override_value(text)
            except YamlRefusedError as error:
                problem = (
                    f"{error.problems[0][1]}; to mean text, quote it: {dotted(path)}='\"...\"'"
                )
        if problem:
            layers.refuse(path, problem, _COMMAND_LINE)
    return given


def _override_value(text: str) -> JsonValue:
    value, _ = read(text)
    if "#" in text and "#" not in str(value):
        raise YamlRefusedError([(1, "what follows # is a comment in YAML")])
    return value


def _name_problem(path: KeyPath, *, has_value: bool) -> str:
    """Describe what is wrong with the name of an override; empty when nothing is."""
    section, *keys = path
    name = dotted(path)
    if not all(path):
        return "expected section.key=value"
    in_mapping = section in SCHEMA and len(keys) == 2 and is_mapping(section, keys[0])
    if path == ("preset",) or (len(keys) == 1 and section in SCHEMA) or in_mapping:
        return "" if has_value else f"no value given; write {name}=VALUE"
    if section in SCHEMA and not keys:
        return f"is a section; write {name}.KEY=VALUE"
    if len(keys) == 1:
        return f"unknown section{suggest_section(section, is_section=True)}"
    return f"unknown key{suggest_key('', path[-1])}"
