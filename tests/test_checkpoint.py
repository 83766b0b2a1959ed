"""Checkpoints on storage: whole or not there, every byte checked, the one before as fallback."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from unittest import mock

import pytest
import torch

from pipeline import storage
from pipeline.errors import StorageError
from pipeline.model import checkpoint
from sdclr import TrainState
from tests.refusals import raises

HASH = "c0ffee"


def some_state(step: int) -> TrainState:
    g = torch.Generator().manual_seed(step)
    tensors = {"model.w": torch.randn(3, 4, generator=g), "model.mask": torch.tensor([True, False])}
    return TrainState(tensors, {"format_version": 1, "method": "sdclr", "seed": 0, "step": step})


def same(a: TrainState | None, b: TrainState) -> bool:
    return (
        a is not None
        and a.numbers == b.numbers
        and a.tensors.keys() == b.tensors.keys()
        and all(torch.equal(a.tensors[n], t) for n, t in b.tensors.items())
    )


def saved(folder: Path, *steps: int) -> str:
    for step in steps:
        checkpoint.save(str(folder), some_state(step), config_hash=HASH)
    return str(folder)


def test_round_trip_and_newest_first(tmp_path: Path) -> None:
    found = checkpoint.latest(saved(tmp_path, 5, 120, 20), config_hash=HASH)
    assert same(found.state, some_state(120)) and found.refused == []
    assert not same(found.state, some_state(20))
    assert checkpoint.latest(str(tmp_path / "none"), config_hash=HASH).state is None


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "commit.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
@pytest.mark.promise("R11")
def test_any_damage_is_refused_by_name_and_the_one_before_is_used(
    tmp_path: Path, name: str, damage: str
) -> None:
    folder = saved(tmp_path, 10, 20)
    file = tmp_path / "step-00000020" / name
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    if damage == "flip":
        content[middle] ^= 0x01
    file.write_bytes({"flip": content, "cut": content[:middle]}.get(damage, b""))
    if damage == "gone":
        file.unlink()
    found = checkpoint.latest(folder, config_hash=HASH)
    assert same(found.state, some_state(10))
    if (name, damage) == ("commit.json", "gone"):
        assert (found.refused, found.unfinished) == ([], ["step-00000020"])
    else:
        assert len(found.refused) == 1 and found.refused[0].startswith("step-00000020: ")


@pytest.mark.promise("R11")
def test_every_flipped_byte_of_the_tensors_is_noticed(tmp_path: Path) -> None:
    saved(tmp_path, 3)
    file = tmp_path / "step-00000003" / "state.safetensors"
    good = file.read_bytes()
    for position in range(0, len(good), 7):
        file.write_bytes(good[:position] + bytes([good[position] ^ 0x80]) + good[position + 1 :])
        assert checkpoint.latest(str(tmp_path), config_hash=HASH).state is None
    file.write_bytes(good)
    assert same(checkpoint.latest(str(tmp_path), config_hash=HASH).state, some_state(3))


@pytest.mark.parametrize("fail_at", [0, 1, 2])
@pytest.mark.promise("R9")
def test_killed_at_any_write_leaves_the_one_before(tmp_path: Path, fail_at: int) -> None:
    folder = saved(tmp_path, 10)
    write, calls = storage.write_bytes, []

    def dying_write(uri: str, data: bytes) -> None:
        if len(calls) == fail_at:
            raise KeyboardInterrupt
        calls.append(uri)
        write(uri, data)

    with mock.patch.object(storage, "write_bytes", dying_write), pytest.raises(KeyboardInterrupt):
        checkpoint.save(folder, some_state(20), config_hash=HASH)
    assert same(checkpoint.latest(folder, config_hash=HASH).state, some_state(10))


@pytest.mark.promise("R9", control=True)
def test_without_the_commit_record_a_partial_one_would_be_taken(tmp_path: Path) -> None:
    folder = saved(tmp_path, 10, 20)
    assert same(checkpoint.latest(folder, config_hash=HASH).state, some_state(20))
    (tmp_path / "step-00000020" / "commit.json").unlink()
    found = checkpoint.latest(folder, config_hash=HASH)
    assert same(found.state, some_state(10)) and found.unfinished == ["step-00000020"]


@pytest.mark.promise("R7")
def test_another_configuration_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, 10)
    found = checkpoint.latest(folder, config_hash="other")
    assert found.state is None and "another configuration" in found.refused[0]
    with raises("E-CHECKPOINT-005"):
        checkpoint.load(storage.join(folder, "step-00000010"), config_hash="other")


@pytest.mark.promise("R7", control=True)
def test_without_the_hash_of_the_configuration_it_would_be_taken(tmp_path: Path) -> None:
    uri = storage.join(saved(tmp_path, 10), "step-00000010")
    assert same(checkpoint.load(uri, config_hash=None), some_state(10))


def test_retention_keeps_the_newest_and_clears_leftovers(tmp_path: Path) -> None:
    folder = saved(tmp_path, 1, 2, 3, 4)
    (tmp_path / "step-00000002" / "commit.json").unlink()
    checkpoint.retain(folder, 2, newest_step=4)
    assert storage.list_names(folder) == ["step-00000003", "step-00000004"]
    checkpoint.retain(folder, 5, newest_step=4)
    assert len(storage.list_names(folder)) == 2


def test_retention_after_a_fallback_does_not_count_the_broken_ones_ahead(tmp_path: Path) -> None:
    folder = saved(tmp_path, 40, 60, 20)
    checkpoint.retain(folder, 2, newest_step=20)
    assert len(storage.list_names(folder)) == 3
    checkpoint.save(folder, some_state(30), config_hash=HASH)
    checkpoint.retain(folder, 1, newest_step=30)
    assert "step-00000020" not in storage.list_names(folder)
    assert "step-00000030" in storage.list_names(folder)


@pytest.mark.promise("R9")
def test_overwriting_a_checkpoint_never_leaves_half_of_it_committed(tmp_path: Path) -> None:
    folder = saved(tmp_path, 10, 20)
    write = storage.write_bytes

    def dying_write(uri: str, data: bytes) -> None:
        write(uri, data)
        raise KeyboardInterrupt

    with mock.patch.object(storage, "write_bytes", dying_write), pytest.raises(KeyboardInterrupt):
        checkpoint.save(folder, some_state(20), config_hash=HASH)
    found = checkpoint.latest(folder, config_hash=HASH)
    assert same(found.state, some_state(10)) and found.unfinished == ["step-00000020"]


@pytest.mark.promise("R11")
def test_storage_that_does_not_answer_is_not_an_empty_folder(tmp_path: Path) -> None:
    folder = saved(tmp_path, 10)

    def failing_read(uri: str) -> bytes:
        raise StorageError("E-STORAGE-999", "no answer", where=uri)

    with mock.patch.object(storage, "read_bytes", failing_read), pytest.raises(StorageError):
        checkpoint.latest(folder, config_hash=HASH)


@pytest.mark.promise("S1")
def test_a_pickle_in_place_of_a_file_is_refused_and_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (marker,)

    folder = tmp_path / "checkpoints"
    saved(folder, 7)
    for name in ("state.safetensors", "state.json", "commit.json"):
        content = pickle.dumps(Payload())
        target = folder / "step-00000007" / name
        good = target.read_bytes()
        target.write_bytes(content)
        if name != "commit.json":  # even when the record vouches for it
            record_file = folder / "step-00000007" / "commit.json"
            record = json.loads(record_file.read_text())
            import hashlib

            record["files"][name]["sha256"] = hashlib.sha256(content).hexdigest()
            good_record = record_file.read_bytes()
            record_file.write_text(json.dumps(record))
            assert checkpoint.latest(str(folder), config_hash=HASH).state is None
            record_file.write_bytes(good_record)
        assert checkpoint.latest(str(folder), config_hash=HASH).state is None
        target.write_bytes(good)
    assert not marker.exists()
    assert same(checkpoint.latest(str(folder), config_hash=HASH).state, some_state(7))
