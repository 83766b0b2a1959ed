"""From configuration to library objects, and from a checkpoint back to a network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import resnet18

from pipeline import feed
from pipeline.config import Config
from pipeline.config.file import load_config
from pipeline.dataset.manifest import ImageInfo, Manifest, Rejects, SetInfo, ShardInfo
from pipeline.model import build
from sdclr import TrainState, cifar_recipe
from tests.conftest import REPO
from tests.refusals import raises

RECIPES = REPO / "tune_configs"


def manifest(height_px: int | None, width_px: int | None) -> Manifest:
    encoding = "original" if height_px is None else "raw"
    return Manifest(
        name="some",
        source={},
        image=ImageInfo(encoding, height_px, width_px),  # type: ignore[arg-type]
        class_names=None,
        sets={"pretrain": SetInfo(0, None, ())},
        fewshot=(),
        rejects=Rejects(0, {}, ()),
        config={},
        hash="",
    )


def test_the_view_has_the_side_of_raw_images_unless_configured() -> None:
    assert build.crop_px(Config(), manifest(16, 16)) == 16
    configured = load_config(None, ["augment.crop_px=12"])
    assert build.crop_px(configured, manifest(16, 16)) == 12
    for sizes in ((None, None), (16, 20)):
        with raises("E-CONFIG-029", "augment.crop_px"):
            build.crop_px(Config(), manifest(*sizes))


@pytest.mark.parametrize(
    ("overrides", "side", "expected"),
    [
        ([], 16, None),
        (["augment.crop_px=24"], 16, 24),
        (["augment.crop_px=12"], 16, 12),
        (["augment.crop_px=12", "evaluate.resize_px=14"], 16, 14),
        (["augment.crop_px=32"], None, 37),
        (["augment.crop_px=224"], None, 256),
        (["augment.crop_px=224", "evaluate.resize_px=224"], None, 224),
    ],
)
def test_evaluation_resizes_what_does_not_fit_a_view(
    overrides: list[str], side: int | None, expected: int | None
) -> None:
    assert build.resize_px(load_config(None, overrides), manifest(side, side)) == expected


def test_a_resize_below_the_crop_is_refused_before_training() -> None:
    config = load_config(None, ["augment.crop_px=16", "evaluate.resize_px=14"])
    with raises("E-CONFIG-030", "14", "16"):
        build.resize_px(config, manifest(16, 16))


@pytest.mark.parametrize(
    ("file", "rows", "side"),
    [("demo", 391, 16), ("cifar10_lt", 11165, 32), ("cifar100_lt", 9754, 32),
     ("imagenet100_lt", 12853, None)],
)  # fmt: skip
def test_every_recipe_can_train_on_its_set(file: str, rows: int, side: int | None) -> None:
    config = load_config(str(RECIPES / f"{file}.yaml"))
    shard = ShardInfo("shards/pretrain-00000.parquet", rows, 1, "0" * 64)
    found = replace(manifest(side, side), sets={"pretrain": SetInfo(rows, None, (shard,))})
    feed.check_fits(config, found, object_store_bytes=2**40)
    feed.epoch_plan(config, found)
    assert build.resize_px(config, found) in (None, 256)


@pytest.mark.parametrize("file", ["cifar10_lt.yaml", "cifar100_lt.yaml"])
@pytest.mark.parametrize("method", ["sdclr", "simclr"])
def test_the_recipes_of_file_and_library_are_one(file: str, method: str) -> None:
    config = load_config(str(RECIPES / file))
    found = build.training_recipe(config, manifest(32, 32), method)
    assert found == cifar_recipe(method)  # type: ignore[arg-type]
    assert found != cifar_recipe(method, epochs=1999)  # type: ignore[arg-type]
    assert config.train.global_batch == 512


@pytest.mark.parametrize(("preset", "depths"), [("official", (3, 2)), ("fair", (2, 2))])
def test_presets_decide_the_heads(preset: str, depths: tuple[int, int]) -> None:
    overrides = ["model.backbone=resnet8"]
    config = load_config(str(RECIPES / "cifar10_lt.yaml"), [f"preset={preset}", *overrides])
    for method, depth in zip(("sdclr", "simclr"), depths, strict=True):
        head = build.new_network(config, method).head
        assert sum(isinstance(m, nn.Linear) for m in head) == depth
    assert config.train.drop_last == (preset == "fair")


def state_of(model: nn.Module) -> TrainState:
    return TrainState({f"model.{n}": t for n, t in model.state_dict().items()}, {"step": 1})


def test_a_checkpoint_becomes_its_model_again() -> None:
    config = Config()
    source = build.trained_model(config, "sdclr", state_of(twin(config)))
    assert not source.training
    again = build.trained_model(config, "sdclr", state_of(source))
    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(source.network.features(x), again.network.features(x))


def twin(config: Config) -> nn.Module:
    from sdclr import Twin

    return Twin(build.new_network(config, "sdclr"))


def test_a_checkpoint_of_another_architecture_is_refused() -> None:
    other = load_config(None, ["model.backbone=resnet18"])
    with raises("E-CHECKPOINT-004"):
        build.trained_model(other, "sdclr", state_of(twin(Config())))


def test_the_export_loads_in_plain_torchvision_with_equal_features(tmp_path: Path) -> None:
    config = load_config(None, ["model.backbone=resnet18"])
    network = build.new_network(config, "simclr").eval()
    file = tmp_path / "backbone.safetensors"
    build.export_backbone(str(file), network.backbone, {"architecture": "resnet18", "step": 3})

    plain = resnet18(weights=None)
    plain.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    plain.maxpool, plain.fc = nn.Identity(), nn.Identity()
    plain.load_state_dict(load_file(file), strict=True)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with safe_open(file, "pt") as opened:
        facts = json.loads(opened.metadata()["sdclr"])
    mean, std = (torch.tensor(facts[k]).view(1, 3, 1, 1) for k in ("input_mean", "input_std"))
    torch.testing.assert_close(plain.eval()((x - mean) / std), network.features(x))
    assert not torch.allclose(plain(x), network.features(x), atol=1e-4)
    assert facts["architecture"] == "resnet18" and facts["step"] == 3


def test_equal_weights_give_equal_files(tmp_path: Path) -> None:
    backbone = build.new_network(Config(), "simclr").backbone
    for name in ("a", "b"):
        build.export_backbone(str(tmp_path / name), backbone, {"step": 3, "stem": "cifar", "x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.promise("R7")
def test_a_run_can_start_from_exported_weights_with_or_without_a_classifier(tmp_path: Path) -> None:
    source, target = (build.new_network(c, "simclr").backbone for c in (seeded(1), seeded(2)))
    file = tmp_path / "w.safetensors"
    tensors = dict(source.state_dict()) | {"fc.weight": torch.ones(10, 64)}
    save_file(tensors, file)
    build.load_backbone(str(file), "resnet8", target)
    assert all(torch.equal(t, target.state_dict()[n]) for n, t in source.state_dict().items())
    file.write_bytes(b"not tensors")
    with raises("E-CHECKPOINT-012"):
        build.load_backbone(str(file), "resnet8", target)
    save_file({"conv1.weight": torch.ones(2)}, file)
    with raises("E-CHECKPOINT-011"):
        build.load_backbone(str(file), "resnet8", target)


def seeded(seed: int) -> Config:
    return load_config(None, [f"run.seed={seed}"])
