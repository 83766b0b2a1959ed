"""Schedule of a streamed epoch's tasks: pure functions of the plan.

    window   shards that are read together; their rows are mixed (`sdclr.epoch_windows`)
    piece    consecutive steps that are handed out together
    part     rows of one rank in a piece that one task decodes, in the rank's order

Every image is read once and decoded once, whatever the number of ranks. Places are positions in
the order of the epoch: place = step x global batch + position in the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdclr import EpochPlan

Rows = NDArray[np.int64]


class Part(NamedTuple):
    """One decode task: a part of what a rank gets in a piece."""

    piece: int
    rank: int
    number: int


class Slice(NamedTuple):
    """Rows of one part in one shard: rows in the set, rows in the shard, places in the part."""

    part: Part
    rows: Rows
    local_rows: Rows
    places: Rows


class Piece(NamedTuple):
    """Steps [start, stop) of the epoch."""

    number: int
    start: int
    stop: int


@dataclass(frozen=True)
class EpochSchedule:
    """The tasks of one epoch from a step on.

    Args:
        plan: how the epoch is cut into steps and ranks.
        start_step: the first step that is wanted; what came before is neither read nor decoded.
        piece_steps: steps of a piece.
        part_rows: rows of a part, at most.
    """

    plan: EpochPlan
    start_step: int
    piece_steps: int
    part_rows: int

    def pieces(self) -> Iterator[Piece]:
        """Yield all pieces in order."""
        starts = range(self.start_step, self.plan.num_steps, self.piece_steps)
        for number, start in enumerate(starts):
            yield Piece(number, start, min(start + self.piece_steps, self.plan.num_steps))

    def part_sizes(self, piece: Piece) -> list[int]:
        """Return the rows of each part of a piece, the same for every rank."""
        sizes = [self.plan.batch_size(step) for step in range(piece.start, piece.stop)]
        rows = sum(sizes) // self.plan.num_ranks
        starts = range(0, rows, self.part_rows)
        return [min(self.part_rows, rows - start) for start in starts]

    def end_place(self, piece: Piece) -> int:
        """Return the first place after the piece."""
        last = piece.stop - 1
        return last * self.plan.global_batch + self.plan.batch_size(last)

    def slices(self, rows: Rows, first_place: int, shard_starts: Rows) -> dict[int, list[Slice]]:
        """Return, for each shard that a window needs, the slices that the parts take from it.

        Args:
            rows: rows of the window in order.
            first_place: place of the first of them.
            shard_starts: first row of each shard of the set.
        """
        plan = self.plan
        num_full = plan.num_images // plan.global_batch
        place = first_place + np.arange(len(rows))
        last = plan.num_steps - 1
        stop = last * plan.global_batch + plan.batch_size(last)
        wanted = (place >= self.start_step * plan.global_batch) & (place < stop)
        rows, place = rows[wanted], place[wanted]
        step, inside = np.divmod(place, plan.global_batch)
        full, tail = plan.global_batch // plan.num_ranks, plan.tail // plan.num_ranks
        rank, inside = np.divmod(inside, np.where(step < num_full, full, max(tail, 1)))
        piece, step = np.divmod(step - self.start_step, self.piece_steps)
        number, inside = np.divmod(step * full + inside, self.part_rows)
        shard = np.searchsorted(shard_starts, rows, side="right") - 1
        key = np.stack([shard, piece, rank, number])
        order = np.lexsort((inside, *key[::-1]))
        is_first = np.diff(key[:, order], axis=1, prepend=-1).any(axis=0)
        groups = np.split(order, np.flatnonzero(is_first)[1:]) if len(order) else []
        found: dict[int, list[Slice]] = {}
        for group in groups:
            which, *part = key[:, group[0]].tolist()
            local_rows = rows[group] - shard_starts[which]
            piece_of, rank_of, number_of = part
            found.setdefault(which, []).append(
                Slice(Part(piece_of, rank_of, number_of), rows[group], local_rows, inside[group])
            )
        return found
