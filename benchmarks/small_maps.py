"""Wall time of taps and of branches side by side on a CPU: all threads, in turns.

    python -m benchmarks.small_maps

Convolutions by taps (`sdclr.small_maps`) beside oneDNN's, for shapes of ResNets on small images,
and steps of SDCLR with neither, with taps, and with taps and both branches at once
(`sdclr.side_by_side`). Views are made beforehand. Data: random numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.table import Row, main
from benchmarks.timing import in_turns, ratios
from sdclr import Trainer, Twin, build_network, cifar_recipe
from sdclr.small_maps import SmallMapConv2d, multiply_small_maps

# Images, channels in and out, stride and side of the map of a 3x3 convolution.
SHAPES = {
    "512 to 512 on 2 x 2 px, 64 images": (64, 512, 512, 1, 2),
    "256 to 512 by 2 on 4 x 4 px, 64 images": (64, 256, 512, 2, 4),
    "256 to 256 on 4 x 4 px, 64 images": (64, 256, 256, 1, 4),
    "512 to 512 on 4 x 4 px, 64 images": (64, 512, 512, 1, 4),
    "512 to 512 on 7 x 7 px, 16 images": (16, 512, 512, 1, 7),
    "64 to 64 on 2 x 2 px, 128 images": (128, 64, 64, 1, 2),
}
# Backbone, stem, images and side of a step.
STEPS = {
    "ResNet-18, 64 images of 64 px": ("resnet18", "imagenet", 64, 64),
    "ResNet-18, CIFAR stem, 64 images of 32 px": ("resnet18", "cifar", 64, 32),
    "ResNet-8, CIFAR stem, 128 images of 8 px": ("resnet8", "cifar", 128, 8),
}
REPEATS = 7


def convolution_rows() -> list[Row]:
    """Time forward and backward of single convolutions."""
    found = []
    for name, (images, num_in, num_out, stride, side) in SHAPES.items():
        ordinary = nn.Conv2d(num_in, num_out, 3, stride=stride, padding=1, bias=False)
        by_taps = SmallMapConv2d(num_in, num_out, 3, stride=stride, padding=1, bias=False)
        x = torch.randn(images, num_in, side, side).to(memory_format=torch.channels_last)
        calls = {
            kind: _pass(conv.to(memory_format=torch.channels_last), x)
            for kind, conv in {"oneDNN": ordinary, "taps": by_taps}.items()
        }
        spent = in_turns(calls, repeats=REPEATS)
        found.append(
            Row(
                name=f"3x3 convolution, {name}, forward and backward",
                values=ratios(spent["oneDNN"], spent["taps"]),
                unit="x",
                versus="oneDNN",
            )
        )
    return found


def _pass(conv: nn.Module, x: Tensor) -> Callable[[], None]:
    def run() -> None:
        given = x.detach().requires_grad_()
        conv(given).sum().backward()

    return run


def step_rows() -> list[Row]:
    """Time whole steps."""
    found = []
    for name, (backbone, stem, images, side) in STEPS.items():
        view_BCHW = torch.rand(images, 3, side, side).to(memory_format=torch.channels_last)
        calls = {
            "neither": _step(backbone, stem, view_BCHW, taps=False, parted=False),
            "taps": _step(backbone, stem, view_BCHW, taps=True, parted=False),
            "both": _step(backbone, stem, view_BCHW, taps=True, parted=True),
        }
        spent = in_turns(calls, repeats=REPEATS)
        found += [
            Row(name=f"step, {name}", values=[1e3 * s for s in spent["both"]], unit="ms"),
            Row(
                name=f"step, {name}, by taps",
                values=ratios(spent["neither"], spent["taps"]),
                unit="x",
                versus="oneDNN, one branch after the other",
            ),
            Row(
                name=f"step, {name}, by taps, branches side by side",
                values=ratios(spent["neither"], spent["both"]),
                unit="x",
                versus="oneDNN, one branch after the other",
            ),
        ]
    return found


def _step(
    backbone: str, stem: str, view_BCHW: Tensor, *, taps: bool, parted: bool
) -> Callable[[], None]:
    recipe = cifar_recipe("sdclr")
    recipe = replace(recipe, augment=replace(recipe.augment, crop_px=view_BCHW.shape[2]))
    network = build_network(backbone, stem=stem, head_depth=2, seed=0)
    trainer = Trainer(network, recipe, steps_per_epoch=1)
    assert isinstance(trainer.model, Twin) and recipe.prune is not None
    trainer.model.refresh_masks(recipe.prune)
    if not taps:
        for module in network.modules():
            if type(module) is SmallMapConv2d:
                module.__class__ = nn.Conv2d
    else:
        multiply_small_maps(network)
    if not parted:
        trainer._parted = None

    def run() -> None:
        trainer._gradient(view_BCHW, view_BCHW)
        trainer.optimizer.step()

    return run


def rows() -> list[Row]:
    """Measure both, with as many threads as there are CPUs."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return [*convolution_rows(), *step_rows()]


if __name__ == "__main__":
    main(rows)
