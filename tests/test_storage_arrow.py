"""Our storage as pyarrow's file system: whole objects, our retries, safe to pickle."""

from __future__ import annotations

import pickle

import pytest
from pyarrow import fs

from pipeline.storage.arrow import filesystem
from tests.loopback_s3 import LoopbackS3
from tests.refusals import raises


def test_objects_come_back(s3: LoopbackS3) -> None:
    system, path = filesystem("s3://bucket/run")
    system = pickle.loads(pickle.dumps(system))
    system.create_dir(f"{path}/a")
    with system.open_output_stream(f"{path}/a/b.json") as stream:
        stream.write(b"one")
        assert s3.buckets["bucket"] == {}  # nothing before it is whole
    assert s3.buckets["bucket"] == {"run/a/b.json": b"one"}
    assert system.open_input_stream(f"{path}/a/b.json").read() == b"one"
    file, folder, none = system.get_file_info([f"{path}/a/b.json", f"{path}/a", f"{path}/c"])
    assert (file.type, file.size) == (fs.FileType.File, 3)
    assert (folder.type, none.type) == (fs.FileType.Directory, fs.FileType.NotFound)
    system.copy_file(f"{path}/a/b.json", f"{path}/c.json")
    found = {i.path for i in system.get_file_info(fs.FileSelector(path, recursive=True))}
    assert found == {f"{path}/a/b.json", f"{path}/c.json"}
    system.move(f"{path}/c.json", f"{path}/d.json")
    system.delete_dir(f"{path}/a")
    assert list(s3.buckets["bucket"]) == ["run/d.json"]


@pytest.mark.promise("R13")
def test_more_faults_than_pyarrow_would_bear_are_ridden_out(s3: LoopbackS3) -> None:
    system, path = filesystem("s3://bucket/run")
    s3.faults.extend([503] * 4)
    with system.open_output_stream(f"{path}/snapshot.json") as stream:
        stream.write(b"{}")
    assert not s3.faults and s3.buckets["bucket"]["run/snapshot.json"] == b"{}"


def test_a_refusal_is_told_in_our_words(s3: LoopbackS3) -> None:
    system, path = filesystem("s3://bucket/run")
    s3.faults.extend([403])
    with raises("E-STORAGE-391"):
        with system.open_output_stream(f"{path}/x") as stream:
            stream.write(b"")


def test_local_places_are_left_to_pyarrow() -> None:
    assert filesystem("/somewhere/run") == (None, "/somewhere/run")
