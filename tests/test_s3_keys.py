"""Names on storage are names, whatever characters they hold: neighbours stay whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import s3fs
import torch

from pipeline import storage
from pipeline.errors import StorageError
from pipeline.ingest.claim import Claim
from pipeline.model import checkpoint
from pipeline.storage import s3 as s3_module
from pipeline.storage import s3_client
from pipeline.train import stopping
from sdclr import TrainState
from tests.loopback_s3 import LoopbackS3

# Names that are patterns to shells and to s3fs, escapes to URLs, or markup, each with names that
# match it.
HOSTILE = {
    "data[12]": ("data1", "data2", "data"),
    "data*": ("data1", "data-old", "data"),
    "data?": ("data1", "dataX", "data"),
    "data?versionId=1": ("data", "data1"),
    "**": ("x", "data"),
    "{a,b}": ("a", "b"),
    "a%20b": ("a b", "a%2520b"),
    "a b": ("a%20b", "a+b"),
    "a+b": ("a b", "a%2Bb"),
    "a#1": ("a", "a#"),
    "[!a]": ("b", "a"),
    "a&b;c=d": ("a", "a&b"),
    "ü": ("u", "u\u0308"),
    "日本 \U0001f600": ("日本",),
    "a:b": ("a", "ab"),
    'it\'s "(1)"': ("its",),
    "<a|b>^`": ("a",),
    "..a..b": ("a", "..a"),
    "~x": ("x",),
    "$HOME": ("x",),
    "a\\b": ("a", "ab"),
}


@pytest.fixture(params=["s3", "local"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        request.getfixturevalue("s3")
        return "s3://bucket/a place"
    return str(tmp_path)


@pytest.mark.promise("R31")
@pytest.mark.parametrize("name", HOSTILE)
def test_removal_takes_what_is_named_and_no_neighbour_that_matches(name: str, base: str) -> None:
    removal_leaves_the_neighbours(name, base)


def removal_leaves_the_neighbours(name: str, base: str) -> None:
    for folder in (name, *HOSTILE[name]):
        for file in ("set/shards/x.parquet", f"set/{name}.bin", "set/y"):
            storage.write_bytes(storage.join(base, folder, file), folder.encode())
    before = storage.list_tree(base)
    mine = storage.join(base, name)
    assert storage.exists(mine) and storage.list_names(storage.join(mine, "set")) == sorted(
        ["shards", f"{name}.bin", "y"]
    )
    assert storage.list_sizes(storage.join(mine, "set")).keys() == {f"{name}.bin", "y"}
    for file in storage.list_tree(mine):
        assert storage.read_bytes(storage.join(mine, file)) == name.encode()
        with storage.open_readable(storage.join(mine, file)) as opened:
            assert opened.read() == name.encode()
    assert sorted(storage.scan(mine).names) == sorted(storage.list_tree(mine))
    storage.delete_tree(storage.join(mine, "set", f"{name}.bin"))
    assert set(before) - set(storage.list_tree(base)) == {f"{name}/set/{name}.bin"}
    storage.delete_tree(mine)
    left = {file for file in before if not file.startswith(f"{name}/")}
    assert set(storage.list_tree(base)) == left and not storage.exists(mine)


@pytest.mark.promise("R31", control=True)
def test_control_s3fs_would_delete_the_neighbours(s3: LoopbackS3) -> None:
    keys = ("data[12]/x", "data1/x", "data2/x")
    s3.buckets["bucket"] |= dict.fromkeys(keys, b"")
    fs = s3fs.S3FileSystem(endpoint_url=s3.url, use_listings_cache=False)
    fs.rm("s3://bucket/data[12]", recursive=True)
    assert set(s3.buckets["bucket"]) != set(keys[1:])


def test_no_file_call_of_s3fs_is_used_and_the_two_that_are_exist() -> None:
    """The adapter was read from this version; a newer one is to be read before it is pinned."""
    assert s3fs.__version__ == "2026.9.0"
    assert callable(s3fs.S3FileSystem.set_session)
    for module in Path(str(s3_module.__file__)).parent.glob("*.py"):
        text = module.read_text()
        assert ("import s3fs" in text) == (module.name == "s3_client.py"), module
        assert "fs._" not in text and "_call_s3" not in text, module
    assert s3_client.run


@pytest.mark.promise("R31")
def test_the_whole_bucket_is_never_emptied(s3: LoopbackS3) -> None:
    s3.buckets["bucket"]["x"] = b""
    for uri in ("s3://bucket", "s3://bucket/", "s3://bucket//"):
        with pytest.raises(ValueError, match="bucket"):
            storage.delete_tree(uri)
    assert set(s3.buckets["bucket"]) == {"x"}


@pytest.mark.promise("R31")
def test_a_folder_of_many_pages_is_emptied_whole(s3: LoopbackS3) -> None:
    s3.page_keys = 7
    s3.buckets["bucket"] |= {f"a/{n:03d}": b"" for n in range(50)} | {
        "a": b"",
        "ab": b"",
        "a/": b"",
    }
    storage.delete_tree("s3://bucket/a")
    assert set(s3.buckets["bucket"]) == {"ab"}


def test_a_removal_that_is_denied_is_an_error(s3: LoopbackS3) -> None:
    s3.buckets["bucket"]["a/x"] = b""
    s3.faults.append(403)
    with pytest.raises(StorageError) as caught:
        storage.delete_tree("s3://bucket/a")
    assert caught.value.id == "E-STORAGE-391" and "a/x" in s3.buckets["bucket"]


def _keep_checkpoints(root: str) -> None:
    for step in (1, 2, 3):
        state = TrainState({"x": torch.ones(1)}, {"step": step, "num_steps": 4})
        checkpoint.save(root, state, config_hash="h")
    checkpoint.retain(root, keep=1, newest_step=3)
    assert len(checkpoint.committed(root)) == 1


def _claim(root: str) -> None:
    with Claim(root) as claim:
        claim.check()


@pytest.mark.promise("R31")
@pytest.mark.parametrize(
    "use", [_claim, stopping.clear, _keep_checkpoints], ids=["claim", "stop", "checkpoints"]
)
def test_what_cleans_up_leaves_the_neighbours_whole(use: Callable[[str], None], base: str) -> None:
    for folder in ("data1", "data2"):
        for name in ("ingest.json", "training.json", "stop.json", "x/commit.json"):
            storage.write_bytes(storage.join(base, folder, name), b"neighbour")
    before = storage.list_tree(base)
    use(storage.join(base, "data[12]"))
    after = storage.list_tree(base)
    assert {n: s for n, s in after.items() if not n.startswith("data[12]")} == before


def test_an_object_above_the_limit_of_one_put_goes_in_parts(
    s3: LoopbackS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_module, "_ONE_PUT_BYTES", 1000)
    monkeypatch.setattr(s3_module, "_PART_BYTES", 400)
    data = bytes(range(256)) * 4
    storage.write_bytes("s3://bucket/a?b", data)
    assert s3.buckets["bucket"] == {"a?b": data} and s3.uploads == {}
    s3.faults.extend([0, 0, 403])
    with pytest.raises(StorageError):
        storage.write_bytes("s3://bucket/a?b", data[:1010])
    assert s3.buckets["bucket"] == {"a?b": data} and s3.uploads == {}
