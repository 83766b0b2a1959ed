"""TS (Kukleva et al. 2023): the temperature of the loss swings between two values over the epochs.

    T(e) = low + (high - low) (1 + cos(2 pi e / period)) / 2

A high temperature separates groups, a low one separates images, which rare classes need. It
composes with any method; the recipe's own temperature is not used.
"""

from __future__ import annotations

from sdclr.loss_memory import LossMemory
from sdclr.methods.method import Method
from sdclr.methods.sdclr import SDCLR
from sdclr.methods.simclr import SimCLRMethod
from sdclr.recipe import Recipe


class Scheduled(Method):
    """A method whose temperature follows `Recipe.schedule`."""

    def __init__(self, recipe: Recipe, memory: LossMemory | None = None) -> None:
        super().__init__(recipe, memory)
        if recipe.schedule is None:
            raise ValueError(f"method {recipe.method} needs a schedule of the temperature")
        self.schedule = recipe.schedule

    def temperature(self, epoch: int) -> float:
        """Return the temperature of an epoch, > 0."""
        return self.schedule.at(epoch)


class SimCLRTS(Scheduled, SimCLRMethod):
    """SimCLR with a schedule of the temperature: TS as published."""


class SDCLRTS(Scheduled, SDCLR):
    """SDCLR with a schedule of the temperature."""
