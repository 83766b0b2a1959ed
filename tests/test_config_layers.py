"""What users are told: all problems at once, presets, credentials never echoed."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pipeline.config import Config
from pipeline.config.file import dump_config, parse_config
from pipeline.config.layers import MAX_PROBLEMS
from sdclr.methods import METHODS
from tests.refusals import lines, refusal

KNOWN = ", ".join(METHODS)

PRESETS = """
preset: official
presets:
  official: {sdclr: {head_depth: 3}, train: {drop_last: false, lr_per_256: 0.2}}
  fair: {sdclr: {head_depth: 2}}
"""


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.lr_per_256=fast", "train.lr_per_256: expected a number > 0, got 'fast'"),
        ("train.lr_per_256='0.5'",
         "train.lr_per_256: expected a number > 0, got '0.5'; remove the quotes"),
        ("train.lr_per_256=.inf",
         "train.lr_per_256: expected a number > 0, got .inf; it must be finite"),
        ("train.lr_per_256=1e999",
         "train.lr_per_256: expected a number > 0, got .inf; it must be finite"),
        ("train.lr_per_256=null", "train.lr_per_256: expected a number > 0, got null"),
        ("train.epochs=1e3", "train.epochs: expected a whole number >= 1, got 1000.0; write 1000"),
        ("train.drop_last=yes", "train.drop_last: expected true or false, got 'yes'"),
        ("data.labelled=on", "data.labelled: expected true, false or null, got 'on'"),
        ("data.path=123", "data.path: expected text or null, got 123; "
         "to mean the text, put it in quotes: '\"123\"'"),
        ("sdclr.head_depth=4", "sdclr.head_depth: expected a whole number >= 2 and <= 3, got 4"),
        ("train.methods=[sdlcr]", f"train.methods[0]: expected one of {KNOWN}, got 'sdlcr'; "
         "did you mean sdclr?"),
        ("train.methods=[]", "train.methods: expected a list with at least one entry, "
         f"each one of {KNOWN}, got []"),
        ("train.epoch=3", "train.epoch: unknown key; did you mean train.epochs?"),
        ("train.batch_size=3", "train.batch_size: unknown key; did you mean train.micro_batch or "
         "train.global_batch?"),
        ("train.learning_rate=1",
         "train.learning_rate: unknown key; did you mean train.lr_per_256?"),
        ("train.wd=1", "train.wd: unknown key; did you mean train.weight_decay?"),
        ("train.prune_ratio=1", "train.prune_ratio: unknown key; did you mean sdclr.prune_ratio?"),
        ("prune_ratio=0.5", "prune_ratio: unknown key; did you mean sdclr.prune_ratio?"),
        ("trian.lr_per_256=1", "trian.lr_per_256: unknown section; did you mean train?"),
        ("train.lr_per_256", "train.lr_per_256: no value given; write train.lr_per_256=VALUE"),
        ("train=3", "train: is a section; write train.KEY=VALUE"),
        ("=3", "expected section.key=value"),
        ("run.name=#1", "run.name: what follows # is a comment in YAML; "
         "to mean text, quote it: run.name='\"...\"'"),
        ("data.path=[", "data.path: not YAML: expected the node content, but found "
         "'<stream end>'; to mean text, quote it: data.path='\"...\"'"),
        ("preset=fair", "preset: unknown preset 'fair'; there are no presets here"),
    ],
)  # fmt: skip
def test_messages(override: str, line: str) -> None:
    error = refusal(None, override)
    assert error.what == line and error.where == "command line" and error.exit_code == 2


def test_all_problems_are_reported_at_once_with_their_places() -> None:
    text = """
train:
  lr_per_256: fast
  epoch: 3
trian: {lr_per_256: 1}
prune_ratio: 0.5
data: 5
simclr: {temperature: -1}
presets: {other: {train: {lr_per_265: 1}}}
"""
    error = refusal(text, "train.workers=3", "train.epochs", "run.seed=1", "run.seed=2")
    assert sorted(error.what.splitlines()) == [
        "data: expected keys below it, got 5",
        "presets.other.train.lr_per_265: unknown key; did you mean train.lr_per_256?",
        "prune_ratio: unknown key; did you mean sdclr.prune_ratio?",
        "run.seed: given twice; give it once",
        "simclr.temperature: expected a number > 0 and <= 10, got -1",
        "train.epoch: unknown key; did you mean train.epochs?",
        "train.epochs: no value given; write train.epochs=VALUE",
        "train.global_batch: expected a multiple of train.workers = 3, got 128",
        "train.lr_per_256: expected a number > 0, got 'fast'",
        "trian: unknown section; did you mean train?",
    ]
    for place in (
        "my.yaml line 3 (train.lr_per_256)", "my.yaml line 8 (simclr.temperature)",
        "command line (train.epochs, run.seed)", "default value (train.global_batch)",
    ):  # fmt: skip
        assert place in error.where


def test_a_flood_of_problems_is_cut() -> None:
    text = "train:\n" + "".join(f"  key{i}: 1\n" for i in range(5000))
    assert len(lines(text)) == MAX_PROBLEMS + 1
    assert len(lines("train:\n" + "".join(f"  key{i}: 1\n" for i in range(MAX_PROBLEMS)))) == 50


def test_layers_in_order() -> None:
    base = "train: {lr_per_256: 0.1, momentum: 0.5}\n" + PRESETS
    config = parse_config(base, origin="x")
    assert (config.train.lr_per_256, config.train.momentum) == (0.2, 0.5)
    assert (config.sdclr.head_depth, config.train.drop_last) == (3, False)
    fair = parse_config(base, origin="x", overrides=["preset=fair", "train.momentum=0.6"])
    assert (fair.train.lr_per_256, fair.train.momentum, fair.sdclr.head_depth) == (0.1, 0.6, 2)
    assert parse_config(base, origin="x", overrides=["train.lr_per_256=3"]).train.lr_per_256 == 3.0
    assert parse_config(base, origin="x", overrides=["preset=null"]).train.lr_per_256 == 0.1
    assert "preset" not in dump_config(config)


@pytest.mark.parametrize(
    ("text", "overrides", "line"),
    [
        (PRESETS, ["preset=offical"], "preset: unknown preset 'offical'; did you mean official?"),
        (PRESETS, ["preset=zzz"], "preset: unknown preset 'zzz'; presets are official, fair"),
        (PRESETS, ["preset=3"], "preset: unknown preset 3; presets are official, fair"),
        (PRESETS, ["preset=fair", "preset=fair"], "preset: given twice; give it once"),
        ("preset: fair", [], "preset: unknown preset 'fair'; there are no presets here"),
        ("presets: 3", [], "presets: expected names of presets below it, got 3"),
        ("presets: {a: 3}", [], "presets.a: expected sections below it, got 3"),
        ("presets: {a: {trian: {}}}", [],
         "presets.a.trian: unknown section; did you mean train?"),
        ("preset: a\npresets: {a: {train: {lr_per_256: x}}}", [],
         "train.lr_per_256: expected a number > 0, got 'x'"),
    ],
)  # fmt: skip
def test_refused_presets(text: str, overrides: list[str], line: str) -> None:
    assert lines(text, *overrides) == [line]


SECRET = "wJalrXUtnFEMI/K7MDENG"


@pytest.mark.parametrize(
    "text",
    [
        f"run: {{root: 's3://AKID:{SECRET}@bucket/x'}}",
        f"data: {{sets: {{fewshot: ['https://me:{SECRET}@host/x.npy']}}}}",
        f"data: {{sets: {{'https://me:{SECRET}@host/x.npy': 1}}}}",
        f"run: {{root: 'https://bucket/x?X-Amz-Signature={SECRET}'}}",
        f"run: {{root: 'x?password={SECRET}'}}",
        f"train: {{lr_per_256: 's3://AKID:{SECRET}@bucket'}}",
        f"train: {{methods: ['s3://AKID:{SECRET}@bucket']}}",
        f"train: {{methods: {{'s3://AKID:{SECRET}@bucket': 1}}}}",
        f"train: 's3://AKID:{SECRET}@bucket'",
        f"'s3://AKID:{SECRET}@bucket': 1",
        f"train: {{'s3://AKID:{SECRET}@bucket': 1}}",
        f"'s3://AKID:{SECRET}@bucket': 1\n's3://AKID:{SECRET}@bucket': 1",
        f"preset: 's3://AKID:{SECRET}@bucket'",
        f"presets: {{'s3://AKID:{SECRET}@bucket': 3}}",
        f"preset: x\npresets: {{'s3://AKID:{SECRET}@bucket': {{}}}}",
        f"run: {{root: s3://AKID:{SECRET}@bucket: x}}",
        f"'s3://AKID:{SECRET}@bucket'",
        f"secret_access_key: {SECRET}",
    ],
)
@pytest.mark.promise("S5")
def test_credentials_are_refused_and_not_echoed(text: str) -> None:
    error = refusal(text)
    assert not any(part in str(error) for part in SECRET.split("/"))
    if not text.startswith(("'", "preset")) and "\n" not in text:
        name, _, value = text.partition(":")
        error = refusal(None, f"{name}.x={value}", f"{name}={value}", f"run.root={SECRET}: @x")
        assert not any(part in str(error) for part in SECRET.split("/"))


def test_pydantic_does_not_echo_either() -> None:
    with pytest.raises(ValidationError) as caught:
        Config.model_validate({"run": {"root": f"s3://AKID:{SECRET}@bucket"}})
    assert SECRET not in str(caught.value) and "credential" in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    ["s3://bucket/a@b", "/data/me@home", "s3://bucket/token/x", "./a:b"],
)
def test_harmless_places_are_accepted(uri: str) -> None:
    assert Config.model_validate({"run": {"root": uri}}).run.root == uri
