"""Layout of a folder of images: which of its folders are classes, which are sets.

Which folders are named like sets, `set_names` says. The layouts, in this order:

1. `train/CLASS`: the train folder holds class folders alone. `val/CLASS` and `test/CLASS` beside it
   are the other sets. Those that hold no folder of a class of train have no labels: they are left
   out. Any other folder with images is refused by its name.
2. `CLASS/train`: below all classes every image is in a folder named like a set.
3. Folders that are all named like sets, without class folders: no labels.
4. Classes, when there are two or more folders, which then hold all images.
5. No labels.

What only resembles 1 to 3 is refused, so that no set is taken as a class or merged into one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.data import Data
from pipeline.errors import DataError
from pipeline.ingest.sources import listing, splits
from pipeline.ingest.sources.set_names import resembles_set, roles_of

_DATES = re.compile(r"(19|20)\d\d([-_. ]?[01]?\d([-_. ]?[0-3]?\d)?)?")
# What a folder holds: images of one collection beside their masks.
_CONTENTS = re.compile(
    r"(?:jpeg|jpg|png)?(?:images?|imgs?|photos?|pictures?)|(?:.*[ _.-])?(?:masks?|labels?|gt|depth)"
    r"|annotations?|segmentation.*|ground[ _.-]?truth",
    re.IGNORECASE,
)
_UNLABELLED = "set data.labelled=false if the folders are no classes"
_NUM_SHOWN = 5


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


@dataclass
class _Folder:
    """Images directly in a folder, and those in each folder below it."""

    num_flat: int = 0
    inner: dict[str, int] = field(default_factory=dict)

    @property
    def num_images(self) -> int:
        """Number of images at any depth."""
        return self.num_flat + sum(self.inner.values())


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
    unlabelled = Layout(all_N, None, {}, _notes_unlabelled(folders, first.null_count, data, root))
    if data.labelled is False:
        return unlabelled
    fewest = 1 if data.labelled else 2  # one class is none, unless the user says so
    roles = roles_of(folders)
    if (train := _train_of(folders, roles, fewest)) is not None:
        return _by_set(first, second, folders, roles, train, data, root)
    if len(folders) >= fewest and (layout := _below_classes(first, second, folders, data, root)):
        return layout
    if len(folders) >= fewest and all(resembles_set(name) or name in roles
                                      for name in folders):  # fmt: skip
        if data.labelled is None and not any(len(f.inner) > 1 for f in folders.values()):
            return unlabelled
        raise _no_train(folders, root)
    if not _is_labelled(first, data.labelled, root):
        return unlabelled
    return Layout(all_N, first, {}, _notes_labelled(folders, roles, data))


def _folders(first: pa.LargeStringArray, second: pa.LargeStringArray) -> dict[str, _Folder]:
    table = pa.table({"first": first, "second": second, "one": np.ones(len(first), np.int8)})
    found: dict[str, _Folder] = {}
    for row in table.group_by(["first", "second"]).aggregate([("one", "count")]).to_pylist():
        if row["first"] is None:
            continue
        folder = found.setdefault(row["first"], _Folder())
        if row["second"] is None:
            folder.num_flat = row["one_count"]
        else:
            folder.inner[row["second"]] = row["one_count"]
    return found


def _train_of(folders: Mapping[str, _Folder], roles: Mapping[str, str], fewest: int) -> str | None:
    """Return the folder of the role train that holds class folders and nothing else."""
    for name, role in roles.items():
        if role == "train" and not folders[name].num_flat and len(folders[name].inner) >= fewest:
            return name
    return None


def _by_set(
    first: pa.LargeStringArray,
    second: pa.LargeStringArray,
    folders: Mapping[str, _Folder],
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
        counted = [f"{name} ({folders[name].num_images} images)" for name in sorted(others)]
        raise DataError(
            "E-DATA-811",
            f"{train} holds class folders and is read as a set, but other folders beside it are "
            f"neither val nor test: {_shown(counted)}",
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
                f"{name} holds no folder of a class of {train}, so its {folder.num_images} images "
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
    folders: Mapping[str, _Folder],
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
        what = f"also images in {_shown(sorted(others))}" if others else "no train below them"
        raise DataError(
            "E-DATA-814",
            f"below the first folders there are sets, {_shown(sorted(roles))}, but {what}"
            + (f", and {first.null_count} images in no folder" if first.null_count else ""),
            where=root,
            todo="put every image into CLASS/train, CLASS/val or CLASS/test, name the images in "
            "lists (data.source=list), or set data.labelled=false",
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


def _notes_labelled(
    folders: Mapping[str, _Folder], roles: Mapping[str, str], data: Data
) -> tuple[str, ...]:
    """Return why the folders, which are taken as classes, may be none."""
    notes, some = [], _shown(sorted(folders)[:3])
    if roles:
        notes.append(f"{_shown(sorted(roles))} beside other folders are taken as classes")
    is_none = (all(pattern.fullmatch(name) for name in folders) for pattern in (_DATES, _CONTENTS))
    if data.labelled is None and any(is_none):
        notes.append(f"folders such as {some} are taken as classes; {_UNLABELLED}")
    inner = [set() if folder.num_flat else folder.inner.keys() for folder in folders.values()]
    if len(shared := set.intersection(*map(set, inner))) > 1:
        notes.append(
            f"{some} are taken as classes, although each of them holds the same folders: "
            f"{_shown(sorted(shared))}"
        )
    return tuple(notes)


def _notes_unlabelled(
    folders: Mapping[str, _Folder], num_flat: int, data: Data, root: str
) -> tuple[str, ...]:
    """Return what a folder that is read without labels may have been meant as."""
    roles = roles_of(folders)
    train = next((name for name, role in roles.items() if role == "train"), None)
    is_sets = roles or all(resembles_set(name) for name in folders)
    if len(folders) > 1 and is_sets:
        what = f"all of {_shown(sorted(folders))} is pre-trained on"
        return (f"{what}; data.path={root}/{train or min(folders)} leaves the rest out",)
    if len(folders) == 1 and not num_flat and data.labelled is None:
        ((name, folder),) = folders.items()
        if folder.num_flat or len(folder.inner) < 2:
            return ()
        what = f"takes its {len(folder.inner)} folders as classes"
        if roles_of(folder.inner):
            what = f"looks for sets in {_shown(sorted(folder.inner))}"
        return (f"all images are below {name}: data.path={root}/{name} {what}",)
    return ()


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
                f"several folders may be the set {role}: {_shown(sorted(names))}",
                where=where,
                todo="move all but one of them elsewhere, put their images into one folder, or set "
                "data.labelled=false",
            )


def _no_train(folders: Mapping[str, _Folder], root: str) -> DataError:
    first = max(folders, key=lambda name: (name in roles_of(folders), name))
    counted = [f"{n} ({f.num_flat} images, {len(f.inner)} folders)" for n, f in folders.items()]
    return DataError(
        "E-DATA-812",
        "all folders are named like sets, and none of them is a train that holds class folders "
        f"alone: {_shown(sorted(counted))}",
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


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - _NUM_SHOWN} more" if len(names) > _NUM_SHOWN else ""
    return ", ".join(names[:_NUM_SHOWN]) + more
