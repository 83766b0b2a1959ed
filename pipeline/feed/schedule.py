"""Schedule of one rank's tasks in a streamed run: pure functions of the plan.

    unit   what one stream takes from one shard: read by one task, for one rank
    part   consecutive images of a unit: decoded by one task, for one rank, in the order of use

A rank owns the streams that its part of a batch comes from. Units and parts come in the order of
need, which is the epoch, the step and the stream that they are first needed for.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdclr import EpochPlan, EpochStreams

Rows = NDArray[np.int64]
# The first parts of an epoch are small, so that its first batch does not wait for a large one of
# each stream.
_GROWTH = 4


class Need(NamedTuple):
    """Moment at which something is needed for the first time."""

    epoch: int
    step: int
    stream: int


class Part(NamedTuple):
    """One decode task: rows in the set and in the shard, in the order of use."""

    need: Need
    rows: Rows
    local_rows: Rows


class Unit(NamedTuple):
    """One read task: a shard, and the parts that its images go to."""

    need: Need
    shard: int
    parts: tuple[Part, ...]


def streams_of(plan: EpochPlan, rank: int) -> range:
    """Return the streams that a rank's part of a batch comes from."""
    of_rank, of_stream = (plan.global_batch // n for n in (plan.num_ranks, plan.num_streams))
    return range(rank * of_rank // of_stream, ((rank + 1) * of_rank - 1) // of_stream + 1)


@dataclass(frozen=True)
class RankSchedule:
    """The tasks of one rank.

    Args:
        plan: how an epoch is cut into steps, ranks and streams.
        shard_rows: rows of each shard of the set.
        seed: of the run.
        rank: whose tasks.
        part_rows: images of a part, at most.
    """

    plan: EpochPlan
    shard_rows: Sequence[int]
    seed: int
    rank: int
    part_rows: int

    def taken(self, step: int, stream: int) -> range:
        """Return which of the images that a step takes from a stream are this rank's."""
        size = self.plan.batch_size(step)
        of_rank, of_stream = size // self.plan.num_ranks, size // self.plan.num_streams
        first = self.rank * of_rank - stream * of_stream
        return range(max(first, 0), min(first + of_rank, of_stream))

    def units(self, epoch: int, start_step: int) -> Iterator[Unit]:
        """Yield what is left of an epoch from a step on, in the order of need."""
        streams = EpochStreams(self.shard_rows, self.plan.num_streams, self.seed, epoch)
        starts = np.cumsum([0, *self.shard_rows])
        return heapq.merge(
            *(
                self._of_stream(streams, starts, stream, start_step)
                for stream in streams_of(self.plan, self.rank)
            ),
            key=lambda unit: unit.need,
        )

    def _of_stream(
        self, streams: EpochStreams, starts: Rows, stream: int, start_step: int
    ) -> Iterator[Unit]:
        plan, last = self.plan, self.plan.num_steps - 1
        per_step = plan.global_batch // plan.num_streams
        stop = last * per_step + plan.batch_size(last) // plan.num_streams
        size, end = min(len(self.taken(0, stream)), self.part_rows), 0
        for run in streams.runs(stream):
            begin, end = end, end + run.end - run.begin
            places = np.arange(max(begin, start_step * per_step), min(end, stop))
            steps, inside = np.divmod(places, per_step)
            taken, at_last = self.taken(0, stream), self.taken(last, stream)
            is_first = inside >= np.where(steps < last, taken.start, at_last.start)
            is_mine = is_first & (inside < np.where(steps < last, taken.stop, at_last.stop))
            if not is_mine.any():
                continue
            local_rows = streams.rows(run.shard)[places[is_mine] - begin + run.begin]
            rows, steps, cuts = local_rows + starts[run.shard], steps[is_mine], [0]
            while cuts[-1] < len(rows):
                cuts.append(min(cuts[-1] + size, len(rows)))
                size = min(size * _GROWTH, self.part_rows)
            parts = tuple(
                Part(Need(streams.epoch, int(steps[a]), stream), rows[a:b], local_rows[a:b])
                for a, b in itertools.pairwise(cuts)
            )
            yield Unit(parts[0].need, run.shard, parts)
