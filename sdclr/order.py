"""The images of each global batch: a pure function of (seed, epoch), cut by rank.

The order knows nothing of workers: R ranks take R consecutive parts of the same global batch, so
the images and their negatives at a step do not depend on R, and a run resumes at (epoch, step)
without any state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
            smaller batch, cut to a multiple of `num_ranks`.
        num_ranks: ranks that share each batch; must divide `global_batch`.
    """

    num_images: int
    global_batch: int
    drop_last: bool
    num_ranks: int = 1

    def __post_init__(self) -> None:
        if self.global_batch % self.num_ranks:
            raise ValueError(
                f"global_batch {self.global_batch} is not a multiple of {self.num_ranks} ranks"
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
        rest -= rest % self.num_ranks
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


def epoch_windows(
    shard_rows: Sequence[int], *, window_shards: int, seed: int, epoch: int
) -> Iterator[NDArray[np.int64]]:
    """Yield the epoch's order of a sharded set, one array of rows for each window.

    Shards are shuffled and dealt into windows of even size; rows are shuffled within a window. A
    reader needs the shards of one window at a time. One window for all is `epoch_order`.

    Args:
        shard_rows: rows of each shard; row numbers run through the shards as listed.
        window_shards: shards in a window, at most.
        seed: of the run.
        epoch: of the run, from 0.
    """
    num_windows = -(-len(shard_rows) // window_shards)
    if num_windows == 1:
        yield epoch_order(sum(shard_rows), seed=seed, epoch=epoch)
        return
    starts = np.cumsum([0, *shard_rows])
    shards = numpy_generator(seed, "shards", epoch).permutation(len(shard_rows))
    for number, members in enumerate(np.array_split(shards, num_windows)):
        rows = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in members])
        yield numpy_generator(seed, "window", epoch, number).permutation(rows)
