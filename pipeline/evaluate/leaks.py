"""Images that two sets share although one of them is there to be scored on: found by SHA-256.

Only hashes of identical stored bytes are compared: a re-encoded or shifted copy is not found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from pipeline.cluster.marked_nodes import on_nodes
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.sets import Part, parts_of
from pipeline.dataset.shards import read_hashes
from pipeline.errors import DataError
from pipeline.record.evaluation import Leak

Hashes: TypeAlias = tuple[list[str], list[str]]  # ids and the hash of each

_HELD_OUT = ("test", "val")
_TRAINED_ON = ("pretrain", "probe", "fewshot")
_SHOWN = 5


def find_leaks(data_uri: str, manifest: Manifest, *, mark: str | None = None) -> list[Leak]:
    """Find pairs of sets that share images; one Ray task per shard reads its hashes.

    Args:
        data_uri: the data set.
        manifest: what is in it.
        mark: of the nodes that may read it; None for any node.

    Returns:
        One `Leak` for each pair with shared images; test against val comes first.
    """
    import ray

    task: Any = ray.remote(read_hashes)
    task = task.options(**on_nodes(mark))
    pending = {shard.name: task.remote(data_uri, shard) for shard in manifest.shards()}
    found = dict(zip(pending, ray.get(list(pending.values())), strict=True))
    hashes = {
        str(name): _joined([_taken(part, found) for part in parts_of(data_uri, manifest, name)])
        for name in manifest.sets
    }
    return shared_images(hashes)


def _taken(part: Part, found: Mapping[str, Hashes]) -> Hashes:
    """Return ids and hashes of the rows of a shard that are in the set."""
    ids, digests = found[part.shard.name]
    if part.rows_n is None:
        return ids, digests
    rows = part.rows_n.tolist()
    return [ids[row] for row in rows], [digests[row] for row in rows]


def shared_images(sets: dict[str, dict[str, list[str]]]) -> list[Leak]:
    """Find the pairs of `find_leaks` in sets given as hash -> ids."""
    pairs = [(a, b) for a in _HELD_OUT for b in (*_TRAINED_ON, "val") if a != b]
    found = []
    for held_out, other in sorted(pairs, key=lambda pair: pair[1] != "val"):
        if held_out not in sets or other not in sets:
            continue
        shared = sorted(sets[held_out].keys() & sets[other].keys())
        num_images = sum(len(sets[held_out][digest]) for digest in shared)
        if num_images:
            examples = sorted((sets[held_out][d][0], sets[other][d][0]) for d in shared)
            found.append(
                Leak(
                    sets=(held_out, other),
                    images=num_images,
                    of=sum(map(len, sets[held_out].values())),
                    examples=tuple(examples[:_SHOWN]),
                )
            )
    return found


def sentences(leaks: Sequence[Leak]) -> list[str]:
    """Return one sentence for each pair, with the first names."""
    return [
        f"leak: {leak.images} of {leak.of} images of {leak.sets[0]} are also in "
        f"{leak.sets[1]}: " + ", ".join(f"{a} = {b}" for a, b in leak.examples)
        for leak in leaks
    ]


def refuse(leaks: Sequence[Leak], manifest: Manifest, *, max_frac: float) -> None:
    """Refuse a data set in which a pair shares more than `max_frac` of the held-out set.

    Raises:
        DataError: naming the sets and the first images.
    """
    grave = [leak for leak in leaks if leak.images > max_frac * leak.of]
    if grave:
        largest = max(leak.images / leak.of for leak in grave)
        raise DataError(
            "E-DATA-037",
            "images that are scored on are also trained on:\n" + "\n".join(sentences(grave)),
            where=f"data set {manifest.name}",
            todo="take them out of one of the sets, delete the data set and ingest again; "
            f"evaluate.max_leak_frac={largest:.4g} scores it as it is",
        )


def _joined(parts: Sequence[tuple[Sequence[str], Sequence[str]]]) -> dict[str, list[str]]:
    joined: dict[str, list[str]] = {}
    for ids, digests in parts:
        for sample_id, digest in zip(ids, digests, strict=True):
            joined.setdefault(digest, []).append(sample_id)
    return joined
