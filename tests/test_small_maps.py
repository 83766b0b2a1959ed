"""Convolutions by taps: values and gradients are those of the ordinary ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sdclr import EpochPlan, ImageSet, Trainer, build_network, cifar_recipe, small_maps
from sdclr.small_maps import SmallMapConv2d, multiply_small_maps

KERNELS = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "3x3 by 2": {"kernel_size": 3, "stride": 2, "padding": 1},
    "1x1": {"kernel_size": 1},
    "1x1 by 2": {"kernel_size": 1, "stride": 2},
    "7x7 by 2": {"kernel_size": 7, "stride": 2, "padding": 3},
    "oblong": {"kernel_size": (3, 5), "stride": (2, 1), "padding": (1, 2)},
    "skipping": {"kernel_size": 2, "stride": 3},
}
SIDES = [(1, 1), (2, 2), (4, 4), (5, 3), (7, 8)]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_maps, "_FOR_WEIGHTS", 0)
    monkeypatch.setattr(small_maps, "_FOR_MAPS", 0)


def by_taps(conv: nn.Conv2d) -> nn.Conv2d:
    holder = nn.Sequential(conv)
    assert multiply_small_maps(holder) == ["0"]
    assert type(holder[0]) is SmallMapConv2d
    return conv


def values(conv: nn.Conv2d, x: Tensor) -> list[Tensor]:
    """Output, and the gradients of input, weight and bias under a fixed gradient."""
    x = x.clone().requires_grad_()
    y = conv(x)
    generator = torch.Generator().manual_seed(3)
    grad = torch.randn(y.shape, generator=generator, dtype=y.dtype)
    return [y.detach(), *torch.autograd.grad(y, [x, *conv.parameters()], grad)]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", KERNELS)
def test_values_and_gradients_are_those_of_conv2d(name: str, bias: bool) -> None:
    conv = nn.Conv2d(3, 5, **KERNELS[name], bias=bias).double()  # type: ignore[arg-type]
    tried = 0
    for height, width in SIDES:
        x = torch.randn(4, 3, height, width, dtype=torch.float64)
        conv.__class__ = nn.Conv2d
        try:
            expected = values(conv, x)
        except RuntimeError:  # a kernel larger than the map
            continue
        for found, wanted in zip(values(by_taps(conv), x), expected, strict=True):
            torch.testing.assert_close(found, wanted)
        tried += 1
    assert tried >= 3


@pytest.mark.usefixtures("always")
def test_closed_form_of_one_place_is_a_linear_layer() -> None:
    """On 1 x 1 px only the middle of a 3 x 3 kernel meets the map; the others get no gradient."""
    conv = by_taps(nn.Conv2d(6, 4, 3, padding=1, bias=False))
    x = torch.randn(5, 6, 1, 1)
    y = conv(x)
    torch.testing.assert_close(y[:, :, 0, 0], x[:, :, 0, 0] @ conv.weight[:, :, 1, 1].T)
    y.sum().backward()
    assert conv.weight.grad is not None
    middle = x[:, :, 0, 0].sum(dim=0).expand(4, 6)
    torch.testing.assert_close(conv.weight.grad[:, :, 1, 1], middle)
    assert conv.weight.grad.sum() == pytest.approx(float(middle.sum()), rel=1e-5)
    assert int((conv.weight.grad != 0).sum()) == 24


def products_of(conv: nn.Conv2d, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the convolution went by products."""
    seen: list[object] = []
    apply = small_maps._TapProducts.apply
    with monkeypatch.context() as patched:
        patched.setattr(
            small_maps._TapProducts, "apply", lambda *given: seen.append(1) or apply(*given)
        )
        conv(x)
    return bool(seen)


def test_only_small_maps_in_training_go_by_products(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = by_taps(nn.Conv2d(256, 256, 3, padding=1))
    small, large = torch.randn(2, 256, 4, 4), torch.randn(2, 256, 32, 32)
    assert products_of(conv, small, monkeypatch)
    assert not products_of(conv, large, monkeypatch)
    with torch.no_grad():
        assert not products_of(conv, small, monkeypatch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not products_of(conv, small, monkeypatch)
    conv.eval()
    assert not products_of(conv, small, monkeypatch)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        type("Own", (nn.Conv2d,), {})(4, 4, 3),
    ],
    ids=["groups", "dilated", "same", "reflected", "own class"],
)
def test_other_convolutions_stay_as_they_are(conv: nn.Conv2d) -> None:
    before = type(conv)
    assert multiply_small_maps(nn.Sequential(conv)) == []
    assert type(conv) is before


def losses(*, by_products: bool, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Losses of ResNet-18 on 64 px in float64; its last stage has maps of 2 x 2 px."""
    if not by_products:
        monkeypatch.setattr(small_maps, "multiply_small_maps", lambda network: [])
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8, generator=generator)
    recipe = cifar_recipe("sdclr", epochs=2)
    recipe = replace(recipe, augment=replace(recipe.augment, crop_px=64))
    plan = EpochPlan(num_images=8, global_batch=4, drop_last=True)
    network = build_network("resnet18", stem="imagenet", head_depth=2, seed=0).double()
    trainer = Trainer(network, recipe, steps_per_epoch=plan.num_steps)
    kinds = {type(m) for m in network.modules() if isinstance(m, nn.Conv2d)}
    assert kinds == {SmallMapConv2d if by_products else nn.Conv2d}
    return [r.loss for r in trainer.run(ImageSet(images).feed(plan, seed=0))]


def test_a_training_is_the_same_up_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = losses(by_products=False, monkeypatch=monkeypatch)
    monkeypatch.undo()
    found = losses(by_products=True, monkeypatch=monkeypatch)
    assert found == pytest.approx(plain, rel=1e-8)
