"""Models that an evaluation scores: the newest of each method, every kept one, or one given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline import storage
from pipeline.config import Config
from pipeline.console import counted
from pipeline.errors import CheckpointError
from pipeline.model import checkpoint
from pipeline.model.source import (
    UNTRAINED,
    ModelSource,
    given_source,
    public_sources,
    trained_epochs,
)


@dataclass(frozen=True)
class Candidate:
    """A model to score.

    Args:
        source: where it comes from.
        step, epochs: how long it was trained; None when the weights do not say.
        older_than: name of the model that this one became later; empty for the final ones.
    """

    source: ModelSource
    step: int | None = 0
    epochs: int | None = 0
    older_than: str = ""

    @property
    def name(self) -> str:
        """As tables show it."""
        return self.source.name


@dataclass
class Candidates:
    """All models of an evaluation, and what a reader must know about them."""

    models: list[Candidate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def final(self) -> list[Candidate]:
        """Those of the table; the others are earlier points of the curve."""
        return [model for model in self.models if not model.older_than]


def find_candidates(
    config: Config, run_uri: str, config_hash: str, *, given_uri: str | None = None
) -> Candidates:
    """Return the models to score; the untrained network is always the last.

    Args:
        config: the run's.
        run_uri: folder of the run.
        config_hash: that its checkpoints must have.
        given_uri: weights or a checkpoint to score instead of the run's models.

    Raises:
        CheckpointError: a method has no finished checkpoint, or the given one does not fit.
    """
    found = Candidates()
    if given_uri is not None:
        source, facts = given_source(config, given_uri)
        given = Candidate(source, _count(facts, "step"), _count(facts, "epochs"))
        found.models.append(given)
        epochs = "unknown" if given.epochs is None else given.epochs
        found.notes.append(f"checkpoint: {source.uri}, epochs trained: {epochs}")
    else:
        for method in config.train.methods:
            _add_method(found, config, run_uri, config_hash, method)
    for source in public_sources(config):
        found.models.append(Candidate(source, None, None))
        found.notes.append(f"{source.uri}: public weights, a network of their own, the run's views")
    found.models.append(Candidate(ModelSource(UNTRAINED)))
    return found


def _count(facts: Mapping[str, object], key: str) -> int | None:
    value = facts.get(key)
    return value if isinstance(value, int) and value >= 0 else None


def _add_method(
    found: Candidates, config: Config, run_uri: str, config_hash: str, method: str
) -> None:
    state, newest = checkpoint.newest(run_uri, method, config_hash=config_hash)
    found.notes += [f"{method}: skipped {text}" for text in newest.refused]
    numbers = state.numbers
    if numbers["step"] != numbers["num_steps"]:
        found.notes.append(
            f"{method}: trained in part, {numbers['step']} of "
            f"{counted(numbers['num_steps'], 'step')}"
        )
    source = ModelSource(method, newest.uri, method, config_hash)
    found.models.append(Candidate(source, int(numbers["step"]), trained_epochs(config, state)))
    if config.evaluate.checkpoints == "all":
        earlier = checkpoint.committed(checkpoint.checkpoints_uri(run_uri, method))
        for uri in earlier[: earlier.index(newest.uri)]:
            _add_earlier(found, config, config_hash, method, uri)


def _add_earlier(
    found: Candidates, config: Config, config_hash: str, method: str, uri: str
) -> None:
    try:
        state = checkpoint.load(uri, config_hash=config_hash)
    except CheckpointError as error:
        name = storage.absolute(uri).rpartition("/")[2]
        found.notes.append(f"{method}: skipped {name}: {error.what}")
        return
    step = int(state.numbers["step"])
    # Only its dense backbone is scored.
    source = ModelSource(f"{method}@{step}", uri, config_hash=config_hash)
    found.models.append(Candidate(source, step, trained_epochs(config, state), older_than=method))
