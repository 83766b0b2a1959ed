"""The text of a list of images: encoding, delimiter, heading and columns, seen from its content."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import re
from collections.abc import Callable
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_IMAGE_NAMES = (
    "image", "path", "file", "filename", "file_name", "filepath", "file_path", "image_path",
    "image_file", "image_name", "image_id", "img", "img_path", "name", "uri", "url",
)  # fmt: skip
_LABEL_NAMES = (
    "label", "class", "target", "category", "label_name", "class_name", "labels", "label_id",
    "class_id", "category_id", "species", "y",
)  # fmt: skip
_NUM_LOOKED_AT = 20
# Lines above a heading that are looked for, and how Excel states its delimiter.
_NUM_TITLES = 4
_STATED_DELIMITER = re.compile(r"sep=([,;|\t])\n", re.IGNORECASE)


class Columns(NamedTuple):
    """Paths and labels as they are written; None without labels."""

    paths: pa.LargeStringArray
    labels: pa.LargeStringArray | None


class Wanted(NamedTuple):
    """Names of the columns as the user gave them; None = recognised."""

    image: str | None
    label: str | None
    needs_label: bool


def decoded(content: bytes) -> str:
    """Return the text, by its byte order mark, else as UTF-8, with line feeds between lines.

    Raises:
        ValueError: it is no text.
    """
    encoding = next((encoding for bom, encoding in _BOMS if content.startswith(bom)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 from byte {error.start} on; save it as UTF-8") from None
    if "\0" in text:
        raise ValueError("it holds zero characters; save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def table_columns(
    text: str, delimiter: str, wanted: Wanted, exists: Callable[[str], bool]
) -> Columns:
    """Return the columns of a .csv or .tsv list.

    Args:
        text: of the file.
        delimiter: that of its ending; another one counts when the first lines have none of it.
        wanted: columns that the user named.
        exists: whether there is an image of a name; asked when the first line may be a heading.

    Raises:
        ValueError: the columns are ambiguous, a named one is missing, or the table is torn.
    """
    text = text.lstrip("\n")
    stated = _STATED_DELIMITER.match(text)
    if stated is not None:
        delimiter, text = stated[1], text[stated.end() :]
    else:
        delimiter = _delimiter(text, delimiter)
    cells, *others = (
        [cell.strip() for cell in row]
        for row in itertools.islice(
            csv.reader(io.StringIO(text), delimiter=delimiter), _NUM_TITLES + 1
        )
    )
    _refuse_title(cells, others, wanted, exists)
    heading = cells if _is_heading(cells, wanted, exists) else None
    columns = [
        _without_blanks(column, exists)
        for column in _rows(text, delimiter, int(heading is not None), len(cells))
    ]
    if not len(columns[0]):
        raise ValueError(f"it has a heading and no images: {', '.join(cells[:20])}")
    if heading is None:
        named = wanted.image or wanted.label
        if named is not None:
            raise ValueError(f"its first line does not name the column {named}")
        if len(columns) > 2:
            raise ValueError(
                f"it has {len(columns)} columns and no heading; write one, such as path,label"
            )
        return Columns(columns[0], columns[1] if len(columns) == 2 else None)
    unnamed = [n for n, cell in enumerate(heading) if n and not cell and _has_text(columns[n])]
    if unnamed:
        raise ValueError(
            f"its heading does not name column {unnamed[0] + 1}; name it, such as label"
        )
    image, label = _chosen(heading, wanted)
    for number in (image, label):
        if number is not None and heading[number] and heading.count(heading[number]) > 1:
            raise ValueError(f"several of its columns are named {heading[number]}")
    return Columns(columns[image], None if label is None else columns[label])


def text_columns(text: str, exists: Callable[[str], bool]) -> Columns:
    """Return the columns of a .txt list: path, or path and a whole number behind a blank."""
    whole_text = pa.array([text], pa.large_string())
    lines = pc.utf8_ltrim(pc.list_flatten(pc.split_pattern(whole_text, "\n")), "\t\r")
    lines = pc.utf8_rtrim(lines, " \t\r")
    lines = _without_blanks(lines.filter(pc.greater(pc.binary_length(lines), 0)), exists)
    pattern = r"^(?P<path>.*[^ \t])[ \t]+(?P<label>-?\d+)$"
    found = pc.extract_regex(lines, pattern)
    if len(lines) > 1 and found[0].as_py() is None and found[1].as_py() is not None:
        cells = re.split(r"[ \t]+", lines[0].as_py())
        if len(cells) == 2 and _is_heading(cells, Wanted(None, None, False), exists):
            lines = lines[1:]
            found = pc.extract_regex(lines, pattern)
    whole = pc.is_null(found)
    paths = pc.if_else(whole, lines, pc.struct_field(found, "path"))
    labels = pc.if_else(whole, "", pc.struct_field(found, "label"))
    return Columns(paths.cast(pa.large_string()), labels.cast(pa.large_string()))


def _refuse_title(
    cells: list[str], others: list[list[str]], wanted: Wanted, exists: Callable[[str], bool]
) -> None:
    """Refuse a first line above the heading: read as a heading it would hide the labels."""
    if _names_columns(cells, wanted) or exists(cells[0]):
        return
    for number, row in enumerate(others, 2):
        if len(row) > 1 and _names_columns(row, wanted) and not exists(row[0]):
            raise ValueError(
                f"its heading, {','.join(row)[:80]}, is line {number}; remove what is above it"
            )


def _names_columns(cells: list[str], wanted: Wanted) -> bool:
    """Return whether a line has the name of a column of images."""
    lower = {cell.lower() for cell in cells}
    return bool(lower & {*_IMAGE_NAMES, (wanted.image or "").lower() or "path"})


def _has_text(column: pa.LargeStringArray) -> bool:
    return bool(pc.any(pc.greater(pc.binary_length(column), 0)).as_py())


def _without_blanks(
    column: pa.LargeStringArray, exists: Callable[[str], bool]
) -> pa.LargeStringArray:
    """Return the cells without the blanks that the writer put beside every one of them.

    Blanks that the first image has in its name are part of all names.
    """
    first = column[0].as_py() if len(column) else ""
    if first == first.strip() or exists(first):
        return column
    if pc.all(pc.starts_with(column, " ")).as_py():
        column = pc.ascii_ltrim(column, " ")
    if pc.all(pc.ends_with(column, " ")).as_py():
        column = pc.ascii_rtrim(column, " ")
    return column


def _delimiter(text: str, usual: str) -> str:
    lines = [line for line in text.split("\n", _NUM_LOOKED_AT)[:_NUM_LOOKED_AT] if line.strip()]
    if any(usual in line for line in lines):
        return usual
    for other in (",", ";", "\t", "|"):
        counts = {line.count(other) for line in lines}
        if len(counts) == 1 and counts != {0}:
            return other
    return usual


def _rows(text: str, delimiter: str, skip: int, num_columns: int) -> list[pa.LargeStringArray]:
    names = [f"c{number}" for number in range(num_columns)]
    table = pacsv.read_csv(
        pa.BufferReader(text.encode()),
        read_options=pacsv.ReadOptions(column_names=names, skip_rows=skip),
        parse_options=pacsv.ParseOptions(delimiter=delimiter),
        convert_options=pacsv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.large_string()), strings_can_be_null=False
        ),
    )
    return [pa.chunked_array(c.chunks, pa.large_string()).combine_chunks() for c in table.columns]


def _is_heading(cells: list[str], wanted: Wanted, exists: Callable[[str], bool]) -> bool:
    """Return whether the first line names columns: by the names, else as no image has its name."""
    if len(cells) > 1 and re.search(r"[/\\]|\.\w{1,5}$", cells[0]):
        return False
    lower = [cell.lower() for cell in cells]
    if any(name is not None and name.lower() in lower for name in (wanted.image, wanted.label)):
        return True
    if lower[0] in ("", *_IMAGE_NAMES) or (len(cells) > 1 and set(lower) & {*_IMAGE_NAMES}):
        return not (cells[0] and exists(cells[0]))
    looks_like_a_file = re.search(r"[/\\]|\.\w{1,5}$", cells[0]) is not None
    return not looks_like_a_file and not exists(cells[0])


def _chosen(heading: list[str], wanted: Wanted) -> tuple[int, int | None]:
    """Return the numbers of the columns of images and labels."""
    lower = [cell.lower() for cell in heading]
    listed = ", ".join(cell or "(no name)" for cell in heading[:20])

    def named(name: str, key: str) -> int:
        if name.lower() not in lower:
            raise ValueError(f"it has no column {name}, which {key} names; it has {listed}")
        return heading.index(name) if name in heading else lower.index(name.lower())

    real = [
        number for number, cell in enumerate(heading) if cell
    ]  # pandas writes its index unnamed
    if wanted.image is not None:
        image = named(wanted.image, "data.image_column")
    else:
        known = [number for name in _IMAGE_NAMES for number in real if lower[number] == name]
        if not known and len(real) > 2:
            raise ValueError(f"which of its columns names the image is not clear: {listed}; "
                             "set data.image_column")  # fmt: skip
        image = known[0] if known else real[0]
    if wanted.label is not None:
        return image, named(wanted.label, "data.label_column")
    others = [number for number in real if number != image]
    if not others or not wanted.needs_label:
        return image, None
    known = [number for name in _LABEL_NAMES for number in others if lower[number] == name]
    if not known and len(others) > 1:
        raise ValueError(f"which of its columns is the label is not clear: {listed}; "
                         "set data.label_column or data.labelled=false")  # fmt: skip
    return image, known[0] if known else others[0]
