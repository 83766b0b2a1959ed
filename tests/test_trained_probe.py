"""`paper-linear` against a plain loop, its views against torchvision, its choice of the epoch."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from sdclr import ImageSet, build_network
from sdclr.logistic import LinearProbe
from sdclr.order import epoch_order
from sdclr.resample import CROP_NUMBERS, sample_crops
from sdclr.seeds import torch_generator
from sdclr.trained_probe import (
    PAPER_FEWSHOT,
    PAPER_LINEAR,
    ProbeEpoch,
    ProbeRecipe,
    ProbeView,
    best_epoch,
    train_probe,
)

VIEW = ProbeView(kind="padded-crop", crop_px=16)
SMALL = ProbeRecipe(epochs=5, milestones=(2, 4), batch=8, lr=0.5)


def pixels(num_images: int, px: int = 16, seed: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (num_images, 3, px, px)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def a_network() -> torch.nn.Module:
    return build_network("resnet8", stem="cifar", head_depth=2, seed=0).eval()


def trained(view: ProbeView = VIEW, recipe: ProbeRecipe = SMALL, seed: int = 3, **changes):
    images, labels = ImageSet(pixels(20)), torch.arange(20) % 3
    network = a_network()
    with torch.no_grad():
        val = network.features(pixels(9, seed=8) / 255), torch.arange(9) % 3
    arguments = {"num_features": 64, "num_classes": 3, "view": view, "recipe": recipe, "val": val}
    arguments |= {"seed": seed, **changes}
    return list(train_probe(network.features, images, labels, **arguments))


def plain_loop(seed: int = 3) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """SGD written out in float64, image by image: the reference of the whole protocol."""
    network, labels = a_network(), np.arange(20) % 3
    weight = torch.empty(3, 64).normal_(0, 0.01, generator=torch_generator(seed, "probe"))
    weight, bias = weight.double().numpy(), np.zeros(3)
    speed_w, speed_b, lr, accuracies = np.zeros_like(weight), np.zeros(3), 0.5, []
    with torch.no_grad():
        val = network.features(pixels(9, seed=8) / 255).double().numpy()
    for epoch in range(5):
        if epoch in (2, 4):
            lr /= 10
        order = epoch_order(20, seed=seed, epoch=epoch)
        for step, start in enumerate(range(0, 20, 8)):
            rows = order[start : start + 8]
            views = slow_views(pixels(20)[rows], torch_generator(seed, "probe view", epoch, step))
            grad_w, grad_b = np.zeros_like(weight), np.zeros(3)
            for row, image in zip(rows, views, strict=True):
                with torch.no_grad():
                    z = network.features(image[None])[0].double().numpy()
                scores = np.exp(weight @ z + bias - np.max(weight @ z + bias))
                error = scores / scores.sum() - np.eye(3)[labels[row]]
                grad_w += np.outer(error, z) / len(rows)
                grad_b += error / len(rows)
            speed_w, speed_b = 0.9 * speed_w + grad_w, 0.9 * speed_b + grad_b
            weight, bias = weight - lr * speed_w, bias - lr * speed_b
        hits = [np.argmax(weight @ z + bias) == i % 3 for i, z in enumerate(val)]
        accuracies.append(float(np.mean(hits)))
    return weight, bias, accuracies


def slow_views(images: Tensor, generator: torch.Generator) -> list[Tensor]:
    """RandomCrop(16, padding=2) and flip by torchvision, with the same random numbers."""
    top, left = torch.randint(5, (2, len(images)), generator=generator)
    flip = torch.rand(len(images), generator=generator) < 0.5
    views = []
    for i, image in enumerate(images):
        view = tv.crop(tv.pad(image, [2]), int(top[i]), int(left[i]), 16, 16)
        views.append((tv.horizontal_flip(view) if flip[i] else view) / 255)
    return views


def test_the_protocol_equals_the_plain_loop() -> None:
    weight, bias, accuracies = plain_loop()
    epochs = trained()
    assert [e.epoch for e in epochs] == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(epochs[-1].probe.weight_CD.numpy(), weight, atol=2e-5)
    np.testing.assert_allclose(epochs[-1].probe.bias_C.numpy(), bias, atol=2e-5)
    assert [e.val_accuracy for e in epochs] == pytest.approx(accuracies)
    for other in (trained(seed=4), trained(recipe=replace(SMALL, milestones=(3, 4)))):
        assert not np.allclose(other[-1].probe.weight_CD.numpy(), weight, atol=1e-3)


def test_the_published_recipes() -> None:
    for recipe, epochs, milestones in (
        (PAPER_LINEAR, 30, (10, 20)),
        (PAPER_FEWSHOT, 100, (40, 60)),
    ):
        assert (recipe.epochs, recipe.milestones) == (epochs, milestones)
        assert (recipe.lr, recipe.momentum, recipe.batch, recipe.init_std) == (30, 0.9, 128, 0.01)


def test_the_backbone_is_left_as_it_was() -> None:
    network = a_network()
    before = {n: t.clone() for n, t in network.state_dict().items()}
    list(
        train_probe(
            network.features, ImageSet(pixels(8)), torch.arange(8) % 2, num_features=64,
            num_classes=2, view=VIEW, recipe=SMALL, val=None, seed=0,
        )
    )  # fmt: skip
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_resized_crop_equals_torchvisions() -> None:
    view = ProbeView(kind="resized-crop", crop_px=24)
    images, sizes = pixels(12, px=40), torch.tensor([[40, 40], [30, 40], [25, 18]] * 4)
    found = view(images, sizes, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    numbers = torch.rand(CROP_NUMBERS + 1, 12, generator=generator, dtype=torch.float64)
    crops = sample_crops(sizes, numbers[:-1], scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
    flip = numbers[-1] < 0.5
    assert 0 < flip.sum() < 12
    for i, (top, left, height, width) in enumerate(torch.stack(crops, dim=1).tolist()):
        expected = tv.resized_crop(
            images[i], top, left, height, width, [24, 24], InterpolationMode.BILINEAR, True
        )
        if flip[i]:
            expected = tv.horizontal_flip(expected)
        # torchvision rounds to whole grey levels.
        assert (found[i] - expected / 255).abs().max() < 1.01 / 255


def test_flips_follow_their_probability() -> None:
    images, sizes = pixels(64), torch.full((64, 2), 16)
    generator = torch.Generator().manual_seed(0)
    never = replace(VIEW, hflip_prob=0.0)(images, sizes, generator)
    always = replace(VIEW, hflip_prob=1.0)(images, sizes, torch.Generator().manual_seed(0))
    assert torch.equal(never.flip(3), always)
    assert never.min() >= 0 and never.max() <= 1


def test_padded_crop_needs_images_of_its_side() -> None:
    with pytest.raises(ValueError, match="padded-crop needs images of side 16 px, got 20x20"):
        VIEW(pixels(2, px=20), torch.full((2, 2), 20), torch.Generator())


def test_without_validation_there_is_no_choice() -> None:
    epochs = trained(val=None)
    assert all(e.val_accuracy is None for e in epochs)
    with pytest.raises(ValueError, match="validation"):
        best_epoch(epochs)


def test_the_first_of_the_best_epochs_is_chosen() -> None:
    probe = LinearProbe(torch.zeros(2, 3), torch.zeros(2), converged=True)
    epochs = [ProbeEpoch(i + 1, 0.0, a, probe) for i, a in enumerate((0.2, 0.7, 0.7, 0.1))]
    assert best_epoch(epochs).epoch == 2
    with pytest.raises(ValueError):
        best_epoch([])


def test_bad_input_is_refused() -> None:
    network, images = a_network(), ImageSet(pixels(4))
    kwargs = {"num_features": 64, "num_classes": 2, "view": VIEW, "recipe": SMALL, "val": None}
    for labels in (torch.tensor([0, 1]), torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, -1, 0])):
        with pytest.raises(ValueError, match="labels"):
            next(train_probe(network.features, images, labels, seed=0, **kwargs))
    with pytest.raises(FloatingPointError, match="epoch 1"):
        next(
            train_probe(
                lambda x: network.features(x) * math.nan, images, torch.tensor([0, 1, 0, 1]),
                seed=0, **kwargs,
            )
        )  # fmt: skip


def test_separable_images_are_learnt() -> None:
    # Class = which half of the image is bright: the views keep it up to the flip.
    images = torch.zeros(60, 3, 16, 16, dtype=torch.uint8)
    labels = torch.arange(60) % 2
    images[labels == 0, :, :8], images[labels == 1, :, 8:] = 255, 255
    val = F.adaptive_avg_pool2d(images.float() / 255, 4).flatten(1), labels
    epochs = list(
        train_probe(
            lambda x: F.adaptive_avg_pool2d(x, 4).flatten(1), ImageSet(images), labels,
            num_features=48, num_classes=2, view=VIEW, recipe=SMALL, val=val, seed=0,
        )
    )  # fmt: skip
    assert best_epoch(epochs).val_accuracy == 1.0 and epochs[-1].loss < epochs[0].loss
