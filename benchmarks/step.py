"""One training step of SDCLR beside the published scheme: ResNet-18 with the CIFAR stem, 32 px.

    python -m benchmarks.step

Both steps are forward, loss, backward and SGD on views that are made beforehand. The peak is the
fastest of a few matrix products and convolutions, measured in the same precision just before. Time
is CPU time of one thread, so that what else the machine does disturbs little.
"""

from __future__ import annotations

import copy
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

NUM_IMAGES, NUM_COMPARED = 64, 8
_CLOCK = time.process_time
RECIPE = cifar_recipe("sdclr")
TARGETS = {"float32": 1.15, "bfloat16": 2.3}
# Of gradients: in float64, and times the distance of the published scheme in the same precision.
FLOAT64_TOLERANCE, CHANCE = 1e-9, 1.5
Gradients = tuple[float, dict[str, Tensor]]


class GivenViews(Trainer):
    """A trainer with views that are made once, so that the step alone is timed."""

    given: tuple[Tensor, Tensor]

    def views(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the views that were given."""
        return self.given


def trainer(recipe: Recipe, images: ImageSet) -> tuple[GivenViews, Batch]:
    """Return a trainer with masks and views, and the batch they come from."""
    plan = EpochPlan(num_images=len(images), global_batch=len(images), drop_last=True)
    network = build_network("resnet18", stem="cifar", head_depth=2, seed=0)
    made = GivenViews(network, recipe, steps_per_epoch=plan.num_steps)
    assert isinstance(made.model, Twin) and recipe.prune is not None
    made.model.refresh_masks(recipe.prune)
    batch = next(iter(images.feed(plan, seed=0).batches(0)))
    made.given = Trainer.views(made, batch)
    return made, batch


def peak_flops(dtype: torch.dtype) -> float:
    """Measure the floating-point operations per second of the fastest product or convolution."""
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


def gradients(twin: Twin, views: tuple[Tensor, Tensor], *, bf16: bool = False) -> Gradients:
    """Return the loss and every gradient in float64, computed in the twin's own type."""
    twin.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        f1_BD, f2_BD = twin(*views)
    loss = nt_xent(f1_BD, f2_BD, temperature=RECIPE.temperature)
    loss.backward()
    found = {n: p.grad.double() for n, p in twin.named_parameters() if p.grad is not None}
    twin.zero_grad()
    return loss.item(), found


def published_gradients(
    twin: Twin, views: tuple[Tensor, Tensor], *, bf16: bool = False
) -> Gradients:
    """Return the same by the published scheme, by the names of the twin."""
    scheme = reference(twin)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        loss = scheme.gradient(*views)
    known = {n: p.grad for n, p in scheme.network.named_parameters() if p.grad is not None}
    names = [name for name, _ in twin.named_parameters()]
    return loss, {name: known[_published_name(name, known)].double() for name in names}


def distance(found: Gradients, expected: Gradients) -> float:
    """Return the norm of the difference over the norm of the expected value."""
    square = sum(float((found[1][n] - g).square().sum()) for n, g in expected[1].items())
    norm = sum(float(g.square().sum()) for g in expected[1].values())
    return math.sqrt(square / norm)


def reference(twin: Twin) -> PublishedStep:
    """Return the published scheme on a copy of the twin's state."""
    return PublishedStep(
        twin,
        lr=RECIPE.lr,
        momentum=RECIPE.momentum,
        weight_decay=RECIPE.weight_decay,
        temperature=RECIPE.temperature,
    )


def agreement(twin: Twin, views: tuple[Tensor, Tensor]) -> list[Row]:
    """Compare the gradient on a few images with the published scheme's in float64.

    ReLU and BatchNorm amplify rounding, so two right programs in float32 differ by far more than
    its precision. Each is compared with float64, and ours may be off by what the published scheme
    is, in the same precision, up to chance.
    """
    views = views[0][:NUM_COMPARED], views[1][:NUM_COMPARED]
    exact, exact_views = copy.deepcopy(twin).double(), (views[0].double(), views[1].double())
    truth = published_gradients(exact, exact_views)
    found = {"float64": (gradients(exact, exact_views), FLOAT64_TOLERANCE)}
    for precision, bf16 in (("float32", False), ("bfloat16", True)):
        theirs = published_gradients(twin, views, bf16=bf16)
        found[precision] = (gradients(twin, views, bf16=bf16), CHANCE * distance(theirs, truth))
    return [
        Row(
            name=f"gradient of a step, {precision}: relative distance",
            values=[distance(ours, truth)],
            unit="",
            versus="published scheme, float64",
            target=target,
            at_most=True,
            note=f"loss differs by {abs(ours[0] / truth[0] - 1):.1e}",
        )
        for precision, (ours, target) in found.items()
    ]


def _published_name(name: str, known: dict[str, Tensor]) -> str:
    owner, _, kind = name.rpartition(".")
    if owner.startswith("pruned_norms."):
        return f"{owner.removeprefix('pruned_norms.').replace('/', '.')}.pruned.{kind}"
    plain = name.removeprefix("network.")
    return plain if plain in known else f"{owner.removeprefix('network.')}.dense.{kind}"


def rows() -> list[Row]:
    """Measure agreement, speed and share of the peak for each precision of the CPU."""
    torch.set_num_threads(1)
    pixels = torch.randint(
        0, 256, (NUM_IMAGES, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator()
    )
    images = ImageSet(pixels)
    made, batch = trainer(RECIPE, images)
    low, _ = trainer(replace(RECIPE, precision="bfloat16"), images)
    assert isinstance(made.model, Twin)
    published = reference(made.model)
    result = agreement(made.model, made.given)
    trainers = {"float32": made, "bfloat16": low}
    with FlopCounterMode(display=False) as counter:
        made.update(batch)
    peaks = {"float32": peak_flops(torch.float32), "bfloat16": peak_flops(torch.bfloat16)}
    spent = in_turns(
        {
            "published": lambda: published.step(*made.given),
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
