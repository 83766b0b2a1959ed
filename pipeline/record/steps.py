"""Results of an older checkpoint than the newest one of a run, as a resumed training leaves them.

RUN/mining.json                      names its step
RUN/export/METHOD/README.md          the same, as `card_step` words it
RUN/curation.json, RUN/embeddings    name the checkpoint that the vectors are of
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from pipeline import storage
from pipeline.errors import DataError
from pipeline.record.curation import Curation
from pipeline.record.embedding import FILE, EmbeddedBy, Embedding
from pipeline.record.mining import Mining

STEP_NAME = re.compile(r"step-(\d{8,})")
_CARD_STEP = re.compile(r"\(step (\d+)\)")


@dataclass(frozen=True)
class Behind:
    """The step of the checkpoint that something was made of, and that of the newest one."""

    step: int
    newest: int

    def __str__(self) -> str:
        """Return both in words."""
        return f"step {self.step} of {self.newest}"


def card_step(step: int) -> str:
    """Return how a model card says its step."""
    return f"(step {step})"


def behind(run_uri: str, method: str, step: int | None) -> Behind | None:
    """Return how far a result is behind the method's newest checkpoint; None when it is not.

    Args:
        run_uri: the run.
        method: whose network made the result.
        step: of its checkpoint; None for weights that were given.
    """
    newest = None if step is None else _newest_step(run_uri, method)
    if step is None or newest is None or step >= newest:
        return None
    return Behind(step, newest)


def outdated(run_uri: str, methods: Iterable[str]) -> dict[str, Behind]:
    """Return the stages whose results are of older checkpoints, each with the step.

    A record that cannot be read says nothing here: the stage that reads it names it.
    """
    made = {
        "mine": _mined(run_uri),
        "export": _exported(run_uri, methods),
        "embed": _embedded(run_uri),
        "curate": _curated(run_uri),
    }
    found = {}
    for stage, steps in made.items():
        with suppress(DataError):
            all_ = [behind(run_uri, method, step) for method, step in steps if step is not None]
            late = [one for one in all_ if one is not None]
            # Vectors of older checkpoints stay beside those of the newest.
            if late and (stage != "embed" or len(late) == len(all_)):
                found[stage] = late[0]
    return found


def _newest_step(run_uri: str, method: str) -> int | None:
    """Return the step of the newest finished checkpoint of a method; None without one."""
    folder = storage.join(run_uri, "models", method, "checkpoints")
    steps = {int(m[1]): n for n in storage.list_names(folder) if (m := STEP_NAME.fullmatch(n))}
    for step in sorted(steps, reverse=True):
        if storage.exists(storage.join(folder, steps[step], "commit.json")):
            return step
    return None


def _mined(run_uri: str) -> Iterator[tuple[str, int | None]]:
    found = Mining.find(storage.join(run_uri, "mining.json"))
    if found is not None:
        yield found.method, found.step


def _exported(run_uri: str, methods: Iterable[str]) -> Iterator[tuple[str, int | None]]:
    for method in methods:
        card = storage.join(run_uri, "export", method, "README.md")
        if storage.exists(card):
            step = _CARD_STEP.search(storage.read_bytes(card).decode("utf-8", "replace"))
            yield method, int(step[1]) if step else None


def _embedded(run_uri: str) -> Iterator[tuple[str, int | None]]:
    folder = storage.join(run_uri, "embeddings")
    for name in storage.list_names(folder):
        found = Embedding.find(storage.join(folder, name, FILE))
        if found is not None:
            yield _of(found.weights)


def _curated(run_uri: str) -> Iterator[tuple[str, int | None]]:
    found = Curation.find(storage.join(run_uri, "curation.json"))
    if found is not None:
        yield _of(found.weights)


def _of(weights: EmbeddedBy) -> tuple[str, int | None]:
    parts = (weights.uri or "").rstrip("/").split("/")
    step = STEP_NAME.fullmatch(parts[-1])
    own = parts[-4:-1] == ["models", weights.name, "checkpoints"]
    return weights.name, int(step[1]) if step and own else None
