"""Sets that the scores of a run need, known before anything is computed."""

from __future__ import annotations

from pipeline.config import Config
from pipeline.config.stages import NEEDS_VAL
from pipeline.dataset.manifest import Manifest
from pipeline.errors import ConfigError


def check_scored_sets(config: Config, manifest: Manifest) -> None:
    """Refuse a labelled data set that lacks the set to score on, or to choose an epoch on.

    Raises:
        ConfigError: naming the sets that there are.
    """
    split, have = config.evaluate.split, ", ".join(manifest.sets)
    if split not in manifest.sets:
        raise ConfigError(
            "E-CONFIG-013",
            f"the data set has no {split} set, it has {have}",
            where=f"evaluate.split={split}, data set {manifest.name}",
            todo="set data.num_test_per_class or data.num_val_per_class and ingest, or another "
            "evaluate.split; set data.labelled=false if the labels are not to be used",
        )
    wanting = [p for p in config.evaluate.protocols if p in NEEDS_VAL]
    if wanting and "val" not in manifest.sets:
        raise ConfigError(
            "E-CONFIG-014",
            f"{' and '.join(wanting)} choose the epoch on a val set, the data set has {have}",
            where=f"evaluate.protocols, data set {manifest.name}",
            todo="give data.sets.val and ingest, or use cached-linear or paper-fewshot-last, "
            "which need none",
        )
