"""Several runs side by side: scores of each, and paired differences with their intervals.

    comparison-HASH/comparison.html, scores.csv, differences.json, beside the first run

Two kinds of pairs. Methods: both were trained in each run, on the same split with the same seed, so
their difference is taken within a run and averaged over runs. Runs: every other run minus the first
one, class by class; the interval is over classes, so it says how uniform the change is, and not
what another training run would give. Runs on images without labels are compared by their health.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from statistics import fmean, stdev

from pipeline import storage
from pipeline.console import Console, counted
from pipeline.evaluate import comparison
from pipeline.evaluate.comparison import (
    check_same_classes,
    group_scores_of,
    half_width,
    not_evaluated,
)
from pipeline.record.aggregate import Differences, MeanDifference, RunDifference
from pipeline.record.comparisons import note_comparison
from pipeline.record.evaluation import METRICS
from pipeline.record.folder import existing_run
from pipeline.report.compared import Compared, compared
from pipeline.report.comparison_page import render
from pipeline.report.inputs import load
from pipeline.report.pages import write_pages
from sdclr.groups import GroupScores


def compare(names: Sequence[str], root: str, console: Console) -> None:
    """Compare runs, given by folder or by name below `root`; the page is beside the first one.

    Raises:
        PipelineError: a run does not exist, or has not been evaluated.
    """
    uris = [existing_run(name, root) for name in names]
    page = write_comparison(uris, uris[0].rstrip("/").rpartition("/")[0])
    console.stage("report", f"comparison of {counted(len(uris), 'run')}: {page}")


def write_comparison(run_uris: Sequence[str], root: str) -> str:
    """Compare runs; return the URI of the page, to which the reports of the runs link.

    Raises:
        DataError: a labelled run has no evaluation, or the runs are not about the same classes.
    """
    digest = hashlib.sha256("\n".join(run_uris).encode()).hexdigest()[:8]
    folder = storage.join(root, f"comparison-{digest}")
    runs = compared([load(uri) for uri in run_uris], folder)
    _check(runs)
    scored = [run for run in runs if run.evaluation is not None]
    methods, changes = method_differences(scored), run_differences(scored)
    Differences(methods=methods, runs=changes).write(storage.join(folder, "differences.json"))
    storage.write_bytes(storage.join(folder, "scores.csv"), scores_csv(scored))
    page = storage.join(folder, "comparison.html")
    storage.write_bytes(page, render(runs, methods, changes).encode())
    for run in runs:
        note_comparison(run.uri, page)
        if storage.exists(storage.join(run.uri, "report.html")):
            write_pages(run.uri)
    return page


def _check(runs: Sequence[Compared]) -> None:
    for run in runs:
        if run.evaluation is None and run.is_labelled:
            raise not_evaluated(run.uri)
    check_same_classes([(run.uri, run.evaluation) for run in runs if run.evaluation is not None])


def method_differences(runs: Sequence[Compared]) -> tuple[MeanDifference, ...]:
    """Return, for each protocol and pair of models that every run has, the mean over the runs.

    Fractions in [-1, 1].
    """
    table: dict[tuple[str, str], dict[Hashable, GroupScores]] = {}
    for protocol in _shared_protocols(runs):
        by_run = [run.scores(protocol) for run in runs]
        for name in by_run[0]:
            if all(name in scores for scores in by_run):
                table[protocol, name] = {
                    i: group_scores_of(scores[name]) for i, scores in enumerate(by_run)
                }
    return comparison.method_differences(table)


def run_differences(runs: Sequence[Compared]) -> tuple[RunDifference, ...]:
    """Return every other run minus the first, by class, for each protocol and model of both."""
    found = []
    for run in runs[1:]:
        for protocol in _shared_protocols([runs[0], run]):
            before, after = runs[0].scores(protocol), run.scores(protocol)
            for model in (name for name in before if name in after):
                pairs = zip(before[model].per_class, after[model].per_class, strict=True)
                d = [y - x for x, y in pairs if x is not None and y is not None]
                if not d:
                    continue
                found.append(
                    RunDifference(
                        protocol=protocol,
                        model=model,
                        run=run.label,
                        n=len(d),
                        mean=fmean(d),
                        half_width=half_width(stdev(d), len(d)) if len(d) > 1 else None,
                        rose=sum(x > 0 for x in d),
                        fell=sum(x < 0 for x in d),
                    )
                )
    return tuple(found)


def scores_csv(runs: Sequence[Compared]) -> bytes:
    """Return one row for each run, protocol and model; fractions at full precision."""
    rows = [
        [run.name, run.seed, protocol, model, score.n, *(score.metric(m) for m in METRICS)]
        for run in runs
        for protocol in run.protocols
        for model, score in run.scores(protocol).items()
    ]
    return storage.to_csv(["run", "seed", "protocol", "model", "n", *METRICS], rows)


def _shared_protocols(runs: Sequence[Compared]) -> list[str]:
    lists = [run.protocols for run in runs]
    return [p for p in lists[0] if all(p in other for other in lists)] if lists else []
