"""RUN/report.html: one page that answers what a run was for. A pure view of the record files.

Equal records give an equal page: no clock, no host, no network goes into it. The page stands alone
(styles and drawings inside, no scripts) and a content policy in its head forbids loading anything.
Names and ids come from other people's data, so everything is escaped; strings are cleaned of
secrets once more before they are shown.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline import storage
from pipeline.console import program
from pipeline.record.evaluation import METRICS, Evaluation
from pipeline.record.mining import Mining
from pipeline.record.rows import HealthRow
from pipeline.record.sweep import SweepResult
from pipeline.report import mining, sweep
from pipeline.report.data import DataSection, ForgottenSection, data_section, forgotten_section
from pipeline.report.facts import facts_section
from pipeline.report.head import Head, head
from pipeline.report.inputs import Inputs, find, load
from pipeline.report.links import links
from pipeline.report.names import frequency_order, group_of
from pipeline.report.parts import Figure, Link, Pairs
from pipeline.report.scores import (
    ClassesSection,
    ScoresSection,
    classes_section,
    curve_figures,
    scores_section,
)
from pipeline.report.template import to_html
from pipeline.report.training import (
    HealthSection,
    PruningSection,
    TrainingSection,
    health_section,
    pruning_section,
    training_section,
)
from pipeline.report.verdict import Verdict, verdict


@dataclass(frozen=True)
class Ranking:
    """The section that leads to mining.html."""

    warnings: tuple[str, ...]
    evidence: mining.Evidence
    how: str
    outdated: mining.Outdated | None


@dataclass(frozen=True)
class Page:
    """All of report.html; a section is None where it does not apply."""

    head: Head
    verdict: Verdict
    todo: tuple[tuple[str, str], ...]
    scores: ScoresSection | None
    classes: ClassesSection | None
    curve: tuple[Figure, ...]
    ranking: Ranking | None
    forgotten: ForgottenSection | None
    data: DataSection | None
    training: TrainingSection | None
    health: HealthSection | None
    pruning: PruningSection | None
    facts: tuple[tuple[str, Pairs], ...]
    config: str | None


def write_report(run_uri: str) -> str:
    """Make RUN/report.html and RUN/tables/*.csv from the run's records; return the page's URI.

    Raises:
        DataError: run.json is missing, or a record is broken; the file is named.
        StorageError: the page cannot be written.
    """
    inputs = load(run_uri)
    uri = storage.join(run_uri, "report.html")
    found = find(SweepResult, storage.join(run_uri, "sweep.json"))
    if found is not None:
        text = sweep.render(inputs, found, head(inputs, "Sweep report", ()))
    else:
        mined = find(Mining, storage.join(run_uri, "mining.json"))
        late = mining.of_older(run_uri, inputs.run, mined) if mined is not None else None
        text = render(inputs, mined, links(run_uri, "report.html"), late)
    storage.write_bytes(uri, text.encode())
    for name, content in csv_files(inputs.evaluation, inputs.health).items():
        storage.write_bytes(storage.join(run_uri, "tables", name), content)
    return uri


def render(
    inputs: Inputs,
    mined: Mining | None,
    ways: tuple[Link, ...],
    outdated: mining.Outdated | None,
) -> str:
    """Return the page as HTML."""
    evaluation, manifest = inputs.evaluation, inputs.manifest
    page = Page(
        head=head(inputs, "Run report", ways),
        verdict=verdict(inputs),
        todo=tuple(not_done(inputs, mined is not None)),
        scores=scores_section(evaluation) if evaluation else None,
        classes=classes_section(evaluation, manifest) if evaluation else None,
        curve=curve_figures(evaluation) if evaluation else (),
        ranking=_ranking(mined, outdated) if mined else None,
        forgotten=forgotten_section(inputs.forgotten, manifest) if inputs.forgotten else None,
        data=data_section(manifest, evaluation) if manifest else None,
        training=training_section(inputs.steps),
        health=health_section(inputs.health),
        pruning=pruning_section(inputs.masks),
        facts=facts_section(inputs),
        config=inputs.config_text,
    )
    return to_html("report.html.j2", page)


def _ranking(mined: Mining, outdated: mining.Outdated | None) -> Ranking:
    return Ranking(
        warnings=mining.vectors_warning(mined.vectors),
        evidence=mining.evidence(mined),
        how=mining.how_scored(mined),
        outdated=outdated,
    )


def not_done(inputs: Inputs, is_mined: bool) -> Sequence[tuple[str, str]]:
    """Return what could still be run, as (sentence, command); nothing that cannot apply."""
    labelled = inputs.manifest is None or inputs.manifest.is_labelled
    steps = (
        (inputs.manifest is None, "ingest", "The data set has not been found."),
        (not inputs.steps, "train", "Nothing has been trained yet."),
        (labelled and inputs.evaluation is None, "evaluate", "The models have not been scored."),
        (not is_mined, "mine", "The images have not been ranked by how rare they are."),
    )
    quoted = shlex.quote(inputs.run_uri)
    return [
        (text, f"{program()} {stage} --resume {quoted}")
        for is_open, stage, text in steps
        if is_open
    ]


def csv_files(evaluation: Evaluation | None, health: Sequence[HealthRow]) -> dict[str, bytes]:
    """Return file name -> content: scores, accuracy by class and measures of health."""
    files = {}
    if evaluation is not None:
        files["scores.csv"] = _scores_csv(evaluation)
        files["classes.csv"] = _classes_csv(evaluation)
    if health:
        names = list(health[0].measures)
        rows = [
            [row.method, row.epochs_trained, row.step, *(row.measures.get(n) for n in names)]
            for row in health
        ]
        files["health.csv"] = storage.to_csv(["method", "epochs_trained", "step", *names], rows)
    return files


def _scores_csv(evaluation: Evaluation) -> bytes:
    rows = [
        [protocol, model.name, model.epochs, model.step, evaluation.seed, score.n]
        + [v for m in METRICS for v in (score.metric(m), score.spread and score.spread.metric(m))]
        + [score.note]
        for protocol in evaluation.protocols
        for model, score in evaluation.scores_by(protocol)
    ]
    columns = [name for metric in METRICS for name in (metric, f"{metric}_spread")]
    return storage.to_csv(
        ["protocol", "model", "epochs", "step", "seed", "n", *columns, "note"], rows
    )


def _classes_csv(evaluation: Evaluation) -> bytes:
    group, counts = group_of(evaluation), evaluation.pretrain_counts
    rows = [
        [protocol, model.name, evaluation.class_names[i], counts[i],
         group.get(i, ("",))[0], score.per_class[i]]
        for protocol in evaluation.protocols
        for model, score in evaluation.scores_by(protocol)
        for i in frequency_order(counts)
    ]  # fmt: skip
    return storage.to_csv(
        ["protocol", "model", "class", "pretrain_images", "group", "accuracy"], rows
    )
