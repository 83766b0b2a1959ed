"""The interface of a method. The base is contrast of two views, and each method changes it.

Shapes: B images on this rank, N images in the set, D embedding size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from sdclr.imageset import Batch
from sdclr.loss import nt_xent
from sdclr.loss_memory import LossMemory
from sdclr.recipe import Recipe
from sdclr.twin import Network, SimCLR, Twin


class Method:
    """One way to train a network on two views of each image; a trainer makes one.

    A method keeps no state but what `state` returns, so that a resume is exact. What it draws comes
    from `sdclr.seeds`: for an image by its place in the global batch, so that ranks agree.

    Args:
        recipe: of the training.
        memory: of the images' losses, where the trainer keeps one.

    Raises:
        ValueError: the recipe lacks what the method needs.
    """

    needs_losses: ClassVar[bool] = False
    """Whether the trainer has to keep a memory of the images' losses."""

    def __init__(self, recipe: Recipe, memory: LossMemory | None = None) -> None:
        if self.needs_losses and memory is None:
            raise ValueError(f"method {recipe.method} needs a memory of the images' losses")
        self.recipe, self.memory = recipe, memory

    @classmethod
    def model(cls, network: Network, recipe: Recipe) -> SimCLR | Twin:
        """Return the module that maps two views to their embeddings (B, D)."""
        return SimCLR(network)

    def temperature(self, epoch: int) -> float:
        """Return the temperature of an epoch, > 0."""
        return self.recipe.temperature

    def loss(self, f1_BD: Tensor, f2_BD: Tensor, *, temperature: float | Tensor) -> Tensor:
        """Return the loss of this rank's images, a scalar; its mean over ranks is minimised.

        On a GPU the temperature is a tensor there: a CUDA graph reads it anew in each step.
        """
        return nt_xent(f1_BD, f2_BD, temperature=temperature)

    def refresh(
        self, model: nn.Module, *, step: int, steps_per_epoch: int
    ) -> Mapping[str, float] | None:
        """Renew before a step what is renewed now and then; return the new mask's kept fractions.

        A function of the step and of the state at that step: a resume may repeat it.
        """
        return None

    def change_view(self, view_BCHW: Tensor, batch: Batch, *, which: int, step: int) -> Tensor:
        """Return view 1 or 2 (B, 3, h, w) in [0, 1], changed by what is known of its images."""
        return view_BCHW

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a resume needs, on the CPU; they are restored in place."""
        return {}
