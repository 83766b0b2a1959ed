"""Layout of a folder of images: which of its folders are classes, which are sets.

Which folders are named like sets, `set_names` says. The layouts, in this order:

1. `train/CLASS`: the train folder holds class folders alone. `val/CLASS` and `test/CLASS` beside it
   are the other sets. Those that hold no folder of a class of train have no labels: they are left
   out. Any other folder with images is refused by its name.
2. `CLASS/train`: below all classes every image is in a folder named like a set.
3. Folders that all resemble sets, without class folders: no labels, unless the user says so.
4. Classes, when there are two or more folders, which then hold all images.
5. No labels.

What only resembles 1 to 3 is refused, so that no set is taken as a class or merged into one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.data import Data
from pipeline.console import counted
from pipeline.errors import DataError
from pipeline.ingest.sources import listing, splits
from pipeline.ingest.sources.layout_notes import (
    Folder,
    notes_labelled,
    notes_unlabelled,
    shared_folders,
    shown,
)
from pipeline.ingest.sources.set_names import resembles_set, roles_of


class Layout(NamedTuple):
    """Classes and sets of the images of a folder.

    Attributes:
        kept_N: which of all N images are used.
        folders: class folder of each of the n kept ones, None without labels.
        given: rows, among the n, of the sets that the folders are.
        notes: what a person should know of it.
    """

    kept_N: npt.NDArray[np.bool_]
    folders: pa.LargeStringArray | None
    given: Mapping[str, splits.Indices]
    notes: tuple[str, ...] = ()


def layout_of(names: pa.LargeStringArray, data: Data) -> Layout:
    """Return the layout of the images below `data.path`.

    Args:
        names: of all N images, relative to the folder.
        data: the section of the configuration; `labelled` decides where the folders do not.

    Raises:
        DataError: images beside class folders, or folders of which some are sets.
    """
    assert data.path is not None
    root = data.path.rstrip("/") or "/"
    first = listing.first_folder(names)
    second = listing.first_folder(listing.below_first_folder(names))
    folders, all_N = _folders(first, second), np.ones(len(names), bool)
    unlabelled = Layout(all_N, None, {}, notes_unlabelled(folders, first.null_count, data, root))
    if data.labelled is False:
        return unlabelled
    fewest = 1 if data.labelled else 2  # one class is none, unless the user says so
    roles = roles_of(folders)
    if (train := _train_of(folders, roles, fewest)) is not None:
        return _by_set(first, second, folders, roles, train, data, root)
    if len(folders) >= fewest and (layout := _below_classes(first, second, folders, data, root)):
        return layout
    are_sets = all(name in roles or resembles_set(name) for name in folders)
    has_classes = any(len(folder.inner) > 1 for folder in folders.values())
    if len(folders) >= fewest and has_classes and (are_sets or (roles and shared_folders(folders))):
        raise _no_train(folders, root)
    if are_sets and data.labelled is None:
        return unlabelled
    if not _is_labelled(first, data.labelled, root):
        return unlabelled
    return Layout(all_N, first, {}, notes_labelled(folders, roles, data))


def _folders(first: pa.LargeStringArray, second: pa.LargeStringArray) -> dict[str, Folder]:
    table = pa.table({"first": first, "second": second, "one": np.ones(len(first), np.int8)})
    found: dict[str, Folder] = {}
    for row in table.group_by(["first", "second"]).aggregate([("one", "count")]).to_pylist():
        if row["first"] is None:
            continue
        folder = found.setdefault(row["first"], Folder())
        if row["second"] is None:
            folder.num_flat = row["one_count"]
        else:
            folder.inner[row["second"]] = row["one_count"]
    return found


def _train_of(folders: Mapping[str, Folder], roles: Mapping[str, str], fewest: int) -> str | None:
    """Return the folder of the role train that holds class folders and nothing else."""
    for name, role in roles.items():
        if role == "train" and not folders[name].num_flat and len(folders[name].inner) >= fewest:
            return name
    return None


def _by_set(
    first: pa.LargeStringArray,
    second: pa.LargeStringArray,
    folders: Mapping[str, Folder],
    roles: Mapping[str, str],
    train: str,
    data: Data,
    root: str,
) -> Layout:
    """Return the sets of `train/CLASS` and the folders beside it; refuse what is no set."""
    if first.null_count:
        raise _mixed(first.null_count, len(folders), root)
    others = [name for name in folders if name not in roles]
    if others:
        listed = [
            f"{name} ({counted(folders[name].num_images, 'image')})" for name in sorted(others)
        ]
        raise DataError(
            "E-DATA-811",
            f"{train} holds class folders and is read as a set, but other folders beside it are "
            f"neither val nor test: {shown(listed)}",
            where=root,
            todo=f"set data.path={root}/{train} to use it alone, move the other folders elsewhere, "
            "or set data.labelled=false; if they are classes, rename the folder",
        )
    _refuse_two_of_a_role(roles, root)
    used, notes = {train: "train"}, []
    for name, role in roles.items():
        folder = folders[name]
        if name == train:
            continue
        if not folders[train].inner.keys() & folder.inner.keys():
            notes.append(
                f"{name} holds no folder of a class of {train}, so its "
                f"{counted(folder.num_images, 'image')} "
                "have no labels: they are left out"
            )
        elif folder.num_flat:
            raise _mixed(folder.num_flat, len(folder.inner), f"{root}/{name}")
        else:
            used[name] = role
    kept = pc.is_in(first, pa.array(sorted(used), first.type))
    given, note = _given(first.filter(kept), used, data)
    kept_N = kept.to_numpy(zero_copy_only=False)
    return Layout(kept_N, second.filter(kept), given, (note, *notes))


def _below_classes(
    first: pa.LargeStringArray,
    second: pa.LargeStringArray,
    folders: Mapping[str, Folder],
    data: Data,
    root: str,
) -> Layout | None:
    """Return the sets of `CLASS/train` and `CLASS/val`; None if no class has such folders."""
    inner = {name for folder in folders.values() for name in folder.inner}
    roles = roles_of(inner)
    if len(set(roles.values())) < 2:
        return None
    others = [
        f"{name}/{below}" for name in folders for below in folders[name].inner if below not in roles
    ]
    others += [name for name, folder in folders.items() if folder.num_flat]
    if others or first.null_count or "train" not in roles.values():
        holder = max(folders, key=lambda name: len(folders[name].inner.keys() & roles.keys()))
        what = f"also images in {shown(sorted(others))}" if others else "no train below them"
        raise DataError(
            "E-DATA-814",
            f"below the first folders there are sets, {shown(sorted(roles))}, but {what}"
            + (
                f", and {counted(first.null_count, 'image')} in no folder"
                if first.null_count
                else ""
            ),
            where=root,
            todo=f"set data.path={root}/{holder} if the sets are all below it; put every image "
            "into CLASS/train, CLASS/val or CLASS/test; or set data.labelled=false",
        )
    _refuse_two_of_a_role(roles, root)
    given, note = _given(second, roles, data)
    return Layout(np.ones(len(first), bool), first, given, (f"below every class: {note}",))


def _given(
    names: pa.LargeStringArray, roles: Mapping[str, str], data: Data
) -> tuple[dict[str, splits.Indices], str]:
    """Return the rows of the sets, one of val and test alone as the test set, and say so."""
    rows = {
        role: np.flatnonzero(pc.equal(names, name).to_numpy(zero_copy_only=False))
        for name, role in roles.items()
    }
    folder = {role: name for name, role in roles.items()}
    given = {"pool": rows["train"]}
    words = [f"{folder['train']} is pre-trained and probed on"]
    if "test" in rows:
        given["test"] = rows["test"]
        words.append(f"{folder['test']} is scored on")
        if "val" in rows:
            given["val"] = rows["val"]
            words.append(f"{folder['val']} is tuned on")
    elif "val" in rows:
        given["test"] = rows["val"]
        words.append(f"{folder['val']} is scored on as the set test")
    unused = [
        f"data.num_{name}_per_class"
        for name in ("test", "val")
        if name in given and getattr(data, f"num_{name}_per_class") is not None
    ]
    if unused:
        words.append(f"{' and '.join(unused)} has no use")
    return given, ", ".join(words)


def _is_labelled(folders: pa.LargeStringArray, wanted: bool | None, root: str) -> bool:
    num_folders = len(pc.unique(folders.drop_null()))
    if wanted is None and num_folders < 2:  # one class is none
        return False
    if folders.null_count:
        raise _mixed(folders.null_count, num_folders, root)
    return True


def _refuse_two_of_a_role(roles: Mapping[str, str], where: str) -> None:
    for role in sorted(set(roles.values())):
        names = [name for name in roles if roles[name] == role]
        if len(names) > 1:
            raise DataError(
                "E-DATA-813",
                f"several folders may be the set {role}: {shown(sorted(names))}",
                where=where,
                todo="move all but one of them elsewhere, put their images into one folder, or set "
                "data.labelled=false",
            )


def _no_train(folders: Mapping[str, Folder], root: str) -> DataError:
    first = max(folders, key=lambda name: (name in roles_of(folders), name))
    listed = [
        f"{n} ({counted(f.num_flat, 'image')}, {counted(len(f.inner), 'folder')})"
        for n, f in folders.items()
    ]
    return DataError(
        "E-DATA-812",
        "the folders are sets by their names or by what they hold, and none of them is a train "
        f"that holds class folders alone: {shown(sorted(listed))}",
        where=root,
        todo=f"set data.path={root}/{first} or another of them, put all images of train "
        "into class folders, or set data.labelled=false",
    )


def _mixed(num_flat: int, num_folders: int, where: str) -> DataError:
    return DataError(
        "E-DATA-047",
        f"the layout is mixed: images beside class folders, {num_flat} beside {num_folders}"
        if num_folders
        else "there are no class folders, so the images have no labels",
        where=where,
        todo="put every image into the folder of its class, or set data.labelled=false",
    )
