"""The Ray tasks of a streamed run, kept a bounded number of pieces ahead of the training.

Two stages: a shard is read and checked once, and its images, still encoded, go to the parts of the
order that need them; a part is decoded once, for one rank, in the order in which that rank will
use it. Plain tasks rather than a Ray Data pipeline: which task makes which images, and how many are
in flight, is then a function of the schedule, not of the timing of an executor.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.dataset.decoding import Columns, ShardDecoder, decode_part, read_parts
from pipeline.dataset.manifest import ShardInfo
from pipeline.errors import ClusterError, PipelineError, root_cause
from pipeline.feed.plan import StreamBudget
from pipeline.feed.schedule import EpochSchedule, Part, Piece, Slice
from sdclr import EpochPlan, epoch_windows

_DEADLINE_S = 900.0
_SAMPLE_SHARDS = 8
# Reading waits for storage half of the time.
_READ_CPUS = 0.5
# Else tasks would land in the placement group of the training workers, which is full.
_ANYWHERE: dict[str, str] = {"scheduling_strategy": "DEFAULT"}
_END = (2**62, 0)


@dataclass(frozen=True)
class StreamedSet:
    """A set to stream, with its budget and read-ahead.

    Args:
        decoder: of the data set.
        shards: of the pre-training set.
        budget: window, pieces, parts, and pieces in flight.
        seed: of the run.
        epochs: of the run; nothing is read ahead beyond the last one.
        resources: custom resources that each task asks for.
    """

    decoder: ShardDecoder
    shards: Sequence[ShardInfo]
    budget: StreamBudget
    seed: int
    epochs: int
    resources: dict[str, float]

    @property
    def shard_rows(self) -> list[int]:
        """Rows of each shard."""
        return [shard.rows for shard in self.shards]


@dataclass
class _Submitted:
    """A piece with submitted tasks: the references of each rank's parts, in order."""

    parts: list[list[Any]]
    statuses: list[Any]


class TaskStream:
    """Submission of a run's tasks from (epoch, step) to its end."""

    def __init__(self, stream: StreamedSet, plan: EpochPlan, epoch: int, start_step: int) -> None:
        import ray

        self._read, decode = ray.remote(read_parts), ray.remote(decode_part)
        self._decode = decode.options(
            num_cpus=1, num_returns=2, resources=stream.resources, **_ANYWHERE
        )
        self._decoder = ray.put(stream.decoder)
        self.stream, self.plan = stream, plan
        self._start = epoch, start_step
        self._slices: dict[tuple[int, Part], list[tuple[Slice, Any]]] = defaultdict(list)
        self._reads = self._submit_reads()
        # Where the last window but one, and the last window, that are being read end.
        self._covered = self._ahead = (-1, 0)

    def pieces(self) -> Iterator[list[list[Any]]]:
        """Yield for each piece, in order, references to the decoded parts of each rank.

        A piece counts as used when the next one is asked for.

        Raises:
            DataError, StorageError: a shard or a sample is broken, or cannot be read.
            ClusterError: no task came to its end for a long time.
        """
        submitted, waiting = self._submit_pieces(), deque[_Submitted]()
        while True:
            while len(waiting) < self.stream.budget.pieces_ahead:
                piece = next(submitted, None)
                if piece is None:
                    break
                waiting.append(piece)
            if not waiting:
                return
            _wait(waiting[0].statuses)
            yield waiting[0].parts
            piece = None
            waiting.popleft()

    def _schedule(self, epoch: int) -> EpochSchedule:
        first_epoch, start_step = self._start
        budget = self.stream.budget
        start_step = start_step if epoch == first_epoch else 0
        return EpochSchedule(self.plan, start_step, budget.piece_steps, budget.part_rows)

    def _submit_reads(self) -> Iterator[tuple[int, int]]:
        """Submit the reads of one window a step; yield its epoch and the place where it ends."""
        stream = self.stream
        starts = np.cumsum([0, *stream.shard_rows[:-1]])
        for epoch in range(self._start[0], stream.epochs):
            schedule, place = self._schedule(epoch), 0
            windows = epoch_windows(
                stream.shard_rows,
                window_shards=stream.budget.window_shards,
                seed=stream.seed,
                epoch=epoch,
            )
            for rows in windows:
                for shard, slices in schedule.slices(rows, place, starts).items():
                    local = [part.local_rows for part in slices]
                    uri = stream.decoder.data_uri
                    read = self._read.options(
                        num_cpus=_READ_CPUS,
                        num_returns=len(slices),
                        resources=stream.resources,
                        **_ANYWHERE,
                    )
                    found: Any = read.remote(uri, stream.shards[shard], local)
                    references = [found] if len(slices) == 1 else found
                    for part, reference in zip(slices, references, strict=True):
                        self._slices[epoch, part.part].append((part, reference))
                place += len(rows)
                yield epoch, place

    def _submit_pieces(self) -> Iterator[_Submitted]:
        for epoch in range(self._start[0], self.stream.epochs):
            schedule = self._schedule(epoch)
            for piece in schedule.pieces():
                # The window of the piece, and one more, so that storage is never waited for.
                while self._covered < (epoch, schedule.end_place(piece)):
                    self._covered, self._ahead = self._ahead, next(self._reads, _END)
                yield self._submit(epoch, schedule, piece)

    def _submit(self, epoch: int, schedule: EpochSchedule, piece: Piece) -> _Submitted:
        parts: list[list[Any]] = [[] for _ in range(self.plan.num_ranks)]
        statuses = []
        for number, num_rows in enumerate(schedule.part_sizes(piece)):
            for rank in range(self.plan.num_ranks):
                stored = self._slices.pop((epoch, Part(piece.number, rank, number)))
                rows = np.empty(num_rows, np.int64)
                for part, _ in stored:
                    rows[part.places] = part.rows
                places = [part.places for part, _ in stored]
                references = [reference for _, reference in stored]
                decoded, status = self._decode.remote(self._decoder, rows, places, *references)
                parts[rank].append(decoded)
                statuses.append(status)
        return _Submitted(parts, statuses)


def sample(stream: StreamedSet, num_images: int) -> list[Columns]:
    """Decode about as many images: the first of a few shards, one part for each shard.

    Raises:
        PipelineError: as `TaskStream.pieces`.
    """
    import ray

    num_shards = min(_SAMPLE_SHARDS, len(stream.shards))
    starts = np.cumsum([0, *stream.shard_rows])
    read = ray.remote(read_parts).options(
        num_cpus=_READ_CPUS, resources=stream.resources, **_ANYWHERE
    )
    decode = ray.remote(decode_part).options(
        num_cpus=1, num_returns=2, resources=stream.resources, **_ANYWHERE
    )
    parts, statuses = [], []
    for number in np.unique(np.linspace(0, len(stream.shards) - 1, num_shards).astype(int)):
        shard = stream.shards[number]
        rows = np.arange(min(-(-num_images // num_shards), shard.rows))
        stored = read.remote(stream.decoder.data_uri, shard, [rows])
        part, status = decode.remote(stream.decoder, rows + starts[number], [rows], stored)
        parts.append(part)
        statuses.append(status)
    _wait(statuses)
    found: list[Columns] = ray.get(parts)
    return found


def _wait(statuses: list[Any]) -> None:
    """Wait until all tasks are done; a failure is raised as what it was."""
    import ray

    try:
        ray.get(statuses, timeout=_DEADLINE_S)
    except ray.exceptions.GetTimeoutError as error:
        raise ClusterError(
            "E-CLUSTER-013",
            f"no images were decoded within {_DEADLINE_S:.0f} s",
            where="feed",
            todo="check that a CPU is free besides those of the training workers, and the storage",
        ) from error
    except ray.exceptions.RayError as error:
        root = root_cause(error)
        if isinstance(root, PipelineError):
            raise root from error
        raise ClusterError(
            "E-CLUSTER-014",
            f"a task that decodes images failed: {type(root).__name__}: {root!s:.300}",
            where="feed",
            todo="look at Ray's worker logs; if memory ran out, lower feed.max_memory_bytes",
        ) from error
