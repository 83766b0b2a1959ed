"""Own outputs below a source: shards and runs of this program, known by their content.

A name alone proves nothing: `shards/test-00000.parquet` may be anyone's table. A shard and an order
file have columns that no other program writes in this way, which their footer says. A run has a
`run.json` with the fields of its record.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.dataset import sets, shards
from pipeline.dataset.manifest import MANIFEST_NAME
from pipeline.dataset.parquet import plain_columns
from pipeline.ingest.claim import CLAIM_NAME
from pipeline.ingest.sources import names as plain

_SHARD = r"(?:^|/)shards/(?:pretrain|probe|val|test|fewshot)-(?:\d{5}(?:-unique)?|order)\.parquet$"
_COLUMNS = {shards.COLUMNS, sets.COLUMNS}
_RUN_FIELDS = {"schema_version", "run", "config_hash", "stages"}
_MAX_RUN_BYTES = 2**20
# Of the files of one folder so many are looked into; all of them when these differ.
_NUM_LOOKED_INTO, _NUM_AT_ONCE = 8, 16


def own_outputs(names: pa.LargeStringArray, root: str) -> dict[str, npt.NDArray[np.int64]]:
    """Return the rows of this program's own files, by the folder of their data set or run.

    Args:
        names: of all files, relative to `root`.
        root: absolute URI of the source; one that is called `shards` may be such a place itself.

    Raises:
        StorageError: the storage does not answer or denies access.
    """
    found = {home: _below(names, home) for home in _runs(names, root)}
    in_runs = np.concatenate([*found.values(), np.empty(0, np.int64)])
    for home, rows in _shards(names, root).items():
        rows = np.setdiff1d(rows, in_runs)
        if len(rows):
            beside = pa.array([f"{home}{MANIFEST_NAME}", f"{home}{CLAIM_NAME}"], names.type)
            found[home] = np.union1d(rows, _rows(pc.is_in(names, beside)))
    return found


def _runs(names: pa.LargeStringArray, root: str) -> list[str]:
    """Return the folders of runs, without those inside others; each ends with a slash or is ""."""
    configs = names.filter(pc.match_substring_regex(names, r"(?:^|/)config\.yaml$"))
    records = pc.replace_substring_regex(configs, r"config\.yaml$", "run.json")
    likely = records.filter(pc.is_in(records, names)).to_pylist()
    homes = [name.removesuffix("run.json") for name in likely if _is_run(root, name)]
    return [h for h in homes if not any(h != other and h.startswith(other) for other in homes)]


def _is_run(root: str, name: str) -> bool:
    try:
        content = json.loads(
            storage.read_bytes(plain.address(root, name), max_bytes=_MAX_RUN_BYTES)
        )
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.keys() >= _RUN_FIELDS


def _shards(names: pa.LargeStringArray, root: str) -> dict[str, npt.NDArray[np.int64]]:
    """Return the rows of shards and order files, by the folder that holds `shards/`."""
    is_inside = root.rstrip("/").rpartition("/")[2] == "shards"
    shown = pc.binary_join_element_wise(
        pa.scalar("shards" if is_inside else "", names.type), names, pa.scalar("/", names.type)
    )
    by_home: dict[str, list[int]] = {}
    for row in _rows(pc.match_substring_regex(shown, _SHARD)).tolist():
        folder = names[row].as_py().rpartition("/")[0]
        by_home.setdefault(folder.removesuffix("shards"), []).append(row)
    found = {}
    for home, rows in by_home.items():
        own = _own(root, names.take(pa.array(rows)).to_pylist())
        found[home] = np.array(rows, np.int64)[own]
    return found


def _own(root: str, names: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Return which of the files of one folder are shards or order files as written here."""
    some = np.unique(np.linspace(0, len(names) - 1, _NUM_LOOKED_INTO).astype(np.int64))

    def is_own(name: str) -> bool:
        with storage.open_readable(plain.address(root, name)) as file:
            return plain_columns(file) in _COLUMNS

    with ThreadPoolExecutor(_NUM_AT_ONCE) as pool:
        looked = list(pool.map(is_own, [names[number] for number in some.tolist()]))
        if len(set(looked)) > 1:
            return np.array(list(pool.map(is_own, names)), bool)
    return np.full(len(names), looked[0], bool)


def _below(names: pa.LargeStringArray, home: str) -> npt.NDArray[np.int64]:
    return _rows(pc.starts_with(names, home))


def _rows(mask: pa.BooleanArray) -> npt.NDArray[np.int64]:
    return np.flatnonzero(mask.to_numpy(zero_copy_only=False))
