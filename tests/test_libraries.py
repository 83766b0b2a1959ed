"""Backbones by name from the configuration: torchvision's, timm's, and those that there are not."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.cli.timing import vector_bytes
from pipeline.config import Config
from pipeline.config.file import load_config
from pipeline.model import build
from pipeline.model.backbone import check_view, pruning_texts
from sdclr.backbone import random_layers
from sdclr.batchnorm import refuse_unsynchronisable
from sdclr.prunable import conv_share, prunable_weights
from sdclr.prune import PruneRule
from sdclr.twin import Network, Twin
from tests.refusals import raises
from tests.test_models import manifest


def network(*overrides: str) -> Network:
    return build.new_network(load_config(None, ["model.stem=imagenet", *overrides]), "simclr")


@pytest.mark.parametrize(
    ("overrides", "id_", "words"),
    [
        (["model.backbone=resnet19"], "E-CONFIG-761", "resnet18"),
        (["model.backbone=efficient_net_b0"], "E-CONFIG-761", "efficientnet_b0"),
        (["model.backbone=mobilenet_v3_small"], "", ""),
        (["model.backbone=vit_b_16", "augment.crop_px=33"], "E-CONFIG-762", "augment.crop_px"),
        (["model.backbone=inception_v3", "augment.crop_px=32"], "E-CONFIG-762", "32 px"),
    ],
)
def test_names_that_cannot_be_built_are_refused(overrides: list[str], id_: str, words: str) -> None:
    if not id_:
        network(*overrides)
        return
    with raises(id_, words):
        network(*overrides)


def test_a_stem_that_a_backbone_cannot_have_is_refused() -> None:
    config = load_config(None, ["model.backbone=timm/resnet18", "model.stem=cifar"])
    other = config.model.model_copy(update={"backbone": "mobilenet_v3_small"})
    with raises("E-CONFIG-762", "model.stem=imagenet"):
        build.new_network(config.model_copy(update={"model": other}), "simclr")


def test_a_view_of_another_side_than_the_backbone_takes_is_refused_before_training() -> None:
    config = load_config(None, ["model.backbone=vit_b_32", "model.stem=imagenet"])
    with raises("E-CONFIG-762", "16 px"):
        check_view(config, manifest(16, 16))
    check_view(load_config(None, ["model.backbone=resnet8"]), manifest(16, 16))


def test_what_the_mask_switches_off_is_said() -> None:
    config = load_config(None, ["model.backbone=resnet8", "sdclr.prune_ratio=0.5"])
    (text,) = pruning_texts(config)
    assert "prune_ratio 0.5" in text and "49.6 %" in text and "0.08 M" in text
    assert pruning_texts(load_config(None, ["train.methods=[simclr]"])) == []
    other = load_config(None, ["model.backbone=mobilenet_v3_small", "model.stem=imagenet"])
    assert "linear layers" in pruning_texts(other)[0] and "linear" not in text


def test_a_vector_has_the_width_of_the_features() -> None:
    words = ["model.backbone=mobilenet_v3_small", "model.stem=imagenet"]
    assert vector_bytes(load_config(None, words), "float32") == 4 * 1024
    words = ["model.backbone=vit_b_32", "model.stem=imagenet", "augment.crop_px=64"]
    assert vector_bytes(load_config(None, words), "float16") == 2 * 768


def test_without_timm_its_backbones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with raises("E-CONFIG-760", "timm"):
        network("model.backbone=timm/resnet18")


timm_only = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="timm is not installed"
)


@timm_only
@pytest.mark.parametrize(
    ("name", "px", "with_linear"),
    [("resnet18", 32, False), ("vit_tiny_patch16_224", 32, True), ("efficientnet_lite0", 32, False),
     ("convnext_atto", 32, False), ("mixer_s32_224", 64, True)],
)  # fmt: skip
def test_timms_networks_are_twins_at_the_default_ratio(
    name: str, px: int, with_linear: bool
) -> None:
    found = network(f"model.backbone=timm/{name}", f"augment.crop_px={px}")
    assert (conv_share(found.backbone) < 0.9) == with_linear and random_layers(found) == []
    assert any(
        isinstance(found.backbone.get_submodule(n.rpartition(".")[0]), nn.Linear)
        for n in prunable_weights(found.backbone)
    ) == with_linear  # fmt: skip
    twin = Twin(found).train()
    kept = twin.refresh_masks(PruneRule(prune_ratio=0.9))
    assert min(kept.values()) > 0
    x = torch.rand(2, 2, 3, px, px, generator=torch.Generator().manual_seed(0))
    f1, f2 = twin(x[0], x[1])
    (f1 * f2).sum().backward()
    assert [n for n, p in twin.named_parameters() if p.grad is None] == []


@timm_only
def test_timms_names_have_near_ones_and_equal_seeds_give_equal_weights() -> None:
    with raises("E-CONFIG-761", "timm/resnet18"):
        network("model.backbone=timm/resnet_18")
    keys = ["model.backbone=timm/resnet18", "augment.crop_px=32"]
    a, b, c = (network(*keys, f"run.seed={seed}").state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not torch.equal(a["backbone.conv1.weight"], c["backbone.conv1.weight"])


@timm_only
def test_norms_with_an_activation_are_not_taken_for_plain_ones() -> None:
    refuse_unsynchronisable(network("model.backbone=timm/resnet18"))
    found = network("model.backbone=timm/efficientnet_lite0", "augment.crop_px=32")
    with pytest.raises(ValueError, match="BatchNormAct2d"):
        refuse_unsynchronisable(found)
    config = load_config(None, ["model.backbone=timm/efficientnet_lite0", "model.stem=imagenet"])
    with raises("E-CONFIG-763", "train.sync_batchnorm"):
        check_view(config, manifest(32, 32))
    alone = replace_train(config, sync_batchnorm=False)
    check_view(alone, manifest(32, 32))


def replace_train(config: Config, **changes: Any) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})
