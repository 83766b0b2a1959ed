"""Fine-tuning with a classifier: a plain loop, a closed form, and the state that it leaves."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdclr import ImageSet
from sdclr.fewshot import fewshot_draws, fraction_draws
from sdclr.order import epoch_order
from sdclr.seeds import torch_generator
from sdclr.trained_probe import (
    FINETUNE_FEWSHOT,
    FINETUNE_TENTH,
    ProbeRecipe,
    ProbeView,
    train_probe,
)
from tests.test_trained_probe import VIEW, a_network, pixels, slow_views

RECIPE = ProbeRecipe(epochs=3, milestones=(2,), batch=8, lr=0.02)
NUM, CLASSES = 20, 3
LABELS = torch.arange(NUM) % CLASSES


def tuned(recipe: ProbeRecipe = RECIPE, seed: int = 3) -> tuple[Tensor, nn.Module]:
    """Weights of the classifier and the backbone after the last epoch."""
    network = a_network()
    *_, last = train_probe(
        network.features, ImageSet(pixels(NUM)), LABELS, num_features=64, num_classes=CLASSES,
        view=VIEW, recipe=recipe, val=None, seed=seed, backbone=network.backbone,
    )  # fmt: skip
    return last.probe.weight_CD, network.backbone


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def plain_loop(seed: int = 3) -> tuple[Tensor, nn.Module]:
    """SGD with momentum written out, image by image, in float64: norms are constants."""
    network = a_network().double()
    head = nn.Linear(64, CLASSES).double()
    with torch.no_grad():
        start = torch.empty(CLASSES, 64).normal_(0, 0.01, generator=torch_generator(seed, "probe"))
        head.weight.copy_(start)
        head.bias.zero_()
    weights = [*head.parameters(), *network.backbone.parameters()]
    speeds, lr = [torch.zeros_like(w) for w in weights], RECIPE.lr
    for epoch in range(RECIPE.epochs):
        if epoch in RECIPE.milestones:
            lr /= 10
        order = epoch_order(NUM, seed=seed, epoch=epoch)
        for step, start_row in enumerate(range(0, NUM, RECIPE.batch)):
            rows = order[start_row : start_row + RECIPE.batch]
            views = slow_views(pixels(NUM)[rows], torch_generator(seed, "probe view", epoch, step))
            gradients = [torch.zeros_like(w) for w in weights]
            for row, image in zip(rows, views, strict=True):
                logits = head(network.features(image[None].double()))
                loss = F.cross_entropy(logits, LABELS[row : row + 1]) / len(rows)
                for total, part in zip(gradients, torch.autograd.grad(loss, weights), strict=True):
                    total += part
            with torch.no_grad():
                for weight, speed, gradient in zip(weights, speeds, gradients, strict=True):
                    speed.mul_(RECIPE.momentum).add_(gradient)
                    weight -= lr * speed
    return head.weight.detach().float(), network.backbone.float()


def test_fine_tuning_equals_the_plain_loop() -> None:
    expected_CD, expected = plain_loop()
    found_CD, found = tuned()
    torch.testing.assert_close(found_CD, expected_CD, rtol=0, atol=2e-5)
    torch.testing.assert_close(flat(found), flat(expected), rtol=0, atol=2e-5)
    moved = (flat(found) - flat(a_network().backbone)).abs().max()
    assert moved > 1e-3
    for other_CD, other in (tuned(seed=4), tuned(replace(RECIPE, lr=0.01))):
        assert (flat(other) - flat(expected)).abs().max() > 1e-4
        assert (other_CD - expected_CD).abs().max() > 1e-4


class Scale(nn.Module):
    """One weight: features are the mean of the view times it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, views_BCHW: Tensor) -> Tensor:
        return self.scale * views_BCHW.mean(dim=(1, 2, 3))[:, None]


@pytest.mark.parametrize("is_tuned", [True, False])
def test_one_step_has_its_closed_form(is_tuned: bool) -> None:
    backbone, value = Scale(), 51 / 255
    images = ImageSet(torch.full((1, 3, 8, 8), 51, dtype=torch.uint8))
    (end,) = train_probe(
        backbone, images, torch.tensor([1]), num_features=1, num_classes=2, seed=0, val=None,
        view=ProbeView(kind="resized-crop", crop_px=8), recipe=ProbeRecipe(epochs=1, lr=0.5),
        backbone=backbone if is_tuned else None,
    )  # fmt: skip
    first_C = torch.empty(2, 1).normal_(0, 0.01, generator=torch_generator(0, "probe"))[:, 0]
    error_C = torch.softmax(2 * value * first_C, dim=0) - torch.tensor([0.0, 1.0])
    torch.testing.assert_close(end.probe.weight_CD[:, 0], first_C - 0.5 * error_C * 2 * value)
    scale = 2 - 0.5 * value * float(error_C @ first_C) if is_tuned else 2.0
    assert backbone.scale.item() == pytest.approx(scale, abs=1e-7)
    assert (abs(backbone.scale.item() - 2) > 1e-6) == is_tuned


def test_norms_keep_their_statistics_and_the_same_seed_gives_the_same_bits() -> None:
    first_CD, first = tuned()
    again_CD, again = tuned()
    assert torch.equal(first_CD, again_CD) and torch.equal(flat(first), flat(again))
    before = dict(a_network().backbone.named_buffers())
    assert before and all(torch.equal(b, before[n]) for n, b in first.named_buffers())


def test_a_projection_head_is_left_alone() -> None:
    network = a_network()
    head = copy.deepcopy(network.head.state_dict())
    list(
        train_probe(
            network.features, ImageSet(pixels(NUM)), LABELS, num_features=64, num_classes=CLASSES,
            view=VIEW, recipe=RECIPE, val=None, seed=0, backbone=network.backbone,
        )
    )  # fmt: skip
    assert all(torch.equal(t, head[n]) for n, t in network.head.state_dict().items())


def test_features_of_a_frozen_backbone_cannot_choose_the_epoch() -> None:
    network = a_network()
    val = torch.zeros(2, 64), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="frozen"):
        next(
            train_probe(
                network.features, ImageSet(pixels(NUM)), LABELS, num_features=64,
                num_classes=CLASSES, view=VIEW, recipe=RECIPE, val=val, seed=0,
                backbone=network.backbone,
            )
        )  # fmt: skip


def test_the_recipes_are_those_of_the_paper_at_small_batches() -> None:
    assert (FINETUNE_FEWSHOT.epochs, FINETUNE_TENTH.epochs) == (60, 30)
    for recipe in (FINETUNE_FEWSHOT, FINETUNE_TENTH):
        assert recipe.lr == pytest.approx(0.05 * recipe.batch / 256)
        assert [m / recipe.epochs for m in recipe.milestones] == [0.6, 0.8]


def test_a_part_of_each_class_is_drawn_and_holds_the_smaller_draw() -> None:
    counts = [60, 31, 14, 1]
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), counts))
    draws = fraction_draws(labels, fraction=0.1, num_draws=3, seed=5)
    assert [np.bincount(labels[draw]).tolist() for draw in draws] == [[6, 3, 1, 1]] * 3
    assert len({tuple(draw) for draw in draws}) == 3
    few = fewshot_draws(labels, shots_per_class=1, num_draws=3, seed=5)
    assert all(set(small) <= set(draw) for small, draw in zip(few, draws, strict=True))
    other = fraction_draws(labels, fraction=0.1, num_draws=3, seed=6)
    assert not set(few[0]) <= set(other[0])
    assert all(
        len(d) == len(labels) for d in fraction_draws(labels, fraction=1, num_draws=1, seed=0)
    )
    for fraction, num_draws in ((0.0, 1), (1.1, 1), (0.1, 0)):
        with pytest.raises(ValueError, match="fraction"):
            fraction_draws(labels, fraction=fraction, num_draws=num_draws, seed=0)
