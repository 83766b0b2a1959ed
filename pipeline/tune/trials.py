"""RUN/trials/NAME/trial.json: one JSON record for each trial, the only state that a sweep has.

    {"schema_version": 1, "name": "sdclr-0003", "method": "sdclr", "number": 3, "role": "search",
     "params": {"sdclr.prune_ratio": 0.71}, "seed": 0, "status": "pruned", "seconds": 12.3,
     "rows": [{"epoch": 1, "fewshot": 0.41, ...}], "error": null}

The driver is the only writer. A record is replaced as a whole, so a killed driver leaves the old
or the new one; whoever runs the sweep again continues from what is here, and nothing is unpickled.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import asdict, dataclass, field
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from pipeline import storage
from pipeline.config.stages import Method
from pipeline.errors import DataError, ErrorReport

Status = Literal["running", "complete", "pruned", "failed"]
Role = Literal["search", "confirm"]
Row = dict[str, float | int | None]
FINISHED: tuple[Status, ...] = ("complete", "pruned", "failed")
_NAME = re.compile(r"[a-z0-9-]{1,64}")
# A record of a running trial is a convenience, so it is not written after every report.
_SAVE_EVERY_S = 5.0


@with_config(ConfigDict(extra="forbid", strict=True))
@dataclass
class TrialRecord:
    """One trial, by its name.

    Args:
        name: folder below RUN/trials.
        method: a name of train.methods.
        number: its number in the study of the method, or among the confirmations.
        role: `search`, or `confirm` for a training with fresh seeds at the end.
        params: key -> value, of what is searched.
        seed: of the training.
        status: `complete` trials ran all their epochs, `pruned` ones were stopped by ASHA.
        rows: what was measured, by rising epoch, counted from 1.
        seconds: of training and measuring, over all attempts.
        error: of a trial that failed.
        label: what a confirmation is of.
    """

    name: str
    method: Method
    number: int
    role: Role
    params: dict[str, float | int]
    seed: int
    status: Status = "running"
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    error: ErrorReport | None = None
    label: str = ""
    schema_version: Literal[1] = 1

    @property
    def epochs(self) -> int:
        """Epochs trained and measured so far."""
        return int(self.rows[-1]["epoch"] or 0) if self.rows else 0

    def last(self, key: str) -> float | None:
        """Return the newest value of a measure; None if there is none or it is not finite."""
        value = self.rows[-1].get(key) if self.rows else None
        return None if value is None or not math.isfinite(value) else float(value)

    def add(self, row: Row) -> None:
        """Put a row in its place; rows of this or later epochs are of an older attempt."""
        epoch = row["epoch"] or 0
        self.rows = [old for old in self.rows if (old["epoch"] or 0) < epoch] + [row]


_ADAPTER: TypeAdapter[TrialRecord] = TypeAdapter(TrialRecord)


def trial_name(method: str, number: int) -> str:
    """Return a name such as `sdclr-0003`."""
    return f"{method}-{number:04d}"


class Trials:
    """All trial records of a sweep.

    Raises:
        DataError: a record is broken; the file is named.
    """

    def __init__(self, run_uri: str) -> None:
        self.run_uri = run_uri
        self._records: dict[str, TrialRecord] = {}
        self._saved_at_s: dict[str, float] = {}
        for name in storage.list_names(storage.join(run_uri, "trials")):
            record = self._read(name)
            if record is not None:
                self._records[name] = record

    def uri(self, name: str) -> str:
        """Return the folder of a trial."""
        return storage.join(self.run_uri, "trials", name)

    def all(self, role: Role = "search", method: str | None = None) -> list[TrialRecord]:
        """Return records by method and number."""
        records = list(self._records.values())  # one step: Tune's thread adds to them
        found = [r for r in records if r.role == role and method in (None, r.method)]
        return sorted(found, key=lambda r: (r.method, r.number))

    def get(self, name: str) -> TrialRecord | None:
        """Return the record of a name."""
        return self._records.get(name)

    def save(self, record: TrialRecord, *, lazily: bool = False) -> None:
        """Publish a record; `lazily`, at most every few seconds."""
        self._records[record.name] = record
        now_s = time.monotonic()
        if lazily and now_s - self._saved_at_s.get(record.name, -math.inf) < _SAVE_EVERY_S:
            return
        uri = storage.join(self.uri(record.name), "trial.json")
        storage.write_bytes(uri, storage.to_json(asdict(record), indent=1))
        self._saved_at_s[record.name] = now_s

    def _read(self, name: str) -> TrialRecord | None:
        uri = storage.join(self.uri(name), "trial.json")
        if not _NAME.fullmatch(name) or not storage.exists(uri):
            return None  # a killed driver had not yet written it: the trial restarts
        try:
            record = _ADAPTER.validate_json(storage.read_bytes(uri))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise DataError(
                "E-DATA-093",
                f"the record of a trial is broken at {place or 'the top'}: {first['msg']}",
                where=uri,
                todo="delete the trial's folder: the trial is then run again",
            ) from error
        if record.name != name:
            raise DataError(
                "E-DATA-094",
                f"the record is that of trial {record.name}",
                where=uri,
                todo="delete the folder",
            )
        return record
