"""Classes of a source, from the label of each image as text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import DataError
from pipeline.ingest.sources import names as plain

# So few words among class numbers are a mistake, such as a heading or "n/a".
_MAX_STRAY_FRAC = 0.05
_NUM_SHOWN = 5


def classes_of(
    names: pa.LargeStringArray | None, num_images: int, *, are_folders: bool = False
) -> tuple[tuple[str, ...] | None, npt.NDArray[np.int32]]:
    """Return the class names and the class index of each image; None and -1s without names.

    Names that are exactly the numbers 0..C-1 are the indices. All others are names, sorted; those
    of digits only by their number. So no class is invented, merged or empty.

    Args:
        names: label of each image as text.
        num_images: how many there are.
        are_folders: whether the names are those of folders, which may mean anything.

    Raises:
        DataError: nearly all labels of a table or list are numbers and the others are words, a
            number is negative, or a label is no plain text.
    """
    if names is None:
        return None, np.full(num_images, -1, np.int32)
    if not are_folders:
        _refuse_unfit(names)
    counts = pc.value_counts(names)
    values, numbers = counts.field("values").to_pylist(), counts.field("counts").to_pylist()
    if not are_folders:
        if all(re.fullmatch(r"-?\d{1,18}\.0+", value) for value in values):  # as pandas writes them
            return classes_of(pc.replace_substring_regex(names, r"\.0+$", ""), num_images)
        _refuse_stray(dict(zip(values, numbers, strict=True)), num_images)
    if set(values) == {str(number) for number in range(len(values))}:
        class_names = tuple(str(number) for number in range(len(values)))
    else:
        class_names = tuple(sorted(values, key=_natural))
    found = pc.index_in(names, pa.array(class_names, names.type))
    return class_names, found.to_numpy(zero_copy_only=False).astype(np.int32)


def _natural(name: str) -> tuple[bool, int, str]:
    is_number = name.isascii() and name.isdigit() and len(name) < 19
    return not is_number, int(name) if is_number else 0, name


def _refuse_stray(counts: Mapping[str, int], num_images: int) -> None:
    words = sorted(value for value in counts if not re.fullmatch(r"-?\d{1,18}", value))
    num_words = sum(counts[word] for word in words)
    negative = sorted(value for value in counts if re.fullmatch(r"-\d{1,18}", value))
    if negative and not words:
        raise DataError(
            "E-DATA-068",
            f"{sum(counts[n] for n in negative)} labels are negative numbers, first "
            f"{negative[0]!r}, which stand for no label in many tables",
            where="labels of the source",
            todo="leave out the images without a label, or set data.labelled=false",
        )
    if words and num_words <= _MAX_STRAY_FRAC * num_images and len(words) < len(counts):
        raise DataError(
            "E-DATA-301",
            f"{num_images - num_words} labels are whole numbers and {num_words} are not, "
            f"first {words[0][:100]!r}",
            where="labels of the source",
            todo="write a number or a name for every image, or leave these images out",
        )


def _refuse_unfit(names: pa.LargeStringArray) -> None:
    """Refuse labels that no file and no console can show as they are."""
    values = pc.unique(names).to_pylist()
    unfit = sorted(name for name in values if len(name) > plain.MAX_CHARS or _has_control(name))
    if unfit:
        raise DataError(
            "E-DATA-306",
            f"{len(unfit)} different labels hold control characters or are longer than "
            f"{plain.MAX_CHARS} characters, first '{plain.shown(unfit[0])}'",
            where="labels of the source",
            todo="write every label as one line of text, or set data.labelled=false",
        )


def _has_control(name: str) -> bool:
    return any(unicodedata.category(char) == "Cc" for char in name)


def note_of_look_alikes(class_names: Sequence[str] | None) -> tuple[str, ...]:
    """Return a line on classes that differ in case, blanks, leading zeros or the way of writing."""
    groups: dict[str, list[str]] = {}
    for name in class_names or ():
        groups.setdefault(_look(name), []).append(name)
    alike = [" and ".join(map(_told_apart, group)) for group in groups.values() if len(group) > 1]
    if not alike:
        return ()
    more = f", and {len(alike) - _NUM_SHOWN} more" if len(alike) > _NUM_SHOWN else ""
    what = f"classes that look alike are kept apart: {', '.join(alike[:_NUM_SHOWN])}{more}"
    return (f"{what}; give them one name if they are one class",)


def _look(name: str) -> str:
    look = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    return (look.lstrip("0") or "0") if look.isdecimal() else look


def _told_apart(name: str) -> str:
    return repr(name) if unicodedata.is_normalized("NFC", name) else ascii(name)
