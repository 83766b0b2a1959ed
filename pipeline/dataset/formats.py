"""Formats of images by their first bytes, and why an image is rejected."""

from __future__ import annotations

from typing import Literal, get_args

from sdclr.heif import HEAD_BYTES, HEIF_BRANDS, NEEDS_HEIF, brands_of, reads_heif

RejectReason = Literal[
    "missing",  # a list names it, the storage does not have it
    "empty",  # zero bytes
    "too_many_bytes",
    "not_an_image",
    "unsupported_format",
    "unusable_name",  # not UTF-8, or with control characters
    "too_many_pixels",
    "too_small",
    "truncated",  # ends before its last pixel
    "corrupt",  # anything else the decoder refuses
]
REJECT_REASONS: tuple[str, ...] = get_args(RejectReason)


class RejectedImage(Exception):
    """An image that will not be used: `reason` from a fixed vocabulary, `detail` for people."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason: RejectReason = reason
        self.detail = detail


_MAGIC = {
    b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF87a": "GIF", b"GIF89a": "GIF",
    b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF",
}  # fmt: skip
_BITMAP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}
_AVIF_BRANDS = {b"avif", b"avis"}


def format_of(head: bytes) -> str | None:
    """Return the image format that the first 64 bytes tell, None if it is none of those taken."""
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    # Two letters are no proof: the size of the header of a bitmap is one of a few.
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BITMAP_HEADERS:
        return "BMP"
    if brands := brands_of(head):
        return "AVIF" if brands & _AVIF_BRANDS else "HEIF" if brands & HEIF_BRANDS else None
    return None


def sniffed(data: bytes) -> str:
    """Return the format of an encoded image.

    Raises:
        RejectedImage: it is none of those taken.
    """
    found = format_of(data[:HEAD_BYTES])
    if found == "HEIF" and not reads_heif():
        raise RejectedImage("unsupported_format", NEEDS_HEIF)
    if found is not None:
        return found
    if data[4:8] == b"ftyp":
        raise RejectedImage("unsupported_format", "a video, or a still of an unknown kind")
    raise RejectedImage("not_an_image", "the first bytes are of no known image format")


def without_texts(data: bytes) -> bytes:
    """Return a PNG without texts and colour profile; a damaged rest stays as it is."""
    kept, position = [data[:8]], 8
    while position + 12 <= len(data):
        stop = position + 12 + int.from_bytes(data[position : position + 4], "big")
        if data[position + 4 : position + 8] not in (b"iCCP", b"tEXt", b"zTXt", b"iTXt"):
            kept.append(data[position:stop])
        position = stop
    return b"".join([*kept, data[position:]])
