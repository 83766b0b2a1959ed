"""Pre-training that stops when its time is over and resumes from a file: bit for bit on a CPU."""

from __future__ import annotations

import json
import time
from collections import deque
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from benchmarks.paper.sets import LabelledSet
from sdclr import (
    EpochPlan,
    StepReport,
    Trainer,
    TrainState,
    build_network,
    capture,
    cifar_recipe,
    restore,
)

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One published run: method, network and length."""

    method: str
    backbone: str
    head_depth: int
    epochs: int
    batch: int
    precision: Precision


def plan_of(
    method: str,
    *,
    small: bool,
    precision: Precision = "bfloat16",
    short_epochs: int | None = None,
) -> Plan:
    """Return the published run of a method, or one to try the scripts with on a CPU.

    The published head of SDCLR has three layers, that of SimCLR two.

    Args:
        method: sdclr or simclr.
        small: seconds of it, on made-up sets.
        precision: of the published run, and of the short one.
        short_epochs: minutes of it, on the published sets: so many epochs of a small network.
    """
    depth = 3 if method == "sdclr" else 2
    published = Plan(
        method=method, backbone="resnet18", head_depth=depth, epochs=2000, batch=512,
        precision=precision,
    )  # fmt: skip
    if small:
        return replace(published, backbone="resnet8", epochs=3, batch=16, precision="float32")
    if short_epochs is not None:
        return replace(published, backbone="resnet8", epochs=short_epochs)
    return published


class Pretraining:
    """A run whose state is in FOLDER/METHOD.pt, and whose losses are in FOLDER/METHOD.jsonl.

    Args:
        plan: what to train.
        data: the set.
        device: where.
        folder: resumed from, if there is a state.

    Attributes:
        losses: mean of each epoch of this call.
        num_images: trained on in this call.
    """

    def __init__(self, plan: Plan, data: LabelledSet, *, device: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.plan, self.folder, self.device = plan, folder, torch.device(device)
        self.images = data.images
        self.images.images_NCHW = self.images.images_NCHW.to(self.device)
        recipe = replace(cifar_recipe(plan.method, epochs=plan.epochs), precision=plan.precision)
        self.epoch_plan = EpochPlan(
            num_images=len(self.images), global_batch=plan.batch, drop_last=True
        )
        network = build_network(plan.backbone, stem="cifar", head_depth=plan.head_depth, seed=0)
        self.trainer = Trainer(
            network, recipe, steps_per_epoch=self.epoch_plan.num_steps, device=self.device
        )
        self.state_file = folder / f"{plan.method}.pt"
        if self.state_file.exists():
            kept = torch.load(self.state_file, weights_only=True)
            if kept["plan"] != asdict(plan):
                raise ValueError(f"{self.state_file} is of another run: {kept['plan']}")
            restore(self.trainer, TrainState(kept["tensors"], kept["numbers"]))
        self.losses: list[float] = []
        self.num_images = 0

    @property
    def is_done(self) -> bool:
        """Whether all epochs are trained."""
        return self.trainer.step == self.trainer.num_steps

    def train(self, *, limit_s: float) -> bool:
        """Train until the end, or until the time is over; return whether it is the end."""
        end_s = time.monotonic() + limit_s
        epoch: deque[StepReport] = deque()
        if not self.is_done:
            for report in self.trainer.run(self.images.feed(self.epoch_plan, seed=0)):
                self.num_images += report.num_images
                if epoch and report.epoch != epoch[-1].epoch:
                    self._log(epoch)  # a step late: its figures are there
                epoch.append(report)
                if time.monotonic() > end_s:
                    break
        if epoch:
            self._log(epoch)
        self._save()
        return self.is_done

    def _log(self, reports: deque[StepReport]) -> None:
        losses = [report.loss for report in reports]
        self.losses.append(sum(losses) / len(losses))
        line = {"epoch": reports[-1].epoch, "step": reports[-1].step, "loss": self.losses[-1]}
        with (self.folder / f"{self.plan.method}.jsonl").open("a") as file:
            file.write(json.dumps(line | {"time_s": time.time()}) + "\n")
        reports.clear()

    def _save(self) -> None:
        state = capture(self.trainer)
        torn = self.state_file.with_suffix(".part")
        content = {"plan": asdict(self.plan), "tensors": state.tensors, "numbers": state.numbers}
        torch.save(content, torn)
        torn.replace(self.state_file)
