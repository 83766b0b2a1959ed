"""Checkpoints on storage: tensors and JSON, never pickle, trusted only with a commit record.

    <folder>/step-00000120/state.safetensors   tensors
                           state.json          plain numbers
                           commit.json         sizes and hashes of both, written last

A directory without a valid commit.json does not exist as far as this module is concerned: a process
killed at any write leaves the previous checkpoint as the latest one.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from pipeline import storage
from pipeline.console import program
from pipeline.errors import CheckpointError
from pipeline.record.steps import STEP_NAME
from sdclr import TrainState

FORMAT_VERSION = 1
_READABLE_VERSIONS = (1,)  # those of old releases stay here, each with a fixture in the tests
_FILES = ("state.safetensors", "state.json")


@dataclass(frozen=True)
class Found:
    """The newest good checkpoint, and the newer ones that were refused.

    Args:
        state: None when there is no good checkpoint.
        uri: where it is; empty without one.
        refused: one sentence for each finished checkpoint that was skipped.
        unfinished: names of those that a killed process left behind.
    """

    state: TrainState | None = None
    uri: str = ""
    refused: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)


def checkpoints_uri(run_uri: str, method: str) -> str:
    """Return the URI of the checkpoints of one method of a run."""
    return storage.join(run_uri, "models", method, "checkpoints")


def checkpoint_uri(folder_uri: str, step: int) -> str:
    """Return the URI of the checkpoint of a step."""
    return storage.join(folder_uri, f"step-{step:08d}")


def save(
    folder_uri: str,
    state: TrainState,
    *,
    config_hash: str,
    measures: Mapping[str, float | None] | None = None,
) -> str:
    """Write a checkpoint; it exists from the moment that its commit record does.

    Args:
        folder_uri: the checkpoints of one method of a run.
        state: what is saved.
        config_hash: ties it to the configuration.
        measures: of the features at this step, by which `retain` finds the best one.

    Returns:
        Its URI. A checkpoint of the same step is replaced.
    """
    uri = checkpoint_uri(folder_uri, int(state.numbers["step"]))
    # What is overwritten must not look whole until it is whole again.
    storage.delete_tree(storage.join(uri, "commit.json"))
    contents = {
        "state.safetensors": save_tensors(state.tensors),
        "state.json": _json(dict(state.numbers)),
    }
    files = {}
    for name, content in contents.items():
        storage.write_bytes(storage.join(uri, name), content)
        files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    record: dict[str, object] = {
        "format_version": FORMAT_VERSION,
        "config_hash": config_hash,
        "files": files,
    }
    if measures is not None:
        record["measures"] = {n: v for n, v in measures.items() if v is None or math.isfinite(v)}
    storage.write_bytes(storage.join(uri, "commit.json"), _json(record))
    return uri


def load(uri: str, *, config_hash: str | None) -> TrainState:
    """Read one checkpoint and check every byte of it.

    Args:
        uri: its folder.
        config_hash: of the configuration that it must belong to; None = any.

    Raises:
        CheckpointError: not committed, torn, altered, of another format or configuration.
    """
    record = _read_record(uri)
    if config_hash is not None and record.get("config_hash") != config_hash:
        raise CheckpointError(
            "E-CHECKPOINT-005",
            "the checkpoint belongs to another configuration",
            where=uri,
            todo="resume with the configuration of that run, or start a new run",
        )
    contents = {}
    for name in _FILES:
        if not storage.exists(storage.join(uri, name)):
            raise _broken(uri, f"{name} is missing")
        content = storage.read_bytes(storage.join(uri, name))
        found = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        if found != record["files"][name]:
            raise _broken(uri, f"{name} has {len(content)} bytes that do not match the record")
        contents[name] = content
    try:
        numbers = json.loads(contents["state.json"])
        tensors: dict[str, torch.Tensor] = load_tensors(contents["state.safetensors"])
    except (ValueError, RecursionError, SafetensorError) as error:
        raise _broken(uri, f"it cannot be read ({error})") from error
    return TrainState(tensors, numbers)


def committed(folder_uri: str) -> list[str]:
    """List the URIs of a folder's committed checkpoints by step, not yet checked."""
    return [storage.join(folder_uri, name) for name in _names(folder_uri)[0]]


def latest(folder_uri: str, *, config_hash: str) -> Found:
    """Return the newest good checkpoint; broken and unfinished ones are skipped and named.

    Raises:
        StorageError: the storage does not answer: that says nothing about what is there.
    """
    finished, unfinished = _names(folder_uri)
    refused: list[str] = []
    for name in reversed(finished):
        uri = storage.join(folder_uri, name)
        try:
            return Found(load(uri, config_hash=config_hash), uri, refused, unfinished)
        except CheckpointError as error:
            refused.append(f"{name}: {error.what}")
    return Found(refused=refused, unfinished=unfinished)


def newest(run_uri: str, method: str, *, config_hash: str) -> tuple[TrainState, Found]:
    """Return the newest good checkpoint of a method of a run, and what `latest` found.

    Raises:
        CheckpointError: the method has none.
        StorageError: as `latest`.
    """
    folder = checkpoints_uri(run_uri, method)
    found = latest(folder, config_hash=config_hash)
    if found.state is None:
        reasons = f" ({'; '.join(found.refused)})" if found.refused else ""
        raise CheckpointError(
            "E-CHECKPOINT-001",
            f"method {method} has no checkpoint{reasons}",
            where=folder,
            todo=f"train it first: {program()} train --resume {shlex.quote(run_uri)}",
        )
    return found.state, found


def weights_hash(uri: str) -> str:
    """Return the SHA-256 of the tensors of a finished checkpoint, as its commit record says.

    Raises:
        CheckpointError: there is no finished checkpoint at `uri`.
    """
    return str(_read_record(uri)["files"]["state.safetensors"].get("sha256"))


def retain(
    folder_uri: str,
    keep: int,
    *,
    newest_step: int,
    keep_every_steps: int | None = None,
    keep_best: str | None = None,
) -> None:
    """Delete all but the `keep` newest checkpoints, and leftovers older than those.

    Finished ones at multiples of `keep_every_steps` stay for good, and so does the one whose
    measure `keep_best` is highest. Those after `newest_step` are not counted: a run that fell back
    to an older checkpoint leaves broken ones ahead of it, which it overwrites when it comes to
    them.
    """
    finished, unfinished = _names(folder_uri)
    mine = [name for name in finished if _step(name) <= newest_step]
    if len(mine) <= keep:
        return
    lasting = {n for n in finished if keep_every_steps and _step(n) % keep_every_steps == 0}
    if keep_best is not None:
        lasting |= _best(folder_uri, mine, keep_best)
    for name in (*finished, *unfinished):
        if _step(name) < _step(mine[-keep]) and name not in lasting:
            # The record goes first: a half-deleted checkpoint must not look whole.
            storage.delete_tree(storage.join(folder_uri, name, "commit.json"))
            storage.delete_tree(storage.join(folder_uri, name))


def _best(folder_uri: str, names: list[str], measure: str) -> set[str]:
    """Return the checkpoint of the highest value, the newest of equal ones; else nothing."""
    values: dict[str, float] = {}
    for name in names:
        with suppress(CheckpointError):  # a broken one is not the best
            measures = _read_record(storage.join(folder_uri, name)).get("measures")
            value = measures.get(measure) if isinstance(measures, dict) else None
            if isinstance(value, int | float) and math.isfinite(value):
                values[name] = value
    return {max(values, key=lambda name: (values[name], _step(name)))} if values else set()


def _step(name: str) -> int:
    return int(name.removeprefix("step-"))


def _names(folder_uri: str) -> tuple[list[str], list[str]]:
    """Return committed and unfinished checkpoints of a folder, each in step order."""
    names = sorted((n for n in storage.list_names(folder_uri) if STEP_NAME.fullmatch(n)), key=_step)
    committed = [n for n in names if storage.exists(storage.join(folder_uri, n, "commit.json"))]
    return committed, [n for n in names if n not in committed]


def _read_record(uri: str) -> dict[str, Any]:
    record_uri = storage.join(uri, "commit.json")
    if not storage.exists(record_uri):
        raise CheckpointError(
            "E-CHECKPOINT-006",
            "there is no finished checkpoint here",
            where=uri,
            todo="give a folder that holds commit.json",
        )
    try:
        record = json.loads(storage.read_bytes(record_uri))
    except (ValueError, RecursionError) as error:
        raise _broken(uri, "commit.json is not JSON") from error
    if not isinstance(record, dict):
        raise _broken(uri, "commit.json is not an object")
    version = record.get("format_version")
    if version not in _READABLE_VERSIONS or type(version) is not int:
        known = ", ".join(map(str, _READABLE_VERSIONS))
        raise CheckpointError(
            "E-CHECKPOINT-007",
            f"the checkpoint has format version {version!r}, this program knows {known}",
            where=uri,
            todo="read it with the version of this program that wrote it",
        )
    files = record.get("files")
    if not isinstance(files, dict) or not all(isinstance(files.get(n), dict) for n in _FILES):
        raise _broken(uri, "commit.json does not list the files")
    return record


def _broken(uri: str, why: str) -> CheckpointError:
    return CheckpointError(
        "E-CHECKPOINT-008",
        f"the checkpoint is broken: {why}",
        where=uri,
        todo="delete it; the run continues from the one before",
    )


def _json(content: Mapping[str, object]) -> bytes:
    return json.dumps(content, indent=1, sort_keys=True).encode() + b"\n"
