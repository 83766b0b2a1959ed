"""Splits: seeded, disjoint, and index lists that are checked before use."""

from __future__ import annotations

import json
import pickle
from enum import IntEnum, unique
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.data import Data
from pipeline.errors import DataError
from pipeline.ingest.sources.splits import hold_out, long_tail, read_index, row_order, shard_order
from pipeline.ingest.streams import Stream, generator
from sdclr import fewshot, longtail
from tests.refusals import raises


def test_hold_out_takes_the_same_number_of_each() -> None:
    labels = np.array([0] * 10 + [1] * 5 + [2] * 7)
    chosen = hold_out(labels, num_per_class=3, class_names="abc", seed=0)
    assert np.bincount(labels[chosen]).tolist() == [3, 3, 3]
    assert (np.diff(chosen) > 0).all()
    small = hold_out(labels, num_per_class=5, class_names="abc", seed=0)
    assert np.bincount(labels[small], minlength=3).tolist() == [5, 0, 5]  # b stays whole
    with pytest.raises(DataError) as caught:
        hold_out(labels, num_per_class=10, class_names="abc", seed=0)
    assert caught.value.id == "E-DATA-069" and "'a'" in caught.value.what


def test_named_streams_give_the_published_orders() -> None:
    """The numbers behind the names are part of published splits."""
    rows = np.arange(50)
    expected = np.random.default_rng([3, 102, *b"test"]).permutation(rows)
    assert row_order(rows, set_name="test", seed=3).tolist() == expected.tolist()
    expected = np.random.default_rng([3, 104, 7, *b"pretrain"]).permutation(rows)
    found = shard_order(rows, set_name="pretrain", number=7, seed=3)
    assert found.tolist() == expected.tolist()
    labels = np.zeros(50, np.int64)
    for name, number in (("test", 101), ("val", 103)):
        expected = np.sort(np.random.default_rng([3, number, 0]).permutation(rows)[:5])
        held = hold_out(labels, num_per_class=5, class_names="a", seed=3, set_name=name)
        assert held.tolist() == expected.tolist()


def test_every_stream_has_a_number_of_its_own() -> None:
    ours = {int(stream) for stream in Stream}
    theirs = {longtail._ORDER_STREAM, longtail._IMAGE_STREAM, fewshot._FEWSHOT_STREAM}
    assert len(ours) == len(Stream.__members__) and not ours & theirs
    draws = {int(generator(0, stream, 5).integers(2**62)) for stream in Stream}
    assert len(draws) == len(ours)
    with pytest.raises(ValueError, match="duplicate"):
        unique(IntEnum("Twice", {"A": 104, "B": 104}))


def test_the_balanced_twin_has_the_size_of_the_long_tail() -> None:
    labels = np.repeat(np.arange(10), 5000)
    pool = np.arange(len(labels))

    def counts(seed: int = 0, **keys: object) -> list[int]:
        data = Data(source="cifar10", path="x", num_max=4500, split_seed=seed, **keys)
        rows = long_tail(labels, pool, num_classes=10, data=data)
        assert (np.diff(rows) > 0).all()
        return np.bincount(labels[rows], minlength=10).tolist()

    # The published sizes: 11,165 and, balanced, 11,160 images.
    assert sum(counts(imbalance_ratio=100)) == 11_165
    assert counts(imbalance_ratio=100, balanced_twin=True) == [1116] * 10
    with raises("E-CONFIG-861"):
        counts(balanced_twin=True)
    # A class that is too small for its share is refused as in the long tail.
    small = pool[(labels > 0) | (pool < 1000)]
    data = Data(source="cifar10", path="x", num_max=4500, imbalance_ratio=100, balanced_twin=True)
    with raises("E-DATA-070"):
        long_tail(labels, small, num_classes=10, data=data)


def test_row_order_is_a_permutation_of_its_own_for_each_set() -> None:
    rows = np.arange(100)
    first = row_order(rows, set_name="probe", seed=0)
    assert sorted(first) == list(range(100)) and first.tolist() != rows.tolist()
    assert first.tolist() == row_order(rows, set_name="probe", seed=0).tolist()
    for other in (
        row_order(rows, set_name="test", seed=0),
        row_order(rows, set_name="probe", seed=1),
    ):
        assert other.tolist() != first.tolist()


def write_list(path: Path, values: list[int]) -> str:
    if path.suffix == ".npy":
        np.save(path, np.array(values))
    elif path.suffix == ".txt":
        path.write_text("".join(f"{value}\n" for value in values))
    else:
        path.write_text(json.dumps(values))
    return str(path)


@pytest.mark.parametrize("ending", ["npy", "txt", "json"])
def test_index_lists_of_every_kind(tmp_path: Path, ending: str) -> None:
    uri = write_list(tmp_path / f"list.{ending}", [7, 0, 3])
    assert read_index(uri, key="sets.val", num_images=8).tolist() == [7, 0, 3]
    for values, *facts in (
        ([8], "0..7"),
        ([-1], "0..7"),
        ([1, 2, 1], "1"),
        ([],),
    ):
        uri = write_list(tmp_path / f"list.{ending}", values)
        with raises("E-DATA-072", *facts) as caught:
            read_index(uri, key="sets.val", num_images=8)
        assert "sets.val" in caught.value.what and caught.value.where == uri


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.txt", b"1\ntwo\n"),
        ("x.txt", b"1.5\n"),
        ("x.json", b"[1, 2"),
        ("x.json", b"[[1], [2]]"),
        ("x.json", b"[1.0, 2.0]"),
        ("x.json", b"[true]"),
        ("x.json", b'{"a": 1}'),
        ("x.npy", b""),
        ("x.npy", b"\x93NUMPY"),
        ("x.npy", pickle.dumps([1, 2])),
        ("x.csv", b"1,2"),
    ],
)
def test_broken_index_lists_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with raises(("E-DATA-071", "E-DATA-072")):
        read_index(str(tmp_path / name), key="sets.val", num_images=8)
