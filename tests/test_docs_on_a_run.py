"""What the documents tell people to type about a run of theirs, on a short run of the demo."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.test_docs import marked, typed

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# Keys that make the demo short; given to every stage, so that each finds what the one before left.
SHORT = (
    "train.epochs=2", "train.checkpoint_every_epochs=1", "train.methods=[sdclr]",
    "evaluate.protocols=[knn]",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout."""
    place = tmp_path_factory.mktemp("reader")
    for name in ("pipeline", "sdclr", "tune_configs"):
        (place / name).symlink_to(REPO / name)
    return place


@pytest.fixture(scope="module")
def short_run(folder: Path) -> dict[str, str]:
    """RUN and DATA of the demo, made short: what stands for them in the pages."""
    out = typed(shlex.join(["python", "pipeline/run.py", *SHORT]), folder).stdout
    (run,) = re.findall(r"--resume (\S+)\)", out)
    (data,) = re.findall(r"data set: (\S+)", out)
    return {"RUN": run, "DATA": data}


@pytest.mark.parametrize("command", marked("on-a-run"))
def test_commands_on_a_run_work(command: str, folder: Path, short_run: dict[str, str]) -> None:
    words = shlex.split(command, comments=True)
    if "--resume" not in words:
        words += SHORT
    elif "evaluate" in words:
        words += SHORT[-1:]
    for name, value in short_run.items():
        words = [re.sub(rf"\b{name}\b", value, word) for word in words]
    typed(shlex.join(words), folder)
