"""What the documents tell people to type, typed; what is made of the code, as the code is now.

A block of commands says behind ```sh how it is held: `run` is run, `dry-run` and `parsed` are read
as the program would read them (`dry-run` is run as well), `run-promtool` needs that program,
`installs` is what continuous integration does, `cluster` needs a cluster or a cloud.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.command_line import parse
from pipeline.config.file import load_config
from tests.conftest import REPO

DOCS = sorted((REPO / "docs").glob("*.md"))
# These pages mark their blocks; the others are held to what they say about run.py.
MARKED = {"quickstart", "own_data", "jobs", "kuberay", "cloud", "monitoring", "scale"}
HELD = {"run", "dry-run", "parsed", "run-promtool", "installs", "cluster"}
RUN = "python pipeline/run.py"


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """(info string, content) of every fenced block."""
    for match in re.finditer(r"^```([^\n]*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield match.group(1).strip(), match.group(2)


def commands(content: str) -> list[str]:
    """One command per line, comments and continuations resolved."""
    joined = content.replace("\\\n", " ")
    lines = [re.sub(r"\s+#.*", "", line).strip() for line in joined.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def marked(*marks: str) -> list[str]:
    found = []
    for path in DOCS:
        for info, content in blocks(path.read_text()):
            if info.partition(" ")[2] in marks and info.startswith("sh"):
                found += commands(content)
    return found


def all_uses_of_the_program() -> list[str]:
    found = []
    for path in DOCS:
        for _, content in blocks(path.read_text()):
            found += [
                c for c in commands(content) if RUN in c and "[" not in c.replace("[sdclr", "")
            ]
    return found


def words_of(command: str) -> list[str]:
    return shlex.split(command.partition(RUN)[2].replace("...", "x").replace("WORDS", ""))


def test_every_block_of_commands_says_how_it_is_held() -> None:
    for path in DOCS:
        if path.stem in MARKED:
            for info, content in blocks(path.read_text()):
                language, _, mark = info.partition(" ")
                assert language == "sh" and mark in HELD, f"{path.name}: {content}"


@pytest.mark.parametrize("command", all_uses_of_the_program())
def test_every_key_and_flag_in_a_command_exists(command: str) -> None:
    words = words_of(command)
    if {"--help", "--help-keys"} & set(words):
        return
    read = parse(words)
    config_file = None if read.config_file is None else str(REPO / read.config_file)
    if config_file is not None and not Path(config_file).exists():
        assert not config_file.startswith(str(REPO / "tune_configs")), config_file
        config_file = None
    load_config(config_file, read.overrides)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with a folder of photos in it."""
    place = tmp_path_factory.mktemp("reader")
    for name in ("pipeline", "sdclr", "tune_configs", "infra", "docs"):
        (place / name).symlink_to(REPO / name)
    rng = np.random.default_rng(0)
    for name in ("common", "rare"):
        (place / "photos" / name).mkdir(parents=True)
        for i in range(200 if name == "common" else 20):
            pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / "photos" / name / f"{i}.png")
    return place


def typed(command: str, folder: Path) -> None:
    words = shlex.split(command)
    words[0] = sys.executable if words[0] == "python" else words[0]
    result = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-2000:]


@pytest.mark.parametrize("command", marked("run", "dry-run"))
def test_commands_work_as_written(command: str, folder: Path) -> None:
    typed(command, folder)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is absent")
@pytest.mark.parametrize("command", marked("run-promtool"))
def test_commands_of_prometheus_work_as_written(command: str, folder: Path) -> None:
    typed(command, folder)


def test_commands_are_found_and_a_misspelt_key_would_be() -> None:
    assert len(marked("run", "dry-run")) >= 6 and len(all_uses_of_the_program()) >= 10
    with pytest.raises(Exception, match="did you mean train.lr"):
        load_config(None, parse(words_of(f"{RUN} train.lrr=1")).overrides)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_and_files_exist(path: Path) -> None:
    text = path.read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (path.parent / target).exists(), target
    if path.stem in MARKED:
        for name in re.findall(
            r"`((?:infra|tests|pipeline|tune_configs|sdclr)/[\w./-]+\.\w+)`", text
        ):
            assert (REPO / name).exists(), name


def make() -> Any:
    spec = importlib.util.spec_from_file_location("docs_make", REPO / "docs" / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["docs_make"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name", ["README.md", "configuration.md", "troubleshooting.md", "scale.md"]
)
def test_what_is_made_of_the_code_is_up_to_date(name: str) -> None:
    assert (REPO / "docs" / name).read_text() == make().page(name), "run make docs"


def test_messages_are_found_with_their_advice() -> None:
    found = {m.what: m for m in make().messages()}
    token = found["there is no token for the Ray cluster"]
    assert token.exit_code == 5 and "RAY_AUTH_TOKEN" in token.todo
    assert len(found) > 60
    told = [m for m in found.values() if m.todo]
    assert len(told) > 0.9 * len(found), [m.what for m in found.values() if not m.todo]
