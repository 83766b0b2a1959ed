"""BCL (Zhou et al. 2022): images that a network has not memorised get stronger views.

The running mean L_i of each image's loss (`sdclr.loss_memory`) gives its memorisation score

    M_i = ((L_i - mean L) / max over j of |L_j - mean L| + 1) / 2

in [0, 1], 1/2 at the mean. On top of the usual view, an image gets RandAugment's operations
(`sdclr.operations`), each with probability M_i and a magnitude up to M_i. Scores are taken at the
start of each epoch; an image that no step has seen yet has 0, the usual view. BCL-I changes SimCLR,
BCL-D changes SDCLR.

Shapes: N images in the set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from sdclr.imageset import Batch
from sdclr.loss_memory import LossMemory
from sdclr.methods.method import Method
from sdclr.methods.sdclr import SDCLR
from sdclr.methods.simclr import SimCLRMethod
from sdclr.operations import OPERATION_NUMBERS, apply_operations, sample_operations
from sdclr.recipe import Recipe
from sdclr.seeds import place_generator


def memorisation(means_N: Tensor) -> Tensor:
    """Return the score of each image (N,) in [0, 1]: high where its loss is high; 0 for nan.

    Equal losses give 1/2 each (Zhou et al. 2022).

    Args:
        means_N: running mean of each image's loss; nan where no step has seen it.
    """
    seen_N = ~means_N.isnan()
    if not bool(seen_N.any()):
        return torch.zeros_like(means_N)
    centred_N = means_N - means_N[seen_N].mean()
    widest = centred_N[seen_N].abs().max()
    scores_N = 0.5 * (centred_N / widest + 1) if widest > 0 else torch.full_like(means_N, 0.5)
    return torch.where(seen_N, scores_N, 0.0)


class Boosted(Method):
    """A method with views whose strength follows the memorisation score."""

    needs_losses: ClassVar[bool] = True

    def __init__(self, recipe: Recipe, memory: LossMemory | None = None) -> None:
        super().__init__(recipe, memory)
        if recipe.boost is None or memory is None:
            raise ValueError(f"method {recipe.method} needs a rule of its operations")
        self.boost, self.losses = recipe.boost, memory
        self.scores_N = torch.zeros(memory.sums_2N.shape[1])

    def refresh(
        self, model: nn.Module, *, step: int, steps_per_epoch: int
    ) -> Mapping[str, float] | None:
        """Take the scores at the start of an epoch, and what else the method renews."""
        if step % steps_per_epoch == 0:
            self.scores_N.copy_(memorisation(self.losses.means()))
        return super().refresh(model, step=step, steps_per_epoch=steps_per_epoch)

    def change_view(self, view_BCHW: Tensor, batch: Batch, *, which: int, step: int) -> Tensor:
        """Return a view with operations of its images' strength."""
        path = self.recipe.seed, "boost", which, step
        num_each = self.boost.num_operations * OPERATION_NUMBERS
        generator = place_generator(*path, place=batch.start, num_each=num_each)
        params = sample_operations(self.boost, self.scores_N[batch.rows_B.cpu()], generator)
        return apply_operations(view_BCHW, params)

    def state(self) -> dict[str, Tensor]:
        """Return the scores that the epoch began with."""
        return {"scores": self.scores_N}


class BCLI(Boosted, SimCLRMethod):
    """BCL on SimCLR."""


class BCLD(Boosted, SDCLR):
    """BCL on SDCLR."""
