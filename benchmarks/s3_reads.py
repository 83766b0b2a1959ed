"""Whole shards from an S3 server: s3fs as pipeline.storage calls it, beside pyarrow's client.

    AWS_ENDPOINT_URL=... python -m benchmarks.s3_reads s3://bucket/prefix

Needs a server, so it is no part of `make bench`. Both read the same objects in turn, by one thread
and by four, and the CPU seconds of this process are counted: on a training node they are what
reading takes away from decoding.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from pyarrow import fs

from pipeline import storage

_NUM_OBJECTS, _OBJECT_BYTES, _NUM_ROUNDS = 4, 64 * 2**20, 5


def main(root: str) -> None:
    """Print MB/s and CPU seconds per GB, median and range over rounds."""
    uris = [storage.join(root, f"object-{number}") for number in range(_NUM_OBJECTS)]
    for uri in uris:
        storage.write_bytes(uri, os.urandom(_OBJECT_BYTES))
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    scheme, _, host = endpoint.partition("://")
    arrow = fs.S3FileSystem(endpoint_override=host, scheme=scheme)

    def by_arrow(uri: str) -> int:
        with arrow.open_input_file(uri.removeprefix("s3://")) as file:
            return len(file.read())

    readers: dict[str, Callable[[str], int]] = {
        "s3fs": lambda uri: len(storage.read_bytes(uri)),
        "pyarrow": by_arrow,
    }
    for num_threads in (1, 4):
        rates: dict[str, list[float]] = {name: [] for name in readers}
        costs: dict[str, list[float]] = {name: [] for name in readers}
        for _ in range(_NUM_ROUNDS):
            for name, read in readers.items():
                start_s, start_cpu_s = time.perf_counter(), _cpu_s()
                with ThreadPoolExecutor(num_threads) as pool:
                    total = sum(pool.map(read, uris))
                assert total == _NUM_OBJECTS * _OBJECT_BYTES
                rates[name].append(total / 1e6 / (time.perf_counter() - start_s))
                costs[name].append((_cpu_s() - start_cpu_s) / (total / 1e9))
        for name in readers:
            print(
                f"{name:8s} {num_threads} threads: {_shown(rates[name])} MB/s, "
                f"{_shown(costs[name])} CPU s/GB (n = {_NUM_ROUNDS})"
            )
    storage.delete_tree(root)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _shown(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g}-{max(values):.3g})"


if __name__ == "__main__":
    main(sys.argv[1])
