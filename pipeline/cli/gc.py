"""Housekeeping: what nothing needs any more is listed, and removed once it is asked for twice.

The second time the listing's token must be given. It covers every key and size, so what changed in
between is refused. Only exact keys that this project writes are removed: a folder that holds
anything else stays, and so does what is not recognised.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline import storage
from pipeline.console import Console, counted, program
from pipeline.dataset.manifest import MANIFEST_NAME, read_manifest
from pipeline.errors import ConfigError
from pipeline.record.abandoned import with_end
from pipeline.record.run import FAILED, INTERRUPTED, RUNNING, Run
from pipeline.tune.trials import Trials

_DATA_SET = r"manifest\.json|ingest\.json|shards/[\w.-]+\.parquet"
_STEP = r"(state\.safetensors|state\.json)"
_RUN = (
    r"run\.json|config\.yaml|metrics\.jsonl|training\.json|fault\.json|stop\.json|stopped\.json|report\.html"
    rf"|tables/[\w.-]+\.csv|ray/.+|models/[a-z]+/checkpoints/step-\d+/{_STEP}"
)
_TRIAL = rf"trials/[\w-]+/(trial\.json|measures\.jsonl|{_RUN})"
_SWEEP = rf"{_RUN}|{_TRIAL}|study\.journal|sweep\.json|best\.yaml|measures\.jsonl"
_STEP_NAME = re.compile(r"step-\d+")


@dataclass(frozen=True)
class Orphan:
    """A folder that nothing needs.

    Args:
        kind: data set, run, sweep or checkpoint.
        uri: of the folder.
        why: it is not needed.
        files: sizes in bytes by relative name.
    """

    kind: str
    uri: str
    why: str
    files: dict[str, int]

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(self.files.values())


@dataclass(frozen=True)
class Found:
    """The content of a root.

    Args:
        orphans: in the order of their places.
        kept: folders that would be orphans, each with the first file that is not ours.
        num_known: data sets, runs and sweeps that were recognised.
    """

    orphans: tuple[Orphan, ...]
    kept: tuple[tuple[str, str], ...]
    num_known: int

    @property
    def token(self) -> str:
        """Hash of every key and size that would be removed."""
        text = json.dumps([[o.uri, sorted(o.files.items())] for o in self.orphans])
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def collect(root: str) -> Found:
    """Look for orphans in a root of data sets, of runs, or in the folder that holds both.

    Raises:
        StorageError: the root cannot be listed.
        DataError: a record is broken; nothing is known of what it names, so nothing is listed.
    """
    runs, data_sets = dict[str, Run](), list[str]()
    for uri, names in _folders(root):
        if "run.json" in names:
            runs[uri] = with_end(uri, Run.read(storage.join(uri, "run.json")))
        elif MANIFEST_NAME in names or (names and names <= {"shards", "ingest.json"}):
            data_sets.append(uri)
    found, kept = [], []
    for orphan, allowed in [*_of_data(data_sets, runs), *_of_runs(runs)]:
        strange = [name for name in orphan.files if not re.fullmatch(allowed, name)]
        if strange:
            kept.append((orphan.uri, strange[0]))
        else:
            found.append(orphan)
    found.sort(key=lambda orphan: orphan.uri)
    return Found(tuple(found), tuple(kept), len(runs) + len(data_sets))


def _folders(root: str) -> Iterator[tuple[str, set[str]]]:
    """Yield the folders at the root and one level below, with the names in each."""
    for uri in _inside(root):
        names = set(storage.list_names(uri))
        yield uri, names
        if not names & {"run.json", MANIFEST_NAME, "shards"}:
            for inner in _inside(uri):
                yield inner, set(storage.list_names(inner))


def _inside(uri: str) -> list[str]:
    """Return the folders in a folder; a link leads elsewhere and is left out."""
    names = set(storage.list_names(uri)) - storage.list_sizes(uri).keys()
    inside = [storage.join(uri, name) for name in sorted(names)]
    return [folder for folder in inside if storage.absolute(folder) == folder]


def _of_data(uris: list[str], runs: dict[str, Run]) -> Iterator[tuple[Orphan, str]]:
    used = {run.data.manifest_hash for run in runs.values() if run.data is not None}
    for uri in uris:
        why = "an ingest that did not finish; the next one restarts it"
        if storage.exists(storage.join(uri, MANIFEST_NAME)):
            if read_manifest(uri).hash in used:
                continue
            why = "no run below this root names it"
        yield Orphan("data set", uri, why, storage.list_tree(uri)), _DATA_SET


def _of_runs(runs: dict[str, Run]) -> Iterator[tuple[Orphan, str]]:
    for uri, run in runs.items():
        if run.status == RUNNING:
            continue
        is_sweep = storage.exists(storage.join(uri, "trials"))
        trials = Trials(uri).all() if is_sweep else []
        has_ended_badly = run.status in (FAILED, INTERRUPTED)
        if is_sweep and has_ended_badly and not any(t.status == "complete" for t in trials):
            why = f"{run.status}, and no trial is complete"
            yield Orphan("sweep", uri, why, storage.list_tree(uri)), _SWEEP
            continue
        whole, torn = _checkpoints(uri)
        for trial in storage.list_names(storage.join(uri, "trials")) if is_sweep else ():
            torn += _checkpoints(storage.join(uri, "trials", trial))[1]
        if not is_sweep and has_ended_badly and not whole:
            why = f"{run.status} before its first checkpoint: nothing to resume"
            yield Orphan("run", uri, why, storage.list_tree(uri)), _RUN
            continue
        for step in torn:
            why = "was being written when its process died"
            yield Orphan("checkpoint", step, why, storage.list_tree(step)), _STEP


def _checkpoints(run_uri: str) -> tuple[list[str], list[str]]:
    """Return the checkpoints of a run that are whole, and those without a commit record."""
    whole: list[str] = []
    torn: list[str] = []
    for method in storage.list_names(storage.join(run_uri, "models")):
        folder = storage.join(run_uri, "models", method, "checkpoints")
        for name in storage.list_names(folder):
            if _STEP_NAME.fullmatch(name):
                uri = storage.join(folder, name)
                is_whole = storage.exists(storage.join(uri, "commit.json"))
                (whole if is_whole else torn).append(uri)
    return whole, torn


def gc(root: str, token: str | None, console: Console) -> None:
    """List the orphans of a root; with the token of that listing, remove them.

    Raises:
        ConfigError: the token is not that of what is there now.
    """
    root = storage.absolute(root)
    found = collect(root)
    console.stage("gc", f"{root}: {found.num_known} data sets, runs and sweeps are known")
    for uri, name in found.kept:
        console.stage("gc", f"kept {uri}: it holds {name}, which is not ours")
    if not found.orphans:
        console.stage("gc", "nothing to remove")
        return
    rows = [[o.kind, o.uri, f"{o.num_bytes / 1e6:.1f}", o.why] for o in found.orphans]
    console.table(["kind", "folder", "MB", "why"], rows)
    if token is None:
        words = shlex.join(["gc", "--root", root, "--remove", found.token])
        console.line(f"to remove them: {program()} {words}")
        return
    if token != found.token:
        raise ConfigError(
            "E-CONFIG-602",
            f"the token {token} is not that of this listing",
            where=f"gc --root {root} --remove",
            todo="read the listing again: something has changed, or was never listed",
        )
    for orphan in found.orphans:
        _remove(orphan)
    total = sum(orphan.num_bytes for orphan in found.orphans) / 1e6
    console.stage("gc", f"removed {counted(len(found.orphans), 'folder')}, {total:.1f} MB")


def _remove(orphan: Orphan) -> None:
    """Remove exactly the listed files: what makes the folder what it is goes first."""
    first = {"manifest.json": 0, "run.json": 1}
    for name in sorted(orphan.files, key=lambda name: (first.get(name, 2), name)):
        storage.delete_tree(storage.join(orphan.uri, name))
    storage.remove_empty(orphan.uri)
