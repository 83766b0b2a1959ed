"""Protocols that have ended stay ended when their stage is interrupted, killed or repeated.

    RUN/evaluation/PROTOCOL.json

A file is taken again when it was made of the same weights, data set and keys. To score anew, delete
the folder.
"""

from __future__ import annotations

import hashlib

from pipeline import storage
from pipeline.errors import DataError
from pipeline.evaluate.candidates import Candidates
from pipeline.model.source import weights_hash
from pipeline.record.context import RunContext
from pipeline.record.evaluation import EndedProtocol, Score

# Of what the scores are, apart from their inputs: raise it when a protocol computes differently.
_VERSION = 1
# Keys of `evaluate` that change which protocols and models are scored, and not the scores.
_NO_INPUT = {"protocols", "checkpoint", "checkpoints", "runs", "max_leak_frac"}


class EndedProtocols:
    """The protocols of a run that have ended with these models.

    Args:
        run: what is evaluated.
        candidates: the models.
    """

    def __init__(self, run: RunContext, candidates: Candidates) -> None:
        self._folder = storage.join(run.run_uri, "evaluation")
        parts = {
            "version": _VERSION,
            "config": run.config_hash,
            "data": run.manifest.hash,
            "evaluate": run.config.evaluate.model_dump(mode="json", exclude=_NO_INPUT),
            "seed": run.config.run.seed,
        }
        self._weights = {
            model.name: weights_hash(model.source, run.config_hash) for model in candidates.models
        }
        self._key = hashlib.sha256(storage.to_json(parts)).hexdigest()

    def find(self, protocol: str) -> EndedProtocol | None:
        """Return what a protocol left; None when it has not ended, or with other inputs."""
        try:
            found = EndedProtocol.find(self._uri(protocol))
        except DataError:  # a torn or older file: the protocol is done again
            return None
        if found is None or found.key != self._key:
            return None
        return found if self._weights.items() <= found.weights.items() else None

    def write(self, protocol: str, scores: dict[str, Score], seconds: float) -> EndedProtocol:
        """Publish the scores of a protocol that has just ended."""
        ended = EndedProtocol(
            key=self._key, weights=self._weights, seconds=round(seconds, 3), scores=scores
        )
        ended.write(self._uri(protocol))
        return ended

    def _uri(self, protocol: str) -> str:
        return storage.join(self._folder, f"{protocol}.json")
