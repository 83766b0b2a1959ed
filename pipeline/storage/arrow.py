"""`pipeline.storage` as a file system of pyarrow: what Ray Train writes gets our retries and puts.

Ray Train keeps a few small files of its own beside a run. Written by pyarrow's S3 client, three
failed answers in a row end the whole training, and the number of tries cannot be raised: the
setting does not survive pickling.
"""

from __future__ import annotations

import io
from typing import Any, NoReturn

import pyarrow as pa
from pyarrow import fs

from pipeline import storage


class StorageHandler(fs.FileSystemHandler):  # type: ignore[misc]
    """Whole objects below one scheme, such as `s3://`; paths come without it."""

    def __init__(self, scheme: str) -> None:
        self._scheme = scheme

    def _uri(self, path: str) -> str:
        return self._scheme + path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StorageHandler) and other._scheme == self._scheme

    def get_type_name(self) -> str:
        """Return the name that Ray's messages show."""
        return "sdclr"

    def normalize_path(self, path: str) -> str:
        """Return the path, which is plain already."""
        return path

    def get_file_info(self, paths: list[str]) -> list[Any]:
        """Return what is at each path."""
        return [self._info(path) for path in paths]

    def _info(self, path: str) -> Any:
        parent, _, name = path.rstrip("/").rpartition("/")
        size = storage.list_sizes(self._uri(parent)).get(name)
        if size is not None:
            return fs.FileInfo(path, fs.FileType.File, size=size)
        there = storage.exists(self._uri(path))
        return fs.FileInfo(path, fs.FileType.Directory if there else fs.FileType.NotFound)

    def get_file_info_selector(self, selector: Any) -> list[Any]:
        """List all objects below a folder, or those immediately in it."""
        tree = storage.list_tree(self._uri(selector.base_dir))
        return [
            fs.FileInfo(f"{selector.base_dir}/{name}", fs.FileType.File, size=size)
            for name, size in tree.items()
            if selector.recursive or "/" not in name
        ]

    def create_dir(self, path: str, recursive: bool) -> None:
        """Do nothing: folders exist with their first object."""

    def delete_dir(self, path: str) -> None:
        """Delete all below."""
        storage.delete_tree(self._uri(path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        """Delete all below."""
        storage.delete_tree(self._uri(path))

    def delete_root_dir_contents(self) -> NoReturn:
        """Refuse."""
        raise NotImplementedError("a whole storage is not emptied")

    def delete_file(self, path: str) -> None:
        """Delete one object."""
        storage.delete_tree(self._uri(path))

    def move(self, src: str, dest: str) -> None:
        """Copy, then delete."""
        self.copy_file(src, dest)
        self.delete_file(src)

    def copy_file(self, src: str, dest: str) -> None:
        """Read and write one object."""
        storage.write_bytes(self._uri(dest), storage.read_bytes(self._uri(src)))

    def open_input_stream(self, path: str) -> Any:
        """Open the whole object, read at once."""
        return pa.BufferReader(storage.read_bytes(self._uri(path)))

    def open_input_file(self, path: str) -> Any:
        """Open the whole object, read at once."""
        return self.open_input_stream(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        """Open a stream that is published whole when it is closed."""
        return pa.PythonFile(_Upload(self._uri(path)), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> NoReturn:
        """Refuse: objects do not grow."""
        raise NotImplementedError("objects do not grow")


class _Upload(io.BytesIO):
    def __init__(self, uri: str) -> None:
        super().__init__()
        self._uri = uri

    def close(self) -> None:
        if not self.closed:
            content = self.getvalue()
            super().close()
            storage.write_bytes(self._uri, content)


def filesystem(uri: str) -> tuple[Any, str]:
    """Return a file system for what is below `uri`, and its path there; local: (None, path)."""
    scheme, separator, path = uri.partition("://")
    if not separator or scheme == "file":
        return None, uri
    return fs.PyFileSystem(StorageHandler(scheme + separator)), path
