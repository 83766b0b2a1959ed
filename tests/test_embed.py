"""The embed stage: files of vectors, what is refused, and a stage that is killed and resumed."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from dataclasses import replace
from glob import glob
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline import feed
from pipeline.cli.session import plain_errors
from pipeline.cluster.connect import Cluster
from pipeline.config.file import load_config
from pipeline.dataset.parquet import plain_bytes
from pipeline.embed.features import Placement, extract, over_blocks
from pipeline.embed.shards import Vectors, kept_shard, read_vectors, schema, write_vectors
from pipeline.embed.stage import embed
from pipeline.embed.wanted import find, read_set, run_model, wanted
from pipeline.errors import DataError
from pipeline.model import build
from pipeline.model.source import PIXELS, UNTRAINED, ModelSource, weights_hash
from pipeline.record.context import RunContext
from pipeline.record.embedding import DType, VectorShard
from tests.refusals import raises
from tests.running import ROOT, started, wait_for
from tests.test_leaks import data_set

CONFIG = load_config(None, ["train.methods=[sdclr]"])
CLUSTER = Cluster("", True, 4, 0, "", largest_node_cpus=4)
SOURCES = [ModelSource(UNTRAINED), ModelSource(PIXELS)]


def some_vectors(num: int = 5, dim: int = 3) -> Vectors:
    return Vectors(
        rows=np.arange(num) + 40,
        ids=[f"image-{row}" for row in range(num)],
        values_nF=np.random.default_rng(0).normal(size=(num, dim)).astype(np.float32),
        hashes=[f"{row:064x}" for row in range(num)],
        labels_n=np.array([0, -1, 2, 1, 7][:num]),
    )


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_file_holds_what_was_written_and_pandas_opens_it(tmp_path: Path, dtype: DType) -> None:
    import pandas

    vectors = some_vectors()
    shard = write_vectors(str(tmp_path), vectors, dtype)
    found = read_vectors(str(tmp_path), shard, dtype)
    assert (found.ids, found.hashes) == (vectors.ids, vectors.hashes)
    np.testing.assert_array_equal(found.rows, vectors.rows)
    np.testing.assert_array_equal(found.labels_n, vectors.labels_n)
    np.testing.assert_array_equal(found.values_nF, vectors.values_nF.astype(dtype))
    assert kept_shard(str(tmp_path), 40, vectors.rows, dtype) == shard
    assert (shard.rows, shard.dim, shard.first_row) == (5, 3, 40)
    table = pandas.read_parquet(tmp_path / shard.name)
    assert list(table.columns) == ["row", "id", "vector", "sha256", "label"]
    assert table["vector"][0].dtype == dtype and table["label"].isna().sum() == 1


def vectors_of_two_files(folder: Path) -> dict[str, list[float]]:
    """Write two files of vectors, and return what they hold."""
    values = np.arange(21, dtype=np.float32).reshape(7, 3)
    for rows in (range(4), range(4, 7)):
        part = Vectors(np.array(rows), [f"é/{row}.png" for row in rows],
                       values[rows.start : rows.stop], ["0" * 64] * len(rows),
                       np.full(len(rows), -1))  # fmt: skip
        write_vectors(str(folder), part, "float32")
    (folder / "embedding.json").write_text("{}")
    return {f"é/{row}.png": values[row].tolist() for row in range(7)}


def test_pandas_opens_them_in_the_documented_line(tmp_path: Path) -> None:
    import pandas

    expected = vectors_of_two_files(tmp_path)
    table = pandas.read_parquet(glob(f"{tmp_path}/*.parquet"))
    assert {id: v.tolist() for id, v in zip(table["id"], table["vector"], strict=True)} == expected


def test_duckdb_opens_them_in_the_documented_line(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    expected = vectors_of_two_files(tmp_path)
    found = duckdb.sql(f"select id, vector from '{tmp_path}/*.parquet'").fetchall()
    assert {id: list(vector) for id, vector in found} == expected


def test_lancedb_opens_and_searches_them_in_the_documented_line(tmp_path: Path) -> None:
    lancedb = pytest.importorskip("lancedb", reason="lancedb is not installed")
    import pyarrow.parquet

    expected = vectors_of_two_files(tmp_path / "vectors")
    files = glob(f"{tmp_path}/vectors/*.parquet")
    table = lancedb.connect(tmp_path / "db").create_table(
        "images", pyarrow.parquet.read_table(files)
    )
    assert table.count_rows() == 7
    nearest = table.search(expected["é/5.png"]).limit(1).to_list()
    assert [(one["id"], one["vector"]) for one in nearest] == [("é/5.png", expected["é/5.png"])]


def test_numbers_that_a_file_cannot_hold_are_refused_with_the_image(tmp_path: Path) -> None:
    vectors = some_vectors()
    vectors.values_nF[2, 1] = 70_000
    write_vectors(str(tmp_path), vectors, "float32")
    with raises("E-DATA-660") as caught:
        write_vectors(str(tmp_path), vectors, "float16")
    assert "image-2" in caught.value.what
    vectors.values_nF[3, 0] = np.nan
    with raises("E-DATA-660"):
        write_vectors(str(tmp_path), vectors, "float32")


def test_every_flipped_byte_of_a_file_is_refused(tmp_path: Path) -> None:
    shard = write_vectors(str(tmp_path), some_vectors(), "float32")
    file = tmp_path / shard.name
    whole = file.read_bytes()
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        file.write_bytes(bytes(damaged))
        with raises("E-DATA-661"):
            read_vectors(str(tmp_path), shard, "float32")
    file.write_bytes(whole)
    assert read_vectors(str(tmp_path), shard, "float32").ids == some_vectors().ids


def rewritten(folder: Path, table: pa.Table) -> VectorShard:
    """Write a table under the name and the hash of a real file."""
    data = plain_bytes(table)
    shard = write_vectors(str(folder), some_vectors(), "float32")
    (folder / shard.name).write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    return shard.model_copy(update={"bytes": len(data), "sha256": digest})


def hostile_tables() -> dict[str, pa.Table]:
    columns = {
        "row": pa.array(range(40, 45)), "id": pa.array(list("abcde")),
        "sha256": pa.array(["0"] * 5), "label": pa.array([None] * 5, pa.int32()),
    }  # fmt: skip
    kinds = schema("float32")

    def of(lines: list[list[float]]) -> pa.Table:
        vector = pa.array(lines, kinds.field("vector").type)
        return pa.table([{**columns, "vector": vector}[name] for name in kinds.names], schema=kinds)

    whole = of([[1.0, 2.0, 3.0]] * 5)
    return {
        "torn lengths": of([[1.0, 2.0, 3.0]] * 4 + [[1.0]]),
        "no numbers": of([[]] * 5),
        "not finite": of([[1.0, 2.0, float("inf")]] * 5),
        "another dim": of([[1.0, 2.0]] * 5),
        "more rows": pa.concat_tables([whole, whole]),
        "another column": whole.rename_columns(["row", "id", "vektor", "sha256", "label"]),
    }


@pytest.mark.parametrize("name", hostile_tables())
def test_a_file_of_another_form_is_refused_whatever_its_hash(tmp_path: Path, name: str) -> None:
    shard = rewritten(tmp_path, hostile_tables()[name])
    with raises("E-DATA-661"):
        read_vectors(str(tmp_path), shard, "float32")


def run_on(folder: Path, **sets: list[int]) -> RunContext:
    manifest = data_set(folder, **(sets or {"pretrain": list(range(9)), "probe": [1, 2]}))
    digest = hashlib.sha256(repr(manifest.sets).encode()).hexdigest()
    manifest = replace(manifest, hash=digest)
    return RunContext(CONFIG, str(folder / "run"), str(folder), manifest)


def test_the_folder_follows_weights_images_and_type(tmp_path: Path) -> None:
    run = run_on(tmp_path)
    base = wanted(run, ModelSource(UNTRAINED), "pretrain", "float32")
    assert wanted(run, ModelSource(UNTRAINED), "pretrain", "float32") == base
    other = replace(run, config=load_config(None, ["run.seed=3"]))
    view = replace(run, config=load_config(None, ["train.methods=[sdclr]", "augment.crop_px=8"]))
    changed = [
        wanted(run, ModelSource(UNTRAINED), "probe", "float32"),
        wanted(run, ModelSource(UNTRAINED), "pretrain", "float16"),
        wanted(run, ModelSource(PIXELS), "pretrain", "float32"),
        wanted(other, ModelSource(UNTRAINED), "pretrain", "float32"),
        wanted(view, ModelSource(UNTRAINED), "pretrain", "float32"),
        wanted(run_on(tmp_path / "b", pretrain=[7, 8]), SOURCES[0], "pretrain", "float32"),
    ]
    assert len({base.folder, *(one.folder for one in changed)}) == 7
    assert find(base) is None


def finished(run: RunContext) -> Path:
    """Write an embedding that stands for a real one."""
    one = wanted(run, SOURCES[0], "pretrain", "float32")
    shard = write_vectors(one.folder, some_vectors(5), "float32")
    fields = {"shards": (shard,), "rows": 5}
    one.embedding.model_copy(update=fields).write(f"{one.folder}/embedding.json")
    return Path(one.folder)


def test_a_finished_embedding_is_found_and_a_wrong_one_refused(tmp_path: Path) -> None:
    run = run_on(tmp_path, pretrain=list(range(5)))
    one = wanted(run, SOURCES[0], "pretrain", "float32")
    folder = finished(run)
    found = find(one)
    assert found is not None and found.dim == 3
    (folder / found.shards[0].name).unlink()
    with raises("E-DATA-662"):
        find(one)
    finished(run)
    moved = {"data": found.data.model_copy(update={"manifest_hash": "0" * 64})}
    found.model_copy(update=moved).write(str(folder / "embedding.json"))
    with raises("E-DATA-662"):
        find(one)
    (folder / "embedding.json").write_text('{"schema_version": 1, "shards": "all"}')
    with raises("E-DATA-100"):
        find(one)


def test_weights_are_known_by_their_bytes(tmp_path: Path) -> None:
    hashes = []
    for seed in (0, 0, 1):
        config = load_config(None, [f"run.seed={seed}"])
        uri = str(tmp_path / f"{len(hashes)}.safetensors")
        build.export_backbone(uri, build.new_network(config, "sdclr").backbone, {})
        hashes.append(weights_hash(ModelSource("checkpoint", uri), "any"))
    assert hashes[0] == hashes[1] != hashes[2]
    with raises("E-CHECKPOINT-001"):
        run_model(run_on(tmp_path))


CHILD = """
import sys, time, ray
from tests.test_embed import CLUSTER, SOURCES, run_on, embed
from pathlib import Path
workers = {"env_vars": {"PYTHONPATH": sys.argv[3]}}
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR", runtime_env=workers)
def progress(done, total):
    while done:
        time.sleep(1)  # until it is killed: the manifest is never written
embed(run_on(Path(sys.argv[2])), SOURCES, cluster=CLUSTER, progress=progress)
"""


def content(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.mark.ray
@pytest.mark.slow
def test_killed_and_resumed_equals_unbroken_and_equals_a_plain_extraction(
    ray_cluster: None, tmp_path: Path
) -> None:
    import ray

    unbroken = run_on(tmp_path / "unbroken")
    made = embed(unbroken, SOURCES, cluster=CLUSTER, progress=lambda *_: None)
    elsewhere = replace(CLUSTER, is_local=False)  # in actors, not in this process
    extracted = extract(
        unbroken, sources=SOURCES, set_names=("probe",), cluster=elsewhere, progress=lambda *_: None
    )["probe"]
    probe = embed(
        unbroken, SOURCES[:1], set_name="probe", cluster=CLUSTER, progress=lambda *_: None
    )
    read = read_set(*probe[UNTRAINED], UNTRAINED)
    np.testing.assert_array_equal(read.by_model[UNTRAINED], extracted.by_model[UNTRAINED])
    assert read.ids == extracted.ids and read.labels_N.tolist() == extracted.labels_N.tolist()

    broken = run_on(tmp_path / "broken")
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-c", CHILD, address, str(tmp_path / "broken"), str(ROOT)]
    vectors = tmp_path / "broken" / "run" / "embeddings"
    with started(
        command, folder=tmp_path, environment={**os.environ, "PYTHONPATH": str(ROOT)}, log="log"
    ) as child:
        wait_for(lambda: len(list(vectors.rglob("*.parquet"))) >= 2, child, log=tmp_path / "log")
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not list(vectors.rglob("embedding.json"))
    first = min(vectors.rglob("*.parquet"))
    first.write_bytes(first.read_bytes()[:-9])  # what no write of ours leaves is made again
    resumed = embed(broken, SOURCES, cluster=CLUSTER, progress=lambda *_: None)
    for name in (UNTRAINED, PIXELS):
        one, other = Path(made[name][0]), Path(resumed[name][0])
        assert content(one).keys() == content(other).keys()
        files = {f: c for f, c in content(one).items() if f.endswith(".parquet")}
        assert files == {f: content(other)[f] for f in files}
        assert made[name][1].shards == resumed[name][1].shards
    assert content(Path(made[PIXELS][0])) != content(Path(made[UNTRAINED][0]))


class Failing:
    """Worker that refuses every block."""

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise DataError("E-DATA-660", "refused", where=str(batch["id"][0]), todo="try another")


@pytest.mark.ray
@pytest.mark.parametrize("is_here", [True, False], ids=["in this process", "in an actor"])
def test_an_error_in_a_worker_arrives_as_it_was(
    ray_cluster: None, tmp_path: Path, is_here: bool
) -> None:
    run = run_on(tmp_path)
    rows = feed.decoded_rows(run.config, run.data_uri, run.manifest, "pretrain")
    place = Placement("cpu", 1, 1, 0, 1, is_here)
    with raises("E-DATA-660") as caught, plain_errors():
        list(over_blocks(rows, Failing, (), place, mark=None))
    assert caught.value.todo == "try another" and caught.value.where


@pytest.mark.ray
def test_a_broken_shard_is_reported_as_such_from_a_task(ray_cluster: None, tmp_path: Path) -> None:
    run = run_on(tmp_path)
    for file in (tmp_path / "shards").glob("*.parquet"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    with pytest.raises(DataError), plain_errors():
        embed(run, SOURCES[:1], cluster=CLUSTER, progress=lambda *_: None)
