"""What a step launches on a simulated GPU is the same in every step: what a CUDA graph asks for.

Steps are launched one by one here; tests/test_step_graph.py has them as graphs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
from torch import Tensor
from torch.utils._pytree import tree_flatten

from sdclr import ImageSet, Trainer
from sdclr.imageset import Batch
from sdclr.order import EpochPlan
from tests.recipes import some_images, some_trainer
from tests.simulated_gpu import DEVICE, DeviceTensor, SimulatedGPU

PLAN = EpochPlan(num_images=20, global_batch=8, drop_last=False)  # of 8, 8 and 4 images
KINDS: dict[str, dict[str, Any]] = {
    "sdclr-ts": {"method": "sdclr-ts"},
    "micro batch": {"micro_batch": 3},
    "adamw": {"optimizer": "adamw", "lr": 1e-3},
    "lars": {"optimizer": "lars"},
}


@dataclass
class Launches:
    """Of a step: operations with the shapes they are given, and the numbers the host puts in."""

    operations: list[tuple[str, tuple[tuple[int, ...], ...]]] = field(default_factory=list)
    numbers: list[tuple[str, float]] = field(default_factory=list)
    copies_up: list[str] = field(default_factory=list)


class RecordingGPU(SimulatedGPU):
    """A simulated GPU that keeps the list of what was launched."""

    def __init__(self) -> None:
        super().__init__()
        self.step = Launches()

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Note one operation, and run it."""
        before = self.num_launches
        found = super().run(func, args, kwargs)
        if self.num_launches > before:
            name = func._schema.name.partition("::")[2]
            leaves = tree_flatten((args, kwargs))[0]
            tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            self.step.operations.append((name, tuple(tuple(t.shape) for t in tensors)))
            self.step.numbers += [(name, leaf) for leaf in leaves if type(leaf) is float]
            goes_down = name == "copy_" and not isinstance(args[0], DeviceTensor)
            here = [t for t in tensors if not (isinstance(t, DeviceTensor) or goes_down)]
            # A tensor of one number on the host is a number to the kernel.
            self.step.numbers += [(name, float(t)) for t in here if t.dim() == 0]
            self.step.copies_up += [name for t in here if t.dim() > 0]
        return found


def training_part(trainer: Trainer, batch: Batch) -> Launches:
    """One update without its views."""
    gpu = SimulatedGPU.now()
    assert isinstance(gpu, RecordingGPU)
    views = trainer.views(batch)
    with mock.patch.object(trainer, "views", return_value=views):
        gpu.step = Launches()
        trainer.update(batch)
    found, gpu.step = gpu.step, Launches()
    return found


def steps_of(changes: dict[str, Any]) -> list[Launches]:
    """The launches of each step of two epochs, without views and masks."""
    with RecordingGPU():
        trainer = some_trainer(PLAN, device="cuda:0", cuda_graph=False, **changes)
        feed = ImageSet(some_images(20).images_NCHW.to(DEVICE)).feed(PLAN, seed=0)
        batches = [batch for epoch in (0, 1) for batch in feed.batches(epoch)]
        found = []
        for batch in batches:
            trainer.method.refresh(trainer.model, step=trainer.step, steps_per_epoch=3)
            found.append(training_part(trainer, batch))
        trainer.settle()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_steps_of_a_size_launch_the_same_operations_on_the_same_shapes(kind: str) -> None:
    # The first step is left out: it makes what an optimizer keeps of each weight.
    _, second, partial, *rest = steps_of(KINDS[kind])
    assert len(second.operations) > 300
    assert second.operations != partial.operations  # by its shapes: it needs a graph of its own
    changed = set()
    for step, same in zip(rest, (second, second, partial), strict=True):
        assert step.operations == same.operations
        assert step.copies_up == []
        pairs = zip(step.numbers, same.numbers, strict=True)
        changed |= {name for (name, new), (_, old) in pairs if new != old}
    # Learning rate and temperature, put before all else where kernels read them.
    assert changed == {"fill_"}
    assert [name for name, _ in second.operations[:2]] == ["fill_", "fill_"]
