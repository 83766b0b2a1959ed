"""What the benchmarks of the streamed feed share: sets to stream, an S3 server, Ray on one CPU."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline import feed
from pipeline.cluster import RAY_SETTINGS
from pipeline.config import Config
from pipeline.config.file import load_config
from pipeline.dataset.manifest import ImageInfo, Manifest, Rejects, SetInfo
from pipeline.dataset.shards import write_shard

CANVAS_PX, BATCH = 256, 128
_SERVER = "s3"


def write_set(data_uri: str, image: ImageInfo, images: list[bytes], per_shard: int) -> Manifest:
    """Shards of some images, and what the manifest would say of them."""
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
    """An S3 server on loopback with a bucket `bucket`, until the pipe closes."""
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
    """Ray with one CPU for tasks, set up as the pipeline does it."""
    for name, value in RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    root = Path(__file__).resolve().parents[1]
    ray.init(
        num_cpus=1,
        object_store_memory=2**30,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(root)}},
    )
    try:
        yield
    finally:
        ray.shutdown()


def config_of(*words: str) -> Config:
    """The configuration of a streamed run on one worker."""
    fixed = ("feed.cache=none", f"feed.canvas_px={CANVAS_PX}", "train.workers=1")
    return load_config(None, [*fixed, f"train.global_batch={BATCH}", "train.epochs=1000", *words])


class CpuClock:
    """CPU seconds of this process and all below it but the S3 server."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def __call__(self) -> float:
        """Seconds of user and system time until now; what a process had when it ended is kept."""
        import psutil

        mine = psutil.Process()
        servers = {p.pid for p in multiprocessing.active_children() if p.name == _SERVER}
        for process in [mine, *mine.children(recursive=True)]:
            if process.pid in servers:
                continue
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            self._seconds[process.pid] = times.user + times.system
        return sum(self._seconds.values())


class Streamed:
    """One set streamed epoch after epoch; calling it takes one epoch."""

    def __init__(self, data_uri: str, manifest: Manifest, config: Config) -> None:
        stream = feed.streamed_set(config, manifest, data_uri)
        self.plan = feed.epoch_plan(config, manifest)
        source = feed.StreamSource(stream, pin_memory=False)
        self.feed = source.feed(self.plan, seed=config.run.seed, rank=0)
        self.epoch = 0
        self.first_batch_s: list[float] = []

    def __call__(self) -> None:
        """All batches of the next epoch."""
        start_s = time.perf_counter()
        for number, _ in enumerate(self.feed.batches(self.epoch)):
            if number == 0:
                self.first_batch_s.append(time.perf_counter() - start_s)
        self.epoch += 1
