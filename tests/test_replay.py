"""A captured step, repeated: the same numbers to the last bit, on as many ranks."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from sdclr import NonFiniteError, Trainer, collective
from sdclr.imageset import Batch
from sdclr.replay import FORMAT_VERSION, CaptureError, capture_step, main, read_capture, replay
from tests.ranks import run_on_ranks
from tests.recipes import some_images, some_plan, some_trainer

NETWORK = {
    "backbone": "resnet8", "stem": "cifar", "head_depth": 2, "embedding_dim": 16, "seed": 0,
}  # fmt: skip


def trained(steps: int) -> tuple[Trainer, Batch]:
    """A trainer after some steps, and its next batch; on this process's ranks."""
    plan = some_plan(num_ranks=collective.world_size())
    trainer = some_trainer(plan)
    feed = some_images().feed(plan, seed=0, rank=collective.rank())
    reports = trainer.run(feed)
    for _ in range(steps):
        next(reports)
    batch = next(iter(feed.batches(trainer.epoch, start_step=steps % plan.num_steps)))
    return trainer, batch


def healthy(steps: int = 7) -> bytes:
    """A capture of a step that goes well, with what the step gave."""
    trainer, batch = trained(steps)
    kept = capture_step(trainer, batch, loss=0, grad_norm=0, network=NETWORK)
    report = trainer.update(batch)
    content = torch.load(_file(kept), weights_only=True)
    content |= {"loss": report.loss, "grad_norm": report.grad_norm}
    return _bytes(content)


def diverged() -> bytes:
    """A capture of a step that is stopped."""
    trainer, batch = trained(6)
    with torch.no_grad():
        trainer.network.head[0].bias[0] = torch.inf
    with pytest.raises(NonFiniteError) as caught:
        trainer.update(batch)
    error = caught.value
    return capture_step(
        trainer, error.batch, loss=error.loss, grad_norm=error.grad_norm, network=NETWORK
    )


def _file(content: bytes) -> Any:
    return io.BytesIO(content)


def _bytes(content: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def on_ranks() -> dict[str, Any]:
    return {"capture": torch.frombuffer(bytearray(healthy()), dtype=torch.uint8)}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.promise("R22")
def test_a_step_is_repeated_bit_for_bit(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(healthy())
    content = read_capture(tmp_path / "x.pt")
    found = replay(content)
    assert (found.loss, found.grad_norm) == (content["loss"], content["grad_norm"])
    assert found.first_bad == "" and main([str(tmp_path / "x.pt")]) == 0


@pytest.mark.promise("R22", control=True)
def test_a_step_with_one_other_weight_or_image_is_another_step(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(healthy())
    content = read_capture(tmp_path / "x.pt")
    weight = content["model"]["network.head.0.weight"]
    weight[0, 0] += 1.0
    assert replay(content).loss != content["loss"]
    weight[0, 0] -= 1.0
    content["images_RBCHW"][0, 0] = 255 - content["images_RBCHW"][0, 0]
    assert replay(content).loss != content["loss"]
    (tmp_path / "y.pt").write_bytes(_bytes(content))
    assert main([str(tmp_path / "y.pt")]) == 1


@pytest.mark.slow
@pytest.mark.promise("R22")
def test_a_step_of_two_ranks_is_repeated_on_two_ranks(tmp_path: Path) -> None:
    first, second = run_on_ranks(on_ranks)
    (tmp_path / "x.pt").write_bytes(first["capture"].numpy().tobytes())
    content = read_capture(tmp_path / "x.pt")
    assert content["images_RBCHW"].shape[:2] == (2, 4)
    found = replay(content)
    assert (found.loss, found.grad_norm) == (content["loss"], content["grad_norm"])
    assert len(first["capture"]) == len(second["capture"])


@pytest.mark.promise("R22")
def test_a_step_that_was_stopped_is_stopped_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.pt"
    file.write_bytes(diverged())
    assert main([str(file)]) == 0
    title, captured, replayed, bad = capsys.readouterr().out.splitlines()
    assert title.startswith("step 6 of sdclr, 1 ranks")
    assert captured.removeprefix("captured") == replayed.removeprefix("replayed")
    assert "loss nan" in captured and bad == "first that is not finite: output of network.head.0"


@pytest.mark.promise("S1")
def test_a_hostile_capture_is_refused_and_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    file = tmp_path / "x.pt"
    torch.save({"format_version": FORMAT_VERSION, "model": Payload()}, file)
    assert main([str(file)]) == 2 and "is not a capture" in capsys.readouterr().err
    file.write_bytes(pickle.dumps(Payload()))
    assert main([str(file)]) == 2 and not (tmp_path / "ran").exists()
    torch.save({"format_version": 9}, file)
    with pytest.raises(CaptureError, match=f"format version {FORMAT_VERSION}"):
        read_capture(file)
    assert main([str(tmp_path / "none")]) == 2 and main([]) == 2


def test_a_capture_of_a_library_that_is_not_here_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(_file(healthy()), weights_only=True)
    content["network"] = {**NETWORK, "backbone": "elsewhere/net"}
    (tmp_path / "x.pt").write_bytes(_bytes(content))
    assert main([str(tmp_path / "x.pt")]) == 2 and "elsewhere" in capsys.readouterr().err


@pytest.mark.promise("S1", control=True)
def test_the_payload_of_the_hostile_files_would_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    pickle.loads(pickle.dumps(Payload()))
    assert (tmp_path / "ran").exists()
