"""Backbones of every family: features, masks at the default ratio, two steps, resume, refusals."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import Tensor, nn

from sdclr import collective
from sdclr.backbone import (
    BackboneError,
    add_library,
    build_backbone,
    feature_width,
    known_backbones,
    random_layers,
)
from sdclr.imageset import ImageSet
from sdclr.loss_memory import LossMemory
from sdclr.methods import METHODS, method_class
from sdclr.order import EpochPlan
from sdclr.prunable import (
    conv_share,
    is_published_rule,
    prunable_weights,
    ranked_weights,
    switched_off,
)
from sdclr.prune import PruneRule, kept_fractions, magnitude_masks
from sdclr.state import capture, restore
from sdclr.trainer import Trainer
from sdclr.twin import Network, Twin, build_network, projection_head
from tests.ranks import run_on_ranks
from tests.recipes import RECIPE

DEFAULT = PruneRule(prune_ratio=0.9)
# Side of the images in px. `small` are networks of torchvision's classes with few weights.
FAMILIES = {
    "resnet18": 32, "mobilenet_v3_small": 32, "efficientnet_b0": 32, "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 32, "small/vit": 16, "small/convnext": 32, "small/swin": 32,
}  # fmt: skip
LARGE = {
    "convnext_tiny": 32, "regnet_y_400mf": 32, "mnasnet0_5": 32, "mobilenet_v2": 32,
    "resnext50_32x4d": 32, "densenet121": 32, "vit_b_16": 32, "swin_t": 32, "swin_v2_t": 64,
    "maxvit_t": 224, "googlenet": 64, "inception_v3": 96, "alexnet": 64, "vgg11_bn": 32,
}  # fmt: skip


def step_and_resume(name: str, px: int, method: str = "sdclr") -> None:
    """Train two steps, and the second one again from the state after the first; compare all."""
    g = torch.Generator().manual_seed(0)
    images = ImageSet(torch.randint(0, 256, (4, 3, px, px), generator=g, dtype=torch.uint8))
    plan = EpochPlan(num_images=4, global_batch=4, drop_last=True)
    network = build_network(name, stem="imagenet", head_depth=2, seed=0, image_px=px)
    augment = replace(RECIPE.augment, crop_px=px)
    recipe = replace(RECIPE, method=method, epochs=2, lr=0.01, prune=DEFAULT, augment=augment)
    memory = LossMemory(4, momentum=0.9) if method_class(method).needs_losses else None
    trainer = Trainer(network, recipe, steps_per_epoch=1, memory=memory)
    feed = images.feed(plan, seed=0)
    losses, after_one = [], None
    torch.manual_seed(0)
    for report in trainer.run(feed):
        assert (report.kept_frac is not None) == METHODS[method].has_twin
        assert min((report.kept_frac or {"": 1.0}).values()) > 0
        losses.append(report.loss)
        after_one = after_one or capture(trainer)
    unused = [n for n, p in trainer.model.named_parameters() if p.grad is None]
    assert unused == []  # several ranks would wait for their gradients
    ended = capture(trainer)
    assert after_one is not None and after_one.numbers["step"] == 1
    torch.manual_seed(1)
    restore(trainer, after_one)
    (again,) = trainer.run(feed)
    assert again.loss == losses[1] != losses[0]
    for key, tensor in capture(trainer).tensors.items():
        assert torch.equal(tensor, ended.tensors[key]), key


@pytest.mark.parametrize(("name", "px"), FAMILIES.items())
def test_each_family_trains_at_its_default_ratio_and_resumes_exactly(name: str, px: int) -> None:
    step_and_resume(name, px)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "px"), LARGE.items())
def test_each_large_family_as_well(name: str, px: int) -> None:
    step_and_resume(name, px)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "sdclr"])
@pytest.mark.parametrize(("name", "px"), [("small/vit", 16), ("small/convnext", 32)])
def test_every_method_trains_transformers_and_convnexts(name: str, px: int, method: str) -> None:
    step_and_resume(name, px, method)


def of_small_networks() -> dict[str, dict[str, Tensor]]:
    """Losses and weights of two epochs, on as many ranks as there are."""
    found = {}
    for name in ("vit", "convnext"):
        px, g = 32 if name == "convnext" else 16, torch.Generator().manual_seed(0)
        images = ImageSet(torch.randint(0, 256, (8, 3, px, px), generator=g, dtype=torch.uint8))
        plan = EpochPlan(
            num_images=8, global_batch=8, drop_last=True, num_ranks=collective.world_size()
        )
        network = build_network(f"small/{name}", stem="imagenet", head_depth=2, seed=0, image_px=px)
        recipe = replace(RECIPE, epochs=2, augment=replace(RECIPE.augment, crop_px=px))
        trainer = Trainer(network.double(), recipe, steps_per_epoch=1)
        losses = [r.loss for r in trainer.run(images.feed(plan, seed=0, rank=collective.rank()))]
        weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        found[name] = {"losses": torch.tensor(losses, dtype=torch.float64), "weights": weights}
    return found


def test_two_ranks_train_transformers_and_convnexts_as_one_does() -> None:
    first, second = run_on_ranks(of_small_networks)
    one = of_small_networks()
    for name in one:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
        torch.testing.assert_close(first[name], one[name], rtol=1e-5, atol=1e-5)
    assert one["vit"]["losses"][0] != one["vit"]["losses"][1]


@pytest.mark.slow
@pytest.mark.parametrize("name", known_backbones())
def test_every_name_is_a_twin_at_its_default_ratio_and_draws_nothing(name: str) -> None:
    """All of torchvision: `pytest -n 0 tests/test_backbones.py -m slow`; the largest need 12 GB."""
    px = {"inception_v3": 96, "maxvit_t": 224, "vit_h_14": 56}.get(name, 64)
    network = build_network(name, stem="imagenet", head_depth=2, seed=0, image_px=px)
    twin = Twin(network).train()
    kept = twin.refresh_masks(DEFAULT)
    assert min(kept.values()) > 0 and random_layers(network) == []
    before = torch.get_rng_state()
    x = torch.rand(2, 2, 3, px, px, generator=torch.Generator().manual_seed(0))
    f1, f2 = twin(x[0], x[1])
    assert torch.equal(before, torch.get_rng_state())
    assert (
        f1.shape == f2.shape == (2, 128) and torch.isfinite(f1).all() and torch.isfinite(f2).all()
    )
    (f1 * f2).sum().backward()
    assert [n for n, p in twin.named_parameters() if p.grad is None] == []


def test_every_classification_network_of_torchvision_is_a_name() -> None:
    every = torchvision.models.list_models(module=torchvision.models)
    assert set(every) == set(known_backbones()) - {"resnet8"} and len(every) >= 80
    tested = [name for name in (*FAMILIES, *LARGE) if "/" not in name]
    known = {name.partition("_")[0].rstrip("0123456789") for name in tested}
    assert {name.partition("_")[0].rstrip("0123456789") for name in every} == known | {"wide"}


def small_swin() -> nn.Module:
    swin = torchvision.models.SwinTransformer(
        patch_size=[2, 2], embed_dim=16, depths=[2, 2], num_heads=[2, 2], window_size=[4, 4],
        stochastic_depth_prob=0.2,
    )  # fmt: skip
    swin.head = nn.Identity()
    return swin


def small_vit() -> nn.Module:
    vit = torchvision.models.VisionTransformer(
        image_size=16, patch_size=4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32,
        dropout=0.1, attention_dropout=0.1,
    )  # fmt: skip
    vit.heads = nn.Identity()
    return vit


def small_convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    network = ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)])
    network.classifier[2] = nn.Identity()
    return network


SMALL = {"vit": small_vit, "convnext": small_convnext, "swin": small_swin}
add_library("small", lambda name, image_px: SMALL[name]())


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 64, 3, groups=2)
    )


def test_convolutions_alone_are_pruned_where_they_hold_nearly_all() -> None:
    network, _ = build_backbone("resnet18", stem="cifar", seed=0)
    convs = {f"{n}.weight" for n, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    assert set(prunable_weights(network)) == convs
    assert conv_share(network) > 0.99 and is_published_rule(network)
    ranked = ranked_weights(network)
    assert all(ranked[n] is w for n, w in prunable_weights(network).items())


def test_linear_and_attention_weights_are_pruned_where_convolutions_hold_little() -> None:
    vit = small_vit()
    names = set(prunable_weights(vit))
    layer = "encoder.layers.encoder_layer_0"
    assert {
        "conv_proj.weight", f"{layer}.self_attention.in_proj_weight",
        f"{layer}.self_attention.out_proj.weight", f"{layer}.mlp.0.weight", f"{layer}.mlp.3.weight",
    } <= names  # fmt: skip
    assert not any(part in n for n in names for part in ("bias", "ln", "pos_embedding", "token"))
    assert len(names) == 1 + 2 * 4 and not is_published_rule(vit)


def test_depthwise_convolutions_stay_whole_and_grouped_ones_do_not() -> None:
    assert list(prunable_weights(grouped())) == ["0.weight", "2.weight"]
    network = small_convnext()
    depthwise = [n for n, m in network.named_modules() if getattr(m, "groups", 1) > 1]
    assert depthwise and not {f"{n}.weight" for n in depthwise} & set(prunable_weights(network))
    # A 3x3 depthwise kernel under the rule would lose all of its weights in four of ten channels.
    kernels = torch.randn(4096, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    mask = magnitude_masks({"w": kernels}, DEFAULT)["w"]
    dead = 1 - mask.flatten(1).any(dim=1).float().mean().item()
    assert dead == pytest.approx(0.9**9, abs=0.03)


def test_ranks_are_comparable_between_layers_of_any_scale() -> None:
    network = grouped()
    with torch.no_grad():
        network[0].weight.mul_(1e-3)
    ranked = ranked_weights(network)
    for name, weight in prunable_weights(network).items():
        weight = weight.detach()
        slow = weight / (sum(float(w) ** 2 for w in weight.flatten()) / weight.numel()) ** 0.5
        torch.testing.assert_close(ranked[name], slow)
    fair = kept_fractions(magnitude_masks(ranked, PruneRule(prune_ratio=0.5)))
    assert all(0.35 < kept < 0.65 for kept in fair.values())
    plain = magnitude_masks(prunable_weights(network), PruneRule(prune_ratio=0.5))
    assert kept_fractions(plain)["0.weight"] == 0  # by plain magnitude the stem is starved


def test_a_layer_of_zeros_does_not_become_nan() -> None:
    network = grouped()
    nn.init.zeros_(network[2].weight)
    assert not ranked_weights(network)["2.weight"].any()


def test_the_share_that_is_switched_off_counts_all_parameters() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 2, bias=False), nn.BatchNorm2d(1))
    assert switched_off(network, PruneRule(prune_ratio=0.75)) == pytest.approx(3 / 6)
    assert switched_off(network, PruneRule(prune_ratio=0.75, exclude_stem=True)) == 0
    for backbone in (
        small_vit(),
        small_convnext(),
        build_backbone("resnet8", stem="cifar", seed=0)[0],
    ):
        masks = magnitude_masks(ranked_weights(backbone), DEFAULT)
        num_off = sum(int((~mask).sum()) for mask in masks.values())
        num = sum(parameter.numel() for parameter in backbone.parameters())
        assert switched_off(backbone, DEFAULT) == pytest.approx(num_off / num, abs=1e-3)
    by_convolutions = sum(
        m.weight.numel() for m in small_vit().modules() if isinstance(m, nn.Conv2d)
    )
    assert 0.9 * by_convolutions / 4000 < 0.2 < switched_off(small_vit(), DEFAULT)


def test_the_pruned_branch_has_its_own_layer_norms_and_masked_attention() -> None:
    vit = small_vit()
    for name in random_layers(vit):
        owner, _, rate = name.rpartition(".")
        setattr(vit.get_submodule(owner), rate, 0.0)
    twin = Twin(Network(vit, projection_head(16, 8, depth=2))).train()
    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(*twin(x, x))
    assert sum("ln" in name for name in twin.pruned_norms) == 2 * 2 + 1
    twin.refresh_masks(PruneRule(prune_ratio=0.5))
    plain = masked_copy(twin)
    torch.testing.assert_close(twin.pruned(x), plain(x))
    assert not torch.allclose(twin.pruned(x), twin.network(x))
    with torch.no_grad():
        twin.pruned_norms["backbone/encoder/ln"].weight.mul_(2)
    assert not torch.allclose(twin.pruned(x), plain(x))


def masked_copy(twin: Twin) -> nn.Module:
    network, masks = copy.deepcopy(twin.network), twin.mask_by_weight()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name in masks:
                parameter.mul_(masks[name])
    return network


def test_random_layers_are_named_refused_and_left_out_of_built_backbones() -> None:
    vit = small_vit()
    named = random_layers(vit)
    layer = "encoder.layers.encoder_layer_0"
    assert {"encoder.dropout.p", f"{layer}.self_attention.dropout", f"{layer}.mlp.2.p"} <= set(
        named
    )
    with pytest.raises(ValueError, match=r"encoder\.dropout\.p"):
        Trainer(Network(vit, projection_head(16, 8, depth=2)), RECIPE, steps_per_epoch=1)
    assert random_layers(torchvision.models.efficientnet_b0()) != []
    built, _ = build_backbone("efficientnet_b0", stem="imagenet", seed=0)
    assert random_layers(built) == []


def draws(network: nn.Module, px: int) -> bool:
    """Whether a forward pass in training takes numbers from the generator of the process."""
    before = torch.get_rng_state()
    with torch.no_grad():
        network.train()(torch.rand(2, 3, px, px, generator=torch.Generator().manual_seed(0)))
    return not torch.equal(before, torch.get_rng_state())


def test_what_random_layers_finds_is_what_draws() -> None:
    vit = small_vit()
    assert draws(vit, 16)
    for name in random_layers(vit):
        owner, _, rate = name.rpartition(".")
        setattr(vit.get_submodule(owner), rate, 0.0)
    assert not draws(vit, 16)


def test_transformers_are_built_for_the_side_of_the_images() -> None:
    network, width = build_backbone("vit_b_16", stem="imagenet", seed=0, image_px=32)
    assert width == 768 and network.get_parameter("encoder.pos_embedding").shape[1] == 1 + 4
    with pytest.raises(BackboneError, match="48 px"):
        feature_width(network, "vit_b_16", 48)
    for name, px in (("vit_b_16", 33), ("inception_v3", 32), ("maxvit_t", 64)):
        with pytest.raises(BackboneError):
            build_backbone(name, stem="imagenet", seed=0, image_px=px)


def test_a_library_adds_its_names() -> None:
    class Flat(nn.Module):
        def __init__(self, num: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, num, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(x)
            return y.mean((2, 3)) if y.shape[1] == 8 else y

    add_library("toy", lambda name, px: Flat(int(name)))
    network, width = build_backbone("toy/8", stem="imagenet", seed=0)
    assert width == 8 and isinstance(network, Flat)
    with pytest.raises(BackboneError, match="no vector"):
        build_backbone("toy/9", stem="imagenet", seed=0)


def test_densenets_can_have_the_small_stem() -> None:
    network, _ = build_backbone("densenet121", stem="cifar", seed=0)
    with torch.no_grad():
        stem = nn.Sequential(*list(network.get_submodule("features"))[:4])
        assert stem(torch.rand(1, 3, 32, 32)).shape[2:] == (32, 32)
