"""End of runs that say they are running, and that nobody runs any more.

    RUN/training.json   by the rule of `pipeline.storage.claim`: who trains, on which host

A claim says on its own host whether its process lives. From any other host a training is known by
its lines: one comes every 20 s, and the driver ends a training that has none for half an hour.
"""

from __future__ import annotations

import time
from datetime import datetime

from pipeline import storage
from pipeline.errors import ErrorReport
from pipeline.record.metrics import read_metrics
from pipeline.record.run import INTERRUPTED, RUNNING, Run
from pipeline.storage import claim

CLAIM_NAME = "training.json"
SILENT_S = 86400.0
"""A training without a line for so long is over; its stall limit is a fraction of it."""
_ERROR = ErrorReport(
    "Interrupted",
    "E-STOP-880",
    "the process ended without a word: it was killed, or its machine is gone",
    "",
    "resume with --resume",
    1,
)


def claim_uri(run_uri: str) -> str:
    """Return where the claim on a run is."""
    return storage.join(run_uri, CLAIM_NAME)


def with_end(run_uri: str, run: Run, *, now_s: float | None = None) -> Run:
    """Return the record as it is, or as interrupted when nobody runs it any more.

    Raises:
        StorageError: the claim cannot be read.
        DataError: the metrics are broken.
    """
    if run.status != RUNNING or not _is_abandoned(run_uri, run, now_s or time.time()):
        return run
    stages = {
        name: state.model_copy(update={"status": INTERRUPTED, "error": _ERROR})
        if state.status == RUNNING
        else state
        for name, state in run.stages.items()
    }
    return run.model_copy(update={"status": INTERRUPTED, "stages": stages})


def _is_abandoned(run_uri: str, run: Run, now_s: float) -> bool:
    lives = claim.owner_lives(claim_uri(run_uri))
    if lives is not None:
        return not lives
    train = run.stages.get("train")
    if train is None or train.status != RUNNING:
        return False
    began_s = datetime.fromisoformat(train.started_utc).timestamp()
    return now_s - max([began_s, *(row.time_s for row in read_metrics(run_uri))]) > SILENT_S
