"""Numbers of a live run for Prometheus: one table, and the one way in which they reach Ray.

Ray exports each as `ray_<name>`, counters as `ray_<name>_total`, at the metrics port of every node.
Series are few whatever the model and the length of a run: layers are grouped, tags are names
of runs, methods, reasons and ranks, never of images, steps or files.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pipeline.record.rows import StepRow
from pipeline.storage.retries import RETRIES


@dataclass(frozen=True)
class Metric:
    """One number.

    Args:
        name: as the code says it, with its unit.
        kind: a gauge is set, a counter only rises.
        tags: labels of its series.
        help: what it means, for the dashboard.
    """

    name: str
    kind: Literal["gauge", "counter"]
    tags: tuple[str, ...]
    help: str

    @property
    def exported_name(self) -> str:
        """As Prometheus knows it."""
        return f"ray_{self.name}" + ("_total" if self.kind == "counter" else "")


_METHOD = ("run", "method")
TABLE = (
    Metric("sdclr_step", "gauge", _METHOD, "steps done"),
    Metric("sdclr_num_steps", "gauge", _METHOD, "steps that the run will have"),
    Metric("sdclr_loss", "gauge", _METHOD, "loss, mean over all workers"),
    Metric("sdclr_lr", "gauge", _METHOD, "learning rate"),
    Metric("sdclr_temperature", "gauge", _METHOD, "temperature of the loss"),
    Metric("sdclr_grad_norm", "gauge", _METHOD, "L2 norm of the gradient"),
    Metric("sdclr_images_per_s", "gauge", _METHOD, "images per second of all workers"),
    Metric("sdclr_images", "counter", _METHOD, "images trained on, by all workers"),
    Metric("sdclr_data_wait_frac", "gauge", (*_METHOD, "rank"), "share of time without a batch"),
    Metric("sdclr_part_s", "gauge", (*_METHOD, "part"), "seconds of a step of rank 0, by part"),
    Metric("sdclr_work_s", "gauge", (*_METHOD, "rank"), "own seconds of a step: views, arithmetic"),
    Metric("sdclr_flops_per_s", "gauge", _METHOD, "arithmetic of the network, by all workers"),
    Metric("sdclr_roofline_frac", "gauge", _METHOD, "least time of the network over its time"),
    Metric("sdclr_kept_frac", "gauge", (*_METHOD, "layer"), "weights kept by the mask, by stage"),
    Metric("sdclr_kept_frac_min", "gauge", _METHOD, "weights kept in the most pruned layer"),
    Metric("sdclr_health", "gauge", (*_METHOD, "measure"), "label-free health measures"),
    Metric("sdclr_checkpoint_s", "gauge", _METHOD, "time that the last checkpoint took"),
    Metric("sdclr_checkpoint_time_s", "gauge", _METHOD, "Unix time of the last checkpoint"),
    Metric("sdclr_checkpoint_failures", "counter", _METHOD, "checkpoints that were not written"),
    Metric("sdclr_checkpoints_refused", "counter", _METHOD, "broken checkpoints skipped"),
    Metric("sdclr_restarts", "counter", (*_METHOD, "cause"), "trainings that resumed, by cause"),
    Metric("sdclr_lost_s", "gauge", (*_METHOD, "cause"), "wall time lost so far, by cause"),
    Metric("sdclr_goodput", "gauge", ("run",), "share of the wall time in steps that count"),
    Metric("sdclr_retries", "counter", ("run", "action"), "repeated requests to storage"),
    Metric("sdclr_rejects", "counter", ("data", "reason"), "images rejected at ingest"),
    Metric("sdclr_trials", "gauge", (*_METHOD, "status"), "trials of a sweep, by status"),
    Metric("sdclr_best_trial", "gauge", (*_METHOD, "objective"), "objective of the best trial"),
    Metric("sdclr_usd_per_hour", "gauge", ("run",), "price of the GPUs of a training"),
    Metric("sdclr_stops", "counter", ("run", "reason"), "runs that ended with an error"),
)
METRICS = {metric.name: metric for metric in TABLE}
# ResNets have 5 groups of layers; whatever an architecture calls its own, no more than these.
_MAX_LAYERS = 24
_OF_STEP = ("step", "num_steps", "loss", "lr", "temperature", "grad_norm", "images_per_s",
            "flops_per_s", "roofline_frac")  # fmt: skip
REFRESH_S = 1.0
"""Time between two exports of a value that stays: the shortest interval that Ray knows."""


class Settable(Protocol):
    """A gauge of Ray."""

    def set(self, value: float, tags: dict[str, str]) -> None:
        """Export a value once."""


class Held:
    """The last value of each gauge, exported again and again.

    Ray 2.60 exports a value once and drops its series seconds later. A run that stalls sets nothing
    any more, and would vanish instead of raising its alert.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[str, frozenset[tuple[str, str]]], tuple[Settable, float]] = {}
        self._thread: threading.Thread | None = None

    def set(self, gauge: Settable, name: str, value: float, tags: dict[str, str]) -> None:
        """Export a value, and keep it for `refresh`; the first one starts a thread for that."""
        self._last[name, frozenset(tags.items())] = (gauge, value)
        gauge.set(value, tags=tags)
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep, daemon=True)
            self._thread.start()

    def refresh(self) -> None:
        """Export every value again."""
        for (_, tags), (gauge, value) in list(self._last.items()):
            gauge.set(value, tags=dict(tags))

    def _keep(self) -> None:
        import ray

        while True:
            time.sleep(REFRESH_S)
            if not ray.is_initialized():
                self._last.clear()
                self._thread = None
                return
            with suppress(Exception):  # a number that is not shown ends no training
                self.refresh()


HELD = Held()


class Monitor:
    """Gauges in Ray under fixed tags; silent where Ray is not running.

    Args:
        tags: of every number set here, such as run and method.
    """

    def __init__(self, **tags: str) -> None:
        import ray

        self._on = ray.is_initialized()
        self._tags = tags
        self._known: dict[str, Any] = {}
        self._retries: Counter[str] = Counter(RETRIES)

    def set(self, name: str, value: float, **tags: str) -> None:
        """Set a gauge of the table; it stays set while this process is connected to Ray."""
        if self._on:
            HELD.set(self._of(name), name, float(value), self._named(name, tags))

    def add(self, name: str, amount: float = 1, **tags: str) -> None:
        """Raise a counter of the table; nothing happens for 0."""
        if self._on and amount > 0:
            self._of(name).inc(float(amount), tags=self._named(name, tags))

    def step(self, row: StepRow) -> None:
        """Record the numbers of a `step` row of the metrics file."""
        for key in _OF_STEP:
            if (value := getattr(row, key)) is not None:
                self.set(f"sdclr_{key}", value)
        for part, seconds in row.parts_s.items():
            self.set("sdclr_part_s", seconds, part=part)
        new = RETRIES - self._retries
        self._retries = Counter(RETRIES)
        for action, number in new.items():
            self.add("sdclr_retries", number, action=action)

    def mask(self, kept_frac: Mapping[str, float]) -> None:
        """Record the kept fractions of a refreshed mask; weight name -> fraction."""
        for layer, kept in by_group(kept_frac).items():
            self.set("sdclr_kept_frac", kept, layer=layer)
        self.set("sdclr_kept_frac_min", min(kept_frac.values()))

    def health(self, measures: Mapping[str, float | None]) -> None:
        """Record label-free measures by name; unmeasured ones are left out."""
        for measure, value in measures.items():
            if value is not None:
                self.set("sdclr_health", value, measure=measure)

    def checkpoint(self, seconds: float) -> None:
        """Record that a checkpoint was written."""
        self.set("sdclr_checkpoint_s", seconds)
        self.set("sdclr_checkpoint_time_s", time.time())

    def _of(self, name: str) -> Any:
        if name not in self._known:
            from ray.util.metrics import Counter as RayCounter
            from ray.util.metrics import Gauge

            metric = METRICS[name]
            kind = Gauge if metric.kind == "gauge" else RayCounter
            self._known[name] = kind(name, metric.help, metric.tags)
        return self._known[name]

    def _named(self, name: str, tags: Mapping[str, str]) -> dict[str, str]:
        every = {**self._tags, **tags}
        return {tag: every[tag] for tag in METRICS[name].tags}


def run_name(run_uri: str) -> str:
    """Return the last part of a run's URI: its name below the root."""
    return run_uri.rstrip("/").rpartition("/")[2]


def by_group(kept_frac: Mapping[str, float]) -> dict[str, float]:
    """Return the mean kept fraction of each top-level module, in order of appearance."""
    groups: dict[str, list[float]] = {}
    for name, kept in kept_frac.items():
        parts = name.removesuffix(".weight").split(".")
        # `backbone.layer1.0.conv1` belongs to layer1: what holds everything says nothing.
        group = parts[1] if parts[0] == "backbone" and len(parts) > 1 else parts[0]
        if group not in groups and len(groups) >= _MAX_LAYERS - 1:
            group = "other"
        groups.setdefault(group, []).append(kept)
    return {group: statistics.fmean(values) for group, values in groups.items()}
