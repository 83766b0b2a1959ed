"""Storage: whole objects or none, bounded retries, errors in words, names that stay inside."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import s3fs

from pipeline import storage
from pipeline.errors import StorageError
from pipeline.storage.s3 import ObjectStore
from tests.loopback_s3 import ACCESS_KEY, SECRET_KEY, LoopbackS3
from tests.refusals import raises
from tests.running import wait_for

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(params=["local", "file", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place of each kind."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        return "s3://bucket/some/place"
    folder = tmp_path / "a place"
    return str(folder) if request.param == "local" else folder.as_uri()


def test_objects_come_back_and_are_listed(root: str) -> None:
    assert not storage.exists(root)
    assert storage.list_names(root) == [] and storage.list_tree(root) == {}
    storage.write_bytes(storage.join(root, "b.bin"), b"old and long")
    storage.write_bytes(storage.join(root, "b.bin"), b"new")
    storage.write_bytes(storage.join(root, "deep", "er", "a.bin"), b"")
    assert storage.read_bytes(storage.join(root, "b.bin")) == b"new"
    assert storage.read_bytes(storage.join(root, "deep/er/a.bin")) == b""
    assert storage.size_bytes(storage.join(root, "b.bin")) == 3
    assert storage.exists(root) and storage.exists(storage.join(root, "deep"))
    assert not storage.exists(storage.join(root, "b"))
    assert storage.list_names(root) == ["b.bin", "deep"]
    assert storage.list_sizes(root) == {"b.bin": 3}
    assert storage.list_tree(root) == {"b.bin": 3, "deep/er/a.bin": 0}
    with storage.open_readable(storage.join(root, "b.bin")) as file:
        file.seek(1)
        assert file.read() == b"ew"


def test_delete_tree_takes_all_below_and_nothing_beside(root: str) -> None:
    for name in ("x/1", "x/y/2", "xx/3"):
        storage.write_bytes(storage.join(root, name), b".")
    storage.delete_tree(storage.join(root, "x"))
    assert list(storage.list_tree(root)) == ["xx/3"]
    storage.delete_tree(storage.join(root, "x"))
    storage.delete_tree(storage.join(root, "xx/3"))
    assert storage.list_tree(root) == {}


def test_a_missing_object_is_told_with_its_uri(root: str) -> None:
    uri = storage.join(root, "none.bin")
    for use in (storage.read_bytes, storage.size_bytes, storage.open_readable):
        with raises(("E-STORAGE-370", "E-STORAGE-393")) as caught:
            use(uri)
        assert caught.value.where == uri and caught.value.todo


def test_join_and_unknown_schemes() -> None:
    assert storage.join("s3://b/p/", "/x/", "", "y") == "s3://b/p/x/y"
    assert storage.join("/", "x") == "/x"
    assert storage.join("runs") == "runs"
    assert storage.absolute("runs") == str(Path.cwd() / "runs")
    assert storage.absolute("s3://b/p") == "s3://b/p"
    with raises("E-STORAGE-001", "gs://"):
        storage.read_bytes("gs://bucket/key")


def test_names_with_percent_signs_stay_as_they_are(root: str) -> None:
    for place in (root, storage.absolute(root)):
        storage.write_bytes(storage.join(place, "x%20y", "a%25.jpg"), b"four")
        (name,) = storage.list_tree(place)
        assert name == "x%20y/a%25.jpg" and storage.list_names(place) == ["x%20y"]
        assert storage.size_bytes(storage.join(place, name)) == 4
    assert storage.absolute("file:///a%20place/x%2520y") == "/a place/x%20y"


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a/./b",
        "a//b",
        "a/",
        "~/x",
        "s3://b/k",
        "a\\b",
        "a\nb",
        "a\x00b",
        "C:x",
        "x" * 1025,
    ],
)
@pytest.mark.promise("S10")
def test_names_that_lead_outside_are_refused(name: str) -> None:
    with raises("E-DATA-089"):
        storage.safe_name(name)


@pytest.mark.parametrize("name", ["a", "shards/pretrain-00000.parquet", "..a/b..", "a b/ü.png"])
def test_plain_names_pass(name: str) -> None:
    assert storage.safe_name(name) == name


# --- R9, R10: whole or not at all ---

_LIMITED_WRITE = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
{writer}
"""
_OURS = """
from pipeline.errors import StorageError
from pipeline.storage import write_bytes
try:
    write_bytes(sys.argv[1], b"n" * 3_000_000)
except StorageError as error:
    sys.exit(f"told: {error}")
"""
_NAIVE = """
with open(sys.argv[1], "wb") as file:
    file.write(b"n" * 3_000_000)
"""


def _limited(writer: str, target: Path) -> subprocess.CompletedProcess[str]:
    code = _LIMITED_WRITE.format(writer=writer)
    command = [sys.executable, "-c", code, str(target)]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.promise("R10", "R14")
def test_a_write_that_fails_midway_leaves_the_old_state(tmp_path: Path, old: bytes | None) -> None:
    target = tmp_path / "object"
    if old is not None:
        target.write_bytes(old)
    done = _limited(_OURS, target)
    assert done.returncode == 1 and "told: could not write" in done.stderr
    assert str(target) in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == (["object"] if old else [])
    assert old is None or target.read_bytes() == old


@pytest.mark.promise("R10", "R14", control=True)
def test_negative_control_a_naive_write_publishes_a_part(tmp_path: Path) -> None:
    target = tmp_path / "object"
    target.write_bytes(b"old")
    assert _limited(_NAIVE, target).returncode != 0
    assert 0 < target.stat().st_size <= 1_000_000 and target.read_bytes()[:1] == b"n"


@pytest.mark.promise("R9")
def test_kill_9_at_any_moment_leaves_a_whole_object(tmp_path: Path) -> None:
    target = tmp_path / "object"
    code = (
        "import sys\nfrom pipeline.storage import write_bytes\n"
        "print('on', flush=True)\n"
        "while True:\n  for letter in b'ab': write_bytes(sys.argv[1], bytes([letter]) * 4_000_000)"
    )
    for delay_s in (0.05, 0.083, 0.121):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(target)], cwd=REPO, stdout=subprocess.PIPE
        )
        assert process.stdout is not None and process.stdout.readline() == b"on\n"
        wait_for(target.exists, process, deadline_s=30, every_s=0.005)
        time.sleep(delay_s)  # a moment of the next write; every one must do
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        content = target.read_bytes()
        assert content in (b"a" * 4_000_000, b"b" * 4_000_000)
        assert storage.list_names(str(tmp_path)) == ["object"]  # a leftover is not listed


@pytest.mark.promise("R14")
def test_local_failures_have_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with raises("E-STORAGE-377"):
        storage.write_bytes(str(tmp_path / "file" / "x"), b"")
    with raises("E-STORAGE-375"):
        storage.read_bytes(str(tmp_path))
    with raises("E-STORAGE-370") as caught:
        storage.write_bytes("/proc/sdclr/x", b"")
    assert caught.value.todo


def test_a_link_to_nowhere_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"four")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    assert storage.list_names(str(tmp_path)) == ["file"]
    assert storage.list_sizes(str(tmp_path)) == storage.list_tree(str(tmp_path)) == {"file": 4}
    assert storage.scan(str(tmp_path)).names == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.promise("R14")
def test_permission_denied_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="permission denied"):
        storage.write_bytes(str(tmp_path / "x"), b"")


# --- R13: retries and refusals of S3 ---


@pytest.mark.parametrize("status", [500, 503])
@pytest.mark.promise("R13")
def test_passing_faults_are_ridden_out(s3: LoopbackS3, status: int) -> None:
    uri = "s3://bucket/x"
    for use in (
        lambda: storage.write_bytes(uri, b"data"),
        lambda: storage.read_bytes(uri),
        lambda: storage.exists(uri),
        lambda: storage.list_names("s3://bucket"),
    ):
        s3.faults.extend([status, status])
        use()
        assert not s3.faults
    assert storage.exists(uri) and storage.read_bytes(uri) == b"data"


@pytest.mark.promise("R13", "R15")
def test_lasting_faults_end_in_one_error_within_the_deadline(s3: LoopbackS3) -> None:
    s3.buckets["bucket"]["x"] = b"old"
    s3.faults.extend([503] * 1000)
    store = ObjectStore(deadline_s=0.5)
    for use in (
        lambda: store.write("s3://bucket/x", b"new"),
        lambda: store.read("s3://bucket/x"),
        lambda: store.exists("s3://bucket/x"),
        lambda: store.size("s3://bucket/x"),
        lambda: store.children("s3://bucket"),
        lambda: store.delete_tree("s3://bucket/x"),
    ):
        with raises("E-STORAGE-396"):
            use()
    assert s3.buckets["bucket"] == {"x": b"old"}


@pytest.mark.promise("R13")
def test_refusals_are_not_retried(s3: LoopbackS3) -> None:
    s3.faults.append(403)
    with raises("E-STORAGE-391") as caught:
        storage.write_bytes("s3://bucket/x", b"")
    assert "AWS_ACCESS_KEY_ID" in caught.value.todo and len(s3.log) == 1
    with raises("E-STORAGE-393"):
        storage.read_bytes("s3://bucket/x")
    assert s3.log == ["PUT /bucket/x", "GET /bucket/x"]


@pytest.mark.promise("R16")
def test_a_large_object_is_one_put_so_that_nothing_of_it_is_left(s3: LoopbackS3) -> None:
    s3.faults.extend([503])
    storage.write_bytes("s3://bucket/x", bytes(120_000_000))
    assert s3.log == ["PUT /bucket/x"] * 2 and len(s3.buckets["bucket"]["x"]) == 120_000_000


@pytest.mark.promise("R16", control=True)
def test_a_plain_upload_of_that_size_would_begin_with_parts(s3: LoopbackS3) -> None:
    import s3fs

    s3fs.S3FileSystem(endpoint_url=s3.url).pipe_file("s3://bucket/x", bytes(120_000_000))
    assert s3.log[0].startswith("POST") and len(s3.log) > 3


def test_a_missing_bucket_is_named(s3: LoopbackS3) -> None:
    for use in (
        lambda: storage.write_bytes("s3://nobucket/x", b""),
        lambda: storage.read_bytes("s3://nobucket/x"),
        lambda: storage.list_names("s3://nobucket/x"),
    ):
        with raises("E-STORAGE-392"):
            use()


def test_missing_credentials_name_the_variables(
    s3: LoopbackS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    s3fs.S3FileSystem.clear_instance_cache()  # the client in use has its credentials
    with raises("E-STORAGE-390", "S3") as caught:
        storage.read_bytes("s3://bucket/x")
    assert "AWS_ACCESS_KEY_ID" in caught.value.todo and s3.log == []


@pytest.mark.promise("R15")
def test_an_endpoint_that_does_not_answer(s3: LoopbackS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with raises("E-STORAGE-395") as caught:
        ObjectStore(deadline_s=5.0).read("s3://bucket/x")
    assert "AWS_ENDPOINT_URL" in caught.value.todo


@pytest.mark.promise("R13")
def test_a_server_that_restarts_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    server = LoopbackS3(port)
    server.buckets["bucket"] = {}
    with server:
        storage.write_bytes("s3://bucket/x", b"one")
    again = LoopbackS3(port)
    again.buckets = server.buckets
    timer = threading.Timer(1.0, again.__enter__)
    timer.start()
    assert storage.read_bytes("s3://bucket/x") == b"one"
    timer.join()
    again.__exit__()


# --- line logs ---


def test_a_line_log_keeps_old_lines_and_cuts_a_torn_one(root: str) -> None:
    uri = storage.join(root, "metrics.jsonl")
    with storage.LineLog(uri) as log:
        log.append({"step": 1, "loss": 0.5})
    storage.write_bytes(uri, storage.read_bytes(uri) + b'{"step": 2, "lo')
    with storage.LineLog(uri) as log:
        log.append({"step": 2, "loss": math.nan, "kept": {"conv1": math.inf}, "name": "ü\ud800"})
    lines = storage.read_bytes(uri).decode().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert json.loads(lines[1])["loss"] is None and json.loads(lines[1])["kept"]["conv1"] is None


def test_a_local_line_is_readable_at_once(tmp_path: Path) -> None:
    uri = str(tmp_path / "new" / "log.jsonl")
    with storage.LineLog(uri) as log:
        log.append({"a": 1})
        assert storage.read_bytes(uri) == b'{"a": 1}\n'


def test_s3_puts_are_rationed(s3: LoopbackS3) -> None:
    with storage.LineLog("s3://bucket/log", interval_s=3600) as log:
        for step in range(50):
            log.append({"step": step})
        assert not any(line.startswith("PUT") for line in s3.log)
    assert sum(line.startswith("PUT") for line in s3.log) == 1
    assert s3.buckets["bucket"]["log"].count(b"\n") == 50


def test_every_cell_of_a_csv_comes_back() -> None:
    cells = ["a", "a\rb", "\r", "a\nb", "a\r\nb", 'a"b', "a,b", " a ", "é", "=1", ""]
    rows = [[cell, f"{cell}."] for cell in cells]
    text = storage.to_csv(["x", "y"], rows).decode()
    assert list(csv.reader(io.StringIO(text, newline=""))) == [["x", "y"], *rows]
    assert storage.to_csv(["x"], [[None], [1], [0.5], ["a"]]) == b'x\n""\n1\n0.5\na\n'
