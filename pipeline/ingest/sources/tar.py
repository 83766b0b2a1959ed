"""Members of a tar archive, read header by header in bounded time and memory.

Only names, sizes and positions are taken; nothing is ever unpacked. Formats: ustar, and the long
names of GNU and pax. A header is 512 bytes, followed by the content, filled up to 512. Archives
that were put one behind another are read as one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_BLOCK_BYTES = 512
_MAX_EXTENSION_BYTES = 64 * 1024
_MAX_PADDING_BYTES = 64 * 1024
_FILES, _FOLDER = (b"0", b"\0", b"7"), b"5"


class Member(NamedTuple):
    """One entry: `kind` is "file", "folder" or, for links, devices and the like, "other"."""

    name: str
    kind: str
    start: int
    num_bytes: int


class BrokenTarError(ValueError):
    """Not a tar archive, or one that is cut or inconsistent."""


def members(file: BinaryIO, file_bytes: int) -> Iterator[Member]:
    """Yield all entries in their order.

    Raises:
        BrokenTarError: a header is damaged, or the content would reach beyond the end.
    """
    position: int = 0
    long_name, extended = None, dict[str, str]()
    while True:
        file.seek(position)
        header = file.read(_BLOCK_BYTES)
        if not header.strip(b"\0"):
            if position == 0:
                raise BrokenTarError("the file is empty")
            following = _next_archive(file, position)
            if following is None:
                return
            position = following
            long_name, extended = None, {}
            continue
        if len(header) < _BLOCK_BYTES or not _checksum_fits(header):
            raise BrokenTarError(f"no tar header at byte {position}")
        kind, num_bytes = header[156:157], _number(header[124:136])
        if "size" in extended:
            num_bytes = _decimal(extended["size"])
        start = position + _BLOCK_BYTES
        if start + num_bytes > file_bytes:
            raise BrokenTarError(f"the entry at byte {position} reaches beyond the end of the file")
        position = start + -(-num_bytes // _BLOCK_BYTES) * _BLOCK_BYTES
        if kind in (b"L", b"K", b"x", b"g"):
            if num_bytes > _MAX_EXTENSION_BYTES:
                raise BrokenTarError(f"an extended header of {num_bytes} bytes")
            content = file.read(num_bytes)
            if kind == b"L":
                long_name = content.rstrip(b"\0").decode("utf-8", "backslashreplace")
            elif kind == b"x":
                extended = _pax(content)
            continue
        name = extended.get("path") or long_name or _ustar_name(header)
        long_name, extended = None, {}
        member_kind = "file" if kind in _FILES else "folder" if kind == _FOLDER else "other"
        yield Member(name, member_kind, start, num_bytes)


def has_end_mark(file: BinaryIO, file_bytes: int) -> bool:
    """Return whether the file ends in a block of zeros, as archives do unless they were cut."""
    file.seek(max(0, file_bytes - _BLOCK_BYTES))
    return not file.read(_BLOCK_BYTES).strip(b"\0")


def _next_archive(file: BinaryIO, position: int) -> int | None:
    """Return where another archive begins behind the end mark of one, None if there is none."""
    file.seek(position)
    padding = file.read(_MAX_PADDING_BYTES)
    filled = len(padding) - len(padding.lstrip(b"\0"))
    start = filled // _BLOCK_BYTES * _BLOCK_BYTES
    header = padding[start : start + _BLOCK_BYTES]
    whole = filled < len(padding) and len(header) == _BLOCK_BYTES
    return position + start if whole and _checksum_fits(header) else None


def _checksum_fits(header: bytes) -> bool:
    blank = header[:148] + b" " * 8 + header[156:]
    try:
        return _number(header[148:156]) == sum(blank)
    except BrokenTarError:
        return False


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # base 256, for sizes that eleven octal digits cannot hold
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    text = field.strip(b"\0 ")
    try:
        value = int(text or b"0", 8)
    except ValueError as error:
        raise BrokenTarError(f"no octal number: {text!r}") from error
    if value < 0:
        raise BrokenTarError(f"a negative number: {text!r}")
    return value


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise BrokenTarError(f"no size: {text[:40]!r}")
    return int(text)


def _pax(content: bytes) -> dict[str, str]:
    """Parse records of LENGTH KEY=VALUE and a newline."""
    found, rest = {}, content
    while rest.strip(b"\0"):
        digits, space, _ = rest.partition(b" ")
        if not space or not digits.isdigit() or not 4 < int(digits[:6]) <= len(rest):
            raise BrokenTarError("a damaged pax header")
        length = int(digits[:6])
        key, _, value = rest[len(digits) + 1 : length - 1].partition(b"=")
        found[key.decode("utf-8", "backslashreplace")] = value.decode("utf-8", "backslashreplace")
        rest = rest[length:]
    return found


def _ustar_name(header: bytes) -> str:
    name = header[:100].rstrip(b"\0")
    prefix = header[345:500].rstrip(b"\0")
    whole = prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name
    return whole.partition(b"\0")[0].decode("utf-8", "backslashreplace")
