"""Division of images into sets: seeded hold-out, long-tailed subset, published lists."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline import storage
from pipeline.config.data import Data
from pipeline.console import counted
from pipeline.errors import ConfigError, DataError
from pipeline.ingest.streams import Stream, generator

Indices: TypeAlias = npt.NDArray[np.int64]

_HOLD_OUT = {"test": Stream.HOLD_OUT_TEST, "val": Stream.HOLD_OUT_VAL}
_HELD_OUT: tuple[Literal["test", "val"], ...] = ("test", "val")


def sets_of(
    labels_N: npt.NDArray[np.int32],
    class_names: Sequence[str] | None,
    data: Data,
    *,
    given: Mapping[str, Indices] | None = None,
) -> dict[str, Indices]:
    """Split a source that has no sets of its own into sorted rows of sets.

    Labelled: test and val = those of `given`, else `num_test_per_class` and `num_val_per_class` of
    every class that is large enough, when set; probe = the rest; pretrain = the long tail of
    probe, or all of it when none is asked for. Unlabelled: pretrain is all.

    Args:
        labels_N: class index of each image.
        class_names: by class index; None when unlabelled.
        data: the section of the configuration.
        given: sets that the source brings, and `pool`, from which the others are drawn.

    Raises:
        DataError: all classes are too small.
        ConfigError: a test set is asked of images without labels.
    """
    sets = dict(given or {})
    pool = sets.pop("pool", np.arange(len(labels_N)))
    if class_names is None:
        for name in _HELD_OUT:
            if getattr(data, f"num_{name}_per_class") is not None:
                raise ConfigError(
                    "E-CONFIG-024",
                    f"images without labels have no {name} set",
                    where=f"data.num_{name}_per_class",
                    todo="remove the key, or use a source with labels",
                )
        return {"pretrain": pool}
    labels = labels_N.astype(np.int64)
    for name in _HELD_OUT:
        number = getattr(data, f"num_{name}_per_class")
        if number is not None and name not in sets:
            sets[name] = hold_out(
                labels,
                num_per_class=number,
                class_names=class_names,
                seed=data.split_seed,
                set_name=name,
                pool=pool,
            )
            pool = np.setdiff1d(pool, sets[name])
    sets["probe"] = pool
    sets["pretrain"] = long_tail(labels, pool, num_classes=len(class_names), data=data)
    return sets


def notes_of(
    sets: Mapping[str, Indices], labels_N: npt.NDArray[np.int32], class_names: Sequence[str] | None
) -> list[str]:
    """Return which classes have no image, or most of theirs, in a set that is held out.

    The number beside a class without images is that of the whole source: what the other sets left
    of it would look like its size.
    """
    if class_names is None:
        return []
    notes = []
    in_all = np.bincount(labels_N[labels_N >= 0], minlength=len(class_names)).tolist()
    held_out = [name for name in _HELD_OUT if name in sets]
    in_each = {
        name: np.bincount(labels_N[sets[name]], minlength=len(class_names)).tolist()
        for name in (*held_out, "pretrain", "probe" if "probe" in sets else "pretrain")
    }
    found: list[tuple[str, list[str]]] = []
    for name in held_out:
        counts = zip(class_names, in_each[name], in_each["pretrain"], in_all, strict=True)
        small = [f"{c} ({n})" for c, held, trained, n in counts if trained and not held]
        found.append((f"without images in {name}, with their images in all", small))
    held_N = [sum(in_each[name][c] for name in held_out) for c in range(len(class_names))]
    left_N = in_each["probe" if "probe" in sets else "pretrain"]
    most = [
        f"{c} ({h} of {h + left})"
        for c, h, left in zip(class_names, held_N, left_N, strict=True)
        if h > left
    ]
    found.append((f"that have most images in {' and '.join(held_out)}", most))
    for what, classes in found:
        if classes:
            more = f" and {len(classes) - 20} more" if len(classes) > 20 else ""
            notes.append(f"classes {what}: {', '.join(classes[:20])}{more}")
    return notes


def ordered(sets: Mapping[str, Indices], *, seed: int) -> dict[str, Indices]:
    """Return every set in its own seeded order."""
    return {
        name: row_order(np.sort(rows), set_name=name, seed=seed)
        for name, rows in sorted(sets.items())
    }


def block_ordered(
    sets: Mapping[str, Indices], block_N: npt.NDArray[np.int32], *, seed: int
) -> dict[str, Indices]:
    """Return every set with its blocks in a seeded order, so that a block is read once.

    The rows of a block stay together; `shard_order` mixes those of a shard.
    """
    result = {}
    for name, rows in sorted(sets.items()):
        blocks = np.unique(block_N[rows]).astype(np.int64)
        rank = np.zeros(int(block_N.max()) + 1, np.int64)
        rank[row_order(blocks, set_name=name, seed=seed)] = np.arange(len(blocks))
        result[name] = rows[np.argsort(rank[block_N[rows]], kind="stable")]
    return result


def shard_order(rows: Indices, *, set_name: str, number: int, seed: int) -> Indices:
    """Return a seeded permutation of the rows of one shard."""
    branch = (number, *set_name.encode())
    return generator(seed, Stream.ROWS_OF_SHARD, *branch).permutation(rows)


def row_order(rows: Indices, *, set_name: str, seed: int) -> Indices:
    """Permute a set's rows by a seed, so that every shard is a random sample of the set."""
    return generator(seed, Stream.ROWS_OF_SET, *set_name.encode()).permutation(rows)


def hold_out(
    labels: Indices,
    *,
    num_per_class: int,
    class_names: Sequence[str],
    seed: int,
    set_name: Literal["test", "val"] = "test",
    pool: Indices | None = None,
) -> Indices:
    """Hold out `num_per_class` seeded images of every class from `pool` (None = all).

    Raises:
        DataError: a class would keep no image.
    """
    chosen, largest = [], (0, "")
    pool = np.arange(len(labels)) if pool is None else pool
    for label in np.unique(labels[pool]):
        members = pool[labels[pool] == label]
        largest = max(largest, (len(members), class_names[label]))
        if len(members) <= num_per_class:
            continue
        shuffled = generator(seed, _HOLD_OUT[set_name], int(label)).permutation(members)
        chosen.append(shuffled[:num_per_class])
    if not chosen:
        raise DataError(
            "E-DATA-069",
            f"the largest class, {largest[1]!r}, has {counted(largest[0], 'image')}, too few to "
            "set "
            f"{num_per_class} aside and keep one",
            where=f"data.num_{set_name}_per_class",
            todo="lower the number, or set data.labelled=false if the folders are no classes",
        )
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def long_tail(labels: Indices, pool: Indices, *, num_classes: int, data: Data) -> Indices:
    """Return sorted indices of the long-tailed subset of `pool` that `data` configures.

    `pool` is sorted. All of it when no imbalance is drawn. Without `num_max` the head gets as
    many images as the classes allow at their ranks. The balanced twin has as many images of every
    class, and as many in all but for the rest of the division.

    Raises:
        ConfigError: a balanced twin is asked for where no long tail is drawn.
        DataError: the classes are too small for the profile.
    """
    from sdclr import longtail  # imports torch, which the processes that decode must not

    ratio = data.drawn_imbalance
    if ratio is None:
        if data.balanced_twin:
            raise ConfigError(
                "E-CONFIG-861",
                "a balanced twin is that of a long tail, and none is drawn",
                where="data.balanced_twin",
                todo="set data.imbalance_ratio, or name the images of the twin in a list",
            )
        return pool
    profile = {"exponential": longtail.exponential_counts, "pareto": longtail.pareto_counts}

    def counts(num_max: int) -> list[int]:
        return profile[data.profile](num_max, imbalance_ratio=ratio, num_classes=num_classes)

    available = np.bincount(labels[pool], minlength=num_classes)
    by_rank = available[list(longtail.class_order(num_classes, seed=data.split_seed))]
    low, high = 1, int(by_rank[0])  # the largest feasible num_max is in low..high
    while data.num_max is None and low < high:
        middle = (low + high + 1) // 2
        # Below the ratio the rarest class is empty: too small, so look higher.
        feasible = middle < ratio or bool(np.all(np.array(counts(middle)) <= by_rank))
        low, high = (middle, high) if feasible else (low, middle - 1)
    try:
        wanted = counts(data.num_max if data.num_max is not None else low)
        if data.balanced_twin:
            wanted = [sum(wanted) // num_classes] * num_classes
        chosen = longtail.long_tail_split(labels[pool], counts_by_rank=wanted, seed=data.split_seed)
    except ValueError as error:
        raise DataError(
            "E-DATA-070",
            f"the images do not allow this long tail: {error}",
            where="data.imbalance_ratio, data.num_max",
            todo="lower data.imbalance_ratio or data.num_max, set data.imbalance_ratio=null to "
            "keep the classes as they are, or change data.split_seed",
        ) from error
    return pool[chosen]


def read_index(uri: str, *, key: str, num_images: int) -> Indices:
    """Read an index list in its order: `.npy` integers, `.txt` one a line, `.json` list.

    Args:
        uri: where the list is.
        key: the configuration key that names it, for messages.
        num_images: indices must be in 0..num_images - 1, none twice.

    Raises:
        DataError: unreadable, empty, out of range, or with duplicates.
    """
    try:
        values = np.asarray(_parse_index(uri, storage.read_bytes(uri)))
    except (ValueError, EOFError, RecursionError) as error:
        what = f"the index list of data.{key} cannot be read: {str(error)[:200]}"
        raise DataError(
            "E-DATA-071", what, where=uri, todo="write .npy, .txt or .json integers"
        ) from error
    problem = None
    if values.ndim != 1 or values.dtype.kind not in "iu" or not len(values):
        problem = f"is not a list of integers (type {values.dtype}, shape {values.shape})"
    elif values.min() < 0 or values.max() >= num_images:
        problem = f"holds {values.min()}..{values.max()}, images are 0..{num_images - 1}"
    elif len(np.unique(values)) != len(values):
        problem = f"names {len(values) - len(np.unique(values))} images twice"
    if problem is not None:
        what = f"the index list of data.{key} {problem}"
        raise DataError(
            "E-DATA-072", what, where=uri, todo="check that the list belongs to this data set"
        )
    return values.astype(np.int64)


def _parse_index(uri: str, content: bytes) -> object:
    if uri.endswith(".npy"):
        return np.load(io.BytesIO(content), allow_pickle=False)
    if uri.endswith(".json"):
        return json.loads(content)
    if uri.endswith(".txt"):
        return [int(line) for line in content.decode().split("\n") if line.strip()]
    raise ValueError("its name ends neither in .npy nor .txt nor .json")
