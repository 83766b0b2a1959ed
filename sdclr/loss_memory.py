"""Memory of how hard every image is for the network: a running mean of its own loss.

Images that a network learns late keep a high loss over the epochs. Rare images are among them: the
memorisation signal of boosted contrastive learning (Zhou et al. 2022).

    mean_i = sum over t of m^(T - t) L_i(t) / sum over t of m^(T - t)

where t counts the steps that saw image i, the T-th being the last. There is no start value that
would have to fade: with m = 1 it would be the plain mean.

Shapes: N images in the set, B images of this rank in one step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdclr import collective
from sdclr.transfer import to_device

PUBLISHED_MOMENTUM = 0.97
"""Of boosted contrastive learning."""


class LossMemory:
    """Running means for N images, equal on all ranks.

    Args:
        num_images: N.
        momentum: m, in [0, 1); 0 keeps the last loss alone.

    Raises:
        ValueError: a momentum outside that range.
    """

    def __init__(self, num_images: int, *, momentum: float) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        self.momentum = momentum
        # Numerator and denominator of the mean.
        self.sums_2N = torch.zeros(2, num_images)

    def to(self, device: torch.device) -> None:
        """Keep the means on a device: that of the losses, so that no step waits for it."""
        self.sums_2N = self.sums_2N.to(device)

    def update(self, rows_B: Tensor, losses_B: Tensor) -> None:
        """Take in one step; every rank calls it with its own images, an image at most once."""
        # Row numbers are exact in float64, so both travel in one collective.
        both_2B = torch.stack([to_device(rows_B, losses_B.device).double(), losses_B.double()])
        rows_N, losses_N = collective.stack_over_ranks(both_2B).transpose(0, 1).flatten(1)
        seen = rows_N.long()
        new_2B = torch.stack([losses_N.float(), torch.ones_like(losses_N, dtype=torch.float32)])
        self.sums_2N[:, seen] = self.momentum * self.sums_2N[:, seen] + new_2B

    def means(self) -> Tensor:
        """Return the running mean of each image (N,) float32, on the CPU.

        It is nan for one that no step has seen.
        """
        return means_of(self.sums_2N.cpu())


def means_of(sums_2N: Tensor) -> Tensor:
    """Return `LossMemory.means` from what a state keeps of it."""
    means_N: Tensor = sums_2N[0] / sums_2N[1]
    return means_N
