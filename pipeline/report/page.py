"""RUN/report.html: one page that shows what a run did. A pure view of the record files.

Equal records give an equal page: no clock, no host, no network goes into it. The page stands alone
(styles and drawings inside, no scripts) and a content policy in its head forbids loading anything.
Names and ids come from other people's data, so everything is escaped; strings are cleaned of
secrets once more before they are shown.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass
from typing import Any

from pipeline import storage
from pipeline.console import program
from pipeline.dataset.manifest import MANIFEST_NAME, read_manifest
from pipeline.record.json_file import read_json
from pipeline.record.keeper import read_run
from pipeline.record.metrics import read_metrics
from pipeline.redact import redact, redact_tree
from pipeline.report import course, health, mining, results, sweep, tables
from pipeline.report.template import to_html


@dataclass(frozen=True)
class Records:
    """Records that the page is made of; None where a stage has not run yet."""

    run_uri: str
    run: dict[str, Any]
    config: str | None
    metrics: list[dict[str, Any]]
    evaluation: dict[str, Any] | None
    forgotten: dict[str, Any] | None
    manifest: dict[str, Any] | None
    mining: dict[str, Any] | None


def write_report(run_uri: str) -> str:
    """Make RUN/report.html and RUN/tables/*.csv from the run's records; returns the page's URI.

    Raises:
        DataError: run.json is missing, or a record is broken; the file is named.
        StorageError: the page cannot be written.
    """
    records = load(run_uri)
    uri = storage.join(run_uri, "report.html")
    content = _read_optional(storage.join(run_uri, "sweep.json"))
    text = render(records) if content is None else render_sweep(records, redact_tree(content))
    storage.write_bytes(uri, text.encode())
    for name, text in tables.csv_files(records.evaluation, records.metrics).items():
        storage.write_bytes(storage.join(run_uri, "tables", name), text.encode())
    return uri


def load(run_uri: str) -> Records:
    """Read all records of a run, with secrets masked. Only run.json has to exist."""
    record = read_run(run_uri)
    run = record.content() | {"timings_s": record.timings_s, "error": None}
    if record.error is not None:
        run["error"] = asdict(record.error)
    config_uri = storage.join(run_uri, "config.yaml")
    data_uri = (run.get("data") or {}).get("uri")
    records = {
        "run": run,
        "config": storage.read_bytes(config_uri).decode("utf-8", "replace")
        if storage.exists(config_uri)
        else None,
        "metrics": [row.model_dump() for row in read_metrics(run_uri)],
        "evaluation": _read_optional(storage.join(run_uri, "evaluation.json")),
        "forgotten": _read_optional(storage.join(run_uri, "forgotten.json")),
        "manifest": _manifest(data_uri) if data_uri else None,
        "mining": _read_optional(storage.join(run_uri, "mining.json")),
    }
    return Records(run_uri=redact(run_uri), **redact_tree(records))


def render(records: Records) -> str:
    """Return the page as HTML."""
    run, manifest, evaluation = records.run, records.manifest, records.evaluation
    names = (evaluation or manifest or {}).get("class_names")

    def command(stage: str) -> str:
        return f"{program()} {stage} --resume {shlex.quote(records.run_uri)}"

    page = {
        "run": run,
        "error": run.get("error"),
        "data_name": (run.get("data") or {}).get("name"),
        "started": _utc(run["started_utc"]),
        "config": records.config,
        "scores": results.scores_section(evaluation, manifest, command("evaluate")),
        "classes": results.classes_section(evaluation, manifest),
        "forgotten": results.forgotten_section(records.forgotten, names, command("mine")),
        "data": course.data_section(manifest, evaluation, command("ingest")),
        "training": course.training_section(records.metrics, command("train")),
        "pruning": course.pruning_section(records.metrics),
        "curve": tables.curve_section(evaluation),
        "confusion": tables.confusion_section(evaluation),
        "health": health.health_section(records.metrics, command("train")),
        "mining": mining.summary_section(records.mining, command("mine")),
        "facts": course.facts_section(run, records.run_uri),
    }
    return to_html("report.html.j2", page)


def render_sweep(records: Records, content: dict[str, Any]) -> str:
    """Return the page of a sweep as HTML; `content` is that of sweep.json."""
    best = storage.join(records.run_uri, "best.yaml")
    page = {
        "run": records.run,
        "data_name": (records.run.get("data") or {}).get("name"),
        "started": _utc(records.run["started_utc"]),
        "config": records.config,
        "sweep": sweep.page(content),
        "train_command": f"{program()} --config {shlex.quote(best)}",
        "facts": course.facts_section(records.run, records.run_uri),
    }
    return to_html("sweep.html.j2", page)


def _utc(time: object) -> str:
    return str(time).replace("T", " ").replace("+00:00", " UTC")


def _manifest(data_uri: str) -> dict[str, Any] | None:
    """Return the manifest as JSON has it; None when the data set is elsewhere now."""
    if not storage.exists(storage.join(data_uri, MANIFEST_NAME)):
        return None
    content: dict[str, Any] = json.loads(json.dumps(asdict(read_manifest(data_uri))))
    return content


def _read_optional(uri: str) -> dict[str, Any] | None:
    return read_json(uri) if storage.exists(uri) else None
