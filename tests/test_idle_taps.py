"""Taps on padding only: found as autograd finds them, and their gradients zero on every CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sdclr import EpochPlan, ImageSet, Trainer, build_network, cifar_recipe
from sdclr.idle_taps import idle_taps, keep_idle_gradients_zero

LAYERS = {
    "3x3 by 2": nn.Conv2d(3, 4, 3, stride=2, padding=1),
    "5x5": nn.Conv2d(3, 4, 5, padding=2),
    "5x5 by 2, each channel": nn.Conv2d(3, 3, 5, stride=2, padding=2, groups=3),
    "oblong": nn.Conv2d(3, 4, (3, 7), stride=(2, 1), padding=(1, 3)),
    "dilated": nn.Conv2d(3, 4, 3, padding=2, dilation=2),
    "same": nn.Conv2d(3, 4, 4, padding="same"),
    "reflected": nn.Conv2d(3, 4, 3, padding=1, padding_mode="replicate"),
    "no padding": nn.Conv2d(3, 4, 1),
}


def taps_without_gradient(conv: nn.Conv2d, image_px: int) -> Tensor:
    """The slow reference: float32 gradients of positive images under a positive gradient."""
    images = torch.rand(4, 3, image_px, image_px) + 0.5
    conv.zero_grad()
    conv(images).sum().backward()
    assert conv.weight.grad is not None
    return (conv.weight.grad == 0).all(dim=0).all(dim=0)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", LAYERS)
def test_idle_taps_are_those_that_autograd_gives_no_gradient(name: str) -> None:
    for image_px in (1, 2, 3, 4, 5, 8):
        expected = taps_without_gradient(LAYERS[name], image_px)
        found = idle_taps(nn.Sequential(LAYERS[name]), image_px)
        assert list(found) == (["0"] if expected.any() else []), image_px
        if found:
            assert torch.equal(found["0"], expected), image_px


def test_closed_form_of_one_pixel_under_a_3x3() -> None:
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
    centre_alone = torch.ones(3, 3, dtype=torch.bool)
    centre_alone[1, 1] = False
    assert torch.equal(idle_taps(nn.Sequential(conv), 1)["0"], centre_alone)


def test_a_layer_called_on_two_sizes_is_idle_where_both_are() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, images: Tensor) -> Tensor:
            both: Tensor = self.conv(images) + self.conv(images[..., :1, :1])
            return both

    assert not idle_taps(Twice(), 4)
    assert idle_taps(Twice(), 1)["conv"].sum() == 8


@pytest.mark.parametrize("garbage", [7.0, float("inf"), float("nan")])
def test_whatever_is_found_there_becomes_zero(garbage: float) -> None:
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
    assert keep_idle_gradients_zero(nn.Sequential(conv), 1) == ["0"]
    (conv.weight * garbage).sum().backward()
    assert conv.weight.grad is not None
    assert (conv.weight.grad != 0).sum() == 4 * 3, "the centre keeps its gradient"
    idle = ~torch.eye(9, dtype=torch.bool)[4].reshape(3, 3)
    assert (conv.weight.grad[:, :, idle] == 0).all()


def gradients(precision: str, monkeypatch: pytest.MonkeyPatch, *, guarded: bool) -> list[Tensor]:
    """Return the gradients of three steps of one layer whose taps are mostly idle."""
    if not guarded:
        monkeypatch.setattr("sdclr.small_maps.keep_idle_gradients_zero", lambda *_: [])
    recipe = cifar_recipe("sdclr", epochs=1, seed=0)
    augment = replace(recipe.augment, crop_px=16)
    recipe = replace(recipe, augment=augment, precision=precision, lr=1e-9)  # type: ignore[arg-type]
    network = build_network("resnet18", stem="imagenet", head_depth=2, seed=0)
    plan = EpochPlan(num_images=24, global_batch=8, drop_last=True)
    draws = torch.Generator().manual_seed(0)
    images = ImageSet(torch.randint(0, 256, (24, 3, 16, 16), generator=draws, dtype=torch.uint8))
    trainer = Trainer(network, recipe, steps_per_epoch=plan.num_steps)
    found = []
    for _ in trainer.run(images.feed(plan, seed=0)):
        gradient = network.get_parameter("backbone.layer4.0.conv1.weight").grad
        assert gradient is not None
        found.append(gradient.clone())
    return found


def test_a_training_in_bfloat16_has_no_gradient_on_idle_taps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    idle = ~torch.eye(9, dtype=torch.bool)[4].reshape(3, 3)
    for gradient in gradients("bfloat16", monkeypatch, guarded=True):
        assert (gradient[:, :, idle] == 0).all()
        assert (gradient[:, :, 1, 1] != 0).any()


def test_float32_needs_no_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = ~torch.eye(9, dtype=torch.bool)[4].reshape(3, 3)
    for gradient in gradients("float32", monkeypatch, guarded=False):
        assert (gradient[:, :, idle] == 0).all()
