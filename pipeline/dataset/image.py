"""Image bytes from strangers to RGB pixels, within limits, or a rejection with a reason.

Formats: JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, and HEIC where `pillow-heif` is installed. The first
bytes tell them apart, whatever the name says; no other parser is ever started.

What becomes of the less usual:

- of an animation the first frame is taken, of a file with several pages or pictures the first one;
- EXIF orientation is applied; an unreadable EXIF block counts as upright;
- grey and bilevel are repeated into three channels;
- 16-bit grey: the fewest of 8, 10, 12, 14 or 16 bits that hold the largest sample of the image are
  taken as its range, of which the upper 8 bits are kept; 16-bit colour keeps the high byte;
- palettes are resolved; transparency is laid over white;
- CMYK is converted with the plain formula; colour profiles are not applied;
- texts and profiles of a PNG that are too large for the decoder are skipped: pixels decide.

No torch here: Ray Data starts many processes that import this module.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import AvifImagePlugin, Image

from pipeline.dataset.formats import RejectedImage, RejectReason, sniffed, without_texts

Pixels: TypeAlias = npt.NDArray[np.uint8]
Remark: TypeAlias = Literal["few bits", "more frames"]

# What people should know of images that are taken.
REMARKS: dict[Remark, str] = {
    "few bits": "16 bits of which 14 or fewer are used: grey is scaled to the bits that each image "
    "uses, colour stays dark",
    "more frames": "several frames or pages: the first is taken",
}

# Our own limit is checked before any pixel is decoded, and users may raise it above Pillow's.
Image.MAX_IMAGE_PIXELS = None
# One image is one task: threads of a decoder would fight for the same processors.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

_WHITE = (255, 255, 255, 255)
_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = {_TURNS[orientation] for orientation in (5, 6, 7, 8)}


@dataclass(frozen=True)
class ImageLimits:
    """Limits of an image: size of the file, pixels (height x width), least shorter side."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 64_000_000
    min_side_px: int = 8


class Decoded(NamedTuple):
    """Pixels (H, W, 3) uint8 of an image, and what is remarkable about it."""

    rgb: Pixels
    remarks: tuple[Remark, ...]


def remarked(counts: Mapping[Remark, int]) -> list[str]:
    """Return how many images have each remark, in words."""
    return [
        f"{number} {'image has' if number == 1 else 'images have'} {REMARKS[remark]}"
        for remark, number in sorted(counts.items())
    ]


def decode_rgb(data: bytes, limits: ImageLimits) -> Pixels:
    """Return the pixels (H, W, 3) uint8 of an encoded image, upright; rules: see the module.

    All limits are checked on the header, before pixels are decoded.

    Raises:
        RejectedImage: the only failure that hostile or broken bytes can cause.
    """
    return decode(data, limits).rgb


def decode(data: bytes, limits: ImageLimits) -> Decoded:
    """Decode as `decode_rgb` does, and remark on hardly used bits and on more frames.

    Raises:
        RejectedImage: as `decode_rgb`.
    """
    image, _, remarks = _decode(data, limits)
    return Decoded(np.array(image), remarks)


def decode_canvas(
    data: bytes, limits: ImageLimits, canvas_px: int, out: Pixels | None = None
) -> tuple[Pixels, tuple[int, int]]:
    """Decode onto a canvas, faster than `fit_canvas(decode_rgb(...))` for large JPEGs.

    The decoder leaves out frequencies (1/2, 1/4 or 1/8 of the size) as long as at least twice the
    size on the canvas is left for the antialiased resize. `out`: a canvas to write to.

    Raises:
        RejectedImage: as `decode_rgb`.
    """
    image, size, _ = _decode(data, limits, at_least_px=2 * canvas_px)
    return _on_canvas(image, size, canvas_px, out)


def _decode(
    data: bytes, limits: ImageLimits, *, at_least_px: int | None = None
) -> tuple[Image.Image, tuple[int, int], tuple[Remark, ...]]:
    """Return the upright RGB image, its height and width before any reduction, and remarks."""
    if not data:
        raise RejectedImage("empty", "the file has zero bytes")
    if len(data) > limits.max_bytes:
        raise RejectedImage("too_many_bytes", f"{len(data)} bytes, limit {limits.max_bytes}")
    image_format = sniffed(data)
    try:
        return _decode_as(image_format, data, limits, at_least_px)
    except RejectedImage as error:
        # Pillow bounds the texts and profiles of a PNG; they are no part of the picture.
        if image_format != "PNG" or "MAX_TEXT" not in error.detail:
            raise
    return _decode_as(image_format, without_texts(data), limits, at_least_px)


def _decode_as(
    image_format: str, data: bytes, limits: ImageLimits, at_least_px: int | None
) -> tuple[Image.Image, tuple[int, int], tuple[Remark, ...]]:
    # Decoders warn about damaged metadata; the outcome below is all that counts.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = _read_header(data, image_format)
        _check_header(image, limits)
        width_px, height_px = image.size
        try:
            if at_least_px is not None and image_format == "JPEG":
                scale = at_least_px / max(image.size)
                image.draft(None, (max(1, int(width_px * scale)), max(1, int(height_px * scale))))
            image.load()
            turn = None
            if image_format == "TIFF":  # its decoder has turned the image by itself
                width_px, height_px = image.size
            else:
                turn = _turn(image)
            if turn in _SWAPS_SIDES:
                width_px, height_px = height_px, width_px
            upright = image if turn is None else image.transpose(turn)
            rgb, is_dark = _to_rgb(upright)
            remarks: list[Remark] = []
            if is_dark or _is_dark_colour(rgb, data, image_format):
                remarks.append("few bits")
            if at_least_px is None and _has_more_frames(image, image_format):
                remarks.append("more frames")
            return rgb, (height_px, width_px), tuple(remarks)
        except (MemoryError, RejectedImage):
            raise
        except Exception as error:  # decoders raise nearly everything on hostile bytes
            reason: RejectReason = "truncated" if "truncated" in str(error) else "corrupt"
            raise RejectedImage(reason, _stable_text(error)) from error


def fit_canvas(rgb: Pixels, canvas_px: int) -> tuple[Pixels, tuple[int, int]]:
    """Place an image on a square canvas, so that images stack into one array.

    The long side is reduced to `canvas_px` (bicubic with antialiasing, aspect kept); a smaller
    image is not enlarged. It is at the top left; the rest is zero.

    Args:
        rgb: (H, W, 3) uint8.
        canvas_px: side S of the canvas in pixels, at least 1.

    Returns:
        The canvas (3, S, S) uint8, and height and width of the image on it in pixels.
    """
    return _on_canvas(Image.fromarray(rgb), (rgb.shape[0], rgb.shape[1]), canvas_px)


def _on_canvas(
    image: Image.Image, size: tuple[int, int], canvas_px: int, out: Pixels | None = None
) -> tuple[Pixels, tuple[int, int]]:
    height_px, width_px = size
    if max(size) > canvas_px:
        scale = canvas_px / max(size)
        height_px, width_px = max(1, round(height_px * scale)), max(1, round(width_px * scale))
        image = image.resize((width_px, height_px), Image.Resampling.BICUBIC)
    canvas = np.empty((3, canvas_px, canvas_px), np.uint8) if out is None else out
    canvas[:, :height_px, :width_px] = np.asarray(image).transpose(2, 0, 1)
    canvas[:, :height_px, width_px:] = 0
    canvas[:, height_px:] = 0
    return canvas, (height_px, width_px)


def resized_jpeg(rgb: Pixels, short_px: int) -> bytes | None:
    """Encode as JPEG of quality 95 with the short side reduced to `short_px`, aspect kept.

    Bicubic with antialiasing. None when it is no larger: nothing is enlarged or encoded again.

    Args:
        rgb: (H, W, 3) uint8.
        short_px: at least 1.
    """
    height_px, width_px = rgb.shape[:2]
    scale = short_px / min(height_px, width_px)
    if scale >= 1:
        return None
    size = (max(1, round(width_px * scale)), max(1, round(height_px * scale)))
    sink = BytesIO()
    reduced = Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC)
    reduced.save(sink, format="JPEG", quality=95)
    return sink.getvalue()


def png_bytes(rgb: Pixels) -> bytes:
    """Encode (H, W, 3) uint8 as PNG."""
    sink = BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb)).save(sink, format="PNG")
    return sink.getvalue()


def _read_header(data: bytes, image_format: str) -> Image.Image:
    try:
        return Image.open(BytesIO(data), formats=[image_format])
    except MemoryError:
        raise
    except Exception as error:
        why = f": {_stable_text(error)}" if "MAX_TEXT" in str(error) else ""
        detail = f"the {image_format} header cannot be read{why}"
        raise RejectedImage("corrupt", detail) from error


def _check_header(image: Image.Image, limits: ImageLimits) -> None:
    width_px, height_px = image.size
    if width_px * height_px > limits.max_pixels:
        detail = f"{width_px} x {height_px} pixels, limit {limits.max_pixels}"
        raise RejectedImage("too_many_pixels", detail)
    if min(width_px, height_px) < limits.min_side_px:
        detail = f"{width_px} x {height_px} pixels, shorter side at least {limits.min_side_px}"
        raise RejectedImage("too_small", detail)
    if image.mode == "F":
        raise RejectedImage("unsupported_format", "samples of floating point have no known range")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return the transposition that makes the image upright."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except MemoryError:
        raise
    except Exception:  # damaged metadata does not spoil the pixels
        orientation = 1
    return _TURNS.get(orientation) if isinstance(orientation, int) else None


def _has_more_frames(image: Image.Image, image_format: str) -> bool:
    """Return whether more frames or pages follow. A second picture in a JPEG is a by-product."""
    with suppress(Exception):  # a damaged later frame does not spoil the first
        return image_format != "JPEG" and bool(getattr(image, "is_animated", False))
    return False


def _to_rgb(image: Image.Image) -> tuple[Image.Image, bool]:
    """Return the image in RGB, and whether its 16-bit samples leave bits unused."""
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip at 255
        grey = np.asarray(image).astype(np.int64)
        if grey.size and (grey.min() < 0 or grey.max() > 0xFFFF):
            raise RejectedImage("unsupported_format", "grey samples of more than 16 bits")
        bits = next(bits for bits in (8, 10, 12, 14, 16) if grey.max(initial=0) < 1 << bits)
        scaled = Image.fromarray((grey >> (bits - 8)).astype(np.uint8))
        return scaled.convert("RGB"), bits < 16
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba)
    return image if image.mode == "RGB" else image.convert("RGB"), False


def _is_dark_colour(rgb: Image.Image, data: bytes, image_format: str) -> bool:
    """Return whether a PNG of 16-bit colour leaves the upper two bits of all samples unused."""
    if image_format != "PNG" or data[24:25] != b"\x10" or data[25:26] not in (b"\2", b"\6"):
        return False
    return max(high for _, high in rgb.getextrema()) < 64  # type: ignore[misc]


def _stable_text(error: Exception) -> str:
    # Memory addresses would make two manifests of the same images differ.
    return re.sub(r"0x[0-9a-f]+", "0x", f"{type(error).__name__}: {error}")[:160]
