"""Needs of a run at a given size: shards, memory, bytes on every wire, time, cost.

    python -m pipeline.cli.scale                      the tables of docs/scale.md
    python -m pipeline.cli.scale --images 5e6 --gpus 16 --images-per-s 700 --price-per-gpu-hour 2.5

Formulas only; docs/scale.md says where each constant comes from. `--dry-run` shows those that need
no speed. N images, W workers with a GPU each, B images per step over all, D embedding size.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

FLOAT_BYTES, INDEX_BYTES = 4, 8
# Beside the pixels, a row of a shard holds id, hash in hex, label and lengths.
ROW_OVERHEAD_BYTES = 110
# Held by tests/test_scale.py to the real thing.
MANIFEST_BYTES_PER_SHARD = 180
# At the peak of planning, hashes included, with names of 18 letters: benchmarks/index.py.
INDEX_BYTES_PER_IMAGE = 240
OBJECTS_PER_LISTING = 1000


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Size of the work.

    Args:
        num_images: N.
        image_bytes: of an encoded image, on average.
        shard_bytes: ingest.shard_bytes.
        canvas_px: side of a decoded image.
        global_batch: B, train.global_batch.
        embedding_dim: D, model.embedding_dim.
        parameter_bytes: gradients that are exchanged at each step.
        state_bytes: one checkpoint.
        epochs: passes over the images.
        checkpoints: how many are written.
        num_workers: W.
        workers_per_node: GPUs of a node.
    """

    num_images: int
    image_bytes: int
    shard_bytes: int
    canvas_px: int
    global_batch: int
    embedding_dim: int
    parameter_bytes: int
    state_bytes: int
    epochs: int
    checkpoints: int
    num_workers: int
    workers_per_node: int

    @property
    def num_nodes(self) -> int:
        """GPU nodes."""
        return math.ceil(self.num_workers / self.workers_per_node)

    @property
    def num_shards(self) -> int:
        """Objects of the data set."""
        total = self.num_images * (self.image_bytes + ROW_OVERHEAD_BYTES)
        return math.ceil(total / self.shard_bytes)

    @property
    def manifest_bytes(self) -> int:
        """The list of shards, read whole by the driver and by every worker."""
        return self.num_shards * MANIFEST_BYTES_PER_SHARD

    @property
    def ingest_index_bytes(self) -> int:
        """Names and sizes of all images, in the driver's memory while it plans the shards."""
        return self.num_images * INDEX_BYTES_PER_IMAGE

    @property
    def order_bytes(self) -> int:
        """The permutation of an epoch, in every worker, when the set is kept."""
        return self.num_images * INDEX_BYTES

    @property
    def decoded_bytes(self) -> int:
        """All images as pixels: what a node holds when it keeps the whole set."""
        return self.num_images * 3 * self.canvas_px**2

    @property
    def stream_bytes(self) -> int:
        """The least feed.max_memory_bytes with which the set can be streamed.

        Each worker has a stream of its own, with one shard open and another one ahead, four steps
        in the object store, and three steps of batches that are ready.
        """
        shards = 2 * self.num_workers * self.shard_bytes
        return shards + 7 * self.global_batch * 3 * self.canvas_px**2

    @property
    def gathered_bytes(self) -> int:
        """Embeddings of both views of all images of a step: what every worker ends up with."""
        return 2 * self.global_batch * self.embedding_dim * FLOAT_BYTES

    @property
    def node_bytes_per_step(self) -> int:
        """What leaves a node at a step: embeddings, their gradients, gradients of the weights.

        Rings, as NCCL forms them: all-gather and its reduce-scatter send (W-1)/W of all embeddings
        over each link, the all-reduce twice (W-1)/W of all gradients. Within a node nothing leaves.
        """
        if self.num_nodes == 1:
            return 0
        share = (self.num_workers - 1) / self.num_workers
        return round(share * 2 * (self.gathered_bytes + self.parameter_bytes))

    @property
    def similarity_bytes(self) -> int:
        """Logits of a worker: its 2B/W embeddings against all 2B, and as much for the gradient."""
        rows = 2 * self.global_batch / self.num_workers
        return round(2 * rows * 2 * self.global_batch * FLOAT_BYTES)

    @property
    def checkpoint_bytes(self) -> int:
        """Written over the whole run."""
        return self.checkpoints * self.state_bytes


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Throughput of a place.

    Args:
        images_per_s: of one GPU, both views, both branches, forward and backward.
        decoded_per_s: images that one CPU core checks, decodes and fits to the canvas.
        stored_small_per_s: the same of images that ingest stored with the canvas's short side.
        node_bytes_per_s: of a node's network, one direction.
        store_bytes_per_s: of one stream to the object store.
        listing_s: one answer of the object store with 1000 names.
        price_per_gpu_hour: in the currency of the answer.
    """

    images_per_s: float
    decoded_per_s: float
    stored_small_per_s: float
    node_bytes_per_s: float
    store_bytes_per_s: float
    listing_s: float
    price_per_gpu_hour: float


@dataclass(frozen=True)
class Estimate:
    """A workload at given speeds."""

    work: Workload
    speeds: Speeds

    @property
    def list_s(self) -> float:
        """Time to list the shards, page after page."""
        return math.ceil(self.work.num_shards / OBJECTS_PER_LISTING) * self.speeds.listing_s

    @property
    def read_bytes_per_s(self) -> float:
        """From the object store into each node, when images are streamed in every epoch."""
        return self._images_per_s_of_node * self.work.image_bytes

    @property
    def decode_cores(self) -> int:
        """CPU cores per node that keep its GPUs fed."""
        return math.ceil(self._images_per_s_of_node / self.speeds.decoded_per_s)

    @property
    def small_cores(self) -> int:
        """The same, of a set that was resized once, at ingest."""
        return math.ceil(self._images_per_s_of_node / self.speeds.stored_small_per_s)

    @property
    def exchange_s(self) -> float:
        """Time of a step on the wire."""
        return self.work.node_bytes_per_step / self.speeds.node_bytes_per_s

    @property
    def step_s(self) -> float:
        """A step: GPU and network one after the other; nothing is hidden behind anything."""
        images = self.work.global_batch / self.work.num_workers
        return images / self.speeds.images_per_s + self.exchange_s

    @property
    def checkpoint_s(self) -> float:
        """Time to write one."""
        return self.work.state_bytes / self.speeds.store_bytes_per_s

    @property
    def hours(self) -> float:
        """Training, without evaluation."""
        steps = self.work.epochs * (self.work.num_images // self.work.global_batch)
        return (steps * self.step_s + self.work.checkpoints * self.checkpoint_s) / 3600

    @property
    def cost(self) -> float:
        """GPUs only."""
        return self.hours * self.work.num_workers * self.speeds.price_per_gpu_hour

    @property
    def _images_per_s_of_node(self) -> float:
        per_node = self.work.num_workers / self.work.num_nodes
        return per_node * self.work.global_batch / self.work.num_workers / self.step_s


def si(value: float, unit: str) -> str:
    """Format three digits with a decimal prefix: 1.23 GB."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5 or prefix == "T":
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    raise AssertionError


# ResNet-50 at 224 px under SDCLR, as in docs/scale.md; tests hold the bytes to the real model's.
RESNET50 = Workload(
    num_images=0, image_bytes=110_000, shard_bytes=64 << 20, canvas_px=256, global_batch=0,
    embedding_dim=128, parameter_bytes=112_113_408, state_bytes=248_142_384, epochs=100,
    checkpoints=100, num_workers=0, workers_per_node=8,
)  # fmt: skip
SPEEDS = Speeds(
    images_per_s=4000, decoded_per_s=277, stored_small_per_s=456, node_bytes_per_s=12.5e9,
    store_bytes_per_s=100e6, listing_s=0.2, price_per_gpu_hour=3.0,
)  # fmt: skip
SIZES = (10**6, 10**8, 10**9)
GPUS = (8, 64, 512)
IMAGES_PER_GPU_AND_STEP = 64


def table(sizes: tuple[int, ...], gpus: tuple[int, ...], speeds: Speeds) -> Iterator[list[str]]:
    """Yield rows of text, one column for each size and number of GPUs."""
    estimates = []
    for num_images in sizes:
        for num_workers in gpus:
            values = RESNET50.__dict__ | {
                "num_images": num_images,
                "num_workers": num_workers,
                "global_batch": IMAGES_PER_GPU_AND_STEP * num_workers,
            }
            estimates.append(Estimate(Workload(**values), speeds))
    shown: dict[str, Callable[[Estimate], str]] = {
        "images": lambda e: f"{e.work.num_images:.0e}".replace("+0", ""),
        "GPUs": lambda e: str(e.work.num_workers),
        "images per step": lambda e: str(e.work.global_batch),
        "shards of 64 MiB": lambda e: f"{e.work.num_shards:,}",
        "list them": lambda e: si(e.list_s, "s"),
        "manifest": lambda e: si(e.work.manifest_bytes, "B"),
        "ingest: index in the driver": lambda e: si(e.work.ingest_index_bytes, "B"),
        "kept: decoded set, per node": lambda e: si(e.work.decoded_bytes, "B"),
        "kept: order of an epoch, per worker": lambda e: si(e.work.order_bytes, "B"),
        "streamed: feed.max_memory_bytes at least": lambda e: si(e.work.stream_bytes, "B"),
        "streamed: read per node": lambda e: si(e.read_bytes_per_s, "B/s"),
        "streamed: cores per node that decode": lambda e: str(e.decode_cores),
        "the same, resized at ingest": lambda e: str(e.small_cores),
        "embeddings gathered per step": lambda e: si(e.work.gathered_bytes, "B"),
        "logits of a worker": lambda e: si(e.work.similarity_bytes, "B"),
        "sent per node and step": lambda e: si(e.work.node_bytes_per_step, "B"),
        "on the wire per step": lambda e: si(e.exchange_s, "s"),
        "step": lambda e: si(e.step_s, "s"),
        "checkpoint": lambda e: si(e.work.state_bytes, "B"),
        "write it": lambda e: si(e.checkpoint_s, "s"),
        "all checkpoints": lambda e: si(e.work.checkpoint_bytes, "B"),
        "100 epochs": lambda e: f"{e.hours:,.{int(e.hours < 10)}f} h",
        "price of the GPUs": lambda e: f"{e.cost:,.0f}",
    }
    for name, text in shown.items():
        yield [name, *(text(estimate) for estimate in estimates)]


def markdown(rows: Iterator[list[str]]) -> str:
    """Format a table in Markdown."""
    header, *body = rows
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *body)) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.cli.scale", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--images", type=float, metavar="N")
    parser.add_argument("--gpus", type=int, nargs="+", default=GPUS, metavar="W")
    parser.add_argument("--images-per-s", type=float, default=SPEEDS.images_per_s)
    parser.add_argument("--price-per-gpu-hour", type=float, default=SPEEDS.price_per_gpu_hour)
    args = parser.parse_args(argv)
    values = SPEEDS.__dict__ | {
        "images_per_s": args.images_per_s, "price_per_gpu_hour": args.price_per_gpu_hour,
    }  # fmt: skip
    sizes = SIZES if args.images is None else (int(args.images),)
    parts = [markdown(table((size,), tuple(args.gpus), Speeds(**values))) for size in sizes]
    sys.stdout.write("\n".join(parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
