"""Images per second of the feed beside the bare decode loop and a DataLoader doing the same work.

    python -m benchmarks.feed

Photos are the Caltech-101 originals (`SDCLR_CALTECH101` names their folder) decoded onto a canvas
of 256 px; CIFAR-size images are synthetic raw pixels, whose content makes no difference. Each
contestant has one decoding core: the loop runs in this process, the DataLoader has one worker, Ray
has one CPU. Loop and loader take turns; the feed runs its epochs in one go after them, since it
would read ahead while others have their turn, and its first epoch, which starts up, does not count.
S3 is a server on loopback in a process of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg

from benchmarks.table import Row, main
from benchmarks.timing import in_turns, ratios
from pipeline import feed, storage
from pipeline.config import Config
from pipeline.config.file import load_config
from pipeline.dataset.decoding import shard_items
from pipeline.dataset.image import ImageLimits, decode_canvas
from pipeline.dataset.manifest import ImageInfo, Manifest, Rejects, SetInfo
from pipeline.dataset.shards import read_shard, write_shard
from sdclr import EpochPlan

CANVAS_PX, BATCH, REPEATS = 256, 128, 3
LOOP, LOADER = "bare loop", "DataLoader, 1 worker"
NUM_PHOTOS, NUM_SMALL, SMALL_PX = 1280, 51_200, 32
PLACE = Path(__file__).resolve().parents[2] / "shared" / "data" / "caltech101"


class Photos(Dataset[tuple[Tensor, Tensor]]):
    """Photos as files, decoded onto the canvas when asked for: what a DataLoader would do."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        canvas, size = decode_canvas(self.files[row].read_bytes(), ImageLimits(), CANVAS_PX)
        return torch.from_numpy(canvas), torch.tensor(size)


class SmallImages(Dataset[Tensor]):
    """Raw images of a file that is mapped into memory, one by one."""

    def __init__(self, file: Path) -> None:
        self.pixels = np.load(file, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, row: int) -> Tensor:
        return torch.from_numpy(self.pixels[row].transpose(2, 0, 1).copy())


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
    process = context.Process(target=serve, args=(theirs,), daemon=True)
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


def config_of(*words: str) -> Config:
    """The configuration of a streamed run on one worker."""
    fixed = ("feed.cache=none", f"feed.canvas_px={CANVAS_PX}", "train.workers=1")
    return load_config(None, [*fixed, f"train.global_batch={BATCH}", "train.epochs=1000", *words])


class Streamed:
    """One set streamed epoch after epoch; calling it takes one epoch."""

    def __init__(self, data_uri: str, manifest: Manifest, config: Config) -> None:
        stream = feed.streamed_set(config, manifest, data_uri)
        # As little ahead as keeps the decoding core busy: turns of others would fill a longer lead.
        stream = replace(stream, budget=replace(stream.budget, pieces_ahead=2))
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


def exhausted(loader: DataLoader[Any]) -> Callable[[], None]:
    """A call that takes one epoch of a loader."""

    def call() -> None:
        for _ in loader:
            pass

    return call


def contest(
    what: str,
    num_images: int,
    calls: dict[str, Callable[[], object]],
    streams: dict[str, Streamed],
    target: float | None,
) -> list[Row]:
    """images/s of every contestant, and the feed against the others."""
    spent = in_turns(calls, repeats=REPEATS)
    for name, stream in streams.items():
        stream()
        spent[name] = [timed(stream) for _ in range(REPEATS)]
        stream.feed.close()
    rows = [
        Row(name=f"{what}: {name}", values=[num_images / s for s in values], unit="images/s")
        for name, values in spent.items()
    ]
    for name in streams:
        for other in (LOOP, LOADER):
            is_target = other == LOOP and name == "feed, disk"
            rows.append(
                Row(
                    name=f"{what}: {name}",
                    values=ratios(spent[other], spent[name]),
                    unit="x",
                    versus=other,
                    target=target if is_target else None,
                )
            )
    return rows + start_rows(what, streams)


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start_s = time.perf_counter()
    call()
    return time.perf_counter() - start_s


def photo_rows(folder: Path) -> list[Row]:
    """Photos of all sizes, as JPEG."""
    place = Path(os.environ.get("SDCLR_CALTECH101", PLACE))
    files = sorted(place.glob("*/*.jpg"))
    files = files[:: max(1, len(files) // NUM_PHOTOS)][:NUM_PHOTOS]
    if len(files) < NUM_PHOTOS:
        note = f"no Caltech-101 at {place}; set SDCLR_CALTECH101"
        return [Row(name="photos", values=(), unit="images/s", note=note)]
    images = [file.read_bytes() for file in files]
    tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in images]
    info = ImageInfo("original", None, None)
    places = {"disk": str(folder / "photos"), "S3": "s3://bucket/photos"}
    streams = {
        f"feed, {where}": Streamed(uri, write_set(uri, info, images, NUM_PHOTOS // 10), config_of())
        for where, uri in places.items()
    }
    return contest(
        "photos",
        NUM_PHOTOS,
        {
            "torchvision.io decode alone": lambda: [
                decode_jpeg(data, ImageReadMode.RGB) for data in tensors
            ],
            LOOP: lambda: [decode_canvas(d, ImageLimits(), CANVAS_PX) for d in images],
            LOADER: exhausted(
                DataLoader(
                    Photos(files), BATCH, shuffle=True, num_workers=1, persistent_workers=True
                )
            ),
        },
        streams,
        0.85,
    )


def small_rows(folder: Path) -> list[Row]:
    """Raw images of 32 px."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (NUM_SMALL, SMALL_PX, SMALL_PX, 3), np.uint8)
    file = folder / "small.npy"
    np.save(file, pixels)
    images = [image.tobytes() for image in pixels]
    info = ImageInfo("raw", SMALL_PX, SMALL_PX)
    places = {"disk": str(folder / "small"), "S3": "s3://bucket/small"}
    manifests = {w: write_set(uri, info, images, NUM_SMALL // 10) for w, uri in places.items()}
    streams = {
        f"feed, {where}": Streamed(uri, manifests[where], config_of())
        for where, uri in places.items()
    }
    decoder = feed.decoder(config_of(), places["disk"], manifests["disk"])

    def loop() -> None:
        for shard in manifests["disk"].sets["pretrain"].shards:
            decoder.pixels(read_shard(places["disk"], shard))

    found = contest(
        "32 px",
        NUM_SMALL,
        {
            LOOP: loop,
            LOADER: exhausted(
                DataLoader(
                    SmallImages(file), BATCH, shuffle=True, num_workers=1, persistent_workers=True
                )
            ),
        },
        streams,
        None,
    )
    return found + cached_rows(decoder, manifests["disk"])


def start_rows(what: str, streams: dict[str, Streamed]) -> list[Row]:
    """Seconds from asking for an epoch to its first batch."""
    rows = []
    for where, stream in streams.items():
        first, *later = stream.first_batch_s
        rows.append(
            Row(name=f"{what}: first batch of a run, {where}", values=[first * 1e3], unit="ms")
        )
        rows.append(
            Row(
                name=f"{what}: first batch of a later epoch, {where}",
                values=[seconds * 1e3 for seconds in later],
                unit="ms",
            )
        )
    return rows


def cached_rows(decoder: Any, manifest: Manifest) -> list[Row]:
    """The boundary of an epoch when the set is kept."""
    images = feed.SharedImages(decoded(decoder, manifest), manifest)
    plan = EpochPlan(num_images=len(images), global_batch=BATCH, drop_last=True)
    kept = images.feed(plan, seed=0)
    epochs = iter(range(1000))
    call = {"boundary": lambda: next(iter(kept.batches(next(epochs))))}
    spent = in_turns(call, repeats=9)["boundary"]
    return [
        Row(
            name=f"cached: first batch of an epoch, {len(images)} images",
            values=[seconds * 1e3 for seconds in spent],
            unit="ms",
            target=50,
            at_most=True,
        )
    ]


def decoded(decoder: Any, manifest: Manifest) -> Iterator[dict[str, NDArray[Any]]]:
    """The blocks that Ray Data would bring."""
    for item in shard_items(manifest, ("pretrain",)):
        yield decoder({key: np.array([value]) for key, value in item.items()})


def memory_rows(folder: Path) -> list[Row]:
    """The most that Ray's object store held while sets of growing size were streamed."""
    bound, side_px, per_shard = 48 * 2**20, 128, 64
    rows = []
    for factor in (2, 10, 20):
        num_images = factor * bound // (3 * side_px**2) // per_shard * per_shard
        generator = np.random.default_rng(0)
        images = [generator.bytes(3 * side_px**2) for _ in range(num_images)]
        uri = str(folder / f"memory-{factor}")
        manifest = write_set(uri, ImageInfo("raw", side_px, side_px), images, per_shard)
        del images
        words = (f"feed.max_memory_bytes={bound}", "feed.window_shards=2")
        streamed = Streamed(uri, manifest, config_of(*words))
        stream = feed.streamed_set(config_of(*words), manifest, uri)
        source = feed.StreamSource(replace(stream, epochs=1), pin_memory=False)
        before, most, resident = object_store_bytes(), 0, 0
        for _ in source.feed(streamed.plan, seed=0, rank=0).batches(0):
            most = max(most, object_store_bytes() - before)
            resident = max(resident, resident_bytes())
        size = sum(shard.bytes for shard in manifest.sets["pretrain"].shards)
        name = f"set of {size / bound:.0f} x feed.max_memory_bytes ({bound >> 20} MiB)"
        rows.append(
            Row(
                name=f"{name}: object store at most",
                values=[most / 2**20],
                unit="MiB",
                target=bound / 2**20,
                at_most=True,
            )
        )
        rows.append(
            Row(name=f"{name}: all processes", values=[resident / 2**20], unit="MiB resident")
        )
        storage.delete_tree(uri)
    return rows


def object_store_bytes() -> int:
    """What is in Ray's object store on this node."""
    import ray
    from ray._private.internal_api import node_stats

    (node,) = (node for node in ray.nodes() if node["Alive"])
    stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], False)
    return int(stats.store_stats.object_store_bytes_used)


def resident_bytes() -> int:
    """Of this process and Ray's workers, shared memory divided among its users."""
    import psutil

    mine = psutil.Process()
    raylet = [p for p in mine.children(recursive=True) if p.name().startswith("ray::")]
    total = 0
    for process in [mine, *raylet]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def rows() -> list[Row]:
    """All of it, on one Ray CPU."""
    torch.set_num_threads(1)
    import ray

    with tempfile.TemporaryDirectory() as name, s3_server():
        root = Path(__file__).resolve().parents[1]
        ray.init(
            num_cpus=1,
            object_store_memory=2**30,
            include_dashboard=False,
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": str(root)}},
        )
        try:
            folder = Path(name)
            return photo_rows(folder) + small_rows(folder) + memory_rows(folder)
        finally:
            ray.shutdown()


if __name__ == "__main__":
    main(rows)
