"""One run of a comparison, and the keys in which runs differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.dataset.description import source_name
from pipeline.record.evaluation import Evaluation, Score
from pipeline.record.rows import AlarmPart, HealthRow
from pipeline.report.inputs import Inputs
from pipeline.report.links import relative
from pipeline.report.names import data_title

# Where a run is stored says nothing about what it did.
_NO_SETTINGS = ("run.root", "run.name", "data.root", "run.seed")


@dataclass(frozen=True)
class Compared:
    """A run as the comparison shows it.

    Args:
        source: where its images come from; empty where the data set is gone.
        label: its data and seed, and what else sets it apart.
        href: its page, relative to that of the comparison; empty where there is no way.
    """

    uri: str
    name: str
    source: str
    label: str
    href: str
    data: str
    seed: int
    status: str
    config: Mapping[str, str]
    evaluation: Evaluation | None
    health: Sequence[HealthRow]
    history: Sequence[HealthRow]
    alarms: Sequence[tuple[str, AlarmPart]]
    is_labelled: bool

    @property
    def settings(self) -> dict[str, str]:
        """Its configuration without places and the seed."""
        return {key: value for key, value in self.config.items() if key not in _NO_SETTINGS}

    @property
    def protocols(self) -> list[str]:
        """Protocols that scored it."""
        return self.evaluation.protocols if self.evaluation is not None else []

    def scores(self, protocol: str) -> dict[str, Score]:
        """Return model -> score of one protocol."""
        if self.evaluation is None:
            return {}
        return {model.name: score for model, score in self.evaluation.scores_by(protocol)}


def compared(runs: Sequence[Inputs], folder: str) -> list[Compared]:
    """Return runs with labels that differ, and links from `folder`."""
    found = [_compared(inputs, folder) for inputs in runs]
    # The URI of the first weights is too long for a name.
    keys = [key for key in differing(found) if key != "train.init_from"]
    for words in (
        lambda run: "",
        lambda run: ", ".join(f"{key} {run.config.get(key, 'unset')}" for key in keys[:2]),
        lambda run: run.name,
        lambda run: run.uri,
    ):
        counts = Counter(run.label for run in found)
        found = [
            replace(run, label=f"{run.label}, {words(run)}")
            if counts[run.label] > 1 and words(run)
            else run
            for run in found
        ]
    return found


def differing(runs: Sequence[Compared]) -> list[str]:
    """Return keys whose values are not the same in all runs, but for places and the seed."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    return [key for key in keys if len({run.config.get(key) for run in runs}) > 1]


def _compared(inputs: Inputs, folder: str) -> Compared:
    run = inputs.run
    source = source_name(inputs.manifest) if inputs.manifest is not None else ""
    data = data_title(inputs.manifest, run.data.name if run.data else None)
    return Compared(
        uri=inputs.run_uri,
        name=run.run,
        source=source,
        label=f"{source or data}, seed {run.seed}",
        href=relative(f"{inputs.run_uri}/report.html", folder),
        data=data,
        seed=run.seed,
        status=inputs.status,
        config=inputs.config,
        evaluation=inputs.evaluation,
        health=inputs.health,
        history=inputs.history,
        alarms=inputs.alarms(),
        is_labelled=inputs.manifest is None or inputs.manifest.is_labelled,
    )
