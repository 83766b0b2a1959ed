"""Images per second of the feed beside the bare decode loop and a DataLoader doing the same work.

    python -m benchmarks.feed

Photos are those of `SDCLR_PHOTOS`, a folder of folders of JPEG files, decoded onto a canvas
of 256 px, each of them NUM_COPIES times in the set, since an epoch of a second would mostly
measure what starts with it; CIFAR-size images are synthetic raw pixels, whose content makes no
difference. images/s are of CPU time, of all processes that a contestant needs (Ray's own included,
the S3 server, which is on loopback, not), so they are those of one core. Loop and loader take
turns; the feed runs its epochs in one go after them, since it would read ahead while others have
their turn, and its first epoch, which starts up, does not count.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg

from benchmarks.streamed import (
    BATCH,
    CANVAS_PX,
    CpuClock,
    Streamed,
    config_of,
    one_cpu,
    s3_server,
    tasks_alone,
    write_set,
)
from benchmarks.table import Row, main
from benchmarks.timing import in_turns, ratios
from pipeline import feed
from pipeline.dataset.decoding import shard_items
from pipeline.dataset.image import ImageLimits, decode_canvas
from pipeline.dataset.manifest import ImageInfo, Manifest
from pipeline.dataset.shards import read_table
from sdclr import EpochPlan

REPEATS = 3
LOOP, LOADER, TASKS = "bare loop", "DataLoader, 1 worker", "tasks of the feed without Ray, disk"
NUM_PHOTOS, NUM_COPIES, NUM_SMALL, SMALL_PX = 640, 8, 51_200, 32


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


def exhausted(loader: DataLoader[Any]) -> Callable[[], None]:
    """Return a call that takes one epoch of a loader."""

    def call() -> None:
        for _ in loader:
            pass

    return call


def contest(
    what: str,
    num_images: int,
    calls: dict[str, Callable[[], object]],
    streams: dict[str, Streamed],
    target: float,
) -> list[Row]:
    """Measure images/s of every contestant, and the feed against the others."""
    disk = streams["feed, disk"]
    calls = calls | {TASKS: tasks_alone(disk.stream, disk.plan)}
    clock = CpuClock()
    spent = in_turns(calls, repeats=REPEATS, clock=clock)
    for name, stream in streams.items():
        spent |= in_turns({name: stream}, repeats=REPEATS, clock=clock)
        stream.feed.close()
    rows = [
        Row(name=f"{what}: {name}", values=[num_images / s for s in values], unit="images/s core")
        for name, values in spent.items()
    ]
    for name in (TASKS, *streams):
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


def photo_rows(folder: Path) -> list[Row]:
    """Measure on photos of all sizes, as JPEG."""
    place = os.environ.get("SDCLR_PHOTOS")
    files = sorted(Path(place).glob("*/*.jpg")) if place else []
    files = files[:: max(1, len(files) // NUM_PHOTOS)][:NUM_PHOTOS]
    if len(files) < NUM_PHOTOS:
        note = f"SDCLR_PHOTOS names no folder of {NUM_PHOTOS} photos or more"
        return [Row(name="photos", values=(), unit="images/s", note=note)]
    files *= NUM_COPIES
    images = [file.read_bytes() for file in files]
    tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in images]
    info = ImageInfo("original", None, None)
    places = {"disk": str(folder / "photos"), "S3": "s3://bucket/photos"}
    streams = {
        f"feed, {where}": Streamed(
            uri, write_set(uri, info, images, len(images) // 10), config_of()
        )
        for where, uri in places.items()
    }
    return contest(
        "photos",
        len(images),
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
    """Measure on raw images of 32 px."""
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
            decoder.pixels(read_table(places["disk"], shard))

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
        0.85,
    )
    return found + cached_rows(decoder, manifests["disk"])


def start_rows(what: str, streams: dict[str, Streamed]) -> list[Row]:
    """Return seconds from asking for an epoch to its first batch."""
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
    """Time the boundary of an epoch of a kept set."""
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
    """Yield the blocks that Ray Data would bring."""
    for item in shard_items(decoder.data_uri, manifest, ("pretrain",)):
        yield decoder({key: np.array([value]) for key, value in item.items()})


def rows() -> list[Row]:
    """Run everything on one Ray CPU."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, s3_server(), one_cpu():
        folder = Path(name)
        return photo_rows(folder) + small_rows(folder)


if __name__ == "__main__":
    main(rows)
