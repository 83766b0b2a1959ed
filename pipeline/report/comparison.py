"""Several runs side by side: scores of each, and paired differences with their intervals.

    ROOT/comparison-HASH/comparison.html, scores.csv, differences.json

Two kinds of pairs. Methods: both were trained in each run, on the same split with the same seed, so
their difference is taken within a run and averaged over runs. Runs: every other run minus the first
one, class by class; the interval is over classes, so it says how uniform the change is, and not
what another training run would give.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.console import Console, program
from pipeline.errors import DataError
from pipeline.evaluate.comparison import paired_difference, student_t975
from pipeline.record.folder import existing_run
from pipeline.record.json_file import read_json
from pipeline.record.keeper import read_run
from pipeline.record.scores import ABSENT, METRICS, percent, protocols_of, scores_of
from pipeline.redact import redact_tree
from pipeline.report.results import Record, title
from pipeline.report.template import to_html
from sdclr.longtail import GroupScores

_LABELS = {"many": "Many", "medium": "Medium", "few": "Few", "std": "STD", "all": "All"}


def compare(names: Sequence[str], root: str, console: Console) -> None:
    """Compare runs, given by folder or by name below `root`, and say where the page is.

    Raises:
        PipelineError: a run does not exist, or has not been evaluated.
    """
    uris = [existing_run(name, root) for name in names]
    page = write_comparison(uris, storage.absolute(root))
    console.stage("report", f"comparison of {len(uris)} runs: {page}")


def write_comparison(run_uris: Sequence[str], root: str) -> str:
    """Compare evaluated runs; returns the URI of the page.

    Raises:
        DataError: a run has no evaluation, or the runs are not about the same classes.
    """
    runs = [_read(uri) for uri in run_uris]
    first = runs[0]["evaluation"]["class_names"]
    for run in runs[1:]:
        if run["evaluation"]["class_names"] != first:
            raise DataError(
                "E-DATA-088",
                "the runs are about different classes",
                where=f"{runs[0]['uri']} and {run['uri']}",
                todo="compare runs of one labelled data set",
            )
    digest = hashlib.sha256("\n".join(run_uris).encode()).hexdigest()[:8]
    folder = storage.join(root, f"comparison-{digest}")
    differences = {"methods": method_differences(runs), "runs": run_differences(runs)}
    text = json.dumps(differences, indent=1, allow_nan=False)
    storage.write_bytes(storage.join(folder, "differences.json"), text.encode())
    storage.write_bytes(storage.join(folder, "scores.csv"), scores_csv(runs).encode())
    page = storage.join(folder, "comparison.html")
    storage.write_bytes(page, render(runs, differences).encode())
    return page


def method_differences(runs: Sequence[Record]) -> list[Record]:
    """Return mean paired differences over runs, for each protocol and pair of models.

    Each entry has protocol, a, b, n, and per metric {"mean", "half_width"} (95 % of Student's
    paired t; null with one run), fractions in [-1, 1].
    """
    found = []
    for protocol in _shared_protocols(runs):
        by_run = [_by_model(run, protocol) for run in runs]
        models = [name for name in by_run[0] if all(name in scores for scores in by_run)]
        for i, a in enumerate(models):
            for b in models[i + 1 :]:
                pairs = paired_difference(
                    [_group_scores(scores[a]) for scores in by_run],
                    [_group_scores(scores[b]) for scores in by_run],
                )
                entry: Record = {"protocol": protocol, "a": a, "b": b, "n": pairs.n}
                for metric in METRICS:
                    half = getattr(pairs.half_width, metric) if pairs.half_width else None
                    mean = getattr(pairs.mean, metric)
                    entry[metric] = {"mean": _finite(mean), "half_width": _finite(half)}
                found.append(entry)
    return found


def run_differences(runs: Sequence[Record]) -> list[Record]:
    """Return every other run minus the first, by class, protocol and model.

    Each entry has protocol, model, run, n (classes), mean and half_width of the differences of the
    per-class accuracies, and how many classes rose and fell.
    """
    found = []
    for run in runs[1:]:
        for protocol in _shared_protocols([runs[0], run]):
            before, after = _by_model(runs[0], protocol), _by_model(run, protocol)
            for model in (name for name in before if name in after):
                pairs = zip(before[model]["per_class"], after[model]["per_class"], strict=True)
                d = np.array([y - x for x, y in pairs if x is not None and y is not None])
                if len(d) == 0:
                    continue
                half = None
                if len(d) > 1:
                    half = student_t975(len(d) - 1) * float(d.std(ddof=1)) / math.sqrt(len(d))
                found.append(
                    {
                        "protocol": protocol,
                        "model": model,
                        "run": run["name"],
                        "n": len(d),
                        "mean": float(d.mean()),
                        "half_width": half,
                        "rose": int((d > 0).sum()),
                        "fell": int((d < 0).sum()),
                    }
                )
    return found


def scores_csv(runs: Sequence[Record]) -> str:
    """Return one row for each run, protocol and model; fractions at full precision."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["run", "protocol", "model", "n", *METRICS])
    for run in runs:
        for protocol in protocols_of(run["evaluation"]):
            for model, score in scores_of(run["evaluation"], protocol):
                values = [score.get(metric) for metric in METRICS]
                writer.writerow([run["name"], protocol, model["name"], score["n"], *values])
    return stream.getvalue()


def render(runs: Sequence[Record], differences: dict[str, list[Record]]) -> str:
    """Return the page as HTML."""
    scores = [
        [protocol, title(model["name"]), run["name"], *(percent(score.get(m)) for m in METRICS)]
        for protocol in dict.fromkeys(p for run in runs for p in protocols_of(run["evaluation"]))
        for name in dict.fromkeys(m["name"] for run in runs for m in run["evaluation"]["models"])
        for run in runs
        for model, score in scores_of(run["evaluation"], protocol)
        if model["name"] == name
    ]
    page = {
        "runs": [[run["name"], run["uri"], run["data"], str(run["seed"])] for run in runs],
        "score_headers": ["Protocol", "Model", "Run", *_LABELS.values()],
        "scores": scores,
        "method_headers": ["Protocol", "Difference", "n", *_LABELS.values()],
        "methods": [
            [
                entry["protocol"],
                f"{title(entry['a'])} minus {title(entry['b'])}",
                str(entry["n"]),
                *(_signed(entry[m]["mean"], entry[m]["half_width"]) for m in METRICS),
            ]
            for entry in differences["methods"]
        ],
        "run_headers": ["Protocol", "Model", "Difference", "All", "Classes up", "Classes down"],
        "differences": [
            [
                entry["protocol"],
                title(entry["model"]),
                f"{entry['run']} minus {runs[0]['name']}",
                _signed(entry["mean"], entry["half_width"]),
                str(entry["rose"]),
                str(entry["fell"]),
            ]
            for entry in differences["runs"]
        ],
    }
    return to_html("comparison.html.j2", page)


def _read(uri: str) -> Record:
    place = storage.join(uri, "evaluation.json")
    if not storage.exists(place):
        raise DataError(
            "E-DATA-027",
            "the run has not been evaluated",
            where=uri,
            todo=f"{program()} evaluate --resume {shlex.quote(uri)}",
        )
    run = read_run(uri)
    content: Record = redact_tree(
        {
            "uri": uri,
            "name": run.run,
            "seed": run.seed,
            "data": run.data.name if run.data else ABSENT,
            "evaluation": read_json(place),
        }
    )
    return content


def _shared_protocols(runs: Sequence[Record]) -> list[str]:
    lists = [protocols_of(run["evaluation"]) for run in runs]
    return [protocol for protocol in lists[0] if all(protocol in other for other in lists)]


def _by_model(run: Record, protocol: str) -> dict[str, Any]:
    return {model["name"]: score for model, score in scores_of(run["evaluation"], protocol)}


def _group_scores(score: Record) -> GroupScores:
    known = {name: math.nan if score.get(name) is None else score[name] for name in METRICS}
    return GroupScores(**known)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _signed(mean: float | None, half_width: float | None) -> str:
    """Format a difference in points, its interval, and an asterisk when that excludes 0."""
    if mean is None:
        return ABSENT
    if half_width is None:
        return f"{100 * mean:+.1f}"
    mark = " *" if abs(mean) > half_width else ""
    return f"{100 * mean:+.1f} ± {100 * half_width:.1f}{mark}"
