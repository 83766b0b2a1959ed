"""The shipped configurations: they load, and they are the published recipes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.config.file import changed_keys, load_config
from pipeline.config.strict_yaml import read
from pipeline.feed import canvas_px
from pipeline.model.build import FINAL_LR, peak_lr
from pipeline.tune.space import known_points, parameters, trial_config
from pipeline.tune.stage import grace_epochs

RECIPES = Path(__file__).parents[1] / "tune_configs"


def recipe(name: str, *overrides: str) -> Config:
    return load_config(str(RECIPES / f"{name}.yaml"), overrides)


def test_demo_file_is_the_schema_default_and_shows_every_key() -> None:
    assert recipe("demo") == Config()
    document = read((RECIPES / "demo.yaml").read_text())[0]
    presets = document.pop("presets")
    assert document.pop("preset") == "fair" and list(document) == list(Config.model_fields)
    for section, values in Config().model_dump().items():
        shown = {*document[section], *presets["fair"].get(section, {})}
        assert shown == set(values), section
    assert recipe("demo", "preset=official") != Config()


SWEEPS = sorted(RECIPES.glob("sweep_*.yaml"))
PUBLISHED = sorted(set(RECIPES.glob("*_lt.yaml")) - set(SWEEPS))


@pytest.mark.parametrize("path", SWEEPS)
def test_sweeps_can_begin(path: Path) -> None:
    config = load_config(str(path))
    assert config.train.methods == ("sdclr", "simclr")  # the baseline has the same budget
    assert config.data.num_val_per_class is not None and config.tune.objective == "fewshot"
    for method in config.train.methods:
        searched, known = parameters(config, method), known_points(config, method)
        assert searched and 0 < len(known) <= config.tune.trials
        trial_config(config, method, known[0], seed=1)
    assert grace_epochs(config) < config.train.epochs
    text = path.read_text()
    assert f"tune --config tune_configs/{path.name}" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("path", [*PUBLISHED, RECIPES / "demo.yaml"])
def test_presets_of_the_recipes(path: Path) -> None:
    fair, official = load_config(str(path)), load_config(str(path), ["preset=official"])
    assert load_config(str(path), ["preset=fair"]) == fair
    assert changed_keys(fair, official) == [
        "sdclr.head_depth: 2 -> 3", "train.drop_last: true -> false"
    ]  # fmt: skip
    assert fair.simclr.head_depth == official.simclr.head_depth == 2
    text = path.read_text()
    assert text.startswith("#") and f"--config tune_configs/{path.name}" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(("name", "num_max"), [("cifar10", 4500), ("cifar100", 450)])
def test_cifar_recipes_are_the_published_ones(name: str, num_max: int) -> None:
    config = recipe(f"{name}_lt")
    assert config.data.source == name and config.data.path == f"datasets/{name}"
    assert (config.data.imbalance_ratio, config.data.num_max) == (100, num_max)
    assert (config.model.backbone, config.model.stem) == ("resnet18", "cifar")
    assert (config.sdclr.prune_ratio, config.sdclr.temperature) == (0.9, 0.2)
    assert config.simclr.temperature == 0.2
    train, augment = config.train, config.augment
    assert (train.epochs, train.global_batch, peak_lr(config)) == (2000, 512, 0.5)
    assert (train.momentum, train.weight_decay) == (0.9, 1e-4)
    assert (train.warmup_epochs, FINAL_LR) == (10, 1e-6)
    assert (augment.crop_scale, augment.hflip_prob) == ((0.1, 1), 0.5)
    assert augment.crop_ratio == (3 / 4, 4 / 3)
    assert (augment.brightness, augment.contrast, augment.saturation) == (0.4, 0.4, 0.4)
    assert (augment.hue, augment.jitter_prob, augment.gray_prob) == (0.1, 0.8, 0.2)
    assert augment.blur_prob == 0


def test_imagenet_recipe_is_the_published_one() -> None:
    config = recipe("imagenet100_lt")
    assert config.data.source == "folder" and config.data.path == "datasets/imagenet100"
    assert (config.model.backbone, config.model.stem) == ("resnet50", "imagenet")
    assert (config.sdclr.prune_ratio, config.sdclr.temperature) == (0.3, 0.3)
    assert config.simclr.temperature == 0.2
    assert (config.train.epochs, config.train.global_batch, peak_lr(config)) == (500, 256, 0.5)
    augment = config.augment
    assert (augment.crop_px, augment.crop_scale[0], augment.hflip_prob) == (224, 0.08, 0.5)
    assert (augment.brightness, augment.hue, augment.gray_prob) == (0.4, 0.1, 0.2)
    assert (augment.blur_prob, augment.blur_sigma) == (0.5, (0.1, 2))
    assert (config.feed.canvas_px, config.evaluate.resize_px) == (None, None)
    assert canvas_px(config) == 384
    assert config.evaluate.groups == "threshold" and config.data.profile == "pareto"


def test_photos_have_the_published_recipe_and_all_images() -> None:
    photos, published = recipe("photos"), recipe("imagenet100_lt")
    other = {change.partition(":")[0] for change in changed_keys(photos, published)}
    assert other == {
        "data.path", "data.imbalance_ratio", "data.profile", "data.num_test_per_class",
        "data.labelled", "train.methods", "train.epochs", "train.checkpoint_every_epochs",
        "train.precision", "feed.max_memory_bytes", "ingest.resize_short_px",
    }  # fmt: skip
    assert photos.data.drawn_imbalance is None and Config().data.drawn_imbalance == 50


@pytest.mark.parametrize(
    ("preset", "backbone", "optimizer"),
    [("resnet", "resnet50", "sgd"), ("convnext", "convnext_tiny", "adamw"),
     ("vit", "vit_b_16", "adamw")],
)  # fmt: skip
def test_each_family_of_backbones_has_a_recipe(preset: str, backbone: str, optimizer: str) -> None:
    config = recipe("photos", f"preset={preset}")
    assert (config.model.backbone, config.train.optimizer) == (backbone, optimizer)
    assert config.train.decay_all == (optimizer == "sgd")
    assert config.augment == recipe("photos").augment
    assert (preset == "resnet") == (config == recipe("photos"))
