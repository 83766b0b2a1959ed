"""Ancestors of a run by `train --extend` or `train.init_from`, and the checks of their features.

Weights that another run trained are no untrained network. What is compared with the state before
training begins with the first run of such a chain.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Literal

from pydantic import JsonValue

from pipeline import storage
from pipeline.config import strict_yaml
from pipeline.errors import PipelineError
from pipeline.record.folder import data_of
from pipeline.record.metrics import read_rows
from pipeline.record.rows import HealthRow
from pipeline.record.schema import Part, Record

_OWN_METHOD = "{method}"
_LAST_WEIGHTS = re.compile(r"(?P<run>.+)/models/(?P<method>[^/]+)/backbone\.safetensors")


class Ancestor(Part):
    """A run whose last weights another one started from.

    Args:
        uri: its folder.
        checks: of the features of one method, in the order of training; empty where they were
            taken on another data set or on views of another size.
        is_first: whether it started from no given weights itself.
    """

    uri: str
    checks: tuple[HealthRow, ...]
    is_first: bool

    @property
    def name(self) -> str:
        """The last part of its folder."""
        return self.uri.rstrip("/").rpartition("/")[2]


class Lineage(Record):
    """RUN/lineage.json: the ancestors of each method, which may be removed after the run began."""

    schema_version: Literal[1] = 1
    ancestors: dict[str, tuple[Ancestor, ...]]


def keep_ancestors(run_uri: str, methods: Iterable[str]) -> None:
    """Write the ancestors of a run that starts from another one's weights, once."""
    uri = _kept(run_uri)
    if start_of(run_uri) is not None and not storage.exists(uri):
        Lineage(ancestors={m: tuple(ancestors(run_uri, m)) for m in methods}).write(uri)


def weights_place(run_uri: str) -> str:
    """Return where a run's last weights are, with a placeholder for the method."""
    return storage.join(run_uri, "models", _OWN_METHOD, "backbone.safetensors")


def start_of(run_uri: str) -> str | None:
    """Return the weights that a run names as its first ones; None = by the seed, or unknown."""
    start = _recorded(run_uri, "train", "init_from")
    return start if isinstance(start, str) else None


def ancestors(run_uri: str, method: str) -> list[Ancestor]:
    """Return the runs that a method's first weights come from, the oldest first.

    In place of a run that is gone stands what its descendant kept of the chain. One that cannot be
    read ends it: no training fails for want of a comparison.
    """
    return list(_upwards(run_uri, method))[::-1]


def earlier_checks(run_uri: str, method: str) -> list[HealthRow]:
    """Return the checks of those runs in the order of training, those before training first."""
    return [row for run in ancestors(run_uri, method) for row in run.checks]


def steps_before(checks: list[HealthRow]) -> int:
    """Return the steps behind the last of such checks; each run counts its own from 0."""
    return sum(max(0, after.step - row.step) for row, after in pairwise(checks))


def _upwards(run_uri: str, method: str) -> Iterator[Ancestor]:
    images, seen = _images(run_uri), {run_uri}
    while (found := _LAST_WEIGHTS.fullmatch(start_of(run_uri) or "")) is not None:
        child, run_uri = (run_uri, method), storage.absolute(found["run"])
        method = method if found["method"] == _OWN_METHOD else found["method"]
        if run_uri in seen:
            return
        seen.add(run_uri)
        try:
            kept = None if storage.exists(_record(run_uri)) else Lineage.find(_kept(child[0]))
            checks = read_rows(run_uri, HealthRow, method=method)
        except PipelineError:
            return
        if kept is not None:
            is_same = images is not None and _images(child[0]) == images
            for run in reversed(kept.ancestors.get(child[1], ())):
                yield run if is_same else run.model_copy(update={"checks": ()})
            return
        is_same = images is not None and _images(run_uri) == images
        is_first = start_of(run_uri) is None
        yield Ancestor(uri=run_uri, checks=tuple(checks) if is_same else (), is_first=is_first)


def _kept(run_uri: str) -> str:
    return storage.join(run_uri, "lineage.json")


def _record(run_uri: str) -> str:
    return storage.join(run_uri, "run.json")


def _images(run_uri: str) -> tuple[str, JsonValue] | None:
    """Return what decides which images and views are measured; None = unknown."""
    try:
        manifest_hash = data_of(run_uri).get("manifest_hash")
    except PipelineError:
        return None
    crop_px = _recorded(run_uri, "augment", "crop_px")
    return (manifest_hash, crop_px) if isinstance(manifest_hash, str) else None


def _recorded(run_uri: str, section: str, key: str) -> JsonValue:
    """Return a value of a run's configuration, of this version or an older one; None = none."""
    try:
        text = storage.read_bytes(storage.join(run_uri, "config.yaml")).decode()
        content, _ = strict_yaml.read(text)
    except (PipelineError, UnicodeDecodeError, strict_yaml.YamlRefusedError):
        return None
    part = content.get(section) if isinstance(content, dict) else None
    return part.get(key) if isinstance(part, dict) else None
