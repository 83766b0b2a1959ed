"""Common parts of the streamed feed's benchmarks: sets, an S3 server, Ray on one CPU."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline import feed
from pipeline.cluster.connect import RAY_SETTINGS
from pipeline.config import Config
from pipeline.config.file import load_config
from pipeline.dataset.decoding import decode_part, read_parts, read_raw_parts
from pipeline.dataset.manifest import ImageInfo, Manifest, Rejects, SetInfo
from pipeline.dataset.shards import write_shard
from pipeline.feed.schedule import RankSchedule
from pipeline.feed.tasks import StreamedSet
from sdclr import EpochPlan

CANVAS_PX, BATCH = 256, 128
_SERVER = "s3"


def write_set(data_uri: str, image: ImageInfo, images: list[bytes], per_shard: int) -> Manifest:
    """Write shards of some images and return their manifest."""
    shards = []
    for first in range(0, len(images), per_shard):
        part = images[first : first + per_shard]
        ids = [str(first + row) for row in range(len(part))]
        name = f"shards/pretrain-{first // per_shard:05d}.parquet"
        shards.append(write_shard(data_uri, name, ids=ids, images=part, labels=[None] * len(part)))
    return Manifest(
        name="benchmark",
        source={},
        image=image,
        class_names=None,
        sets={"pretrain": SetInfo(len(images), None, tuple(shards))},
        fewshot=(),
        rejects=Rejects(0, {}, ()),
        config={},
        hash="",
    )


def serve(pipe: Any) -> None:
    """Serve S3 with a bucket `bucket` on loopback until the pipe closes."""
    from tests.loopback_s3 import LoopbackS3

    with LoopbackS3() as server:
        server.buckets["bucket"] = {}
        pipe.send(server.url)
        pipe.recv()


@contextmanager
def s3_server() -> Iterator[None]:
    """Run the server and point the environment, which Ray's processes inherit, at it."""
    from tests.loopback_s3 import ACCESS_KEY, SECRET_KEY

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,), daemon=True, name=_SERVER)
    process.start()
    os.environ["AWS_ENDPOINT_URL"] = ours.recv()
    os.environ |= {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        yield
    finally:
        ours.send(None)
        process.join(10)


@contextmanager
def one_cpu() -> Iterator[None]:
    """Start Ray with one CPU for tasks, set up as the pipeline does it."""
    for name, value in RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    root = Path(__file__).resolve().parents[1]
    ray.init(
        num_cpus=1,
        object_store_memory=3 * 2**30,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(root)}},
    )
    try:
        yield
    finally:
        ray.shutdown()


def config_of(*words: str) -> Config:
    """Return the configuration of a streamed run, on one worker unless `words` say otherwise."""
    fixed = (
        "feed.cache=none", f"feed.canvas_px={CANVAS_PX}", "train.workers=1",
        f"train.global_batch={BATCH}", "train.epochs=1000",
    )  # fmt: skip
    given = {word.partition("=")[0] for word in words}
    return load_config(None, [*(w for w in fixed if w.partition("=")[0] not in given), *words])


class CpuClock:
    """CPU seconds of this process and all below it but the S3 server."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def __call__(self) -> float:
        """Return seconds of user and system time so far, ended processes included."""
        servers = {p.pid for p in multiprocessing.active_children() if p.name == _SERVER}
        for pid, ticks in processes().items():
            if pid not in servers:
                self._seconds[pid] = ticks / os.sysconf("SC_CLK_TCK")
        return sum(self._seconds.values())


def processes() -> dict[int, int]:
    """Return the CPU clock ticks of this process and all its descendants."""
    parents, ticks = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        pid = int(path.parent.name)
        parents[pid], ticks[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: ticks[pid] for pid in found}


class Streamed:
    """One set streamed epoch after epoch; calling it takes one epoch."""

    def __init__(self, data_uri: str, manifest: Manifest, config: Config) -> None:
        stream = feed.streamed_set(config, manifest, data_uri)
        self.stream, self.plan = stream, feed.epoch_plan(config, manifest)
        source = feed.StreamSource(stream, device=torch.device("cpu"))
        self.feed = source.feed(self.plan, seed=config.run.seed, rank=0)
        self.epoch = 0
        self.first_batch_s: list[float] = []

    def __call__(self) -> None:
        """Read all batches of the next epoch."""
        start_s = time.perf_counter()
        for number, _ in enumerate(self.feed.batches(self.epoch)):
            if number == 0:
                self.first_batch_s.append(time.perf_counter() - start_s)
        self.epoch += 1


def tasks_alone(stream: StreamedSet, plan: EpochPlan) -> Callable[[], None]:
    """Return a call that does an epoch's tasks, and what is between them, in this process.

    What a task returns is pickled and copied, as into the object store, and read without a copy.
    """
    schedule = RankSchedule(plan, stream.shard_rows, stream.seed, 0, stream.budget.part_rows)

    def call() -> None:
        for unit in schedule.units(0, 0):
            rows = [(part.rows, part.local_rows) for part in unit.parts]
            if stream.decoder.is_raw:
                handed_on(read_raw_parts(stream.decoder, stream.shards[unit.shard], rows))
                continue
            found = read_parts(stream.decoder, stream.shards[unit.shard], rows)
            tables = [found] if len(rows) == 1 else found
            for part, table in zip(unit.parts, tables, strict=True):
                handed_on(decode_part(stream.decoder, part.rows, handed_on(table)))

    return call


def handed_on(value: Any) -> Any:
    """Return what another process gets through shared memory: buffers copied once."""
    buffers: list[pickle.PickleBuffer] = []
    content = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(content, buffers=[bytes(buffer.raw()) for buffer in buffers])
