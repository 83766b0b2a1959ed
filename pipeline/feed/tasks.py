"""The Ray tasks of one rank of a streamed run, kept a bounded number of images ahead of it.

A shard is read and checked once for each stream that needs it, and its images, still encoded, go to
the parts of the stream; a part is decoded once, in the order of use. Raw images need no decoding,
so the task that reads them leaves the parts as they are used. Plain tasks rather than a Ray Data
pipeline: docs/feed.md has what both cost.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from pipeline.cluster.marked_nodes import on_nodes
from pipeline.dataset.decoding import (
    Columns,
    ShardDecoder,
    decode_part,
    read_parts,
    read_raw_parts,
)
from pipeline.dataset.manifest import ShardInfo
from pipeline.errors import ClusterError, PipelineError, root_cause
from pipeline.feed.plan import StreamBudget
from pipeline.feed.schedule import Need, Part, RankSchedule, Unit, streams_of

_POLL_S = 0.2
_SAMPLE_SHARDS = 8
# Reading waits for storage half of the time.
_READ_CPUS = 0.5


@dataclass(frozen=True)
class StreamedSet:
    """A set to stream, with what each rank may have in flight.

    Args:
        decoder: of the data set.
        shards: of the pre-training set.
        budget: of each rank.
        seed: of the run.
        epochs: of the run; nothing is read ahead beyond the last one.
        mark: of the nodes for the tasks; None = any node.
        node: id of the node that the tasks run on while it lives, that of the rank; None for any.
        deadline_s: how long images may take to arrive.
    """

    decoder: ShardDecoder
    shards: Sequence[ShardInfo]
    budget: StreamBudget
    seed: int
    epochs: int
    mark: str | None
    node: str | None
    deadline_s: float

    @property
    def shard_rows(self) -> list[int]:
        """Rows of each shard."""
        return [shard.rows for shard in self.shards]


@dataclass
class _Open:
    """A shard that is read: parts that no task decodes yet, and tasks that may be at it."""

    parts_left: int
    decoding: list[Any]


class RankTasks:
    """Submission of a rank's tasks from (epoch, step) to the end of the run.

    Args:
        stream: what, and within which bounds.
        schedule: of the rank.
        epoch, start_step: where to begin.
    """

    def __init__(
        self, stream: StreamedSet, schedule: RankSchedule, epoch: int, start_step: int
    ) -> None:
        import ray

        self._stream = stream
        self._read, self._decode = _tasks(stream)
        self._decoder = ray.put(stream.decoder)
        self._units = itertools.chain.from_iterable(
            schedule.units(number, start_step if number == epoch else 0)
            for number in range(epoch, stream.epochs)
        )
        self._next = next(self._units, None)
        # The first batch does not wait for shards that it does not need.
        self._most_open = len(streams_of(schedule.plan, schedule.rank)) + 1
        self._open: list[_Open] = []
        self._encoded: list[tuple[Need, int, Part, Any, _Open]] = []
        self._decoded: dict[int, deque[tuple[Any, Any]]] = defaultdict(deque)
        self._numbers = itertools.count()
        self._rows = 0

    def take(self, stream: int) -> Columns:
        """Return the next part of a stream; it is in use until it is released.

        Raises:
            DataError, StorageError: a shard or a sample is broken, or cannot be read.
            ClusterError: no task came to its end for a long time.
        """
        import ray

        deadline_s = time.monotonic() + self._stream.deadline_s
        self._submit()
        while not self._is_done(self._decoded[stream]):
            if time.monotonic() > deadline_s:
                raise _too_late(self._stream.deadline_s)
            self._submit()
        decoded, status = self._decoded[stream].popleft()
        _wait([status], self._stream.deadline_s)
        found: Columns = ray.get(decoded)
        return found

    def release(self, part: Columns) -> None:
        """Make room for others; nobody may use the part any more."""
        self._most_open = self._stream.budget.units
        self._rows -= len(part["row"])
        self._submit()

    def _is_done(self, parts: deque[tuple[Any, Any]]) -> bool:
        """Wait a moment for the first of some parts, or, without any, for any task."""
        import ray

        if parts:
            return bool(ray.wait([parts[0][1]], timeout=_POLL_S)[0])
        at_work = [status for shard in self._open for status in shard.decoding]
        ray.wait(at_work, timeout=_POLL_S)
        return False

    def _submit(self) -> None:
        """Submit what there is room for, in the order of need."""
        if self._next is not None and len(self._open) >= self._most_open:
            self._close()
        while self._next is not None and len(self._open) < self._most_open:
            self._submit_read(self._next)
            self._next = next(self._units, None)
        while self._encoded:
            need, _, part, encoded, shard = self._encoded[0]
            is_next = self._next is None or need <= self._next.need
            if not is_next or self._rows + len(part.rows) > self._stream.budget.rows:
                return
            heapq.heappop(self._encoded)
            # What was read of raw images is its own status.
            decoded, status = (
                (encoded, encoded)
                if self._stream.decoder.is_raw
                else self._decode.remote(self._decoder, part.rows, encoded)
            )
            self._decoded[need.stream].append((decoded, status))
            shard.decoding.append(status)
            shard.parts_left -= 1
            self._rows += len(part.rows)

    def _submit_read(self, unit: Unit) -> None:
        shard = self._stream.shards[unit.shard]
        rows = [(part.rows, part.local_rows) for part in unit.parts]
        found: Any = self._read(len(unit.parts)).remote(self._decoder, shard, rows)
        references = [found] if len(unit.parts) == 1 else found
        opened = _Open(len(unit.parts), [])
        self._open.append(opened)
        for part, reference in zip(unit.parts, references, strict=True):
            item = part.need, next(self._numbers), part, reference, opened
            heapq.heappush(self._encoded, item)

    def _close(self) -> None:
        """Forget the shards of which every image is decoded."""
        import ray

        at_work = [status for shard in self._open for status in shard.decoding]
        if not at_work:
            return
        left = set(ray.wait(at_work, num_returns=len(at_work), timeout=0, fetch_local=False)[1])
        for shard in self._open:
            shard.decoding = [status for status in shard.decoding if status in left]
        self._open = [shard for shard in self._open if shard.parts_left or shard.decoding]


def _tasks(stream: StreamedSet) -> tuple[Callable[[int], Any], Any]:
    """Return the remote function that reads a shard for so many parts, and that of one part."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Without a strategy tasks would land in the placement group of the training workers, which is
    # full. "DEFAULT" sends up to half of them to other nodes, and the images through the network.
    strategy = NodeAffinitySchedulingStrategy(stream.node, soft=True) if stream.node else "DEFAULT"
    read, decode = (
        partial(ray.remote(work).options, **on_nodes(stream.mark), scheduling_strategy=strategy)
        for work in (read_raw_parts if stream.decoder.is_raw else read_parts, decode_part)
    )
    return (
        lambda num_parts: read(num_cpus=_READ_CPUS, num_returns=num_parts),
        decode(num_cpus=1, num_returns=2),
    )


def sample(stream: StreamedSet, num_images: int) -> list[Columns]:
    """Decode about as many images: the first of a few shards, one part for each shard.

    Raises:
        PipelineError: as `RankTasks.take`.
    """
    import ray

    num_shards = min(_SAMPLE_SHARDS, len(stream.shards))
    starts = np.cumsum([0, *stream.shard_rows])
    read, decode = _tasks(stream)
    parts, statuses = [], []
    for number in np.unique(np.linspace(0, len(stream.shards) - 1, num_shards).astype(int)):
        shard = stream.shards[number]
        local_rows = np.arange(min(-(-num_images // num_shards), shard.rows))
        rows = local_rows + starts[number]
        part = status = read(1).remote(stream.decoder, shard, [(rows, local_rows)])
        if not stream.decoder.is_raw:
            part, status = decode.remote(stream.decoder, rows, part)
        parts.append(part)
        statuses.append(status)
    _wait(statuses, stream.deadline_s)
    found: list[Columns] = ray.get(parts)
    return found


def _wait(statuses: list[Any], deadline_s: float) -> None:
    """Wait until all tasks are done; a failure is raised as what it was."""
    import ray

    try:
        ray.get(statuses, timeout=deadline_s)
    except ray.exceptions.GetTimeoutError as error:
        raise _too_late(deadline_s) from error
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


def _too_late(deadline_s: float) -> ClusterError:
    return ClusterError(
        "E-CLUSTER-013",
        f"no images were decoded within {deadline_s:.0f} s",
        where="feed",
        todo="check that a CPU is free besides those of the training workers, and the storage",
    )
