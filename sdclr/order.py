"""The images of each global batch: a pure function of (seed, epoch), cut by rank.

The order knows nothing of workers: R ranks take R consecutive parts of the same global batch, so
the images and their negatives at a step do not depend on R, and a run resumes at (epoch, step)
without any state.

A set in memory has one permutation of all images. A set of shards that are read one after another
has streams: the epoch's shards in an order of (seed, epoch), the rows of each permuted, are one
long order of N images; it is cut into C streams of N // C. Every batch takes as many from each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdclr.seeds import numpy_generator


@dataclass(frozen=True, kw_only=True)
class EpochPlan:
    """Cut of an epoch into steps.

    Args:
        num_images: images in the set.
        global_batch: images per step on all ranks together.
        drop_last: leave out the images that do not fill a global batch. If False they form a last,
            smaller batch, cut to a multiple of `num_ranks` and `num_streams`.
        num_ranks: ranks that share each batch; must divide `global_batch`.
        num_streams: streams that each batch takes as many images from; must divide it as well.
    """

    num_images: int
    global_batch: int
    drop_last: bool
    num_ranks: int = 1
    num_streams: int = 1

    def __post_init__(self) -> None:
        for what, number in (("ranks", self.num_ranks), ("streams", self.num_streams)):
            if self.global_batch % number:
                raise ValueError(
                    f"global_batch {self.global_batch} is not a multiple of {number} {what}"
                )
        if self.num_steps == 0:
            raise ValueError(
                f"{self.num_images} images do not fill one global batch of {self.global_batch}"
            )

    @property
    def num_steps(self) -> int:
        """Steps per epoch."""
        return self.num_images // self.global_batch + int(self.tail > 0)

    @property
    def tail(self) -> int:
        """Images in the last, smaller batch; 0 if none. One image alone has no negative."""
        if self.drop_last:
            return 0
        rest = self.num_images % self.global_batch
        rest -= rest % math.lcm(self.num_ranks, self.num_streams)
        return rest if rest > 1 else 0

    def batch_size(self, step: int) -> int:
        """Return images in global batch `step` of the epoch."""
        return self.global_batch if step < self.num_images // self.global_batch else self.tail

    def part(self, step: int, rank: int) -> slice:
        """Return the places in the epoch's order that `rank` takes at `step`."""
        share = self.batch_size(step) // self.num_ranks
        start = step * self.global_batch + rank * share
        return slice(start, start + share)


def epoch_order(num_images: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the epoch's permutation of 0..num_images-1."""
    return numpy_generator(seed, "order", epoch).permutation(num_images)


class Run(NamedTuple):
    """Images [begin, end) of a shard, in the order that the shard has in this epoch."""

    shard: int
    begin: int
    end: int


@dataclass(frozen=True)
class EpochStreams:
    """The order of one epoch of a sharded set, cut into streams of equal length.

    Each image is in one stream, but for fewer than `num_streams` that are in none. A shard that
    a cut goes through is in two streams, or in more when it is longer than a stream. One stream of
    one shard is `epoch_order`.

    Args:
        shard_rows: rows of each shard; row numbers run through the shards as listed.
        num_streams: C.
        seed: of the run.
        epoch: of the run, from 0.
    """

    shard_rows: Sequence[int]
    num_streams: int
    seed: int
    epoch: int

    @property
    def length(self) -> int:
        """Images of each stream."""
        return sum(self.shard_rows) // self.num_streams

    def runs(self, stream: int) -> Iterator[Run]:
        """Yield what a stream consists of, in order."""
        start, stop = stream * self.length, (stream + 1) * self.length
        shards, ends = self._shards
        for number in range(int(np.searchsorted(ends, start, side="right")), len(shards)):
            end = int(ends[number])
            begin = end - self.shard_rows[shards[number]]
            if begin >= stop:
                return
            yield Run(int(shards[number]), max(start, begin) - begin, min(stop, end) - begin)

    def rows(self, shard: int) -> NDArray[np.int64]:
        """Return the rows within a shard in the order of this epoch."""
        if len(self.shard_rows) == 1:
            return epoch_order(self.shard_rows[0], seed=self.seed, epoch=self.epoch)
        generator = numpy_generator(self.seed, "shard", self.epoch, shard)
        return generator.permutation(self.shard_rows[shard])

    @cached_property
    def _shards(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The shards in order, and the place where each ends."""
        shards = numpy_generator(self.seed, "shards", self.epoch).permutation(len(self.shard_rows))
        return shards, np.cumsum(np.asarray(self.shard_rows)[shards])
