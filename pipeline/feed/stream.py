"""The streamed set as batches of one rank, which reads and decodes its own part of each.

A thread of each rank keeps a few batches ready and goes on into the next epoch, so the start of an
epoch is no start of a pipeline. Ranks share nothing but the order. Before each step they ask each
other whether all have their images, so a broken sample stops every rank before the same step.

Shapes: B images of this rank in one step, H x W pixels of the canvas.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import numpy as np
import torch

from pipeline.cluster.ranks import fail_together
from pipeline.dataset.decoding import Columns
from pipeline.feed.plan import BATCHES_READY
from pipeline.feed.schedule import RankSchedule, streams_of
from pipeline.feed.tasks import RankTasks, StreamedSet, sample
from sdclr import Batch, EpochPlan, ImageSet

_COLUMNS = ("pixels", "size")
_POLL_S, _STOP_S = 0.2, 5.0


class StreamSource:
    """A set that is streamed; see `feed.Source`.

    Args:
        stream: what, and how.
        device: that the batches are trained on; for a GPU they are in pinned memory.
    """

    def __init__(self, stream: StreamedSet, *, device: torch.device) -> None:
        self.stream, self.device = stream, device

    def feed(self, plan: EpochPlan, *, seed: int, rank: int) -> StreamFeed:
        """Return the batches of one rank."""
        if seed != self.stream.seed:
            raise ValueError(f"the stream has seed {self.stream.seed}, not {seed}")
        return StreamFeed(self, plan, rank)

    def sample(self, num_images: int) -> ImageSet:
        """Return about `num_images` images, the first of a few shards, stored in random order.

        Raises:
            PipelineError: as `StreamFeed.batches`.
        """
        parts = sample(self.stream, num_images)
        pixels, sizes = (np.concatenate([part[name] for part in parts]) for name in _COLUMNS)
        return ImageSet(torch.from_numpy(pixels), torch.from_numpy(sizes))


class StreamFeed:
    """The batches of a streamed set for one rank; a `sdclr.Feed`.

    Reading on from where the last epoch ended, or was left, costs nothing; any other position
    restarts the tasks from there.
    """

    def __init__(self, source: StreamSource, plan: EpochPlan, rank: int) -> None:
        self.source, self.plan, self.rank = source, plan, rank
        self._walk: _Walk | None = None

    def batches(self, epoch: int, *, start_step: int = 0) -> Iterator[Batch]:
        """Yield this rank's batches of an epoch, from `start_step` on.

        Raises:
            PipelineError: on every rank before the same step, naming the shard or the sample.
        """
        if self._walk is None or self._walk.position != (epoch, start_step):
            self.close()
            self._walk = _Walk(self.source, self.plan, self.rank, epoch, start_step)
        walk = self._walk
        for step in range(start_step, self.plan.num_steps):
            try:
                batch = fail_together(walk.next_batch, device=self.source.device)
            except BaseException:
                self.close()
                raise
            is_last = step + 1 == self.plan.num_steps
            walk.position = (epoch + 1, 0) if is_last else (epoch, step + 1)
            yield batch

    def close(self) -> None:
        """Stop reading ahead."""
        if self._walk is not None:
            self._walk.stop()
            self._walk = None


class _Walk:
    """One walk through the batches of a run, from a position to the end, in a thread."""

    def __init__(
        self, source: StreamSource, plan: EpochPlan, rank: int, epoch: int, start_step: int
    ) -> None:
        self.source, self.plan = source, plan
        self.position = epoch, start_step
        self._start = epoch, start_step
        stream = source.stream
        self._schedule = RankSchedule(
            plan, stream.shard_rows, stream.seed, rank, stream.budget.part_rows
        )
        # Of each stream: the part in use, and how many of its images were taken.
        self._parts: dict[int, tuple[Columns, int]] = {}
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(BATCHES_READY)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="feed")
        self._thread.start()

    def next_batch(self) -> Batch:
        """Return the next batch as soon as it is there."""
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def stop(self) -> None:
        """End the thread; its tasks are given up."""
        self._stopped.set()
        self._thread.join(_STOP_S)

    def _run(self) -> None:
        try:
            for batch in self._batches():
                if not self._put(batch):
                    return
        except BaseException as error:  # raised again where the batch is asked for
            self._put(error)

    def _put(self, item: Batch | BaseException) -> bool:
        while not self._stopped.is_set():
            try:
                self._ready.put(item, timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False

    def _batches(self) -> Iterator[Batch]:
        epoch, start_step = self._start
        tasks = RankTasks(self.source.stream, self._schedule, epoch, start_step)
        for _ in range(epoch, self.source.stream.epochs):
            for step in range(start_step, self.plan.num_steps):
                yield self._batch(tasks, step)
            start_step = 0

    def _batch(self, tasks: RankTasks, step: int) -> Batch:
        """Return this rank's part of a step, stream by stream, copied out of shared memory."""
        rank, place, outs = self._schedule.rank, 0, dict[str, torch.Tensor]()
        for stream in streams_of(self.plan, rank):
            stop = place + len(self._schedule.taken(step, stream))
            while place < stop:
                begun = self._parts.pop(stream) if stream in self._parts else None
                part, used = begun or (tasks.take(stream), 0)
                outs = outs or self._allocated(part, self.plan.batch_size(step))
                length = min(stop - place, len(part["row"]) - used)
                for name, out in outs.items():
                    out.numpy()[place : place + length] = part[name][used : used + length]
                place += length
                if used + length < len(part["row"]):
                    self._parts[stream] = part, used + length
                else:
                    tasks.release(part)
                del part, begun  # views of shared memory, which is free only without them
        return Batch(
            images_BCHW=outs["pixels"],
            sizes_B2=outs["size"],
            rows_B=outs["row"],
            start=self.plan.part(step, rank).start - step * self.plan.global_batch,
            num_global=self.plan.batch_size(step),
        )

    def _allocated(self, part: Columns, num_global: int) -> dict[str, torch.Tensor]:
        num_rows = num_global // self.plan.num_ranks
        pin_memory = self.source.device.type == "cuda"
        shape = (num_rows, *part["pixels"].shape[1:])
        return {
            "pixels": torch.empty(shape, dtype=torch.uint8, pin_memory=pin_memory),
            "size": torch.empty((num_rows, 2), dtype=torch.int64),
            "row": torch.empty(num_rows, dtype=torch.int64),
        }
