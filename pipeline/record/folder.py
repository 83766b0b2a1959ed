"""A run's folder: `<run.root>/<run.name>-<first 8 digits of the configuration's hash>`.

A second run of the same configuration gets `-2`, and so on, so that nothing is ever overwritten.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.config import Config
from pipeline.errors import ConfigError, DataError


@dataclass(frozen=True)
class RunFolder:
    """A run's place and configuration.

    Args:
        uri: the folder, absolute.
        name: its last part.
        config: as resolved.
        is_new: whether nothing is there yet.
        data_uri: the data set that an existing run names; empty if none.
        manifest_hash: of its manifest; None if none.
    """

    uri: str
    name: str
    config: Config
    is_new: bool
    data_uri: str = ""
    manifest_hash: str | None = None


def existing_run(name: str, root: str) -> str:
    """Return the absolute URI of a run given by its folder, or by its name below `root`.

    Raises:
        ConfigError: there is none.
    """
    candidates = [name] if "://" in name else [name, storage.join(root, name)]
    for uri in map(storage.absolute, candidates):
        if storage.exists(storage.join(uri, "config.yaml")):
            return uri
    raise ConfigError(
        "E-CONFIG-031",
        f"there is no run {name!r}",
        where=" or ".join(candidates),
        todo="give the folder that holds the run's config.yaml",
    )


def unfinished_methods(run_uri: str, methods: Iterable[str]) -> list[str]:
    """Return those of the methods whose training has not ended: they have no last weights."""

    def last_weights(method: str) -> str:
        return storage.join(run_uri, "models", method, "backbone.safetensors")

    return [method for method in methods if not storage.exists(last_weights(method))]


def numbered(base: str, number: int) -> str:
    """Return the name of the `number`-th run of a configuration, from 1."""
    return base if number == 1 else f"{base}-{number}"


def data_of(run_uri: str) -> dict[str, Any]:
    """Return the data set that a run names, as `RunFolder` has it; empty without one."""
    file = storage.join(run_uri, "run.json")
    if not storage.exists(file):
        return {}
    try:
        data = json.loads(storage.read_bytes(file))["data"]
        if data is None:
            return {}
        return {"data_uri": str(data["uri"]), "manifest_hash": str(data["manifest_hash"])}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        todo = "restore the file from a backup; without it the run cannot be resumed"
        raise DataError(
            "E-DATA-083", f"the record is broken ({error!r})", where=file, todo=todo
        ) from None
