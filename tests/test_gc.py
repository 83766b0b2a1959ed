"""Housekeeping removes what nothing needs, file by file, when asked twice, and nothing else."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from unittest import mock

import pytest

from pipeline import storage
from pipeline.cli.command_line import parse
from pipeline.cli.gc import collect
from pipeline.dataset.manifest import (
    ImageInfo,
    Manifest,
    Rejects,
    SetInfo,
    ShardInfo,
    read_manifest,
    sealed,
    write_manifest,
)  # fmt: skip
from pipeline.errors import TrainingError
from pipeline.record.keeper import RunRecord
from pipeline.run import main
from pipeline.train import claim
from pipeline.tune.trials import Trials
from tests.loopback_s3 import LoopbackS3
from tests.refusals import raises
from tests.trial_records import record as trial

NO_PID = 2**30  # above the largest that Linux gives
FAULT = TrainingError("E-TRAIN-999", "it failed", where="here", todo="try again")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with data sets, runs and sweeps of every kind, and things that are not ours."""
    folder = tmp_path_factory.mktemp("filled")
    fill(str(folder))
    return folder


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, filled: Path, tmp_path: Path, s3: LoopbackS3) -> str:
    """A copy of it, on disk and in a bucket."""
    if request.param == "local":
        shutil.copytree(filled, tmp_path / "root")
        return str(tmp_path / "root")
    for file in filled.rglob("*"):
        if file.is_file():
            key = f"root/{file.relative_to(filled).as_posix()}"
            s3.buckets["bucket"][key] = file.read_bytes()
    return "s3://bucket/root"


def put(*parts: str, data: bytes = b"x") -> None:
    storage.write_bytes(storage.join(*parts), data)


def data_set(uri: str, name: str) -> str:
    put(uri, "shards/pretrain-00000.parquet")
    shard = ShardInfo("shards/pretrain-00000.parquet", 2, 1, "0" * 64)
    sets = {"pretrain": SetInfo(2, None, (shard,))}
    whole = Manifest(name, {}, ImageInfo("raw", 4, 4), None, sets, (), Rejects(0, {}, ()), {}, "")  # type: ignore[arg-type]
    write_manifest(uri, sealed(whole))
    return read_manifest(uri).hash


def run(uri: str, end: str, *, data: str = "ab" * 32, whole: int = 0, torn: int = 0) -> None:
    record = RunRecord.create(uri, name="r", config_hash="ab", seed=0, argv=["x"])
    put(uri, "config.yaml")
    record.set_data(uri="s3://old/place", manifest_hash=data, name="some")
    for step in range(whole + torn):
        folder = storage.join(uri, "models/sdclr/checkpoints", f"step-{step:08d}")
        names = ("state.safetensors", "state.json", *(("commit.json",) if step < whole else ()))
        for name in names:
            put(folder, name)
    if end == "failed":
        with pytest.raises(TrainingError), record.stage("train"):
            raise FAULT
        record.fail(FAULT, stage="train")
    elif end == "complete":
        with record.stage("train"):
            pass
        record.finish()


def killed(uri: str) -> None:
    """Let a process that ended long ago have run it."""
    with mock.patch("os.getpid", return_value=NO_PID):
        claim.begin(uri)


def sweep(uri: str, status: str) -> None:
    run(uri, "failed")
    trials = Trials(uri)
    trials.save(trial(0, {}, status=status))
    step = storage.join(uri, "trials/sdclr-0000/models/sdclr/checkpoints/step-00000003")
    put(step, "state.json")
    put(uri, "study.journal")


def fill(root: str) -> None:
    used = data_set(f"{root}/data/digits-11111111", "used")
    data_set(f"{root}/data/digits-22222222", "unused")
    put(root, "data/digits-33333333/shards/pretrain-00000.parquet")
    put(root, "data/digits-33333333/ingest.json")
    run(f"{root}/runs/good", "complete", data=used, whole=2, torn=1)
    run(f"{root}/runs/failed", "failed")
    run(f"{root}/runs/resumable", "failed", whole=1)
    run(f"{root}/runs/live", "running", torn=1)
    claim.begin(f"{root}/runs/live")
    run(f"{root}/runs/killed", "running")
    killed(f"{root}/runs/killed")
    run(f"{root}/runs/killed-later", "running", whole=1)
    killed(f"{root}/runs/killed-later")
    run(f"{root}/runs/guest", "failed")
    put(root, "runs/guest/thesis.docx")
    sweep(f"{root}/runs/demo-sweep-aaaaaaaa", "failed")
    sweep(f"{root}/runs/demo-sweep-bbbbbbbb", "complete")
    put(root, "runs/notes/plan.txt")
    put(root, "runs/failed-not/readme.md")  # its name begins as that of an orphan
    put(root, "README")


ORPHANS = {
    "data/digits-22222222": "data set",
    "data/digits-33333333": "data set",
    "runs/failed": "run",
    "runs/killed": "run",
    "runs/demo-sweep-aaaaaaaa": "sweep",
    "runs/demo-sweep-bbbbbbbb/trials/sdclr-0000/models/sdclr/checkpoints/step-00000003":
        "checkpoint",
    "runs/good/models/sdclr/checkpoints/step-00000002": "checkpoint",
}  # fmt: skip


def token_in(text: str) -> str:
    (token,) = re.findall(r"--remove (\w+)", text)
    return token


@pytest.mark.promise("R31")
def test_it_finds_what_nothing_needs_and_nothing_else(root: str) -> None:
    found = collect(root)
    assert {o.uri.removeprefix(f"{root}/"): o.kind for o in found.orphans} == ORPHANS
    assert [(uri.removeprefix(f"{root}/"), name) for uri, name in found.kept] == [
        ("runs/guest", "thesis.docx")
    ]
    assert found.num_known == 3 + 7 + 2


@pytest.mark.promise("R31")
def test_asked_twice_it_removes_exactly_what_it_listed(
    root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = storage.list_tree(root)
    assert main(["gc", "--root", root]) == 0
    assert storage.list_tree(root) == before
    token = token_in(capsys.readouterr().out)
    assert main(["gc", "--root", root, "--remove", token, "--dry-run"]) == 0
    assert storage.list_tree(root) == before
    assert main(["gc", "--root", root, "--remove", token]) == 0
    kept = {n: s for n, s in before.items() if not any(n.startswith(f"{o}/") for o in ORPHANS)}
    assert storage.list_tree(root) == kept and len(kept) < len(before)
    capsys.readouterr()
    assert main(["gc", "--root", root]) == 0
    assert "nothing to remove" in capsys.readouterr().out


@pytest.mark.promise("R31", control=True)
def test_a_change_between_the_two_is_refused(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gc", "--root", root]) == 0
    token = token_in(capsys.readouterr().out)
    put(root, "data/digits-33333333/shards/pretrain-00001.parquet")  # an ingest is at it
    before = storage.list_tree(root)
    assert main(["gc", "--root", root, "--remove", token]) == 2
    assert "E-CONFIG-602" in capsys.readouterr().err
    assert storage.list_tree(root) == before


def test_the_run_that_names_a_data_set_keeps_it(root: str) -> None:
    storage.delete_tree(f"{root}/runs/good/run.json")
    uris = {orphan.uri for orphan in collect(root).orphans}
    assert f"{root}/data/digits-11111111" in uris


def test_a_link_leads_nowhere(tmp_path: Path) -> None:
    run(str(tmp_path / "outside"), "failed")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "outside")
    assert collect(str(tmp_path / "root")).orphans == ()
    assert [o.uri for o in collect(str(tmp_path)).orphans] == [str(tmp_path / "outside")]


def test_a_broken_record_stops_the_listing(tmp_path: Path) -> None:
    data_set(str(tmp_path / "digits-11111111"), "unused")
    put(str(tmp_path), "run/run.json", data=b"{")
    with raises("E-DATA-086"):
        collect(str(tmp_path))


@pytest.mark.parametrize(
    "words",
    [["gc"], ["gc", "--root", "x", "run.seed=1"], ["gc", "--root", "x", "--resume", "y"]],
)
def test_gc_takes_a_root(words: list[str]) -> None:
    with raises("E-CONFIG-603"):
        parse(words)
