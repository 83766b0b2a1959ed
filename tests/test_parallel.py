"""Jobs and their results on the way through Ray: values, columns, errors; without a cluster."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.cluster.jobs import Result, ThreadTasks, _unpacked, ingest_task
from pipeline.errors import DataError
from pipeline.ingest.plan import work_of
from pipeline.ingest.sources.open import index_source
from pipeline.ingest.task import parse_outcome, run_chunk
from tests.refusals import raises
from tests.sources import image_bytes, settings, write_files, write_tar


def job(item: dict[str, Any], shared: Any) -> Result:
    if item["n"] < 0:
        raise DataError("E-DATA-999", "what", where="here", todo="this")
    return Result([item["n"], "é"], pa.table({"x": np.arange(item["n"]) * shared}))


def through(item: dict[str, Any], shared: Any, function: Any = job) -> Result:
    row = {"number": 7, "item": json.dumps(item)}
    packed = ingest_task(row, job=function, shared=shared)
    assert packed["number"] == 7 and set(map(type, packed.values())) <= {int, str, bytes}
    return _unpacked(packed)


def test_values_and_columns_come_back() -> None:
    result = through({"n": 3}, 10)
    assert result.values == [3, "é"] and result.table is not None
    assert result.table["x"].to_pylist() == [0, 10, 20] and result.num_retries == 0
    direct = dict(ThreadTasks().map(job, [{"n": 3}, {"n": 0}], 10))
    assert direct[0].values == result.values and direct[0].table == result.table
    assert through({"n": 0}, 1).table is not None


def test_an_error_of_ours_arrives_as_it_was_and_others_as_bugs() -> None:
    with raises("E-DATA-999") as caught:
        through({"n": -1}, 1)
    assert (caught.value.where, caught.value.todo) == ("here", "this")
    with pytest.raises(KeyError):
        through({}, 1)
    with pytest.raises(DataError):
        list(ThreadTasks().map(job, [{"n": 1}, {"n": -1}], 1))


def test_work_survives_the_way_to_another_process(tmp_path: Path) -> None:
    images = {f"{n}.png": image_bytes(n) for n in range(5)}
    write_files(tmp_path / "in", images)
    write_tar(tmp_path / "t.tar", dict(images))
    for source, path in (("folder", tmp_path / "in"), ("webdataset", tmp_path / "t.tar")):
        config = settings(source, path, tmp_path / "out")
        work = work_of(config, index_source(config.data, ThreadTasks()))
        again = pickle.loads(pickle.dumps(work, protocol=5))
        item = {"set_name": "pretrain", "number": 0, "start": 0, "stop": 5}
        outcomes = [parse_outcome(through(item, w, run_chunk)) for w in (work, again)]
        assert outcomes[0].shard == outcomes[1].shard is not None
