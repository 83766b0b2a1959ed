"""A run's numbers reach TensorBoard, MLflow and Weights & Biases: each once, whenever they are."""

from __future__ import annotations

import base64
import json
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest

from pipeline import storage
from pipeline.cli.command_line import TRACKERS, parse
from pipeline.config.file import config_hash, load_config
from pipeline.config.stages import TrackerName
from pipeline.record.keeper import RunRecord
from pipeline.record.metrics import metrics_uri, read_rows
from pipeline.record.rows import StepRow
from pipeline.run import main
from pipeline.storage import LineLog
from pipeline.track import trackers
from pipeline.track.stage import following, log_run
from tests.loopback_s3 import ACCESS_KEY, SECRET_KEY, LoopbackS3
from tests.records import write_run
from tests.refusals import raises
from tests.test_architecture import PIPELINE, imported, name_of

PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder that trackers may write to, and nowhere else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "wb"))
    return tmp_path


@pytest.fixture
def run_uri(here: Path) -> str:
    return write_run(here)


def events(method: str = "sdclr") -> list[Any]:
    folder = Path("tensorboard") / "demo" / method
    return [e for file in sorted(folder.iterdir()) for e in trackers._events(file)]


def scalars(method: str = "sdclr") -> Counter[tuple[str, int]]:
    return Counter(
        (value.tag, int(event.step))
        for event in events(method)
        for value in event.summary.value
        if not value.HasField("image")
    )


def losses(run_uri: str, method: str = "sdclr") -> dict[int, float]:
    return {
        r.step: r.loss for r in read_rows(run_uri, StepRow, method=method) if r.loss is not None
    }


def test_tensorboard_has_every_loss_of_the_run(run_uri: str) -> None:
    added, where = log_run(run_uri, "tensorboard")
    assert added > 0 and where == str(Path("tensorboard") / "demo")
    for method in ("sdclr", "simclr"):
        found = {
            int(event.step): value.simple_value
            for event in events(method)
            for value in event.summary.value
            if value.tag == "train/loss"
        }
        wanted = losses(run_uri, method)
        assert found == pytest.approx(wanted, rel=1e-6) and len(wanted) > 5
    other = losses(run_uri, "simclr")
    assert losses(run_uri) != other  # the methods are told apart
    tags = {tag for tag, _ in scalars()}
    assert {"train/lr", "health/rankme", "mask/kept_frac_min"} <= tags


def test_the_pictures_of_the_report_are_there_as_they_are(run_uri: str) -> None:
    log_run(run_uri, "tensorboard")
    shown = json.loads((Path(run_uri) / "forgotten.json").read_text())
    found = {
        value.tag: value.image.encoded_image_string
        for event in events(shown["method"])
        for value in event.summary.value
        if value.HasField("image")
    }
    first = base64.b64decode(shown["most"][0]["png_base64"])
    assert found["forgotten/most_1"] == first
    assert len(found) == len(shown["most"]) + len(shown["least"])


@pytest.mark.parametrize("name", PACKAGES)
def test_again_adds_nothing(run_uri: str, name: str) -> None:
    pytest.importorskip(PACKAGES[name])
    assert log_run(run_uri, name)[0] > 0
    assert log_run(run_uri, name)[0] == 0


def test_what_comes_later_is_added_once(run_uri: str) -> None:
    metrics = Path(metrics_uri(run_uri))
    whole = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join(whole[: len(whole) // 2]))
    first, _ = log_run(run_uri, "tensorboard")
    metrics.write_bytes(b"".join(whole))
    second, _ = log_run(run_uri, "tensorboard")
    assert first > 0 and second > 0
    assert set(scalars().values()) == {1}


def test_a_torn_event_is_written_again(run_uri: str) -> None:
    log_run(run_uri, "tensorboard")
    before = scalars()
    (file,) = (Path("tensorboard") / "demo" / "sdclr").iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    lost = before - scalars()
    assert sum(lost.values()) <= 1
    assert log_run(run_uri, "tensorboard")[0] == 1
    assert log_run(run_uri, "tensorboard")[0] == 0


def test_two_logs_in_one_second_keep_each_other(run_uri: str) -> None:
    metrics = Path(metrics_uri(run_uri))
    whole = metrics.read_bytes().splitlines(keepends=True)
    for number in range(1, 6):
        metrics.write_bytes(b"".join(whole[: len(whole) * number // 5]))
        log_run(run_uri, "tensorboard")
    assert set(scalars().values()) == {1}
    assert {step for tag, step in scalars() if tag == "train/loss"} == set(losses(run_uri))


def test_mlflow_has_every_loss_of_the_run(run_uri: str) -> None:
    mlflow = pytest.importorskip("mlflow")
    log_run(run_uri, "mlflow")
    client = mlflow.MlflowClient()
    (run,) = client.search_runs(["0", *ids(client)], "tags.sdclr = 'demo-sdclr'")
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert {m.step: m.value for m in history} == pytest.approx(losses(run_uri))
    assert len(history) == len(losses(run_uri))
    assert client.list_artifacts(run.info.run_id, "forgotten")


def ids(client: Any) -> list[str]:
    return [experiment.experiment_id for experiment in client.search_experiments()]


def test_wandb_writes_an_offline_run_for_each_method(run_uri: str, here: Path) -> None:
    pytest.importorskip("wandb")
    log_run(run_uri, "wandb")
    names = {file.name for file in (here / "wb" / "wandb").rglob("run-*.wandb")}
    assert names == {"run-demo-sdclr.wandb", "run-demo-simclr.wandb"}


def test_a_run_in_a_bucket_is_read_there(
    run_uri: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LoopbackS3() as s3:
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3.buckets["bucket"] = {}
        for file in Path(run_uri).rglob("*"):
            if file.is_file():
                name = file.relative_to(run_uri).as_posix()
                storage.write_bytes(f"s3://bucket/runs/demo/{name}", file.read_bytes())
        added, _ = log_run("s3://bucket/runs/demo", "tensorboard")
    wanted = losses(run_uri)
    assert {step for tag, step in scalars() if tag == "train/loss"} == set(wanted)
    assert added > len(wanted)


def row(step: int) -> dict[str, Any]:
    values = StepRow(
        method="sdclr", seed=0, epoch=0, step=step, num_steps=9, loss=1.0 / step, lr=0.1,
        temperature=0.2, grad_norm=1.0, images_per_s=9.0, data_wait_frac=0.0, time_s=1.7e9 + step,
    )  # fmt: skip
    return values.model_dump()


def test_a_run_that_goes_on_is_followed_to_its_end(here: Path) -> None:
    uri = str(here / "runs" / "demo")
    record = RunRecord.create(uri, name="demo", config_hash="ab", seed=0, argv=["x"])
    results: list[tuple[int, str]] = []
    with record.stage("train"):
        thread = threading.Thread(
            target=lambda: results.append(log_run(uri, "tensorboard", follow=True, poll_s=0.01))
        )
        thread.start()
        with LineLog(metrics_uri(uri)) as log:
            for step in (1, 2, 3):
                log.append(row(step))
        assert thread.is_alive()
    record.finish()
    thread.join(30)
    assert results and results[0][0] == 3
    assert sorted(step for tag, step in scalars() if tag == "train/loss") == [1, 2, 3]


def test_a_tracker_that_fails_is_warned_of_and_ends_nothing(run_uri: str) -> None:
    Path("tensorboard").write_text("no folder")
    lines: list[str] = []
    with following(run_uri, ["tensorboard"], lines.append):
        went_on = True
    assert went_on and len(lines) == 1 and lines[0].startswith("tensorboard: ")


def test_a_package_that_is_absent_is_named(run_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with raises("E-CONFIG-600"):
        log_run(run_uri, "wandb")


def test_the_command_logs_a_run(run_uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log", run_uri, "--to", "tensorboard", "--dry-run"]) == 0
    assert not Path("tensorboard").exists()
    assert main(["log", run_uri, "--to", "tensorboard", "--follow"]) == 0
    assert "new points and pictures in tensorboard" in capsys.readouterr().out
    assert scalars()


@pytest.mark.parametrize(
    "words",
    [
        ["log", "--to", "tensorboard"],
        ["log", "RUN"],
        ["log", "RUN", "RUN2", "--to", "tensorboard"],
        ["log", "RUN", "--to", "tensorboard", "run.seed=1"],
    ],
)
def test_log_takes_one_run_and_one_tracker(words: list[str]) -> None:
    with raises("E-CONFIG-601"):
        parse(words)


def test_the_trackers_of_the_words_are_those_of_the_keys() -> None:
    assert get_args(TrackerName) == TRACKERS


def test_words_of_log_are_refused_elsewhere() -> None:
    with raises("E-CONFIG-222"):
        parse(["train", "--follow"])


def test_who_follows_a_run_does_not_change_what_it_is() -> None:
    plain, followed = (load_config(None, words) for words in ([], ["run.trackers=[mlflow]"]))
    assert followed.run.trackers == ("mlflow",)
    assert config_hash(plain) == config_hash(followed)
    assert config_hash(plain) != config_hash(load_config(None, ["run.seed=1"]))


def test_only_the_room_of_trackers_imports_their_packages() -> None:
    users = {
        name_of(path)
        for path in PIPELINE
        if {name.partition(".")[0] for name in imported(path)} & set(PACKAGES.values())
    }
    assert users == {"pipeline/track/trackers"}
