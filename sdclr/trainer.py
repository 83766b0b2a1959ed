"""One update, and the loop around it: the same for a Ray worker, a plain script and a notebook.

    for report in trainer.run(feed):
        ...                # after each step: log, save or stop; the trainer's state is consistent

On a GPU the host never waits for a step. It launches the next one while the figures of the last are
on their way, so a loss that is not finite is found a step late. A flag on the device keeps
parameters, momentum and masks as they were before that step. Behind its views a step is one CUDA
graph there, see `sdclr.step_graph`.

All randomness is a function of (seed, epoch, step), so a trainer has no hidden state: what
`sdclr.state` captures between two steps is everything.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from sdclr import collective, parts
from sdclr.augment import VIEW_NUMBERS, sample_view
from sdclr.backbone import random_layers
from sdclr.batchnorm import synchronise
from sdclr.gradcache import chunked_backward
from sdclr.imageset import Batch, Feed, staged
from sdclr.loss import image_losses
from sdclr.loss_memory import LossMemory
from sdclr.methods import method_class
from sdclr.optimizers import align_gradients, make_optimizer
from sdclr.recipe import Recipe
from sdclr.rendering import render_views
from sdclr.replicas import Comparison
from sdclr.reports import BAD_STEP, StepReport, refuse_bad
from sdclr.schedule import learning_rate, warmup_steps
from sdclr.seeds import place_generator
from sdclr.side_by_side import SideBySide
from sdclr.small_maps import suit_cpu
from sdclr.step_graph import Outputs, StepGraphs, problem_of
from sdclr.transfer import HostCopy
from sdclr.twin import Network, Twin


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
        self._unread: deque[tuple[StepReport, Batch, Comparison | None]] = deque()
        self._comparison: Comparison | None = None
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
            model = synchronise(model)
        self.model, self.network = model, network
        if self.device.type == "cpu":
            suit_cpu(network, recipe)
        if recipe.compile:
            self.model.compile()
        self._forward: nn.Module = self.model
        self._parted = SideBySide.of(self.model, recipe, self.device)
        if collective.is_distributed():
            self._forward = collective.data_parallel(self.model, self.device)
            if not recipe.compile:  # what comes after the gradient of the first layer is exchange
                first = next(p for p in network.parameters() if p.requires_grad)
                first.register_hook(parts.gradient_is_here)  # type: ignore[no-untyped-call]
        self.optimizer = make_optimizer(recipe, self.model)
        # 1 from the first step on that is not finite: what must not change then reads it.
        self._broken = torch.zeros((), device=self.device)
        # What the host says of a step, where a graph can read it; on a CPU numbers are enough.
        self._lr, self._temperature = torch.zeros(2, device=self.device)
        self._training: StepGraphs | None = None
        if self.device.type == "cuda":
            self._training = StepGraphs(
                self.model, self.optimizer, self._broken, problem=problem_of(recipe)
            )
            self.optimizer.found_inf = self._broken  # type: ignore[attr-defined]
            for group in self.optimizer.param_groups:
                group["lr"] = self._lr
            if isinstance(self.model, Twin):
                self.model.keep_masks = self._broken
        if memory is not None:
            memory.to(self.device)
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

    @property
    def num_graphs(self) -> int:
        """CUDA graphs that stand for steps now, one for each shape of a batch; 0 on a CPU."""
        return 0 if self._training is None else self._training.num_graphs

    def run(self, feed: Feed) -> Iterator[StepReport]:
        """Train from the current step to the end; yields after each step.

        Raises:
            NonFiniteError: before the update that would have spoilt the weights, on every rank.
            StarvedLayerError: the mask would leave a layer without weights.
            ReplicaError: ranks hold other weights, norms or masks; looked at with each new mask.
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
            for batch in staged(feed.batches(epoch, start_step=start_step), self.device):
                wait_s = time.perf_counter() - before
                yield self.update(batch, wait_s=wait_s, kept_frac=self._refresh())
                before = time.perf_counter()
        self.settle()

    def views(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the two views (B, 3, h, w) of this rank's images, on the training device.

        The draws of an image are a function of its place in the global batch, so they do not depend
        on the ranks. On a GPU a bfloat16 step gets views in bfloat16.
        """
        images_BCHW = batch.images_BCHW.to(self.device, non_blocking=True)
        augment, params = self.recipe.augment, []
        for which in (1, 2):
            path = self.recipe.seed, "view", which, self.step
            generator = place_generator(*path, place=batch.start, num_each=VIEW_NUMBERS)
            params.append(sample_view(augment, batch.sizes_B2, generator))
        halved = self.device.type == "cuda" and self.recipe.precision == "bfloat16"
        dtype = torch.bfloat16 if halved else torch.float32
        view1_BCHW, view2_BCHW = (
            self.method.change_view(view_BCHW, batch, which=which, step=self.step)
            for which, view_BCHW in enumerate(
                render_views(images_BCHW, params, augment, dtype=dtype), start=1
            )
        )
        return view1_BCHW, view2_BCHW

    def update(
        self, batch: Batch, *, wait_s: float = 0.0, kept_frac: Mapping[str, float] | None = None
    ) -> StepReport:
        """Run one forward, one backward and one step of the optimizer.

        Raises:
            NonFiniteError: as `run`: of this step on a CPU, of the step before on a GPU.
            StarvedLayerError: as `run`, of the mask of that step.
        """
        lr, temperature = self.lr, self.method.temperature(self.epoch)
        times = parts.begin(self.device)
        view1_BCHW, view2_BCHW = self.views(batch)
        times.end("views")
        if self._training is not None:
            self._lr.fill_(lr)
            self._temperature.fill_(temperature)
            figures_2, self._losses_B = self._training(self._train, view1_BCHW, view2_BCHW)
        else:
            figures_2 = self._gradient(view1_BCHW, view2_BCHW)
        report = StepReport(
            epoch=self.epoch,
            step=self.step + 1,
            figures=HostCopy(figures_2),
            lr=lr,
            temperature=temperature,
            num_images=batch.num_global,
            wait_s=wait_s,
            kept_frac=kept_frac,
            parts=times,
        )
        self._unread.append((report, batch, self._comparison))
        self._comparison = None
        if self._training is not None:
            self.settle(but=1)
        else:
            self.settle()
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        times.end("compute")
        parts.close()
        self.step += 1
        if self.memory is not None and self._losses_B is not None:
            self.memory.update(batch.rows_B, self._losses_B)
        return report

    @property
    def is_sound(self) -> bool:
        """Whether `settle` would raise nothing; waits for a GPU."""
        try:
            for unread in self._unread:
                refuse_bad(*unread)
        except BAD_STEP:
            return False
        return True

    def settle(self, *, but: int = 0) -> None:
        """Read the figures of all steps but the newest; waits for those of a GPU.

        Raises:
            NonFiniteError, StarvedLayerError, ReplicaError: as `run`.
        """
        while len(self._unread) > but:
            unread = self._unread.popleft()
            try:
                refuse_bad(*unread)
            except BAD_STEP:
                self.begin_at(unread[0].step - 1)
                raise

    def begin_at(self, step: int) -> None:
        """Go to a step; what is known of steps that were made is forgotten."""
        self.step, self._comparison = step, None
        self._unread.clear()
        self._broken.zero_()
        if self._training is not None:
            self._training.forget()

    def _train(self, view1_BCHW: Tensor, view2_BCHW: Tensor) -> Outputs:
        """Take a step on a GPU, unless it is not finite; return its figures, and images' losses."""
        figures_2 = self._gradient(view1_BCHW, view2_BCHW)
        align_gradients(self.model)
        self._broken.copy_(torch.maximum(self._broken, (~figures_2.isfinite()).any().float()))
        self.optimizer.step()
        return figures_2, self._losses_B

    def _gradient(self, view1_BCHW: Tensor, view2_BCHW: Tensor) -> Tensor:
        """Put the gradient where the optimizer looks for it; return loss and gradient norm."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(view1_BCHW, view2_BCHW)
        if self._forward is not self.model:
            parts.end("exchange")
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        grad_norm = torch.nn.utils.get_total_norm(grads)
        return torch.stack([collective.mean_over_ranks(loss), grad_norm])

    def _backward(self, view1_BCHW: Tensor, view2_BCHW: Tensor) -> Tensor:
        """Add the gradient of the step to `.grad`; returns the loss."""
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
        if self._parted is not None and self._parted.pays:
            views = view1_BCHW, view2_BCHW
            return self._parted.backward(*views, loss=self._loss, context=self._autocast)
        loss = self._loss(*self._embed(self._forward, view1_BCHW, view2_BCHW))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _loss(self, f1_BD: Tensor, f2_BD: Tensor) -> Tensor:
        temperature: float | Tensor = self._temperature
        if self._training is None:
            temperature = self.method.temperature(self.epoch)
        if self.memory is not None:
            self._losses_B = image_losses(f1_BD, f2_BD, temperature=temperature)
        return self.method.loss(f1_BD, f2_BD, temperature=temperature)

    def _embed(
        self, model: nn.Module, view1_BCHW: Tensor, view2_BCHW: Tensor
    ) -> tuple[Tensor, Tensor]:
        with self._autocast():
            return model(view1_BCHW, view2_BCHW)  # type: ignore[no-any-return]

    def _autocast(self) -> torch.autocast:
        bf16 = self.recipe.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16)

    def _refresh(self) -> Mapping[str, float] | None:
        if self.method.needs_losses and self.step % self.steps_per_epoch == 0:
            self.settle()  # what the losses decide must not change for a step that is repeated
        kept_frac = self.method.refresh(
            self.model, step=self.step, steps_per_epoch=self.steps_per_epoch
        )
        is_due = kept_frac is not None or self.step % self.steps_per_epoch == 0
        if is_due and collective.is_distributed():
            self._comparison = Comparison(self.model, with_statistics=self.recipe.sync_batchnorm)
        return kept_frac
