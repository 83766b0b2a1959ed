"""Parts that run more than a step: images kept on the host, a stream of photographs, a training."""

from __future__ import annotations

import io
import itertools
import queue
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import decode_jpeg
from torchvision.transforms.functional import to_pil_image

from benchmarks.augment import smooth_images
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.cases import Case, case_of, trainer_of
from benchmarks.paper.pretrain import Plan, Pretraining, plan_of
from benchmarks.paper.sets import small_sets
from sdclr import Batch, EpochPlan, Feed, ImageSet

NUM_DECODERS, NUM_PHOTOGRAPHS = 16, 512
WAITING = "waiting for batches"


def kept(bench: Bench) -> None:
    """Compare training on images kept on the host with images kept on the device."""
    case = case_of("resnet18", small=bench.small)
    images = smooth_images(4 * case.batch, case.canvas_px)
    spent = {}
    for place, pixels in (("device", images.to(bench.device)), ("host", images)):
        feed = ImageSet(pixels).feed(_plan(case, len(images)), seed=0)
        spent[place], wait = _run(bench, case, feed, budget_s=6.0)
        name = f"{case.name}: images on the {place}"
        bench.add(name, [case.batch / s for s in spent[place]], "images/s")
        bench.add(name, [100 * wait], "%", bench.goal(1.0), at_most=True, versus=WAITING)
    ratios = [min(spent["device"]) / s for s in spent["host"]]
    bench.add("images on the host", ratios, "x", bench.goal(0.97), versus="images on the device")


def stream(bench: Bench) -> None:
    """Decode photographs in threads beside the training; the share of waiting is the result."""
    case = case_of("resnet50", small=bench.small)
    photographs = _encoded(bench, case)
    spent = bench.seconds(lambda: _decoded(photographs[:8]), budget_s=3.0)
    bench.add("JPEG decoded by a core", [8 / s for s in spent], "images/s")
    _decode_on_device(bench, photographs[: min(len(photographs), case.batch)])
    feed = _Stream(photographs, _plan(case, 8 * case.batch), num_threads=NUM_DECODERS)
    try:
        spent, wait = _run(bench, case, feed, budget_s=10.0)
    finally:
        feed.stop()
    name = f"{case.name}: streamed by {NUM_DECODERS} threads"
    bench.add(name, [case.batch / s for s in spent], "images/s")
    bench.add(name, [100 * wait], "%", bench.goal(1.0), at_most=True, versus=WAITING)


def _decode_on_device(bench: Bench, photographs: list[bytes]) -> None:
    """Decode a batch of photographs by nvJPEG, and compare its pixels with Pillow's."""
    files = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in photographs]
    name = "JPEG decoded by the device"
    try:
        with warnings.catch_warnings():
            # torchvision means to move it to another package, which is none of this project's yet.
            warnings.simplefilter("ignore", DeprecationWarning)
            images = decode_jpeg(files, device=bench.device)
            spent = bench.seconds(lambda: decode_jpeg(files, device=bench.device), budget_s=3.0)
    except Exception as error:  # torchvision may be built without it; threads decode as well
        bench.failed(name, error)
        return
    bench.add(name, [len(files) / s for s in spent], "images/s", note=f"{len(files)} at once")
    apart_BCHW = torch.stack(images).cpu().float() - _decoded(photographs).float()
    bench.add(f"{name}: levels apart from Pillow's, mean", [float(apart_BCHW.abs().mean())], "")


def training(bench: Bench) -> None:
    """Train the recipe of CIFAR-10-LT for a while, epochs and masks included."""
    plan: Plan = plan_of("sdclr", small=bench.small)
    sets = small_sets(11_165 if not bench.small else 64)
    run = Pretraining(plan, sets["pretrain"], device=str(bench.device), folder=bench.out / "run")
    start = time.perf_counter()
    run.train(limit_s=60.0 if bench.small else max(10.0, bench.left_s - 15))
    seconds = time.perf_counter() - start
    speed = run.num_images / seconds
    bench.add("training as of CIFAR-10-LT", [speed], "images/s", note=f"{run.trainer.step} steps")
    first, last = run.losses[0], run.losses[-1]
    note = f"{first:.3f} at first, {last:.3f} at the end"
    bench.add(
        "its loss",
        [last / first],
        "x",
        bench.goal(1.0),
        at_most=True,
        versus="first epoch",
        note=note,
    )


def _plan(case: Case, num_images: int) -> EpochPlan:
    return EpochPlan(num_images=num_images, global_batch=case.batch, drop_last=True)


def _run(bench: Bench, case: Case, feed: Feed, *, budget_s: float) -> tuple[list[float], float]:
    """Return the mean seconds of a step in each round, and the share of waiting for batches."""
    trainer = trainer_of(
        case, bench.device, steps_per_epoch=feed.plan.num_steps, precision="bfloat16", lr=0.05
    )
    reports, waits = trainer.run(feed), []

    def step() -> None:
        waits.append(next(reports).wait_s)

    spent = bench.seconds(step, budget_s=budget_s)
    waits = waits[1 if bench.small else 3 :]
    return spent, sum(waits) / len(waits) / (sum(spent) / len(spent))


def _encoded(bench: Bench, case: Case) -> list[bytes]:
    files = []
    for image in smooth_images(12 if bench.small else NUM_PHOTOGRAPHS, case.canvas_px):
        stream = io.BytesIO()
        to_pil_image(image).save(stream, format="JPEG", quality=90)
        files.append(stream.getvalue())
    return files


def _decoded(files: list[bytes]) -> Tensor:
    images = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


class _Stream:
    """Batches that threads decode, a few ahead; a `sdclr.Feed` without an end."""

    def __init__(self, photographs: list[bytes], plan: EpochPlan, *, num_threads: int) -> None:
        self.plan, self._photographs = plan, photographs
        self._pool = ThreadPoolExecutor(num_threads)
        self._num_threads = num_threads
        self._ready: queue.Queue[Tensor] = queue.Queue(4)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        endless = itertools.cycle(self._photographs)
        while not self._stopped.is_set():
            batch = list(itertools.islice(endless, self.plan.global_batch))
            share = -(-len(batch) // self._num_threads)
            parts = [batch[i : i + share] for i in range(0, len(batch), share)]
            images = torch.cat(list(self._pool.map(_decoded, parts)))
            while not self._stopped.is_set():
                try:
                    self._ready.put(images, timeout=0.2)
                    break
                except queue.Full:
                    continue

    def stop(self) -> None:
        """End the threads."""
        self._stopped.set()
        self._thread.join()
        self._pool.shutdown()

    def batches(self, epoch: int, *, start_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch."""
        for step in range(start_step, self.plan.num_steps):
            images = self._ready.get()
            rows = torch.arange(step * len(images), (step + 1) * len(images))
            sizes = torch.tensor(images.shape[2:]).expand(len(images), 2)
            yield Batch(images, sizes, rows, 0, len(images))
