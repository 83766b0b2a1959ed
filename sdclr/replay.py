"""A step that went wrong, kept in one file, and a program that repeats it.

    python -m sdclr.replay CAPTURE

The file holds plain tensors and numbers only. A step is repeated on as many ranks as it was taken
on, with as many threads: on the CPU of the same build, loss and gradient norm come out bit for bit.
"""

from __future__ import annotations

import io
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from sdclr import collective
from sdclr.augment import AugmentRecipe
from sdclr.backbone import BackboneError
from sdclr.imageset import Batch
from sdclr.loss_memory import LossMemory
from sdclr.operations import OperationRule
from sdclr.prune import PruneRule
from sdclr.recipe import Recipe
from sdclr.reports import NonFiniteError
from sdclr.schedule import TemperatureSchedule
from sdclr.trainer import Trainer
from sdclr.twin import build_network

FORMAT_VERSION = 3
_RULES = {
    "augment": AugmentRecipe,
    "prune": PruneRule,
    "schedule": TemperatureSchedule,
    "boost": OperationRule,
}


class CaptureError(ValueError):
    """The file is not a capture that this program can read."""


@dataclass(frozen=True)
class Replay:
    """Result of a repeated step.

    Args:
        loss, grad_norm: before the update.
        first_bad: the first layer with an output that is not finite, else the first parameter whose
            gradient is not; empty when all are finite.
    """

    loss: float
    grad_norm: float
    first_bad: str


def capture_step(
    trainer: Trainer,
    batch: Batch,
    *,
    loss: float,
    grad_norm: float,
    network: dict[str, Any],
) -> bytes:
    """Capture all that the trainer's next step on `batch` depends on; every rank calls it.

    Args:
        trainer: before the update. BatchNorm's running statistics do not matter to a training step.
        batch: this rank's part.
        loss: of the step, to compare with.
        grad_norm: the same.
        network: the arguments of `sdclr.build_network`, by name.
    """
    images_RBCHW = collective.stack_over_ranks(batch.images_BCHW.to(trainer.device))
    rows_RB = collective.stack_over_ranks(batch.rows_B.to(trainer.device))
    memory = trainer.memory
    sizes_RB2 = collective.stack_over_ranks(batch.sizes_B2.to(trainer.device))
    content = {
        "format_version": FORMAT_VERSION,
        "network": dict(network),
        "recipe": asdict(trainer.recipe),
        "steps_per_epoch": trainer.steps_per_epoch,
        "step": trainer.step,
        "loss": float(loss),
        "grad_norm": float(grad_norm),
        "device": trainer.device.type,
        "num_threads": torch.get_num_threads(),
        "images_RBCHW": images_RBCHW.cpu(),
        "sizes_RB2": sizes_RB2.cpu(),
        "rows_RB": rows_RB.cpu(),
        "num_remembered": None if memory is None else memory.sums_2N.shape[1],
        "method": {name: t.detach().clone() for name, t in trainer.method.state().items()},
        "model": {name: t.detach().cpu() for name, t in trainer.model.state_dict().items()},
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def read_capture(path: str | Path) -> dict[str, Any]:
    """Return the content of a capture.

    Raises:
        CaptureError: another file, a damaged one, or one of another version.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CaptureError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # damaged files fail in many ways
        raise CaptureError(f"{path} is not a capture: {type(error).__name__}") from error
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
        raise CaptureError(f"{path} is not a capture of format version {FORMAT_VERSION}")
    return content


def replay(content: dict[str, Any]) -> Replay:
    """Repeat the captured step on the CPU."""
    num_ranks = len(content["images_RBCHW"])
    if num_ranks == 1:
        return _replay_rank(content, 0)
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank_main, (num_ranks, folder, content), nprocs=num_ranks)  # type: ignore[no-untyped-call]
        found = torch.load(Path(folder) / "0.pt", weights_only=True)
    return Replay(**found)


def _rank_main(rank: int, num_ranks: int, folder: str, content: dict[str, Any]) -> None:
    place = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=num_ranks)
    try:
        torch.save(asdict(_replay_rank(content, rank)), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def _replay_rank(content: dict[str, Any], rank: int) -> Replay:
    torch.set_num_threads(content["num_threads"])
    recipe = {
        key: _RULES[key](**value) if isinstance(value, dict) else value
        for key, value in content["recipe"].items()
    }
    remembered = content["num_remembered"]
    trainer = Trainer(
        build_network(**content["network"]),
        Recipe(**recipe),
        steps_per_epoch=content["steps_per_epoch"],
        memory=None if remembered is None else LossMemory(remembered, momentum=0.0),
    )
    for name, tensor in trainer.method.state().items():
        tensor.copy_(content["method"][name])
    trainer.model.load_state_dict(content["model"], strict=True)
    trainer.step = content["step"]
    images_BCHW = content["images_RBCHW"][rank]
    num_ranks, share = content["images_RBCHW"].shape[:2]
    batch = Batch(
        images_BCHW=images_BCHW,
        sizes_B2=content["sizes_RB2"][rank],
        rows_B=content["rows_RB"][rank],
        start=rank * share,
        num_global=num_ranks * share,
    )
    bad_outputs: list[str] = []
    _watch_outputs(trainer.model, bad_outputs)
    try:
        report = trainer.update(batch)
    except NonFiniteError as error:
        bad = bad_outputs[:1] or _bad_gradients(trainer.model)[:1]
        return Replay(error.loss, error.grad_norm, bad[0] if bad else "the loss")
    return Replay(report.loss, report.grad_norm, "")


def _watch_outputs(model: nn.Module, found: list[str]) -> None:
    def look(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(f"output of {name}")

        return hook

    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(look(name))


def _bad_gradients(model: nn.Module) -> list[str]:
    return [
        f"gradient of {name}"
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
    ]


def main(argv: Sequence[str]) -> int:
    """Repeat a step and compare: 0 the same happened, 1 something else did, 2 wrong input."""
    if len(argv) != 1:
        sys.stderr.write("usage: python -m sdclr.replay CAPTURE\n")
        return 2
    try:
        content = read_capture(argv[0])
    except CaptureError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    ranks = len(content["images_RBCHW"])
    sys.stdout.write(
        f"step {content['step']} of {content['recipe']['method']}, {ranks} ranks, "
        f"taken on {content['device']}\n"
        f"captured: loss {content['loss']}, gradient norm {content['grad_norm']}\n"
    )
    try:
        found = replay(content)
    except BackboneError as error:  # of a library that only the pipeline adds
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"replayed: loss {found.loss}, gradient norm {found.grad_norm}\n")
    sys.stdout.write(f"first that is not finite: {found.first_bad or 'nothing'}\n")
    same = _same(found.loss, content["loss"]) and _same(found.grad_norm, content["grad_norm"])
    if not same and content["device"] == "cpu":
        sys.stdout.write("the numbers differ: another build of torch, or another processor?\n")
    finite = math.isfinite(found.loss) and math.isfinite(found.grad_norm)
    was_finite = math.isfinite(content["loss"]) and math.isfinite(content["grad_norm"])
    return 0 if finite == was_finite and (same or content["device"] != "cpu") else 1


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
