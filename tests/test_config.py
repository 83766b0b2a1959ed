"""The schema: types, ranges, rules between keys, defaults."""

from __future__ import annotations

from typing import get_args

import pytest
from pydantic import ValidationError

from pipeline.config import Config
from pipeline.config.file import config_hash, load_config
from pipeline.config.stages import Method
from tests.refusals import lines, with_overrides


def test_every_key_has_a_description_and_the_defaults_are_valid() -> None:
    for name, section in Config.model_fields.items():
        assert section.annotation is not None and section.annotation.__doc__
        for key, entry in section.annotation.model_fields.items():
            assert entry.description, f"{name}.{key}"
    assert Config() == load_config(None) == Config.model_validate(Config().model_dump())


def test_config_is_frozen() -> None:
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.train.lr_per_256 = 1.0
    with pytest.raises(ValidationError, match="frozen"):
        config.train = config.train


def test_names_agree_with_the_library() -> None:
    from sdclr.methods import METHODS

    assert get_args(Method) == tuple(METHODS)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("train", "lr_per_256", "0.5"), ("train", "lr_per_256", True),
        ("train", "lr_per_256", float("inf")),
        ("train", "lr_per_256", float("nan")), ("train", "lr_per_256", 0), ("train", "epochs", 3.0),
        ("train", "epochs", True), ("train", "epochs", "3"), ("train", "drop_last", 1),
        ("train", "drop_last", "true"), ("train", "methods", "sdclr"), ("train", "methods", []),
        ("train", "methods", ["sdclr", "sdclr"]), ("train", "methods", ["moco"]),
        ("train", "warmup_epochs", -1), ("train", "momentum", 1.0), ("run", "seed", 2**31),
        ("run", "name", "../x"), ("run", "name", ".x"), ("run", "name", ""), ("run", "name", "A"),
        ("run", "name", "a\n"), ("run", "name", "a" * 42), ("run", "root", ""),
        ("run", "root", "a\x1b[2J"), ("run", "root", "\udc80"), ("data", "num_max", 0),
        ("data", "imbalance_ratio", 0.5), ("data", "imbalance_ratio", "car"),
        ("data", "imbalance_ratio", True), ("data", "sets", "a.npy"),
        ("sdclr", "head_depth", 4), ("sdclr", "head_depth", 2.0), ("sdclr", "temperature", 11),
        ("augment", "hue", 0.6), ("train", "no_such_key", 1),
    ],
)  # fmt: skip
def test_schema_refuses(section: str, key: str, value: object) -> None:
    with pytest.raises(ValidationError):
        Config.model_validate({section: {key: value}})


def test_whole_numbers_are_numbers_and_lists_become_tuples() -> None:
    config = Config.model_validate({"train": {"lr_per_256": 1, "methods": ["simclr"]}})
    assert type(config.train.lr_per_256) is float and config.train.methods == ("simclr",)
    assert config_hash(config) == config_hash(
        with_overrides("train.lr_per_256=1.0", "train.methods=[simclr]")
    )


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        (["train.workers=4"], ["train.workers=3"],
         "train.global_batch: expected a multiple of train.workers = 3, got 128"),
        (["sdclr.random_ratio=0.9"], ["sdclr.random_ratio=0.95"],
         "sdclr.random_ratio: expected at most sdclr.prune_ratio = 0.9, got 0.95"),
        (["augment.crop_scale=[1, 1]"], ["augment.crop_scale=[0.9, 0.5]"],
         "augment.crop_scale: expected two numbers in (0, 1], the least first, got [0.9, 0.5]"),
        (["augment.crop_scale=[0.1, 0.5]"], ["augment.crop_scale=[0.5, 1.1]"],
         "augment.crop_scale: expected two numbers in (0, 1], the least first, got [0.5, 1.1]"),
        (["augment.crop_ratio=[1, 2]"], ["augment.crop_ratio=[0, 1]"],
         "augment.crop_ratio: expected two numbers > 0, the least first, got [0, 1]"),
        (["augment.blur_sigma=[2, 2]"], ["augment.blur_sigma=[0.1]"],
         "augment.blur_sigma[1]: expected two numbers > 0, the least first, got [0.1]"),
        (["tune.search={lr: [0.1, 0.2]}"], ["tune.search={lr: [0.2, 0.1]}"],
         "tune.search: expected two numbers in [1e-06, 100] for lr, the least first, got"),
        (["tune.search={prune_ratio: [0, 0.9]}"], ["tune.search={prune_ratio: [0, 1]}"],
         "tune.search: expected two numbers in [0, 0.999] for prune_ratio"),
        (["tune.search.head_depth=null"], ["tune.search={head_depth: [2, 3]}"],
         "tune.search: head_depth has no range"),
        (["tune.search={lr}"], ["tune.search={}"], "tune.search: expected a mapping of"),
        (["tune.search={lr}"], ["tune.search={learning_rate}"],
         "tune.search.learning_rate: unknown name; expected a mapping of"),
        (["data.sets={}"], ["data.sets={vall: x.npy}"],
         "data.sets.vall: unknown name; expected a mapping of"),
        (["data.sets.fewshot=[a, b]"], ["data.sets.fewshot=a"],
         "data.sets.fewshot: expected a mapping of"),
        (["data.source=folder", "data.path=x"], ["data.source=folder"],
         "data.path: is needed with data.source = folder"),
        (["data.source=cifar10", "data.download=true"], ["data.source=cifar10"],
         "data.path: is needed with data.source = cifar10, or set data.download = true"),
        (["data.path=null"], ["data.path=photos"],
         "data.path: has no use with data.source = digits"),
        (["model.backbone=convnext_tiny", "model.stem=imagenet"], ["model.backbone=convnext_tiny"],
         "model.stem: expected imagenet with model.backbone = convnext_tiny, got cifar"),
        (["data.imbalance_ratio=auto"], ["data.imbalance_ratio=much"],
         "data.imbalance_ratio: expected a number >= 1 or auto or null, got 'much'"),
        (["model.backbone=timm/vit_tiny_patch16_224", "model.stem=imagenet"],
         ["model.backbone=other/x"], "model.backbone: expected resnet8, a classification network"),
        (["train.optimizer=adamw", "train.lr_per_256=0.001"], ["train.optimizer=adamw"],
         "train.lr_per_256: expected at most 0.02 with train.optimizer = adamw, such as 0.0005"),
        (["ts.temperature=[0.2, 0.5]"], ["ts.temperature=[0.5, 0.2]"],
         "ts.temperature: expected two numbers > 0, the least first, got [0.5, 0.2]"),
        (["model.backbone=resnext50_32x4d"], ["train.methods=[sdclr, sdclr]"],
         "train.methods: expected each entry once, got sdclr, sdclr"),
    ],
)  # fmt: skip
def test_rules_between_keys(good: list[str], bad: list[str], message: str) -> None:
    with_overrides(*good)
    (line,) = lines(None, *bad)
    assert line.startswith(message)
