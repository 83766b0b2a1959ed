"""One training step of SDCLR beside the published scheme: ResNet-18 with the CIFAR stem, 32 px.

    python -m benchmarks.step

Both steps are forward, loss, backward and SGD on views that are made beforehand. The peak is the
fastest of a few matrix products and convolutions, measured in the same precision just before. Time
is CPU time of one thread, so that what else the machine does disturbs little.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.published import PublishedStep
from benchmarks.table import Row, main
from benchmarks.timing import in_turns, ratios
from sdclr import (
    EpochPlan,
    ImageSet,
    Recipe,
    Trainer,
    Twin,
    build_network,
    cifar_recipe,
    nt_xent,
)
from sdclr.imageset import Batch

NUM_IMAGES = 64
_CLOCK = time.process_time
RECIPE = cifar_recipe("sdclr")
TARGETS = {"float32": 1.15, "bfloat16": 2.3}
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.1}


class GivenViews(Trainer):
    """A trainer whose views are made once: what is timed is the step alone."""

    given: tuple[Tensor, Tensor]

    def views(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The views that were given."""
        return self.given


def trainer(recipe: Recipe, images: ImageSet) -> tuple[GivenViews, Batch]:
    """A trainer with masks and views, and the batch they come from."""
    plan = EpochPlan(num_images=len(images), global_batch=len(images), drop_last=True)
    network = build_network("resnet18", stem="cifar", head_depth=2, seed=0)
    made = GivenViews(network, recipe, steps_per_epoch=plan.num_steps)
    assert isinstance(made.model, Twin) and recipe.prune is not None
    made.model.refresh_masks(recipe.prune)
    batch = next(iter(images.feed(plan, seed=0).batches(0)))
    made.given = Trainer.views(made, batch)
    return made, batch


def peak_flops(dtype: torch.dtype) -> float:
    """Floating-point operations per second of the fastest product or convolution."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    last = torch.channels_last
    a, b = draw(1024, 1024), draw(1024, 1024)
    rates = [2 * 1024**3 / min(in_turns({"mm": lambda: a @ b}, repeats=10, clock=_CLOCK)["mm"])]
    for channels, side in ((128, 16), (256, 8)):
        x = draw(NUM_IMAGES, channels, side, side).to(memory_format=last)
        w = draw(channels, channels, 3, 3).to(memory_format=last)
        conv = {"conv": lambda x=x, w=w: torch.conv2d(x, w, padding=1)}
        work = 2 * NUM_IMAGES * side**2 * 9 * channels**2
        rates.append(work / min(in_turns(conv, repeats=10, clock=_CLOCK)["conv"]))
    return max(rates)


def gradient_error(made: GivenViews, published: PublishedStep) -> tuple[float, float]:
    """Relative differences of loss and gradient."""
    twin = made.model
    assert isinstance(twin, Twin)
    expected_loss = published.gradient(*made.given)
    expected = {n: p.grad for n, p in published.network.named_parameters() if p.grad is not None}
    bf16 = made.recipe.precision == "bfloat16"
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        f1_BD, f2_BD = twin(*made.given)
    loss = nt_xent(f1_BD, f2_BD, temperature=made.recipe.temperature)
    loss.backward()
    difference = norm = 0.0
    for name, parameter in twin.named_parameters():
        assert parameter.grad is not None
        theirs = expected[_published_name(name, expected)]
        difference += float((parameter.grad - theirs).square().sum())
        norm += float(theirs.square().sum())
    twin.zero_grad()
    return abs(loss.item() / expected_loss - 1), math.sqrt(difference / norm)


def _published_name(name: str, known: dict[str, Tensor]) -> str:
    owner, _, kind = name.rpartition(".")
    if owner.startswith("pruned_norms."):
        return f"{owner.removeprefix('pruned_norms.').replace('/', '.')}.pruned.{kind}"
    plain = name.removeprefix("network.")
    return plain if plain in known else f"{owner.removeprefix('network.')}.dense.{kind}"


def rows() -> list[Row]:
    """Agreement, speed and share of the peak, for each precision that the CPU computes in."""
    torch.set_num_threads(1)
    pixels = torch.randint(
        0, 256, (NUM_IMAGES, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator()
    )
    images = ImageSet(pixels)
    made, batch = trainer(RECIPE, images)
    low, _ = trainer(replace(RECIPE, precision="bfloat16"), images)
    assert isinstance(made.model, Twin)
    reference = PublishedStep(
        made.model,
        lr=RECIPE.lr,
        momentum=RECIPE.momentum,
        weight_decay=RECIPE.weight_decay,
        temperature=RECIPE.temperature,
    )
    result: list[Row] = []
    trainers = {"float32": made, "bfloat16": low}
    for precision, t in trainers.items():
        loss_error, error = gradient_error(t, reference)
        result.append(
            Row(
                name=f"gradient of a step, {precision}: relative difference",
                values=[error],
                unit="",
                versus="published scheme, float32",
                target=TOLERANCE[precision],
                at_most=True,
                note=f"loss differs by {loss_error:.1e}",
            )
        )
    with FlopCounterMode(display=False) as counter:
        made.update(batch)
    peaks = {"float32": peak_flops(torch.float32), "bfloat16": peak_flops(torch.bfloat16)}
    spent = in_turns(
        {
            "published": lambda: reference.step(*made.given),
            **{name: (lambda t=t: t.update(batch)) for name, t in trainers.items()},
        },
        repeats=5,
        clock=_CLOCK,
    )
    for precision in trainers:
        name = f"step, ResNet-18 32 px, batch {NUM_IMAGES}, {precision}"
        rate = [counter.get_total_flops() / s for s in spent[precision]]
        result += [
            Row(
                name=name,
                values=ratios(spent["published"], spent[precision]),
                unit="x",
                versus="published scheme, float32",
                target=TARGETS[precision],
            ),
            Row(
                name=name,
                values=[100 * r / peaks[precision] for r in rate],
                unit="%",
                versus=f"measured peak, {peaks[precision] / 1e9:.0f} GFLOP/s",
            ),
            Row(name=name, values=[NUM_IMAGES / s for s in spent[precision]], unit="images/s"),
        ]
    return result


if __name__ == "__main__":
    main(rows)
