"""One step of every method beside SimCLR's, and of every optimizer beside SGD's: ResNet-18, 32 px.

    python -m benchmarks.methods

A step is all of an update: both views, forward, loss, backward and the optimizer. BCL's images have
a score of 1/2, the mean. Time is CPU time of one thread, in turns within one run.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from benchmarks.table import Row, main
from benchmarks.timing import in_turns, ratios
from sdclr import EpochPlan, ImageSet, LossMemory, Recipe, Trainer, build_network, cifar_recipe
from sdclr.imageset import Batch
from sdclr.methods import METHODS, method_class

NUM_IMAGES, REPEATS = 32, 5
OPTIMIZERS = ("adamw", "lars")


def trainer(recipe: Recipe, images: ImageSet) -> tuple[Trainer, Batch]:
    """Return a trainer with masks and scores, and a batch of it."""
    plan = EpochPlan(num_images=len(images), global_batch=len(images), drop_last=True)
    network = build_network("resnet18", stem="cifar", head_depth=2, seed=0)
    needed = method_class(recipe.method).needs_losses
    memory = LossMemory(len(images), momentum=0.97) if needed else None
    made = Trainer(network, recipe, steps_per_epoch=1, memory=memory)
    made.method.refresh(made.model, step=0, steps_per_epoch=1)
    for tensor in made.method.state().values():
        tensor.fill_(0.5)
    return made, next(iter(images.feed(plan, seed=0).batches(0)))


def rows() -> list[Row]:
    """Measure the time of a step over SimCLR's, and over SGD's with SDCLR."""
    torch.set_num_threads(1)
    pixels = torch.randint(
        0, 256, (NUM_IMAGES, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator()
    )
    images = ImageSet(pixels)
    recipes = {name: cifar_recipe(name) for name in METHODS}
    recipes |= {
        name: replace(cifar_recipe("sdclr"), optimizer=name, lr=1e-3)  # type: ignore[arg-type]
        for name in OPTIMIZERS
    }
    made = {name: trainer(recipe, images) for name, recipe in recipes.items()}
    calls = {name: (lambda t=t, b=b: t.update(b)) for name, (t, b) in made.items()}
    spent = in_turns(calls, repeats=REPEATS, clock=time.process_time)
    step = f"update, ResNet-18 32 px, batch {NUM_IMAGES}"
    result = [
        Row(
            name=f"{step}, {name}: time",
            values=ratios(spent[name], spent["simclr"]),
            unit="x",
            versus="simclr",
        )
        for name in METHODS
        if name != "simclr"
    ]
    return result + [
        Row(
            name=f"{step}, sdclr with {name}: time",
            values=ratios(spent[name], spent["sdclr"]),
            unit="x",
            versus="sgd",
        )
        for name in OPTIMIZERS
    ]


if __name__ == "__main__":
    main(rows)
