"""The records of a run as the pages read them: frozen, checked views with secrets masked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from pipeline import storage
from pipeline.config import strict_yaml
from pipeline.errors import DataError
from pipeline.record.keeper import read_run
from pipeline.record.metrics import read_metrics
from pipeline.record.schema import Record
from pipeline.redact import redact, redact_tree
from pipeline.report.views import (
    Alarm,
    Evaluation,
    Forgotten,
    Health,
    Manifest,
    Mask,
    Run,
    Step,
    View,
)

Found = TypeVar("Found", bound=Record)
Shown = TypeVar("Shown", bound=View)
_ROWS = ("step", "mask", "health")


@dataclass(frozen=True)
class Inputs:
    """All that the pages of a run are made of; None where a stage has not run yet."""

    run_uri: str
    run: Run
    config_text: str | None
    config: Mapping[str, str]
    steps: Sequence[Step]
    masks: Sequence[Mask]
    health: Sequence[Health]
    evaluation: Evaluation | None
    forgotten: Forgotten | None
    manifest: Manifest | None

    @property
    def methods(self) -> list[str]:
        """Methods that were trained, in order."""
        return list(
            dict.fromkeys([*(r.method for r in self.steps), *(r.method for r in self.health)])
        )

    def newest_health(self) -> dict[str, Health]:
        """Return the last measures of each method."""
        return {row.method: row for row in self.health}

    def alarms(self) -> list[tuple[str, Alarm]]:
        """Return the alarms of the last check of each method, as (method, alarm)."""
        return [(m, alarm) for m, row in self.newest_health().items() for alarm in row.alarms]


def load(run_uri: str) -> Inputs:
    """Return the records of a run. Only run.json has to exist.

    Raises:
        DataError: run.json is missing, or a record is broken; the file is named.
    """
    record = read_run(run_uri)
    error = asdict(record.error) if record.error is not None else None
    content = record.content() | {"timings_s": record.timings_s, "error": redact_tree(error)}
    run = _checked(Run, content, storage.join(run_uri, "run.json"))
    data_uri = record.data.uri if record.data is not None else None  # with no part masked
    metrics = redact_tree([row.model_dump() for row in read_metrics(run_uri)])
    text = _text(storage.join(run_uri, "config.yaml"))
    rows = {kind: [row for row in metrics if row["kind"] == kind] for kind in _ROWS}
    where = storage.join(run_uri, "metrics.jsonl")
    return Inputs(
        run_uri=redact(run_uri),
        run=run,
        config_text=text,
        config=_flat(text),
        steps=[_checked(Step, row, where) for row in rows["step"]],
        masks=[_checked(Mask, row, where) for row in rows["mask"] if row["kept_frac"]],
        health=[_checked(Health, row, where) for row in rows["health"]],
        evaluation=_find_view(Evaluation, storage.join(run_uri, "evaluation.json")),
        forgotten=_find_view(Forgotten, storage.join(run_uri, "forgotten.json")),
        manifest=_find_view(Manifest, storage.join(data_uri, "manifest.json"))
        if data_uri
        else None,
    )


def find(kind: type[Found], uri: str) -> Found | None:
    """Return the record at `uri` with secrets masked; None when there is none."""
    return require(kind, uri) if storage.exists(uri) else None


def require(kind: type[Found], uri: str) -> Found:
    """Return the record at `uri` with secrets masked; raises as `Record.read`."""
    content = redact_tree(kind.read(uri).content())
    return kind.model_validate_json(storage.to_json(content))


def _find_view(view: type[Shown], uri: str) -> Shown | None:
    return _checked(view, redact_tree(_json(uri)), uri) if storage.exists(uri) else None


def _json(uri: str) -> Any:
    """Return the content of a file, which may be anything that JSON can hold."""
    try:
        return json.loads(storage.read_bytes(uri))
    except (ValueError, RecursionError) as error:
        raise DataError(
            "E-DATA-202",
            f"the record is not JSON ({error})",
            where=uri,
            todo="restore the file from a backup, or run the stage that wrote it again",
        ) from None


def _checked(view: type[Shown], content: object, where: str) -> Shown:
    """Check content that came from JSON, which may be anything."""
    try:
        return view.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(
            "E-DATA-200",
            f"the record cannot be shown: {place}: {first['msg']}",
            where=where,
            todo="restore the file from a backup, or run the stage that wrote it again",
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
