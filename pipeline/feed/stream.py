"""The streamed set as batches of one rank: rank 0 submits the tasks, every rank reads its parts.

A thread of each rank keeps a few batches ready and goes on into the next epoch, so the start of an
epoch is no start of a pipeline. All ranks walk through the same pieces; rank 0 hands a piece out
only when all of its tasks have succeeded, so a broken sample stops every rank before the same step.

Shapes: B images of this rank in one step, H x W pixels of the canvas.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from pipeline.dataset.decoding import Columns
from pipeline.errors import ClusterError, PipelineError
from pipeline.feed.plan import BATCHES_READY
from pipeline.feed.schedule import EpochSchedule
from pipeline.feed.tasks import StreamedSet, TaskStream, sample
from sdclr import Batch, EpochPlan, ImageSet

_COLUMNS = ("pixels", "size")
_POLL_S, _STOP_S = 0.2, 5.0
_DEADLINE_S = 1000.0


class StreamSource:
    """A set that is streamed; see `feed.Source`.

    Args:
        stream: what, and how.
        mailbox: actor through which rank 0 hands out parts; None for a single rank.
        pin_memory: batches are in pinned memory, for copies to a GPU.
    """

    def __init__(self, stream: StreamedSet, *, mailbox: Any = None, pin_memory: bool) -> None:
        self.stream, self.mailbox, self.pin_memory = stream, mailbox, pin_memory
        self._rounds = 0

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

    def next_round(self) -> int:
        """Return a number for a new walk through the pieces, the same on every rank."""
        self._rounds += 1
        return self._rounds


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
            batch = walk.next_batch()
            is_last = step + 1 == self.plan.num_steps
            walk.position = (epoch + 1, 0) if is_last else (epoch, step + 1)
            yield batch

    def close(self) -> None:
        """Stop reading ahead."""
        if self._walk is not None:
            self._walk.stop()
            self._walk = None


class _Walk:
    """One walk through the pieces of a run, from a position to the end, in a thread."""

    def __init__(
        self, source: StreamSource, plan: EpochPlan, rank: int, epoch: int, start_step: int
    ) -> None:
        self.source, self.plan, self.rank = source, plan, rank
        self.position = epoch, start_step
        self._start = epoch, start_step
        self._round = source.next_round()
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
        import ray

        pieces = self._lead() if self.rank == 0 else self._follow()
        epoch, start_step = self._start
        budget = self.source.stream.budget
        for _ in range(epoch, self.source.stream.epochs):
            schedule = EpochSchedule(self.plan, start_step, budget.piece_steps, budget.part_rows)
            start_step = 0
            for piece in schedule.pieces():
                parts = ray.get(next(pieces), timeout=_DEADLINE_S)
                first = 0
                for step in range(piece.start, piece.stop):
                    num_rows = self.plan.batch_size(step) // self.plan.num_ranks
                    yield self._batch(step, parts, budget.part_rows, first, num_rows)
                    first += num_rows
                del parts  # views of shared memory, which is free only without them

    def _batch(
        self, step: int, parts: list[Columns], part_rows: int, first: int, num_rows: int
    ) -> Batch:
        """Return rows [first, first + num_rows) of a piece, copied out of shared memory."""
        shape = (num_rows, *parts[0]["pixels"].shape[1:])
        images_BCHW = torch.empty(shape, dtype=torch.uint8, pin_memory=self.source.pin_memory)
        sizes_B2 = torch.empty((num_rows, 2), dtype=torch.int64)
        rows_B = torch.empty(num_rows, dtype=torch.int64)
        outs = {"pixels": images_BCHW, "size": sizes_B2, "row": rows_B}
        place = first
        while place < first + num_rows:
            number, begin = divmod(place, part_rows)
            length = min(part_rows - begin, first + num_rows - place)
            for name, out in outs.items():
                to = slice(place - first, place - first + length)
                out.numpy()[to] = parts[number][name][begin : begin + length]
            place += length
        return Batch(
            images_BCHW=images_BCHW,
            sizes_B2=sizes_B2,
            rows_B=rows_B,
            start=self.plan.part(step, self.rank).start - step * self.plan.global_batch,
            num_global=self.plan.batch_size(step),
        )

    def _lead(self) -> Iterator[list[Any]]:
        """Yield the parts of rank 0; send the others' parts and any error to the mailbox."""
        number = 0
        try:
            for parts in TaskStream(self.source.stream, self.plan, *self._start).pieces():
                self._post(number, [("parts", mine) for mine in parts[1:]])
                number += 1
                mine = parts[0]
                del parts
                yield mine
                del mine  # a piece is freed before the next one is waited for
        except PipelineError as error:
            self._post(number, [("error", error)] * (self.plan.num_ranks - 1))
            raise

    def _post(self, number: int, letters: list[Any]) -> None:
        if self.source.mailbox is not None:
            self.source.mailbox.put.remote(self._round, number, letters)

    def _follow(self) -> Iterator[list[Any]]:
        import ray

        number = 0
        while True:
            letter = self.source.mailbox.take.remote(self._round, number, self.rank)
            try:
                kind, content = ray.get(letter, timeout=_DEADLINE_S)
            except ray.exceptions.RayError as error:
                raise ClusterError(
                    "E-CLUSTER-012",
                    "rank 0 hands out no more images",
                    where=f"rank {self.rank}",
                    todo="look at the first error of the run",
                ) from error
            if kind == "error":
                raise content
            number += 1
            yield content
