"""Files that somebody else wrote, damaged at random: a typed error or a clean read."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.cli.command_line import Command
from pipeline.cli.resolve import resolve
from pipeline.config.file import dump_config, load_config
from pipeline.dataset.manifest import read_manifest
from pipeline.errors import DataError, PipelineError
from pipeline.model import checkpoint
from pipeline.record import metrics
from pipeline.record.keeper import read_run
from tests.records import write_run
from tests.test_checkpoint import HASH, saved

NUM_DAMAGES = 200
HOSTILE = [
    b"\x00",
    b"\xff",
    b"{",
    b"]",
    b'"',
    b"..",
    b"/",
    b"1e999",
    b"null",
    b"-1",
    b"[" * 100_000,
    b"\\",
]


def damaged(content: bytes, seed: int) -> Iterator[bytes]:
    """Copies with bytes flipped, cut, doubled or replaced by what parsers stumble over."""
    rng = random.Random(seed)
    for _ in range(NUM_DAMAGES):
        copy = bytearray(content)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(copy) + 1)
            kind = rng.randrange(4)
            if kind == 0 and at < len(copy):
                copy[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                del copy[at : at + rng.randint(1, 40)]
            elif kind == 2:
                copy[at:at] = rng.choice(HOSTILE)
            else:
                copy[at:at] = copy[at : at + rng.randint(1, 40)]
        yield bytes(copy)


def outcomes(file: Path, read: Callable[[], object], seed: int) -> tuple[int, int]:
    """How many damaged copies were refused and read; any other exception fails the test."""
    good, refused, fine = file.read_bytes(), 0, 0
    for content in damaged(good, seed):
        file.write_bytes(content)
        try:
            read()
            fine += 1
        except PipelineError as error:
            assert error.what
            refused += 1
    file.write_bytes(good)
    read()
    return refused, fine


@pytest.mark.promise("S11", control=True)
def test_a_plain_reader_lets_other_exceptions_through(tmp_path: Path) -> None:
    file = Path(saved(tmp_path, 3)) / "step-00000003" / "state.json"
    with pytest.raises((ValueError, RecursionError)):
        outcomes(file, lambda: json.loads(file.read_bytes()), seed=1)


@pytest.mark.promise("S11")
@pytest.mark.parametrize("name", ["commit.json", "state.json", "state.safetensors"])
def test_damaged_checkpoints(tmp_path: Path, name: str) -> None:
    folder = Path(saved(tmp_path, 3)) / "step-00000003"
    read = lambda: checkpoint.load(str(folder), config_hash=HASH)  # noqa: E731
    refused, _ = outcomes(folder / name, read, seed=1)
    assert refused > 0.9 * NUM_DAMAGES or name == "commit.json"
    assert refused > 0


@pytest.mark.promise("S11")
def test_damaged_records_and_manifests(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    manifest = Path(tmp_path / "data" / "digits-lt")
    readers: dict[Path, Callable[[], object]] = {
        Path(run) / "run.json": lambda: read_run(run),
    }
    for seed, (file, read) in enumerate(readers.items()):
        refused, _ = outcomes(file, read, seed)
        assert refused > 0
    for content in damaged((manifest / "manifest.json").read_bytes(), 5):
        (manifest / "manifest.json").write_bytes(content)
        with pytest.raises(PipelineError):
            read_manifest(str(manifest))


@pytest.mark.promise("S11")
def test_damaged_metrics(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    rows = [
        {"kind": "stage", "stage": "x", "event": "start", "wall_s": 0.0, "time_s": float(i)}
        for i in range(5)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused, fine = outcomes(run / "metrics.jsonl", lambda: metrics.read_metrics(str(run)), seed=7)
    assert refused > 0 and fine > 0  # a torn last line is no error


@pytest.mark.promise("S11")
@pytest.mark.parametrize("name", ["config.yaml", "run.json"])
def test_damaged_files_of_a_run_that_is_gone_on_with(tmp_path: Path, name: str) -> None:
    run = Path(write_run(tmp_path))
    (run / "config.yaml").write_text(dump_config(load_config(None)))
    command = Command("all", None, (), str(run), dry_run=False)
    refused, _ = outcomes(run / name, lambda: resolve(command), seed=9)
    assert refused > 0.3 * NUM_DAMAGES


@pytest.mark.promise("S11")
def test_damaged_configuration_files(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(load_config(None)))
    refused, _ = outcomes(file, lambda: load_config(str(file)), seed=11)
    assert refused > 0.3 * NUM_DAMAGES


@pytest.mark.promise("S10")
def test_no_random_name_leads_outside(tmp_path: Path) -> None:
    rng = random.Random(3)
    pieces = [
        "..",
        ".",
        "a",
        "shards",
        "",
        "~",
        "C:",
        "\\",
        "\x00",
        "é",
        "%2e%2e",
        "a.parquet",
        "//",
    ]
    accepted, root = 0, tmp_path.resolve()
    for _ in range(5000):
        name = rng.choice(["", "/", "./", "../"]) + "/".join(
            rng.choices(pieces, k=rng.randint(1, 5))
        )
        try:
            safe = storage.safe_name(name)
        except DataError:
            continue
        accepted += 1
        target = (root / safe).resolve()
        assert target.is_relative_to(root) and target != root, name
    assert accepted > 20


@pytest.mark.promise("S10", control=True)
def test_a_plain_join_would_lead_outside(tmp_path: Path) -> None:
    assert not (tmp_path / "../x").resolve().is_relative_to(tmp_path.resolve())
    with pytest.raises(DataError):
        storage.safe_name("../x")
