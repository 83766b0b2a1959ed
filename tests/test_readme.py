"""What the README tells people to type, typed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.cli.words import FLAGS, STAGES
from pipeline.config.file import load_config
from tests.conftest import REPO

README = (REPO / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_the_library_example_runs_as_written(tmp_path: Path) -> None:
    (code,) = blocks("python")
    (tmp_path / "photos").mkdir()
    for seed in range(8):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{seed}.png")
    # The same lines on a smaller network and for one epoch: a ResNet-18 takes minutes on a CPU.
    words = {"resnet18": "resnet8", "crop_px=64": "crop_px=16", "epochs=60": "epochs=1"}
    for word, small in words.items():
        assert code.count(word) == 1
        code = code.replace(word, small)
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 1


def test_every_override_and_config_in_a_command_is_accepted() -> None:
    commands = " ".join(blocks("")).replace("\\\n", " ").splitlines()
    mine = [
        line.partition("#")[0] for line in commands if "pipeline/run.py" in line and "[" not in line
    ]
    assert len(mine) >= 3
    for command in mine:
        words = command.split("pipeline/run.py")[1].split()
        configs = [words[i + 1] for i, word in enumerate(words) if word == "--config"]
        overrides = [word.replace("...", "bucket") for word in words if "=" in word]
        load_config(str(REPO / configs[0]) if configs else None, overrides)


def test_stages_flags_exit_codes_and_files_exist() -> None:
    for stage in STAGES:
        assert f"`{stage}`" in README, stage
    for flag in set(FLAGS) - {"--help"}:
        assert flag in README, flag
    for path in re.findall(r"`((?:sdclr|pipeline|tune_configs)/[\w./]+\.\w+)`", README):
        assert (REPO / path).exists(), path


def test_the_readme_is_short_and_begins_with_two_commands() -> None:
    lines = README.splitlines()
    assert len(lines) <= 150
    assert lines.index("make test     # all tests but the slow ones") < 40


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_and_files_of_the_pages_at_the_top_exist(name: str) -> None:
    page = (REPO / name).read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", page):
        assert (REPO / target).exists(), target
    for path in re.findall(r"`((?:sdclr|pipeline|tests|docs|tune_configs)/[\w./]+\.\w+)`", page):
        assert (REPO / path).exists() or "NAME" in path, path
