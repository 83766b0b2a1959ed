"""Comparison of the models of all ranks: weights, norms and masks, to the bit.

Ranks start equal and add equal gradients, so they stay equal, and nothing would make them equal
again. A bit that flips on one of them would go unseen, and that rank makes other gradients.

Shapes: K tensors of a model, R ranks, P numbers of a tensor.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from sdclr import collective
from sdclr.transfer import HostCopy

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class ReplicaError(RuntimeError):
    """The model of a rank is no longer that of the others."""


def fingerprint(tensor: Tensor) -> Tensor:
    """Return a number (int64) of a tensor's bits, on its device; one flipped bit changes it.

    It is the sum over places i of (2 i + 1) times the bits there, modulo 2^64. A flip changes it by
    an odd number times a power of 2 below 2^64.
    """
    bits_P = tensor.detach().view(_BITS[tensor.element_size()]).flatten().to(torch.int64)
    places_P = torch.arange(1, 2 * len(bits_P), 2, device=tensor.device)
    return (bits_P * places_P).sum()


class Comparison:
    """Fingerprints of all ranks, on their way to the host; every rank makes one.

    Args:
        model: its parameters and buffers are compared.
        with_statistics: whether running statistics of norms are equal as well.
    """

    def __init__(self, model: nn.Module, *, with_statistics: bool) -> None:
        tensors = {
            name: tensor
            for name, tensor in model.state_dict().items()
            if with_statistics or not name.endswith(("running_mean", "running_var"))
        }
        self._names = list(tensors)
        prints_K = torch.stack([fingerprint(tensor) for tensor in tensors.values()])
        self._prints = HostCopy(collective.stack_over_ranks(prints_K))

    def refuse(self) -> None:
        """Raise ReplicaError with the ranks that differ from most, and a tensor that does.

        Of two ranks none is known to be right.
        """
        by_rank = self._prints.read().tolist()
        for name, values in zip(self._names, zip(*by_rank, strict=True), strict=True):
            usual, number = Counter(values).most_common(1)[0]
            others = [rank for rank, value in enumerate(values) if value != usual]
            if others:
                listed = ", ".join(map(str, others))
                doubt = "" if number > len(values) / 2 else ", or all others are wrong"
                raise ReplicaError(f"rank {listed} of {len(values)} has another {name}{doubt}")
