"""What the documents tell people to type, typed; what is made of the code, as the code is now.

A block of commands says behind ```sh how it is held:

    run           run as written
    dry-run       the same, with --dry-run in it
    on-a-run      run on a short run of the demo: tests/test_docs_on_a_run.py
    parsed        every key and flag in it exists; it needs data, weights or packages of the reader
    run-promtool  run where that program is
    installs      what continuous integration does
    cluster       needs a cluster or a cloud; keys and flags of run.py in it exist
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import io
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.cli.command_line import parse
from pipeline.config.file import load_config
from pipeline.config.study import load_study
from pipeline.run import main
from tests.conftest import REPO
from tests.loopback_s3 import ACCESS_KEY, SECRET_KEY, LoopbackS3

DOCS = sorted((REPO / "docs").glob("*.md"))
HELD = {"run", "dry-run", "on-a-run", "parsed", "run-promtool", "installs", "cluster"}
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
    typed = command.partition(RUN)[2].replace("...", "x").replace("WORDS", "")
    return shlex.split(re.sub(r"\$[A-Z_]+", "x", typed))  # as a shell fills variables in


def unheld(text: str) -> list[str]:
    """Blocks that do not say how they are held, or hide a command."""
    found = []
    for info, content in blocks(text):
        language, _, mark = info.partition(" ")
        hides = info == "text" and re.search(r"^(python|ray|make|kubectl) ", content, re.MULTILINE)
        if hides or not (info in ("text", "python") or (language == "sh" and mark in HELD)):
            found.append(content)
    return found


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_block_says_how_it_is_held(path: Path) -> None:
    assert unheld(path.read_text()) == []


@pytest.mark.parametrize("info", ["", "sh", "sh later", "bash run", "text"])
def test_a_command_that_nothing_holds_is_found(info: str) -> None:
    assert unheld(f"A page.\n\n```{info}\npython pipeline/run.py\n```\n")
    assert not unheld("```sh run\npython pipeline/run.py\n```\n")


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_commands_in_the_text_exist(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    for command in re.findall(r"`((?:python|make) [^`]+)`", text):
        words = command.split()
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (REPO / "Makefile").read_text(), re.M), command
        elif words[1] == "-m":
            assert words[2].isupper() or "NAME" in words[2] or find_spec(words[2]), command
        else:
            assert (REPO / words[1]).is_file(), command


def python_blocks() -> list[str]:
    found = [blocks(path.read_text()) for path in DOCS]
    return [content for page in found for info, content in page if info == "python"]


@pytest.mark.parametrize("code", python_blocks())
def test_what_examples_in_python_import_exists(code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names), node.module
        elif isinstance(node, ast.Import):
            assert all(find_spec(alias.name) for alias in node.names)


@pytest.mark.parametrize("command", all_uses_of_the_program())
def test_every_key_and_flag_in_a_command_exists(command: str) -> None:
    words = words_of(command)
    if {"--help", "--help-keys"} & set(words):
        return
    read = parse(words)
    if read.study is not None:  # its words may be places, which are no keys
        assert load_study(read.study).trainings(read.overrides)
        return
    config_file = None if read.config_file is None else str(REPO / read.config_file)
    if config_file is not None and not Path(config_file).exists():
        assert not config_file.startswith(str(REPO / "tune_configs")), config_file
        config_file = None
    load_config(config_file, read.overrides)


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, str]]:
    """The environment of an S3 server with `my-bucket`, and images in it."""
    with LoopbackS3() as server:
        images = {f"images/{i}.png": noise(i) for i in range(150)}
        server.buckets["my-bucket"] = dict(images)
        yield {
            "AWS_ENDPOINT_URL": server.url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


def noise(seed: int) -> bytes:
    """A PNG of 64 px."""
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with a folder of photos in it, and a flat one."""
    place = tmp_path_factory.mktemp("reader")
    for name in ("pipeline", "sdclr", "tune_configs", "infra", "docs"):
        (place / name).symlink_to(REPO / name)
    for name, number in (("photos/common", 200), ("photos/rare", 20), ("flat", 150)):
        (place / name).mkdir(parents=True)
        for i in range(number):
            (place / name / f"{i}.png").write_bytes(noise(i))
    return place


def typed(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = shlex.split(command, comments=True)
    words[0] = sys.executable if words[0] == "python" else words[0]
    result = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-2000:]
    return result


@pytest.mark.parametrize("command", marked("run"))
def test_commands_work_as_written(command: str, folder: Path) -> None:
    typed(command, folder)


@pytest.mark.parametrize(
    "words", [["data.source=folder", "data.path=absent"], ["train.lrr=1"], ["ingets"]]
)
def test_a_dry_run_that_would_fail_is_found(
    words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert main([*words, "--dry-run"]) != 0


@pytest.mark.parametrize("command", marked("dry-run"))
def test_dry_runs_work_as_written(
    command: str, folder: Path, bucket: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(command)
    assert words[:2] == RUN.split() and "--dry-run" in words
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    assert main(words[2:]) == 0


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is absent")
@pytest.mark.parametrize("command", marked("run-promtool"))
def test_commands_of_prometheus_work_as_written(command: str, folder: Path) -> None:
    typed(command, folder)


def test_commands_are_found_and_a_misspelt_key_would_be() -> None:
    assert len(marked("run", "dry-run")) >= 6 and len(all_uses_of_the_program()) >= 10
    with pytest.raises(Exception, match="E-CONFIG-011"):
        load_config(None, parse(words_of(f"{RUN} train.lrr=1")).overrides)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_and_files_exist(path: Path) -> None:
    text = path.read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (path.parent / target).exists(), target
    for name in re.findall(r"`((?:infra|tests|pipeline|tune_configs|sdclr)/[\w./-]+\.\w+)`", text):
        assert (REPO / name).exists(), name


def make() -> Any:
    spec = importlib.util.spec_from_file_location("docs_make", REPO / "docs" / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["docs_make"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name", ["README.md", "api.md", "configuration.md", "troubleshooting.md", "scale.md"]
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
