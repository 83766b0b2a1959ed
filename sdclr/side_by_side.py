"""Both branches of the twin at once, each on half of the threads of a CPU.

Until the loss the branches do not depend on each other. All threads in one branch wait for each
other in every layer; two branches wait for each other twice in a step. What is computed stays the
same: the gradient is the dense branch's plus the pruned one's, in this order.

Shapes: B images, D embedding size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from sdclr import collective
from sdclr.logistic import kept_threads
from sdclr.recipe import Recipe
from sdclr.twin import Network, Twin


class SideBySide:
    """The branches of a twin on two threads of this process.

    Args:
        twin: its branches share nothing that a forward pass changes. From the first call of
            `backward` its modules must not change; their tensors may.
    """

    def __init__(self, twin: Twin) -> None:
        self._twin = twin
        self._network: Network | None = None
        self._other = ThreadPoolExecutor(1, thread_name_prefix="pruned-branch")

    @classmethod
    def of(cls, model: nn.Module, recipe: Recipe, device: torch.device) -> SideBySide | None:
        """Return the branches of a model that may be parted, or None.

        On a GPU, in a compiled step and among several ranks a step is one piece.
        """
        is_whole = device.type != "cpu" or recipe.compile or collective.is_distributed()
        if is_whole or not isinstance(model, Twin) or not _can_part(model):
            return None
        return cls(model)

    @property
    def pays(self) -> bool:
        """Whether there is a thread for each."""
        return torch.get_num_threads() > 1

    def backward(
        self,
        view1_BCHW: Tensor,
        view2_BCHW: Tensor,
        *,
        loss: Callable[[Tensor, Tensor], Tensor],
        context: Callable[[], AbstractContextManager[object]],
    ) -> Tensor:
        """Put the gradient of loss(dense(view 1), pruned(view 2)) into `.grad`; return the loss.

        Args:
            view1_BCHW: in [0, 1], for the dense branch.
            view2_BCHW: of the same images, for the pruned branch.
            loss: of the embeddings (B, D) of both.
            context: in which embeddings are computed, such as that of autocast.
        """
        num_threads = torch.get_num_threads()
        for_pruned = num_threads // 2
        network = self._network = self._network or _same_tensors(self._twin.network)
        parameters = [p for p in self._twin.parameters() if p.requires_grad]

        def embed() -> Tensor:
            torch.set_num_threads(for_pruned)
            with context():
                return self._twin.pruned(view2_BCHW, through=network)

        def gradients() -> tuple[Tensor | None, ...]:
            torch.set_num_threads(for_pruned)
            return torch.autograd.grad(f2_BD, parameters, grad2_BD, allow_unused=True)

        with kept_threads():
            torch.set_num_threads(num_threads - for_pruned)
            pruned = self._other.submit(embed)
            try:
                with context():
                    f1_BD = self._twin.network(view1_BCHW)
            finally:
                f2_BD = pruned.result()
        ends = f1_BD.detach().requires_grad_(), f2_BD.detach().requires_grad_()
        value = loss(*ends)
        grad1_BD, grad2_BD = torch.autograd.grad(value, ends)
        with kept_threads():
            torch.set_num_threads(num_threads - for_pruned)
            more = self._other.submit(gradients)
            try:
                torch.autograd.backward(f1_BD, grad1_BD)
            finally:
                by_pruned = more.result()
        for parameter, gradient in zip(parameters, by_pruned, strict=True):
            if gradient is not None and parameter.grad is not None:
                parameter.grad += gradient
            elif gradient is not None:
                parameter.grad = gradient
        return value.detach()


def _can_part(twin: Twin) -> bool:
    """Return whether the branches share nothing that a forward pass changes.

    They share the statistics of norms that are not dual, and what modules of other libraries keep.
    """
    dual = tuple(f"{name.replace('/', '.')}." for name in twin.pruned_norms)
    kept = {name for name, _ in twin.network.named_buffers() if not name.startswith(dual)}
    return kept == {"mean", "std"}


def _same_tensors(network: Network) -> Network:
    """Return a network of its own modules with the same parameters and buffers.

    A call with other weights, as that of the pruned branch, puts them into its modules meanwhile.
    """
    shared = {id(t): t for t in [*network.parameters(), *network.buffers()]}
    return copy.deepcopy(network, shared)
