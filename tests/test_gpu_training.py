"""Training on a simulated GPU: the CPU's losses, no host wait, bounded launches, a late stop."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from pipeline.config.file import load_config
from pipeline.record.metrics import metrics_uri
from pipeline.train.step_log import MethodLog
from sdclr import (
    ImageSet,
    NonFiniteError,
    StarvedLayerError,
    StepReport,
    Trainer,
    TrainState,
    Twin,
    build_network,
    capture,
    cifar_recipe,
    imageset,
    rendering,
    restore,
)
from sdclr.optimizers import align_gradients
from sdclr.order import EpochPlan
from sdclr.prune import PruneRule
from sdclr.replay import capture_step, read_capture, replay
from tests.recipes import some_images, some_plan, some_trainer
from tests.simulated_gpu import DEVICE, STAGED_BYTES, DeviceTensor, SimulatedGPU

PLAN = some_plan(24)  # 3 steps per epoch, 3 epochs
CONFIG = load_config(None, ["train.methods=[sdclr]"])
NETWORK = {
    "backbone": "resnet8", "stem": "cifar", "head_depth": 2, "embedding_dim": 16, "seed": 0,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "sdclr": {},
    "simclr": {"method": "simclr"},
    "random part of the mask": {"prune": PruneRule(prune_ratio=0.9, random_ratio=0.2)},
    "micro batch": {"micro_batch": 3},
    "adamw": {"optimizer": "adamw", "lr": 1e-3},
    "lars": {"optimizer": "lars"},
    "bcl": {"method": "bcl-d"},
}
MOST_LAUNCHES = 750
"""Of a step of a ResNet-18, views by Triton, optimizer and all."""
CAPTURE = 2
"""Waits when a step becomes a graph."""
MOST_LAUNCHES_BY_TORCH = 1200
"""Of a step whose views are made by torch operations."""
MOST_LAUNCHES_OF_MASKS = 170
"""Of the refresh of its masks."""


def images_there() -> ImageSet:
    images = some_images(24)
    return ImageSet(images.images_NCHW.to(DEVICE), images.sizes_N2)


def losses_of(trainer: Trainer, images: ImageSet) -> list[float]:
    return [report.loss for report in trainer.run(images.feed(PLAN, seed=0))]


def test_a_tensor_left_on_the_cpu_is_refused() -> None:
    with SimulatedGPU():
        trainer = some_trainer(PLAN, device="cuda:0")
        norm = trainer.network.backbone.bn1
        norm.weight = torch.nn.Parameter(norm.weight.detach().cpu())
        with pytest.raises(RuntimeError, match="on the CPU"):
            losses_of(trainer, images_there())


def steps_of(trainer: Trainer, images: ImageSet) -> tuple[list[StepReport], list[Counter[str]]]:
    """The reports of a run, and what each step waited for, the masks before it included."""
    gpu, reports, waits = SimulatedGPU.now(), [], []
    gpu.forget()
    for report in trainer.run(images.feed(PLAN, seed=0)):
        reports.append(report)
        waits.append(Counter(gpu.waits))
        gpu.forget()
    return reports, waits


PLACES = [(kind, "device") for kind in KINDS] + [("sdclr", "host"), ("bcl", "host")]


@pytest.mark.parametrize(("kind", "place"), PLACES)
def test_losses_are_those_of_the_cpu_and_neither_steps_nor_masks_wait(
    kind: str, place: str
) -> None:
    # Large enough that a batch from ordinary memory would wait.
    images = some_images(24, px=64)
    assert images.images_NCHW[:8].numel() > STAGED_BYTES
    expected = losses_of(some_trainer(PLAN, **KINDS[kind]), images)
    with SimulatedGPU():
        if place == "device":
            images = ImageSet(images.images_NCHW.to(DEVICE))
        reports, waits = steps_of(some_trainer(PLAN, device="cuda:0", **KINDS[kind]), images)
        found = [report.loss for report in reports]
    # AdamW moves a weight whose gradient is only rounding by its whole learning rate.
    assert len(found) == 9
    assert found == pytest.approx(expected, rel=0.1 if kind == "adamw" else 1e-4)
    # The fourth step is captured as a graph, which waits before it, and for a comparison.
    captured = {name: n for name, n in waits[3].items() if "step_graph.py" in name}
    assert sum(captured.values()) == 2
    waits[3] -= Counter(captured)
    # BCL decides on the host, once an epoch: it reads the losses, and the last step before.
    at_epochs = waits[::3] if kind == "bcl" else []
    assert all(sum(counts.values()) <= 2 for counts in at_epochs)
    rest = [w for n, w in enumerate(waits) if n % 3] if kind == "bcl" else waits
    assert sum(rest, Counter()) == {}


@pytest.mark.parametrize("fault", ["row numbers", "images", "loss"])
def test_what_would_wait_is_seen_in_every_step(fault: str) -> None:
    plain: Callable[[Tensor, torch.device], Tensor] = lambda t, device: t.to(device)  # noqa: E731
    images = some_images(24, px=64)
    with SimulatedGPU() as gpu:
        trainer = some_trainer(PLAN, device="cuda:0")
        there = ImageSet(images.images_NCHW.to(DEVICE))
        gpu.forget()
        if fault == "loss":
            losses = [report.loss for report in trainer.run(there.feed(PLAN, seed=0))]
            assert len(losses) == 9 == sum(gpu.waits.values()) - CAPTURE
            return
        with mock.patch.object(imageset, "to_device", plain):
            _, waits = steps_of(trainer, there if fault == "row numbers" else images)
    # The batch of an epoch's last step is staged in the step before.
    counts = [sum(step.values()) for step in waits]
    counts[3] -= CAPTURE
    assert [count > 0 for count in counts] == [True, True, False] * 3


def test_launches_of_a_step_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "_warned_of", set())
    plan = EpochPlan(num_images=12, global_batch=4, drop_last=True)
    with SimulatedGPU() as gpu:
        network = build_network("resnet18", stem="cifar", head_depth=2, seed=0)
        recipe = cifar_recipe("sdclr", epochs=1)
        trainer = Trainer(network, recipe, steps_per_epoch=3, device="cuda:0")
        images = ImageSet(some_images(12, 32).images_NCHW.to(DEVICE))
        batches = list(images.feed(plan, seed=0).batches(0))
        trainer.update(batches[0])
        gpu.forget()
        trainer.update(batches[1])
        assert 0.5 * MOST_LAUNCHES < gpu.num_launches <= MOST_LAUNCHES
        assert gpu.launches["small_views"] == 1
        trainer.begin_at(1)  # how many operations torch needs follows from the draws
        gpu.forget()
        with (
            mock.patch.object(rendering, "problem_of", return_value="no compiler"),
            pytest.warns(RuntimeWarning, match="no compiler"),
        ):
            trainer.update(batches[1])
        assert MOST_LAUNCHES < gpu.num_launches <= MOST_LAUNCHES_BY_TORCH
        assert isinstance(trainer.model, Twin)
        gpu.forget()
        trainer.model.refresh_masks(PruneRule(prune_ratio=0.9))
        assert 0 < gpu.num_launches <= MOST_LAUNCHES_OF_MASKS and not gpu.waits


def test_gradients_get_the_strides_of_their_weights() -> None:
    layer = torch.nn.Conv2d(4, 6, 1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    plain = torch.arange(24.0).view(6, 4, 1, 1)
    layer.weight.grad, layer.bias.grad = plain.clone(), torch.ones(6)
    assert layer.weight.grad.stride() != layer.weight.stride()
    align_gradients(layer)
    assert layer.weight.grad.stride() == layer.weight.stride()
    assert torch.equal(layer.weight.grad, plain) and torch.equal(layer.bias.grad, torch.ones(6))


def values_of(trainer: Trainer, *parts: str) -> dict[str, Tensor]:
    """Tensors of the trainer by name, on the CPU, whatever its last step was."""
    trainer._unread.clear()
    counts = ("running_mean", "running_var", "num_batches_tracked")  # the norms have seen the batch
    state = capture(trainer).tensors
    return {n: t for n, t in state.items() if n.startswith(parts) and not n.endswith(counts)}


def spoil(trainer: Trainer, how: str) -> None:
    head = trainer.network.head[0]
    if how == "weight":
        with torch.no_grad():
            head.bias[0] = torch.inf
    else:  # a finite loss whose gradient overflows
        head.weight.register_hook(lambda grad: grad * torch.inf)


@pytest.mark.parametrize("how", ["weight", "gradient"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
@pytest.mark.parametrize("step", [1, 2])  # 2 is the last of its epoch: the masks are renewed next
@pytest.mark.promise("R22")
def test_a_non_finite_step_is_found_a_step_late_and_has_changed_nothing(
    how: str, optimizer: str, step: int
) -> None:
    changes = {"optimizer": optimizer, "lr": 1e-3 if optimizer == "adamw" else 0.1}
    with SimulatedGPU():
        trainer = some_trainer(PLAN, device="cuda:0", **changes)
        reports = trainer.run(images_there().feed(PLAN, seed=0))
        list(itertools.islice(reports, step))
        spoil(trainer, how)
        before = values_of(trainer, "model.", "momentum.", "mean.", "square.", "lars")
        assert trainer.is_sound
        next(reports)
        assert not trainer.is_sound  # known to who asks, and waits
        with pytest.raises(NonFiniteError, match=f"step {step} ") as caught:
            next(reports)
        after = values_of(trainer, "model.", "momentum.", "mean.", "square.", "lars")
        assert trainer.step == step and len(before) > 40
        assert [n for n in before if not torch.equal(before[n], after[n])] == []
        assert caught.value.batch.rows_B.tolist() == rows_of(step)


@pytest.mark.promise("R22", control=True)
def test_without_the_flag_the_weights_would_be_spoilt() -> None:
    with SimulatedGPU():
        trainer = some_trainer(PLAN, device="cuda:0")
        trainer.optimizer.found_inf = None  # type: ignore[attr-defined]
        reports = trainer.run(images_there().feed(PLAN, seed=0))
        list(itertools.islice(reports, 1))
        spoil(trainer, "gradient")
        before = values_of(trainer, "model.network.head.0.weight")
        next(reports)
        after = values_of(trainer, "model.network.head.0.weight")
        assert all(not torch.equal(before[name], after[name]) for name in before)


def rows_of(step: int) -> list[int]:
    epoch, place = divmod(step, PLAN.num_steps)
    batches = some_images(24).feed(PLAN, seed=0).batches(epoch, start_step=place)
    rows: list[int] = next(iter(batches)).rows_B.tolist()
    return rows


@pytest.mark.promise("R22")
def test_a_late_stop_is_captured_and_repeated(tmp_path: Path) -> None:
    with SimulatedGPU():
        trainer = some_trainer(PLAN, device="cuda:0")
        reports = trainer.run(images_there().feed(PLAN, seed=0))
        list(itertools.islice(reports, 2))
        spoil(trainer, "weight")
        with pytest.raises(NonFiniteError) as caught:
            list(reports)
        error = caught.value
        content = capture_step(
            trainer, error.batch, loss=error.loss, grad_norm=error.grad_norm, network=NETWORK
        )
    file = tmp_path / "step.pt"
    file.write_bytes(content)
    kept = read_capture(file)
    assert kept["step"] == 2 and kept["device"] == "cuda"
    assert "head" in replay(kept).first_bad


@pytest.mark.promise("R22")
def test_the_last_step_of_a_run_is_checked_as_well() -> None:
    with SimulatedGPU():
        trainer = some_trainer(PLAN, device="cuda:0")
        reports = trainer.run(images_there().feed(PLAN, seed=0))
        list(itertools.islice(reports, 8))
        spoil(trainer, "weight")
        next(reports)
        with pytest.raises(NonFiniteError, match="step 8 "):
            capture(trainer)
        assert trainer.step == 8


def test_a_starved_layer_is_found_a_step_late_and_keeps_its_mask() -> None:
    with SimulatedGPU():
        trainer = some_trainer(PLAN, device="cuda:0")
        reports = trainer.run(images_there().feed(PLAN, seed=0))
        list(itertools.islice(reports, 3))
        with torch.no_grad():
            trainer.network.backbone.conv1.weight.mul_(1e-9)
        before = values_of(trainer, "model.masks")
        next(reports)
        assert not trainer.is_sound
        assert all(torch.equal(before[n], m) for n, m in values_now(trainer).items())
        with pytest.raises(StarvedLayerError, match="conv1"):
            next(reports)


def values_now(trainer: Trainer) -> dict[str, Tensor]:
    masks = trainer.model.masks.state_dict(prefix="model.masks.")
    return {name: m.values if isinstance(m, DeviceTensor) else m for name, m in masks.items()}


def test_a_capture_waits_once_for_the_step_and_once_for_all_copies() -> None:
    with SimulatedGPU() as gpu:
        trainer = some_trainer(PLAN, device="cuda:0")
        reports = trainer.run(images_there().feed(PLAN, seed=0))
        next(reports)
        gpu.forget()
        state = capture(trainer)
        assert sum(gpu.waits.values()) == 2, gpu.waits
        weight = "network.backbone.conv1.weight"
        kept = state.tensors[f"model.{weight}"].clone()
        next(reports)
        assert torch.equal(state.tensors[f"model.{weight}"], kept)
        assert not torch.equal(trainer.model.get_parameter(weight).cpu(), kept)


@pytest.mark.parametrize("kind", ["sdclr", "adamw", "bcl"])
def test_a_state_of_the_device_resumes_there_and_on_the_cpu(kind: str) -> None:
    with SimulatedGPU():
        trainer = some_trainer(PLAN, device="cuda:0", **KINDS[kind])
        losses, state = [], TrainState({}, {})
        for report in trainer.run(images_there().feed(PLAN, seed=0)):
            losses.append(report.loss)
            if report.step == 4:
                state = capture(trainer)
        assert {t.device.type for t in state.tensors.values()} == {"cpu"}
        again = some_trainer(PLAN, device="cuda:0", **KINDS[kind])
        restore(again, state)
        assert losses_of(again, images_there()) == losses[4:]
    here = some_trainer(PLAN, **KINDS[kind])
    restore(here, state)
    expected = pytest.approx(losses[4:], rel=0.1 if kind == "adamw" else 1e-4)
    assert losses_of(here, some_images(24)) == expected


def test_lines_of_metrics_are_complete_in_order_and_wait_for_nothing(tmp_path: Path) -> None:
    def lines(device: str, images: ImageSet) -> list[tuple[str, int, float]]:
        run = str(tmp_path / device.replace(":", "-"))
        trainer = some_trainer(PLAN, device=device)
        with MethodLog(run, CONFIG, "sdclr", num_steps=9, rank=0) as log:
            for report in trainer.run(images.feed(PLAN, seed=0)):
                log.step(report)
        return [
            (row["kind"], row["step"], row.get("loss", 0.0))
            for row in map(json.loads, Path(metrics_uri(run)).read_text().splitlines())
        ]

    expected = lines("cpu", some_images(24))
    assert [(kind, step) for kind, step, _ in expected][:3] == [
        ("mask", 1),
        ("step", 1),
        ("step", 2),
    ]
    with SimulatedGPU() as gpu:
        images = images_there()
        some_trainer(PLAN, device="cuda:0")
        gpu.forget()
        found = lines("cuda:0", images)
        places = {name: n for name, n in gpu.waits.items() if "trainer.py" not in name}
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    assert [row[2] for row in found] == pytest.approx([row[2] for row in expected], rel=1e-4)
    # The last line is written when the run ends, which waits.
    assert sum(n for name, n in places.items() if "event" in name) <= 1, places
