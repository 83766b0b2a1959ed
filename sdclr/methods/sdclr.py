"""SDCLR (Jiang et al. 2021): the second view goes through the pruned branch.

The mask is made anew from the live dense weights at the start of each epoch, as published, or as
often as `Recipe.refresh_epochs` says.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from sdclr.loss_memory import LossMemory
from sdclr.methods.method import Method
from sdclr.recipe import Recipe
from sdclr.seeds import torch_generator
from sdclr.twin import Network, SimCLR, Twin


class SDCLR(Method):
    """NT-Xent between the dense branch's view 1 and the pruned branch's view 2."""

    def __init__(self, recipe: Recipe, memory: LossMemory | None = None) -> None:
        super().__init__(recipe, memory)
        if recipe.prune is None:
            raise ValueError(f"method {recipe.method} needs a prune rule")
        self.prune = recipe.prune

    @classmethod
    def model(cls, network: Network, recipe: Recipe) -> SimCLR | Twin:
        """Return the network with its pruned branch."""
        return Twin(network, dual_norm=recipe.dual_norm)

    def refresh(
        self, model: nn.Module, *, step: int, steps_per_epoch: int
    ) -> Mapping[str, float] | None:
        """Recompute the masks when it is time.

        Raises:
            StarvedLayerError: a layer would keep nothing; the old masks stay.
        """
        every_steps = max(1, round(self.recipe.refresh_epochs * steps_per_epoch))
        if not isinstance(model, Twin) or step % every_steps:
            return None
        epoch, step_of_epoch = divmod(step, steps_per_epoch)
        path = ("mask", epoch, step_of_epoch) if step_of_epoch else ("mask", epoch)
        generator = torch_generator(self.recipe.seed, *path)
        return model.refresh_masks(self.prune, generator)
