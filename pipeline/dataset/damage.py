"""Search for the changed image of a damaged shard, in a process of its own.

Arrow may crash on bytes that were tampered with, so a shard is parsed only after its hash was
found right. To name the sample of a shard whose hash is wrong, a child process parses it, and may
well die of it: then the shard alone is named.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pyarrow as pa

from pipeline import storage
from pipeline.dataset.manifest import ShardInfo
from pipeline.dataset.shards import changed_sample, read_table
from pipeline.errors import DataError

_LIMIT_S = 60


def read_or_name_sample(data_uri: str, info: ShardInfo) -> pa.Table:
    """Read one shard as `read_table` does; name the changed sample of a shard whose hash is wrong.

    Raises:
        DataError: naming the shard, and the sample if it can be found, which takes a second.
        StorageError: the shard is missing or the storage does not answer.
    """
    try:
        return read_table(data_uri, info)
    except DataError as error:
        data = storage.read_bytes(storage.join(data_uri, info.name))
        if hashlib.sha256(data).hexdigest() == info.sha256:
            raise
        sample = find_changed_sample(data)
        if sample is None:
            raise
        what = f"{error.what}: the image of sample {sample} was changed"
        raise DataError("E-DATA-003", what, where=error.where, todo=error.todo) from error


def find_changed_sample(data: bytes) -> str | None:
    """Return the id of the first sample whose image does not have its hash, if known."""
    try:
        child = subprocess.run(
            [sys.executable, "-m", "pipeline.dataset.damage"],
            input=data,
            capture_output=True,
            timeout=_LIMIT_S,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return child.stdout.decode() or None if child.returncode == 0 else None


if __name__ == "__main__":
    sys.stdout.write(changed_sample(sys.stdin.buffer.read()) or "")
