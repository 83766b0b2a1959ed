"""Several runs side by side: scores of each, and paired differences with their intervals.

    ROOT/comparison-HASH/comparison.html, scores.csv, differences.json

Two kinds of pairs. Methods: both were trained in each run, on the same split with the same seed, so
their difference is taken within a run and averaged over runs. Runs: every other run minus the first
one, class by class; the interval is over classes, so it says how uniform the change is, and not
what another training run would give. Runs on images without labels are compared by their health.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean, stdev

from pipeline import storage
from pipeline.console import Console, program
from pipeline.errors import DataError
from pipeline.evaluate.comparison import paired_difference, student_t975
from pipeline.record.folder import existing_run
from pipeline.record.scores import METRICS
from pipeline.report.compared import Compared, MethodDifference, RunDifference, compared
from pipeline.report.comparison_page import render
from pipeline.report.inputs import load
from pipeline.report.views import Score
from sdclr.longtail import GroupScores


def compare(names: Sequence[str], root: str, console: Console) -> None:
    """Compare runs, given by folder or by name below `root`, and say where the page is.

    Raises:
        PipelineError: a run does not exist, or has not been evaluated.
    """
    uris = [existing_run(name, root) for name in names]
    page = write_comparison(uris, storage.absolute(root))
    console.stage("report", f"comparison of {len(uris)} runs: {page}")


def write_comparison(run_uris: Sequence[str], root: str) -> str:
    """Compare runs; return the URI of the page.

    Raises:
        DataError: a labelled run has no evaluation, or the runs are not about the same classes.
    """
    digest = hashlib.sha256("\n".join(run_uris).encode()).hexdigest()[:8]
    folder = storage.join(root, f"comparison-{digest}")
    runs = compared([load(uri) for uri in run_uris], folder)
    _check(runs)
    scored = [run for run in runs if run.evaluation is not None]
    methods, changes = method_differences(scored), run_differences(scored)
    content = {
        "methods": [asdict(entry) for entry in methods],
        "runs": [asdict(entry) for entry in changes],
    }
    text = json.dumps(content, indent=1, allow_nan=False)
    storage.write_bytes(storage.join(folder, "differences.json"), text.encode())
    storage.write_bytes(storage.join(folder, "scores.csv"), scores_csv(scored).encode())
    page = storage.join(folder, "comparison.html")
    storage.write_bytes(page, render(runs, methods, changes).encode())
    return page


def _check(runs: Sequence[Compared]) -> None:
    for run in runs:
        if run.evaluation is None and run.is_labelled:
            raise DataError(
                "E-DATA-027",
                "the run has not been evaluated",
                where=run.uri,
                todo=f"{program()} evaluate --resume {shlex.quote(run.uri)}",
            )
    scored = [(run, run.evaluation) for run in runs if run.evaluation is not None]
    for run, evaluation in scored[1:]:
        if evaluation.class_names != scored[0][1].class_names:
            raise DataError(
                "E-DATA-088",
                "the runs are about different classes",
                where=f"{scored[0][0].uri} and {run.uri}",
                todo="compare runs of one labelled data set",
            )


def method_differences(runs: Sequence[Compared]) -> list[MethodDifference]:
    """Return, for each protocol and pair of models that every run has, the mean over the runs.

    Fractions in [-1, 1]; the half width is that of the 95 % interval of Student's paired t, None
    with one run.
    """
    found = []
    for protocol in _shared_protocols(runs):
        by_run = [run.scores(protocol) for run in runs]
        models = [name for name in by_run[0] if all(name in scores for scores in by_run)]
        for i, a in enumerate(models):
            for b in models[i + 1 :]:
                pairs = paired_difference(
                    [_group_scores(scores[a]) for scores in by_run],
                    [_group_scores(scores[b]) for scores in by_run],
                )
                half = pairs.half_width
                found.append(
                    MethodDifference(
                        protocol,
                        a,
                        b,
                        pairs.n,
                        {m: _finite(getattr(pairs.mean, m)) for m in METRICS},
                        {m: _finite(getattr(half, m) if half else None) for m in METRICS},
                    )
                )
    return found


def run_differences(runs: Sequence[Compared]) -> list[RunDifference]:
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
                half = None
                if len(d) > 1:
                    half = student_t975(len(d) - 1) * stdev(d) / math.sqrt(len(d))
                rose, fell = sum(x > 0 for x in d), sum(x < 0 for x in d)
                found.append(
                    RunDifference(protocol, model, run.label, len(d), fmean(d), half, rose, fell)
                )
    return found


def scores_csv(runs: Sequence[Compared]) -> str:
    """Return one row for each run, protocol and model; fractions at full precision."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["run", "seed", "protocol", "model", "n", *METRICS])
    for run in runs:
        for protocol in run.protocols:
            for model, score in run.scores(protocol).items():
                values = [score.metric(metric) for metric in METRICS]
                writer.writerow([run.name, run.seed, protocol, model, score.n, *values])
    return stream.getvalue()


def _shared_protocols(runs: Sequence[Compared]) -> list[str]:
    lists = [run.protocols for run in runs]
    return [p for p in lists[0] if all(p in other for other in lists)] if lists else []


def _group_scores(score: Score) -> GroupScores:
    known = {m: math.nan if (v := score.metric(m)) is None else v for m in METRICS}
    return GroupScores(**known)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
