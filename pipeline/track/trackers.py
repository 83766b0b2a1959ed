"""TensorBoard, MLflow and Weights & Biases: one class each, imported where it is used only.

Each says what it has already, so that logging again adds nothing. Where they write is what their
own users expect: a folder `tensorboard` here, MLFLOW_TRACKING_URI, the WANDB_* variables.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import ConfigError
from pipeline.track.points import Picture, Point

Seen = set[tuple[str, int]]
"""(kind, step) of points, (tag, step) of pictures."""
_PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
_HEADER_BYTES, _CRC_BYTES = 12, 4


class Tracker(Protocol):
    """One run's place in a tracker; a method of the run is a run of its own there."""

    where: str

    def seen(self, method: str) -> Seen:
        """Return what the tracker has of a method."""

    def write(self, point: Point) -> None:
        """Add a point that it does not have; steps of a method rise."""

    def show(self, picture: Picture) -> None:
        """Add a picture that it does not have."""

    def flush(self) -> None:
        """Make what was added visible to a reader."""

    def close(self) -> None:
        """Flush, and end what was begun."""


def opened(name: str, run_name: str) -> Tracker:
    """Return the tracker of that name for a run.

    Raises:
        ConfigError: its package is not installed.
    """
    kinds: dict[str, Callable[[str], Tracker]] = {
        "tensorboard": TensorBoard, "mlflow": MLflow, "wandb": Wandb,
    }  # fmt: skip
    try:
        return kinds[name](run_name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != _PACKAGES[name]:
            raise
        raise ConfigError(
            "E-CONFIG-600",
            f"the tracker {name} needs the package {_PACKAGES[name]}",
            where=name,
            todo=f"python -m pip install 'sdclr[{name}]'",
        ) from None


class TensorBoard:
    """Event files in `tensorboard/RUN/METHOD`."""

    def __init__(self, run_name: str) -> None:
        from tensorboardX import SummaryWriter

        self._writer_class = SummaryWriter
        self._folder = Path("tensorboard") / run_name
        self._writers = dict[str, SummaryWriter]()
        self.where = str(self._folder)

    def seen(self, method: str) -> Seen:
        """Return what the event files hold."""
        found: Seen = set()
        for file in sorted((self._folder / method).glob("events.out.tfevents.*")):
            for event in _events(file):
                for value in event.summary.value:
                    is_picture = value.HasField("image")
                    kind = value.tag if is_picture else value.tag.partition("/")[0]
                    found.add((kind, int(event.step)))
        return found

    def write(self, point: Point) -> None:
        """Add one scalar for each value."""
        writer = self._writer(point.method)
        for name, value in point.values.items():
            writer.add_scalar(f"{point.kind}/{name}", value, point.step, walltime=point.time_s)

    def show(self, picture: Picture) -> None:
        """Add the PNG as it is."""
        from tensorboardX.proto.summary_pb2 import Summary

        width, height = picture.size_px
        image = Summary.Image(
            encoded_image_string=picture.png, width=width, height=height, colorspace=3
        )
        summary = Summary(value=[Summary.Value(tag=picture.name, image=image)])
        self._writer(picture.method).file_writer.add_summary(summary, picture.step)

    def flush(self) -> None:
        """Write out what is buffered."""
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """Close the event files."""
        for writer in self._writers.values():
            writer.close()

    def _writer(self, method: str) -> Any:
        if method not in self._writers:
            # The name has seconds only: a second log in one second would empty the first's file.
            self._writers[method] = self._writer_class(
                str(self._folder / method), filename_suffix=f".{uuid.uuid4().hex}"
            )
        return self._writers[method]


def _events(file: Path) -> Iterator[Any]:
    """Yield the events of a file; a torn last one is skipped."""
    from tensorboardX.proto.event_pb2 import Event

    data, at = file.read_bytes(), 0
    while at + _HEADER_BYTES <= len(data):
        (size,) = struct.unpack("<Q", data[at : at + 8])
        start = at + _HEADER_BYTES
        if start + size + _CRC_BYTES > len(data):
            return
        yield Event.FromString(data[start : start + size])
        at = start + size + _CRC_BYTES


class MLflow:
    """Experiment `sdclr` at MLFLOW_TRACKING_URI, with a run `RUN-METHOD` for each method."""

    def __init__(self, run_name: str) -> None:
        import mlflow

        self._client = mlflow.MlflowClient()
        self._name = run_name
        self._ids: dict[str, str] = {}
        self.where = str(mlflow.get_tracking_uri())

    def seen(self, method: str) -> Seen:
        """Return the steps of the first metric of each kind, and the names of artifacts."""
        run_id = self._run(method)
        names = list(self._client.get_run(run_id).data.metrics)
        found: Seen = set()
        for kind in {name.partition("/")[0] for name in names}:
            for name in (name for name in names if name.startswith(f"{kind}/")):
                history = self._client.get_metric_history(run_id, name)
                found |= {(kind, int(metric.step)) for metric in history}
        for folder in self._client.list_artifacts(run_id):
            for file in self._client.list_artifacts(run_id, folder.path):
                tag, _, step = file.path.removesuffix(".png").rpartition("-")
                found.add((tag, int(step)))
        return found

    def write(self, point: Point) -> None:
        """Add the values in one call."""
        from mlflow.entities import Metric

        time_ms = int(point.time_s * 1000)
        metrics = [
            Metric(f"{point.kind}/{name}", value, time_ms, point.step)
            for name, value in point.values.items()
        ]
        self._client.log_batch(self._run(point.method), metrics=metrics)

    def show(self, picture: Picture) -> None:
        """Add the PNG as an artifact."""
        folder, _, name = picture.name.rpartition("/")
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / f"{name}-{picture.step}.png"
            file.write_bytes(picture.png)
            self._client.log_artifact(self._run(picture.method), str(file), folder)

    def flush(self) -> None:
        """Do nothing: every call is stored at once."""

    def close(self) -> None:
        """End the runs."""
        for run_id in self._ids.values():
            self._client.set_terminated(run_id)

    def _run(self, method: str) -> str:
        if method in self._ids:
            return self._ids[method]
        experiment = self._client.get_experiment_by_name("sdclr")
        number = experiment.experiment_id if experiment else self._client.create_experiment("sdclr")
        name = f"{self._name}-{method}"
        found = self._client.search_runs([number], f"tags.sdclr = '{name}'", max_results=1)
        run = found[0] if found else None
        if run is None:
            run = self._client.create_run(number, run_name=name, tags={"sdclr": name})
        self._ids[method] = str(run.info.run_id)
        return self._ids[method]


class Wandb:
    """Project WANDB_PROJECT, else `sdclr`, with a run `RUN-METHOD` for each method.

    An offline run cannot be read back, so a file beside it keeps what was logged.
    """

    def __init__(self, run_name: str) -> None:
        import wandb

        self._wandb, self._name = wandb, run_name
        self._folder = Path(os.environ.get("WANDB_DIR", "."))
        self._runs = dict[str, wandb.Run]()
        self._logged: dict[str, list[tuple[str, int]]] = {}
        self.where = str(self._folder / "wandb")

    def seen(self, method: str) -> Seen:
        """Return what the file beside the runs says."""
        file = self._ledger(method)
        logged = json.loads(file.read_text()) if file.is_file() else []
        self._logged[method] = [(str(kind), int(step)) for kind, step in logged]
        return set(self._logged[method])

    def write(self, point: Point) -> None:
        """Log the values at their step."""
        values = {f"{point.kind}/{name}": value for name, value in point.values.items()}
        self._run(point.method).log(values, step=point.step)
        self._logged.setdefault(point.method, []).append((point.kind, point.step))

    def show(self, picture: Picture) -> None:
        """Log the PNG at its step."""
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / "picture.png"
            file.write_bytes(picture.png)
            image = self._wandb.Image(str(file))
            self._run(picture.method).log({picture.name: image}, step=picture.step)
        self._logged.setdefault(picture.method, []).append((picture.name, picture.step))

    def flush(self) -> None:
        """Write down what was logged."""
        for method, logged in self._logged.items():
            file = self._ledger(method)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(logged))

    def close(self) -> None:
        """End the runs."""
        self.flush()
        for run in self._runs.values():
            run.finish()

    def _ledger(self, method: str) -> Path:
        return self._folder / "wandb" / f"sdclr-{self._name}-{method}.json"

    def _run(self, method: str) -> Any:
        if method not in self._runs:
            name = f"{self._name}-{method}"
            self._folder.mkdir(parents=True, exist_ok=True)
            self._runs[method] = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT", "sdclr"),
                id=name, name=name, resume="allow", dir=str(self._folder), reinit="create_new",
                settings=self._wandb.Settings(silent=True, console="off"),
            )  # fmt: skip
        return self._runs[method]
