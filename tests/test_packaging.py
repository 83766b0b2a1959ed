"""What `pip install .` brings: versions in ranges, the command, recipes and types."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from pipeline.config.file import load_config

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RANGES = {
    requirement.name: requirement
    for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["ray"]]
    for requirement in [Requirement(text)]
}


def pins() -> list[Requirement]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [Requirement(text) for line in lines if (text := line.partition("#")[0].strip())]


def test_each_pin_is_in_its_range_and_each_range_has_a_pin() -> None:
    assert {pin.name for pin in pins()} == set(RANGES)
    for pin in pins():
        (version,) = (specifier.version for specifier in pin.specifier)
        assert RANGES[pin.name].specifier.contains(version), pin
        assert pin.extras == RANGES[pin.name].extras


def test_the_library_needs_three_packages() -> None:
    names = {re.split(r"[<>=]", text)[0] for text in PROJECT["dependencies"]}
    assert names == {"torch", "torchvision", "numpy"}


def test_the_command_and_the_version_are_there() -> None:
    module, _, name = PROJECT["scripts"]["sdclr"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    import sdclr

    assert re.fullmatch(r"\d+\.\d+\.\d+", sdclr.__version__)
    assert (ROOT / "sdclr" / "py.typed").exists() and (ROOT / "LICENSE").exists()


def test_recipes_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = load_config("tune_configs/photos_small.yaml")
    monkeypatch.chdir(tmp_path)
    assert load_config("tune_configs/photos_small.yaml") == shipped
    (tmp_path / "tune_configs").mkdir()
    (tmp_path / "tune_configs" / "photos_small.yaml").write_text("run: {seed: 7}")
    assert load_config("tune_configs/photos_small.yaml").run.seed == 7  # one's own comes first


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "pydantic.py").write_text("raise ModuleNotFoundError('no', name='pydantic')")
    code = "import sys; sys.argv = ['sdclr', '--dry-run']; from pipeline.run import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": ""}, check=False,
    )  # fmt: skip
    assert "E-CONFIG-225" in result.stderr and "sdclr[ray]" in result.stderr
