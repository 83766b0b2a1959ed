"""Tables with a column of image bytes: `.parquet` files, however they were written.

Columns are named in the configuration; `image.bytes` is the field `bytes` of the column `image`.
Only those columns are read, and only as bytes, numbers and strings: a file that declares an Arrow
extension type (a pickled object may hide behind one) is refused before Arrow's reader sees its
schema.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.cluster.jobs import Result, Tasks
from pipeline.config.data import Data
from pipeline.dataset.parquet import footer
from pipeline.errors import DataError
from pipeline.ingest.sources import listing, splits
from pipeline.ingest.sources import names as plain
from pipeline.ingest.sources.class_names import classes_of
from pipeline.ingest.sources.index import Containers, ImageIndex
from pipeline.ingest.sources.listing import Excluded, Listing
from pipeline.ingest.sources.set_names import note_of_sets

# A row group is decoded as one stretch of memory; a small file may claim any size.
_MAX_GROUP_BYTES = 2 * 2**30
_MAX_FOOTER_BYTES = 64 * 2**20


def parquet_index(data: Data, tasks: Tasks) -> ImageIndex:
    """Index the rows of all tables below `data.path` (or of one table), by name and row.

    Ids are FILE/ROW. Sets: see `splits.sets_of`. A row group is a block.

    Raises:
        DataError: no table, a missing column, a column of another type, an extension type.
    """
    assert data.path is not None
    root, names, found_files = files_of(data.path, ".parquet", tasks)
    excluded = Excluded() if found_files is None else found_files.excluded
    label_column = None if data.labelled is False else data.label_column
    shared = {"root": root, "image": data.image_column, "label": label_column}
    found = dict(tasks.map(look_at_table, [{"name": name} for name in names], shared))
    ids, sizes, labels, files, places, blocks = [], [], [], [], [], []
    num_blocks = 0
    for number, name in enumerate(names):
        groups, num_rows = found[number].values, 0
        for group_rows, group_bytes in groups:
            sizes.append(np.full(group_rows, group_bytes // max(1, group_rows), np.int64))
            blocks.append(np.full(group_rows, num_blocks, np.int32))
            num_blocks, num_rows = num_blocks + 1, num_rows + group_rows
        rows = pa.array(np.arange(num_rows)).cast(pa.large_string())
        ids.append(listing.joined(name, rows))
        files.append(np.full(num_rows, number, np.int32))
        places.append(np.arange(num_rows, dtype=np.int64))
        if label_column is not None:
            table = found[number].table
            assert table is not None
            labels.append(table["label"].combine_chunks())
    all_ids = pa.concat_arrays(ids)
    if not len(all_ids):
        raise DataError(
            "E-DATA-052", "the tables have no rows", where=data.path, todo="check data.path"
        )
    class_names, labels_N = classes_of(pa.concat_arrays(labels) if labels else None, len(all_ids))
    block_N = np.concatenate(blocks)
    sets = splits.sets_of(labels_N, class_names, data)
    return ImageIndex(
        source={
            "kind": "parquet",
            "labelled": bool(labels),
            "num_files": len(names),
            "num_images": len(all_ids),
        },
        ids=all_ids,
        num_bytes_N=np.concatenate(sizes),
        labels_N=labels_N,
        sets=splits.block_ordered(sets, block_N, seed=data.split_seed),
        class_names=class_names,
        root=root,
        containers=Containers(
            kind="parquet",
            names=tuple(names),
            file_N=np.concatenate(files),
            place_N=np.concatenate(places),
            block_N=block_N,
            image_column=data.image_column,
        ),
        left_out=excluded.left_out(),
        listing=found_files,
        notes=note_of_sets(names),
    )


def files_of(path: str, ending: str, tasks: Tasks) -> tuple[str, list[str], Listing | None]:
    """Return the folder, sorted names and listing of the files at `path`: itself, or all below."""
    if listing.is_one_file(path, ending):
        folder, name = plain.split(storage.absolute(path))
        return folder, [name], None
    found = listing.list_files(path, (ending,), tasks)
    return storage.absolute(path), found.names.to_pylist(), found


def look_at_table(item: dict[str, Any], shared: Any) -> Result:
    """Return rows and image bytes of each row group, and the labels as text; a job."""
    uri = plain.address(shared["root"], item["name"])
    with open_table(uri) as file:
        _check_column(file, shared["image"], uri, "data.image_column", _is_bytes)
        leaves, groups = _leaves(file, shared["image"]), []
        for number in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(number)
            num_bytes = sum(group.column(leaf).total_uncompressed_size for leaf in leaves)
            if num_bytes > _MAX_GROUP_BYTES:
                raise DataError(
                    "E-DATA-053",
                    f"row group {number} claims {num_bytes} bytes of images, at most "
                    f"{_MAX_GROUP_BYTES} are read",
                    where=uri,
                    todo="write the table with smaller row groups",
                )
            groups.append((group.num_rows, num_bytes))
        if shared["label"] is None:
            return Result(groups)
        _check_column(file, shared["label"], uri, "data.label_column", _is_label)
        column = _flat(file.read(columns=[shared["label"]], use_threads=False), shared["label"])
        labels = _text(column, uri)
    num_empty = labels.null_count + int(pc.sum(pc.equal(labels, "")).as_py() or 0)
    if num_empty:
        what = f"{num_empty} rows of the label column are empty"
        raise DataError("E-DATA-054", what, where=uri, todo="fill them, or set data.labelled=false")
    return Result(groups, pa.table({"label": labels}))


def _text(column: Any, uri: str) -> pa.LargeStringArray:
    """Write labels as text: numbers that are whole without a fraction, null where there is none."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_floating(column.type):
        try:
            column = pc.if_else(pc.is_nan(column), None, column).cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise DataError(
                "E-DATA-302",
                "the label column holds numbers with a fraction",
                where=uri,
                todo="set data.label_column to a column of classes, or data.labelled=false",
            ) from error
    return column.cast(pa.large_string())


@contextmanager
def open_table(uri: str) -> Iterator[pq.ParquetFile]:
    """Open the table once its footer shows that no extension type is declared.

    Raises:
        DataError: not a Parquet file, one with an extension type, or one that proves broken.
    """
    with storage.open_readable(uri) as source:
        try:
            if _declares_extension(footer(source, max_bytes=_MAX_FOOTER_BYTES)):
                raise DataError(
                    "E-DATA-055",
                    "the table declares an Arrow extension type, which may hold pickled objects",
                    where=uri,
                    todo="write the images as plain bytes (Arrow type binary)",
                )
            yield pq.ParquetFile(source, pre_buffer=False)
        except (pa.ArrowException, OSError, ValueError) as error:
            todo = "check or remove the file"
            what = f"the table cannot be read: {error!s:.200}"
            raise DataError("E-DATA-056", what, where=uri, todo=todo) from error


def _declares_extension(footer: bytes) -> bool:
    """Return whether the Arrow schema in the footer names an extension type.

    It is a flat buffer in base64, whose strings are stored as they are. Bytes before it may look
    like its beginning, so every run of base64 is decoded from each of four starts.
    """
    for run in re.findall(rb"[A-Za-z0-9+/]{24,}", footer):
        for start in range(4):
            text = run[start : start + (len(run) - start) // 4 * 4]
            rest = run[start + len(text) :]
            padded = text + (rest + b"=" * (4 - len(rest)) if len(rest) > 1 else b"")
            if b"ARROW:extension:" in base64.b64decode(padded):
                return True
    return b"ARROW:extension:" in footer


def read_rows(
    uri: str, image_column: str, rows: np.ndarray[Any, np.dtype[np.int64]]
) -> Iterator[tuple[int, bytes]]:
    """Yield position in `rows` (any order of rows) and image bytes, in the table's order.

    Values are decoded one by one: a dictionary could blow up a batch beyond any size.
    """
    positions = {int(row): position for position, row in enumerate(rows)}
    with open_table(uri) as file:
        first = 0
        for number in range(file.metadata.num_row_groups):
            num_rows = file.metadata.row_group(number).num_rows
            if any(first <= row < first + num_rows for row in positions):
                batches = file.iter_batches(
                    1, row_groups=[number], columns=[image_column], use_threads=False
                )
                for row, batch in enumerate(batches, first):
                    if row in positions:
                        value = _flat(pa.Table.from_batches([batch]), image_column)[0]
                        yield positions[row], _bytes(value, row, uri)
            first += num_rows


def _bytes(value: pa.Scalar, row: int, uri: str) -> bytes:
    """Return an image as bytes, of which some writers make a list of numbers of -128..255."""
    if pa.types.is_dictionary(value.type):
        value = value.value
        assert value is not None
    if not value.is_valid:
        return b""
    if not isinstance(value, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar):
        return bytes(value.as_py())
    numbers = value.values
    small = pc.min_max(numbers)
    low, high = small["min"].as_py(), small["max"].as_py()
    if numbers.null_count or (low is not None and not -128 <= low <= high <= 255):
        raise DataError(
            "E-DATA-810",
            f"the list of numbers in row {row} of the image column is not one of bytes: {low} to "
            f"{high}, {numbers.null_count} empty",
            where=uri,
            todo="write the bytes of the image files, or set data.image_column to another column",
        )
    content: bytes = numbers.to_numpy(zero_copy_only=False).astype(np.uint8).tobytes()
    return content


def _flat(table: pa.Table, name: str) -> Any:
    if name in table.column_names:  # a column whose own name has a dot
        return table[name].combine_chunks()
    column = table[name.partition(".")[0]].combine_chunks()
    for field in name.split(".")[1:]:
        column = pc.struct_field(column, field)
    return column


def _check_column(file: pq.ParquetFile, name: str, uri: str, key: str, fits: Any) -> None:
    """Refuse a table without the column, or with one of another type."""
    kind: pa.DataType | None = None
    found: Any = file.schema_arrow
    for part in [name] if name in file.schema_arrow.names else name.split("."):
        fields = {field.name: field for field in found} if _has_fields(found) else {}
        if part not in fields:
            leaves = [file.schema.column(i).path for i in range(len(file.schema))]
            raise DataError(
                "E-DATA-057",
                f"the table has no column {name}; it has {', '.join(leaves[:20])}",
                where=uri,
                todo=f"set {key} to one of them",
            )
        if sum(field.name == part for field in found) > 1:
            raise DataError(
                "E-DATA-307",
                f"the table has several columns named {part}",
                where=uri,
                todo=f"give each of them its own name, or set {key} to another column",
            )
        found = kind = fields[part].type
    if not fits(kind):
        what = f"the column {name} holds {kind}, which does not fit"
        inner = (
            [f"{name}.{f.name}" for f in kind or () if fits(f.type)] if _has_fields(kind) else []
        )
        todo = f"set {key}={inner[0]}" if inner else f"set {key} to another column"
        raise DataError("E-DATA-058", what, where=uri, todo=todo)


def _has_fields(found: Any) -> bool:
    return isinstance(found, pa.Schema) or pa.types.is_struct(found)


def _leaves(file: pq.ParquetFile, name: str) -> list[int]:
    paths = [file.schema.column(i).path for i in range(len(file.schema))]
    return [i for i, path in enumerate(paths) if path == name or path.startswith(f"{name}.")]


def _is_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if any(test(kind) for test in lists):
        return bool(pa.types.is_integer(kind.value_type))
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests) or bool(pa.types.is_fixed_size_binary(kind))


def _is_label(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (
        pa.types.is_integer, pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
        pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal, pa.types.is_date,
    )  # fmt: skip
    return any(test(kind) for test in tests)
