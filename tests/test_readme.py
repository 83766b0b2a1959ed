"""What the README tells people to type, typed."""

from __future__ import annotations

import re
import subprocess
import sys

from pipeline.cli.command_line import FLAGS, STAGES
from pipeline.config.file import load_config
from tests.conftest import REPO

README = (REPO / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_the_library_example_runs_as_written() -> None:
    code, _ = blocks("python")
    # The same lines on fewer and smaller images: a ResNet-18 takes minutes at 32 px on a CPU.
    small = code.replace("(512, 3, 32, 32)", "(16, 3, 32, 32)").replace(
        "global_batch=128", "global_batch=8"
    )
    small = small.replace("resnet18", "resnet8").replace("epochs=2", "epochs=1")
    assert small.count("\n") <= 12
    result = subprocess.run([sys.executable, "-c", small], cwd=REPO, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 2


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
    assert "@" not in re.sub(r"\w@", "", README), "a figure is still to be filled in"
