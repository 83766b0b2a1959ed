"""The training part of a step as one CUDA graph: one launch instead of some 700.

    training = StepGraphs(model, optimizer, flag, problem=problem_of(recipe))
    outputs = training(train, view1_BCHW, view2_BCHW)

`train` takes two views, and does all that follows from them on the device, the optimizer's step
included. What changes from step to step, it reads from tensors that stay where they are. Its first
steps are launched one by one. Then each shape of a batch gets a graph. Before a graph is used, it
is replayed once with nothing moving, and its figures are compared with those of single launches.
Where a capture fails or its figures differ, single launches stay, and a warning says so once.

Graphs share one pool of memory. Each writes all that it reads but its views and what `train` keeps,
so they may be replayed in any order. What one returns is valid until the next call.

Shapes: B images, F figures of a step, which are loss and gradient norm.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdclr import collective
from sdclr.batchnorm import running_statistics_kept
from sdclr.recipe import Recipe

WARM_UP = 3
"""Steps launched one by one before the first capture, as torch asks: they make what an optimizer
keeps, load kernels, let libraries choose among theirs, and compile where that is asked for."""
TOLERANCE = 1e-2
"""Of figures, relative: kernels that add in arbitrary order differ by far less, in bfloat16 too."""
MANY_LAUNCHES = "steps take hundreds of launches instead of one, since no CUDA graph can be made"

Views = tuple[Tensor, Tensor]
Outputs = tuple[Tensor, Tensor | None]
Train = Callable[[Tensor, Tensor], Outputs]
Key = tuple[tuple[torch.Size, tuple[int, ...], torch.dtype], ...]


def problem_of(recipe: Recipe) -> str:
    """Return why steps are launched one by one as intended; empty where graphs are to be made."""
    if not recipe.cuda_graph:
        return "the recipe asks for single launches"
    if collective.is_distributed():
        return "there are several ranks, whose exchange has deadlines of its own"
    if os.environ.get("CUDA_LAUNCH_BLOCKING") == "1":
        return "CUDA_LAUNCH_BLOCKING=1 waits for each launch"
    return ""


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    views: Views
    outputs: Outputs

    def replay(self, views: Views) -> Outputs:
        for own, view in zip(self.views, views, strict=True):
            own.copy_(view)
        self.graph.replay()
        return self.outputs


class StepGraphs:
    """A function of two views, launched one by one at first, later as a graph for each shape.

    Args:
        model: on a GPU; what is trained.
        optimizer: of the model.
        flag: a tensor on the GPU; while it is not 0 `train` moves nothing but running statistics.
        problem: why no graph is to be made; empty if there is no reason.

    Attributes:
        problem: why steps are launched one by one; empty as long as graphs are made.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        flag: Tensor,
        *,
        problem: str = "",
    ) -> None:
        self._model, self._optimizer, self._flag = model, optimizer, flag
        self._device, self.problem = flag.device, problem
        self._launched: Counter[Key] = Counter()
        self._graphs: dict[Key, _Captured] = {}
        if not problem:
            # First steps and captures share a stream: autograd remembers where it ran.
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()

    @property
    def num_graphs(self) -> int:
        """Graphs held now."""
        return len(self._graphs)

    def __call__(self, train: Train, view1_BCHW: Tensor, view2_BCHW: Tensor) -> Outputs:
        """Return what `train` returns; its tensors are overwritten by a later call.

        Args:
            train: (view 1, view 2) -> figures of the step, and a further tensor or None; the same
                in all calls. It is not kept: memory of a GPU must not wait for a cycle to be found.
            view1_BCHW: on the device.
            view2_BCHW: on the device.
        """
        views = (view1_BCHW, view2_BCHW)
        if self.problem:
            return train(*views)
        key = tuple((view.shape, view.stride(), view.dtype) for view in views)
        if key not in self._graphs and self._launched[key] and self._launched.total() >= WARM_UP:
            self._capture(train, key, views)
        if key in self._graphs:
            return self._graphs[key].replay(views)
        if not self._launched[key]:
            # Beside a graph's memory a step of single launches might not fit.
            self._drop()
        self._launched[key] += 1
        return self._one_by_one(train, views)

    def forget(self) -> None:
        """Begin anew: what graphs read and write may have been replaced."""
        self._drop()
        self._launched.clear()

    def _drop(self) -> None:
        if self._graphs:
            torch.cuda.synchronize(self._device)  # they may still be running
            self._graphs.clear()
            self._pool = torch.cuda.graph_pool_handle()  # a pool ends with its graphs

    def _one_by_one(self, train: Train, views: Views) -> Outputs:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = train(*views)
        current.wait_stream(self._stream)
        return outputs

    def _capture(self, train: Train, key: Key, views: Views) -> None:
        """Make the graph of a shape, and keep it if its figures are those of single launches."""
        own = (
            torch.empty_like(views[0]).copy_(views[0]),
            torch.empty_like(views[1]).copy_(views[1]),
        )
        graph = torch.cuda.CUDAGraph()
        try:
            with self._at_rest():
                expected_F = self._one_by_one(train, own)[0]
                outputs = self._record(train, graph, own)
                graph.replay()
                expected_F, found_F = torch.stack([expected_F, outputs[0]]).cpu()
        except Exception as error:  # drivers, compilers and libraries have no class in common
            first = (str(error).splitlines() or [""])[0]
            self._give_up(f"{type(error).__name__}: {first}")
            return
        if torch.allclose(found_F, expected_F, rtol=TOLERANCE, atol=TOLERANCE**2, equal_nan=True):
            self._graphs[key] = _Captured(graph, own, outputs)
        else:
            found, expected = found_F.tolist(), expected_F.tolist()
            self._give_up(f"loss and gradient norm are {found} instead of {expected}")

    @contextmanager
    def _at_rest(self) -> Iterator[None]:
        """Let `train` change nothing that lasts."""
        before = self._flag.clone()
        self._flag.fill_(1)
        try:
            with running_statistics_kept(self._model):
                yield
        finally:
            self._flag.copy_(before)

    def _record(self, train: Train, graph: torch.cuda.CUDAGraph, views: Views) -> Outputs:
        """Let a graph record what `train` launches; nothing runs."""
        self._optimizer.zero_grad()
        # Inside a stream's own context: a capture that fails leaves its stream behind. Other
        # threads, which pin memory for batches, are not to break a capture.
        with (
            torch.cuda.stream(self._stream),
            torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ),
        ):
            outputs = train(*views)
        self._optimizer.zero_grad()
        return outputs

    def _give_up(self, problem: str) -> None:
        self.problem = problem
        self._optimizer.zero_grad()
        self._drop()
        warnings.warn(f"{MANY_LAUNCHES}: {problem}", RuntimeWarning, stacklevel=4)
