"""The records of a run as the pages read them: frozen, checked, with secrets masked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import ValidationError

from pipeline import storage
from pipeline.config import strict_yaml
from pipeline.errors import DataError
from pipeline.record.abandoned import with_end
from pipeline.record.evaluation import Evaluation, Forgotten
from pipeline.record.goodput import Goodput, goodput
from pipeline.record.lineage import Ancestor, ancestors, start_of
from pipeline.record.metrics import read_metrics
from pipeline.record.rows import ROWS, AlarmPart, HealthRow, MaskRow, StepRow
from pipeline.record.run import COMPLETE, WITH_ALARMS, Run
from pipeline.record.schema import Part, Record, problems
from pipeline.redact import redact, redact_tree
from pipeline.report.views import Manifest

Found = TypeVar("Found", bound=Record)
Masked = TypeVar("Masked", bound=Part)


@dataclass(frozen=True)
class Inputs:
    """All that the pages of a run are made of; None where a stage has not run yet.

    `start` is the weights that it started from, if any; `ancestors` are the runs that trained them,
    by method.
    """

    run_uri: str
    run: Run
    config_text: str | None
    config: Mapping[str, str]
    steps: Sequence[StepRow]
    masks: Sequence[MaskRow]
    health: Sequence[HealthRow]
    evaluation: Evaluation | None
    forgotten: Forgotten | None
    manifest: Manifest | None
    goodput: Goodput | None = None
    start: str | None = None
    ancestors: Mapping[str, Sequence[Ancestor]] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """How the run ended; alarms of the last checks count."""
        severe = any(alarm.is_severe for _, alarm in self.alarms())
        return WITH_ALARMS if severe and self.run.status == COMPLETE else self.run.status

    @property
    def methods(self) -> list[str]:
        """Methods that were trained, in order."""
        return list(
            dict.fromkeys([*(r.method for r in self.steps), *(r.method for r in self.health)])
        )

    def newest_health(self) -> dict[str, HealthRow]:
        """Return the last measures of each method."""
        return {row.method: row for row in self.health}

    @property
    def history(self) -> list[HealthRow]:
        """Checks from before the first training on: of the runs that it started from, and own."""
        rows = []
        for method, newest in self.newest_health().items():
            runs = self.ancestors.get(method, ())
            checks = [row for run in runs for row in run.checks]
            same = [row for row in checks if row.num_images == newest.num_images]
            rows += [row.model_copy(update={"method": method}) for row in same]
        return [*rows, *self.health]

    def alarms(self) -> list[tuple[str, AlarmPart]]:
        """Return the alarms of the last check of each method, as (method, alarm)."""
        return [(m, alarm) for m, row in self.newest_health().items() for alarm in row.alarms]


def load(run_uri: str) -> Inputs:
    """Return the records of a run. Only run.json has to exist.

    Raises:
        DataError: run.json is missing, or a record is broken; the file is named.
    """
    run = with_end(run_uri, Run.read(storage.join(run_uri, "run.json")))
    data_uri = run.data.uri if run.data is not None else None  # with no part masked
    rows = ROWS.validate_json(_masked_json(ROWS.dump_python(read_metrics(run_uri))))
    text = _text(storage.join(run_uri, "config.yaml"))
    health, start = [row for row in rows if isinstance(row, HealthRow)], start_of(run_uri)
    methods = dict.fromkeys(row.method for row in health)
    return Inputs(
        run_uri=redact(run_uri),
        run=_masked(run),
        config_text=text,
        config=_flat(text),
        steps=[row for row in rows if isinstance(row, StepRow)],
        masks=[row for row in rows if isinstance(row, MaskRow) and row.kept_frac],
        health=health,
        evaluation=find(Evaluation, storage.join(run_uri, "evaluation.json")),
        forgotten=find(Forgotten, storage.join(run_uri, "forgotten.json")),
        manifest=_manifest(storage.join(data_uri, "manifest.json")) if data_uri else None,
        goodput=goodput(rows),
        start=None if start is None else redact(start),
        ancestors={method: ancestors(run_uri, method) for method in methods} if start else {},
    )


def find(kind: type[Found], uri: str) -> Found | None:
    """Return the record at `uri` with secrets masked; None when there is none."""
    return require(kind, uri) if storage.exists(uri) else None


def require(kind: type[Found], uri: str) -> Found:
    """Return the record at `uri` with secrets masked; raises as `Record.read`."""
    return _masked(kind.read(uri))


def _masked(part: Masked) -> Masked:
    return part.model_validate_json(_masked_json(part.model_dump()))


def _masked_json(content: object) -> bytes:
    return storage.to_json(redact_tree(content))


def _manifest(uri: str) -> Manifest | None:
    """Return what the pages show of a data set; None when it is gone."""
    if not storage.exists(uri):
        return None
    try:
        return Manifest.model_validate(redact_tree(json.loads(storage.read_bytes(uri))))
    except (ValidationError, ValueError, RecursionError) as error:
        what = problems(error) if isinstance(error, ValidationError) else "it is not JSON"
        raise DataError(
            "E-DATA-200",
            f"the manifest cannot be shown: {what}",
            where=uri,
            todo="restore the file from a backup, or ingest the data set again",
        ) from None


def _text(uri: str) -> str | None:
    if not storage.exists(uri):
        return None
    return redact(storage.read_bytes(uri).decode("utf-8", "replace"))


def _flat(text: str | None) -> dict[str, str]:
    """Return key -> value of a configuration; empty when the text is not one."""
    try:
        content, _ = strict_yaml.read(text or "")
    except strict_yaml.YamlRefusedError:
        return {}
    return {
        f"{section}.{key}": strict_yaml.write_value(value)
        for section, part in (content.items() if isinstance(content, dict) else ())
        if isinstance(part, dict)
        for key, value in part.items()
    }
