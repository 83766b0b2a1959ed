"""Files and overrides in, hash and YAML out."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import Config
from pipeline.config.file import changed_keys, config_hash, dump_config, load_config, parse_config
from pipeline.config.strict_yaml import MAX_BYTES
from pipeline.errors import ConfigError
from tests.refusals import lines, raises, with_overrides


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n", "text\n", "3\n", "null\n"])
def test_top_level_must_be_sections(text: str) -> None:
    assert lines(text)[0].startswith("expected sections such as `train:`")


def test_empty_sections_keep_defaults() -> None:
    assert parse_config("train:\nrun: {}\npresets:\n", origin="x") == Config()


def test_file_reading(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_bytes(b"\xef\xbb\xbftrain: {lr_per_256: 1e-3}\r\n")
    assert load_config(str(file), ["run.seed=4"]) == with_overrides(
        "train.lr_per_256=0.001", "run.seed=4"
    )
    file.write_bytes(b"#" * MAX_BYTES)
    assert "got nothing" in file_refusal(file)
    file.write_bytes(b"#" * (MAX_BYTES + 1))
    assert "larger than 1048576 bytes" in file_refusal(file)
    file.write_bytes(b"train: {lr_per_256: \xff}")
    assert "not UTF-8 text: byte 20" in file_refusal(file)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "not a regular file" in file_refusal(pipe)
    assert "not a regular file" in file_refusal(tmp_path)
    assert "does not exist" in file_refusal(tmp_path / "absent.yaml")
    assert "could not be read" in file_refusal(Path("a\0b"))
    assert "could not be read" in file_refusal(file / "below")


def file_refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(str(path))
    assert caught.value.where and caught.value.todo
    return caught.value.what


def test_override_values_are_yaml() -> None:
    config = with_overrides(
        "train.lr_per_256=1e-3", "train.methods=[sdclr]", "data.path=null", "run.name='1e-3'",
        "run.root=s3://bucket/a=b", " train.epochs = 7 ", 'data.root="a #b"',
    )  # fmt: skip
    assert config.train.lr_per_256 == 1e-3 and config.train.methods == ("sdclr",)
    assert config.run.name == "1e-3" and config.run.root == "s3://bucket/a=b"
    assert config.train.epochs == 7 and config.data.root == "a #b"


def random_config(rng: random.Random) -> Config:
    names = ["1e-3", "null", "true", "on", "010", "0.5", "no", "1-30", "demo", "2024-01-01"]
    paths = [
        "./x: y",
        "- a",
        "#a",
        "a #b",
        "'q'",
        '"d"',
        "~",
        "é\u2028",
        " pad ",
        "./1:30",
        "*a",
        "{",
    ]
    tree: dict[str, dict[str, Any]] = {
        "run": {"name": rng.choice(names), "root": rng.choice(paths), "seed": rng.randrange(2**31)},
        "data": {"sets": {"fewshot": rng.sample(paths, rng.randrange(4))}, "source": "folder",
                 "path": rng.choice(paths), "imbalance_ratio": rng.choice([None, 1.5])},
        "train": {"lr_per_256": 10 ** rng.uniform(-9, 9),
                  "methods": rng.choice([["sdclr"], ["simclr"]])},
    }  # fmt: skip
    return Config.model_validate(tree)


def test_dump_loads_back_equal() -> None:
    rng = random.Random(0)
    for config in [Config(), *(random_config(rng) for _ in range(60))]:
        again = parse_config(dump_config(config), origin="dump")
        assert again == config and config_hash(again) == config_hash(config)


def test_a_plain_dump_would_not_load_back() -> None:
    config = with_overrides("run.name='1e-3'")
    assert parse_config(dump_config(config), origin="dump") == config
    with raises("E-CONFIG-011", "run.name"):
        parse_config(yaml.safe_dump(config.model_dump(mode="json")), origin="dump")


def test_hash_follows_every_key_but_name_and_place() -> None:
    base = Config()
    same = with_overrides("run.name=other", "run.root=s3://bucket/x")
    assert config_hash(same) == config_hash(base) and changed_keys(base, same) == []
    other = with_overrides("train.lr_per_256=0.3", "run.seed=1", "train.methods=[simclr]")
    assert config_hash(other) != config_hash(base)
    assert changed_keys(base, other) == [
        "run.seed: 0 -> 1",
        "train.methods: [sdclr, simclr] -> [simclr]",
        "train.lr_per_256: 1.0 -> 0.3",
    ]
    assert len(config_hash(base)) == 64 and set(config_hash(base)) <= set("0123456789abcdef")


@pytest.mark.promise("R7")
def test_a_run_may_go_on_with_other_budgets_and_fewer_workers() -> None:
    base = Config()
    for word in ("train.workers=1", "train.max_failures=9", "train.keep_best=rankme",
                 "placement.wait_s=60"):  # fmt: skip
        other = with_overrides(word)
        assert config_hash(other) == config_hash(base) and changed_keys(base, other) == []


@pytest.mark.promise("R7")
@pytest.mark.parametrize(
    "word", ["train.sync_batchnorm=false", "train.drop_last=false", "train.micro_batch=32"]
)
def test_fewer_workers_are_refused_where_batches_would_be_others(word: str) -> None:
    (change,) = changed_keys(with_overrides(word), with_overrides(word, "train.workers=1"))
    assert change.startswith("train.workers: auto -> 1 (")


def test_hash_is_equal_in_another_process() -> None:
    code = "from pipeline.config.file import *; print(config_hash(load_config(None)))"
    assert fresh_python(code) == config_hash(Config())


def test_reading_a_config_imports_nothing_heavy() -> None:
    code = (
        "import sys; import pipeline.config, pipeline.config.file as f; f.load_config(None);"
        "heavy = {'torch', 'ray', 'numpy', 'pyarrow', 'sklearn', 's3fs', 'PIL', 'sdclr.api'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert fresh_python(code) == "[]"


def fresh_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60,
        cwd=Path(__file__).parents[1], env={**os.environ, "PYTHONHASHSEED": "1"},
    )  # fmt: skip
    return done.stdout.strip()
