"""A CUDA graph of the simulated GPU: a list of operations with the memory that they read and write.

As on a GPU a capture runs nothing: what it has changed is put back, and what it has made holds NaN
until a replay. A replay runs the operations again on the very same memory. So a number of the host
is the one of the capture for ever, and a tensor that was replaced since is not seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves


class CaptureError(RuntimeError):
    """What a GPU refuses while a graph is captured, or a graph that never was."""


@dataclass(frozen=True)
class _Operation:
    func: Any
    args: Any
    kwargs: Any
    results: Any


class SimulatedGraph:
    """What was launched between `begin` and `end`, on values of the simulated GPU."""

    def __init__(self) -> None:
        self._operations: list[_Operation] = []
        self._made: list[Tensor] = []  # kept, so that no address is used twice
        self._made_at: set[int] = set()
        self._before: dict[int, tuple[Tensor, torch.UntypedStorage]] = {}
        self._is_whole = False

    @property
    def num_operations(self) -> int:
        """Operations of a replay."""
        return len(self._operations)

    def expect(self, inputs: Any) -> None:
        """Keep the values of memory from outside, before an operation may change them."""
        for tensor in _tensors(inputs):
            storage = tensor.untyped_storage()
            address = storage.data_ptr()
            if address not in self._made_at and address not in self._before:
                self._before[address] = (tensor, storage.clone())

    def add(self, func: Any, args: Any, kwargs: Any, results: Any, *, is_free: bool) -> None:
        """Record an operation with its results; one that is free runs in no replay."""
        for tensor in _tensors(results):
            address = tensor.untyped_storage().data_ptr()
            if address not in self._before:
                self._made_at.add(address)
                self._made.append(tensor)
        if not is_free:
            self._operations.append(_Operation(func, args, kwargs, results))

    def end(self, *, is_whole: bool) -> None:
        """Put back what was changed, and spoil what was made: nothing has run."""
        self._is_whole = is_whole
        for tensor, values in self._before.values():
            tensor.untyped_storage().copy_(values)
        self._before.clear()
        with torch.no_grad():
            for tensor in self._made:
                if tensor.is_floating_point():
                    tensor.fill_(torch.nan)

    def run(self) -> None:
        """Run all operations again, each on its own memory."""
        if not self._is_whole:
            raise CaptureError("replay of a graph without a capture that succeeded")
        with torch.no_grad(), _disable_current_modes():
            for operation in self._operations:
                found = operation.func(*operation.args, **operation.kwargs)
                for old, new in zip(_tensors(operation.results), _tensors(found), strict=True):
                    if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                        old.copy_(new)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
