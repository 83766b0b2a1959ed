"""Local files behind pipeline.storage: atomic replacement, typed errors."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import StorageError
from pipeline.storage.causes import LOCAL, LOCAL_OTHER
from pipeline.storage.place import local_path
from pipeline.storage.scan import ScanPage, ScanPart

# A killed writer leaves its temporary file; the prefix keeps it out of every listing.
_TEMPORARY = ".sdclr-tmp-"
_DELETE_TRIES = 10


@contextlib.contextmanager
def _typed(uri: str, action: str) -> Iterator[None]:
    """Turn what the operating system says into a StorageError with its cause."""
    try:
        yield
    except OSError as error:
        raise _storage_error(error, uri, action) from error


def _storage_error(error: OSError, uri: str, action: str) -> StorageError:
    cause = next((c for c in LOCAL if error.errno in c.codes), LOCAL_OTHER)
    what = cause.what or (os.strerror(error.errno).lower() if error.errno else str(error))
    return StorageError(cause.id, f"could not {action}: {what}", where=uri, todo=cause.todo)


class LocalStore:
    """pipeline.storage.Store on the local file system."""

    def read(self, uri: str, max_bytes: int | None = None) -> bytes:
        """Read the whole file, or its first max_bytes + 1 bytes."""
        with _typed(uri, "read"), _open(local_path(uri)) as file:
            return file.read(-1 if max_bytes is None else max_bytes + 1)

    def read_range(self, uri: str, start: int, stop: int) -> bytes:
        """Read bytes start..stop-1."""
        with _typed(uri, "read"), _open(local_path(uri)) as file:
            file.seek(start)
            return file.read(stop - start)

    def write(self, uri: str, data: bytes) -> None:
        """Replace the file in one step: readers see the old bytes or the new ones, never a mix."""
        path = local_path(uri)
        with _typed(uri, "write"):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.parent / f"{_TEMPORARY}{os.getpid()}-{secrets.token_hex(6)}"
            try:
                with open(temporary, "xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            _fsync_folder(path.parent)

    def exists(self, uri: str) -> bool:
        """Return whether a file, or a folder with something in it, is there."""
        path = local_path(uri)
        with _typed(uri, "look up"):
            try:
                is_folder = stat.S_ISDIR(path.stat().st_mode)
            except (FileNotFoundError, NotADirectoryError):
                return False
        return bool(self.children(uri)) if is_folder else True

    def children(self, uri: str) -> dict[str, int | None]:
        """Return immediate children: size in bytes of files, None for folders."""
        found: dict[str, int | None] = {}
        with _typed(uri, "list"):
            try:
                entries = os.scandir(local_path(uri))
            except FileNotFoundError:
                return found
            with entries:
                for entry in entries:
                    if not entry.name.startswith(_TEMPORARY):
                        # A link to nowhere, or a file that was deleted meanwhile.
                        with contextlib.suppress(FileNotFoundError):
                            found[entry.name] = None if entry.is_dir() else entry.stat().st_size
        return found

    def tree(self, uri: str) -> dict[str, int]:
        """List regular files below the folder; linked folders are not entered."""
        root = local_path(uri)
        found: dict[str, int] = {}

        def refuse(error: OSError) -> None:
            raise error

        with _typed(uri, "list"):
            if not root.exists():
                return found
            for folder, _, names in os.walk(root, onerror=refuse):
                for name in names:
                    path = Path(folder, name)
                    try:
                        status = path.stat()
                    except FileNotFoundError:  # a link to nowhere
                        continue
                    if stat.S_ISREG(status.st_mode) and not name.startswith(_TEMPORARY):
                        found[path.relative_to(root).as_posix()] = status.st_size
        return found

    def scan(self, uri: str, part: ScanPart, max_names: int) -> ScanPage:
        """List regular files below `part.prefix`; leave subfolders not reached as parts.

        Linked folders are named, not entered: they may lead outside, or round and round.
        """
        root, page, folders = local_path(uri), ScanPage([], [], []), [part.prefix]
        newest_s = 0.0
        with _typed(uri, "list"):
            while folders and len(page.names) < max_names:
                folder = folders.pop()
                with os.scandir(root / folder) as entries:
                    for entry in entries:
                        name = f"{folder}{entry.name}"
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(name + "/")
                        elif entry.is_dir():
                            page.links.append(name)
                        elif entry.is_file() and not entry.name.startswith(_TEMPORARY):
                            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                                found = entry.stat()
                                page.sizes.append(found.st_size)
                                page.names.append(name)
                                newest_s = max(newest_s, found.st_mtime)
        page.rest.extend(ScanPart(folder) for folder in folders)
        return replace(page, newest_s=newest_s)

    def delete_tree(self, uri: str) -> None:
        """Delete a file or a folder with all below it; a link is deleted, not followed."""
        path = local_path(uri)
        with _typed(uri, "delete"):
            for tries_left in reversed(range(_DELETE_TRIES)):
                try:
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path)
                    else:
                        path.unlink(missing_ok=True)
                    return
                except OSError as error:  # another process writes or deletes there as well
                    if error.errno not in (errno.ENOTEMPTY, errno.ENOENT) or not tries_left:
                        raise

    def remove_empty(self, uri: str) -> None:
        """Remove the folders that hold no file; links are not entered."""
        for folder, _, _ in os.walk(local_path(uri), topdown=False):
            with contextlib.suppress(OSError):  # something is in it
                os.rmdir(folder)

    def check_writable(self, uri: str) -> None:
        """Refuse a folder in which nothing may be made; nothing is made.

        Of a folder that is not there yet, its nearest parent counts.
        """
        with _typed(uri, "write"):
            folder = local_path(uri).absolute()
            while not _is_there(folder):
                folder = folder.parent
            if not stat.S_ISDIR(folder.stat().st_mode):
                raise OSError(errno.ENOTDIR, "")
            space = os.statvfs(folder)
            if space.f_flag & os.ST_RDONLY:
                raise OSError(errno.EROFS, "")
            if not os.access(folder, os.W_OK | os.X_OK):
                raise OSError(errno.EACCES, "")
            if space.f_blocks and not space.f_bavail:
                raise OSError(errno.ENOSPC, "")

    def size(self, uri: str) -> int:
        """Return the size of the file in bytes."""
        with _typed(uri, "look up"):
            return local_path(uri).stat().st_size

    def open(self, uri: str) -> BinaryIO:
        """Open the file for reading."""
        with _typed(uri, "open"):
            return _open(local_path(uri))


class LocalAppender:
    """An open local file that only grows; see pipeline.storage.LineLog."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        path = local_path(uri)
        with _typed(uri, "open"):
            path.parent.mkdir(parents=True, exist_ok=True)
            old = path.read_bytes() if path.exists() else b""
            self._file = open(path, "ab")  # noqa: SIM115 - it stays open
            whole = old.rfind(b"\n") + 1
            if whole < len(old):
                self._file.truncate(whole)

    def append(self, line: bytes) -> None:
        """Write one line and hand it to the operating system."""
        with _typed(self._uri, "append to"):
            self._file.write(line)
            self._file.flush()

    def close(self) -> None:
        """Close the file; further calls do nothing."""
        with _typed(self._uri, "close"):
            self._file.close()


def _open(path: Path) -> BinaryIO:
    """Open a regular file; a device or a pipe, which may never end, raises ESPIPE."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.ESPIPE, "")
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _fsync_folder(folder: Path) -> None:
    # Without it a power cut may forget the rename although the data is on disk.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
