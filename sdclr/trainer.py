"""One update, and the loop around it: the same for a Ray worker, a plain script and a notebook.

    for report in trainer.run(feed):
        ...                # after each step: log, save or stop; the trainer's state is consistent

All randomness is a function of (seed, epoch, step), so a trainer has no hidden state: what
`sdclr.state` captures between two steps is everything.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sdclr import collective
from sdclr.augment import apply_view, sample_view
from sdclr.backbone import random_layers
from sdclr.batchnorm import synchronise
from sdclr.gradcache import chunked_backward
from sdclr.imageset import Batch, Feed
from sdclr.loss import image_losses
from sdclr.loss_memory import LossMemory
from sdclr.methods import method_class
from sdclr.optimizers import make_optimizer
from sdclr.recipe import Recipe
from sdclr.schedule import learning_rate, warmup_steps
from sdclr.seeds import torch_generator
from sdclr.twin import Network


class NonFiniteError(ArithmeticError):
    """The loss or the gradient is not finite; parameters and momentum are those before the step.

    The running statistics of BatchNorm have seen the batch: resume from a checkpoint.
    `sdclr.replay` keeps such a step in a file and repeats it.
    """

    def __init__(self, message: str, *, batch: Batch, loss: float, grad_norm: float) -> None:
        super().__init__(message)
        self.batch, self.loss, self.grad_norm = batch, loss, grad_norm


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """Result of one step.

    Args:
        epoch: the epoch of the step, from 0.
        step: steps done so far in the run, this one included.
        loss: mean over all ranks.
        grad_norm: L2 norm of the gradient that was applied.
        num_images: images of the step on all ranks.
        wait_s: time this rank waited for its batch.
        kept_frac: weight name -> fraction kept, when the mask was refreshed before this step.
    """

    epoch: int
    step: int
    loss: float
    lr: float
    temperature: float
    grad_norm: float
    num_images: int
    wait_s: float
    kept_frac: dict[str, float] | None


class Trainer:
    """A network, its optimizer and its place in the run.

    Args:
        network: trained in place; equal on all ranks.
        recipe: how.
        steps_per_epoch: of the feed that `run` gets.
        device: where to train.
        memory: keeps a running mean of every image's loss, and is part of the state; or None.

    Raises:
        ValueError: an empty run, a recipe or memory that lacks what the method needs, or a network
            with dropout or stochastic depth, whose draws no state holds.
    """

    def __init__(
        self,
        network: Network,
        recipe: Recipe,
        *,
        steps_per_epoch: int,
        device: str | torch.device = "cpu",
        memory: LossMemory | None = None,
    ) -> None:
        self.memory = memory
        self._losses_B: Tensor | None = None
        self.recipe, self.steps_per_epoch = recipe, steps_per_epoch
        self.num_steps = recipe.epochs * steps_per_epoch
        if self.num_steps < 1:
            raise ValueError(f"nothing to train: {recipe.epochs} epochs of {steps_per_epoch} steps")
        self.method = method_class(recipe.method)(recipe, memory)
        if random := random_layers(network):
            raise ValueError(
                f"the network draws random numbers of its own, so that no run could be resumed: "
                f"set {', '.join(random[:3])} to 0"
            )
        self.device = torch.device(device)
        model: nn.Module = self.method.model(network, recipe)
        # The layout in which convolutions are fastest, on CPUs as on GPUs; values are the same.
        model = model.to(self.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        if recipe.sync_batchnorm and collective.is_distributed():
            model = synchronise(model, device=self.device)
        self.model = model
        self.network = network
        if recipe.compile:
            self.model.compile()
        self._forward: nn.Module = self.model
        if collective.is_distributed():
            self._forward = DistributedDataParallel(
                self.model,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                **_without_buffer_sync(),
            )
        self.optimizer = make_optimizer(recipe, self.model)
        self.step = 0

    @property
    def epoch(self) -> int:
        """The epoch that the next step belongs to."""
        return self.step // self.steps_per_epoch

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        r = self.recipe
        num_warmup = warmup_steps(
            warmup_epochs=r.warmup_epochs, epochs=r.epochs, steps_per_epoch=self.steps_per_epoch
        )
        return learning_rate(
            self.step, num_steps=self.num_steps, num_warmup=num_warmup, peak=r.lr, final=r.final_lr
        )

    def run(self, feed: Feed) -> Iterator[StepReport]:
        """Train from the current step to the end; yields after each step.

        Raises:
            NonFiniteError: before the update that would have spoilt the weights, on every rank.
            StarvedLayerError: the mask would leave a layer without weights.
            ValueError: the feed has another number of steps per epoch.
        """
        if feed.plan.num_steps != self.steps_per_epoch:
            raise ValueError(
                f"the feed has {feed.plan.num_steps} steps per epoch, "
                f"the trainer {self.steps_per_epoch}"
            )
        while self.step < self.num_steps:
            epoch, start_step = divmod(self.step, self.steps_per_epoch)
            before = time.perf_counter()
            for batch in feed.batches(epoch, start_step=start_step):
                wait_s = time.perf_counter() - before
                yield self.update(batch, wait_s=wait_s, kept_frac=self._refresh())
                before = time.perf_counter()

    def views(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the two views (B, 3, h, w) of this rank's images, on the training device.

        Parameters are drawn for the whole global batch and cut by rank: they do not depend on the
        ranks.
        """
        images_BCHW = batch.images_BCHW.to(self.device, non_blocking=True)
        stop = batch.start + len(images_BCHW)
        sizes_G2 = torch.tensor(images_BCHW.shape[2:]).repeat(batch.num_global, 1)
        sizes_G2[batch.start : stop] = batch.sizes_B2
        views = []
        for which in (1, 2):
            generator = torch_generator(self.recipe.seed, "view", which, self.step)
            params = sample_view(self.recipe.augment, sizes_G2, generator)
            params = params.rows(batch.start, stop)
            view_BCHW = apply_view(images_BCHW, params, self.recipe.augment)
            views.append(self.method.change_view(view_BCHW, batch, which=which, step=self.step))
        return views[0], views[1]

    def update(
        self, batch: Batch, *, wait_s: float = 0.0, kept_frac: dict[str, float] | None = None
    ) -> StepReport:
        """Run one forward, one backward and one step of the optimizer."""
        view1_BCHW, view2_BCHW = self.views(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(view1_BCHW, view2_BCHW)
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        grad_norm = torch.nn.utils.get_total_norm(grads)
        mean_loss = collective.mean_over_ranks(loss)
        loss_value, norm_value = torch.stack([mean_loss, grad_norm]).tolist()
        if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
            raise NonFiniteError(
                f"step {self.step} (epoch {self.epoch}): loss {loss_value}, gradient norm "
                f"{norm_value}; stopped before the update: lower lr, or raise temperature",
                batch=batch,
                loss=loss_value,
                grad_norm=norm_value,
            )
        lr, epoch = self.lr, self.epoch
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.step += 1
        if self.memory is not None and self._losses_B is not None:
            self.memory.update(batch.rows_B, self._losses_B)
        return StepReport(
            epoch=epoch,
            step=self.step,
            loss=loss_value,
            lr=lr,
            temperature=self.method.temperature(epoch),
            grad_norm=norm_value,
            num_images=batch.num_global,
            wait_s=wait_s,
            kept_frac=kept_frac,
        )

    def _backward(self, view1_BCHW: Tensor, view2_BCHW: Tensor) -> Tensor:
        """Put the gradient of the step where the optimizer looks for it; returns the loss."""
        micro_batch = self.recipe.micro_batch
        if micro_batch is not None and micro_batch < len(view1_BCHW):
            return chunked_backward(
                self._forward,
                view1_BCHW,
                view2_BCHW,
                micro_batch=micro_batch,
                embed=self._embed,
                loss=self._loss,
            )
        loss = self._loss(*self._embed(self._forward, view1_BCHW, view2_BCHW))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _loss(self, f1_BD: Tensor, f2_BD: Tensor) -> Tensor:
        temperature = self.method.temperature(self.epoch)
        if self.memory is not None:
            self._losses_B = image_losses(f1_BD, f2_BD, temperature=temperature)
        return self.method.loss(f1_BD, f2_BD, temperature=temperature)

    def _embed(
        self, model: nn.Module, view1_BCHW: Tensor, view2_BCHW: Tensor
    ) -> tuple[Tensor, Tensor]:
        bf16 = self.recipe.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
            f1_BD, f2_BD = model(view1_BCHW, view2_BCHW)
        return f1_BD, f2_BD

    def _refresh(self) -> dict[str, float] | None:
        return self.method.refresh(self.model, step=self.step, steps_per_epoch=self.steps_per_epoch)


def _without_buffer_sync() -> dict[str, Any]:
    # Masks are equal on all ranks, and so are BatchNorm statistics, unless they are meant to be
    # each rank's own. Newer releases of torch renamed the switch.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    newer = "forward_sync_buffers" in known
    return {"forward_sync_buffers" if newer else "broadcast_buffers": False}
