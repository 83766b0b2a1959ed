"""Image bytes from strangers to RGB pixels, within limits, or a rejection with a reason.

Formats: JPEG, PNG, WebP, recognised by their first bytes; no other parser is ever started. GIF,
BMP, TIFF and HEIF are recognised and rejected by name.

What becomes of the less usual:

- animated PNG and WebP are rejected; of a multi-picture JPEG (MPO, from phones) the main picture
  is taken;
- EXIF orientation is applied; an unreadable EXIF block counts as upright;
- grey and bilevel are repeated into three channels; 16-bit samples keep their high byte;
- palettes are resolved; transparency is laid over white;
- CMYK is converted with the plain formula; colour profiles are not applied.

No torch here: Ray Data starts many processes that import this module.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels: TypeAlias = npt.NDArray[np.uint8]

RejectReason = Literal[
    "missing",  # a list names it, the storage does not have it
    "empty",  # zero bytes
    "too_many_bytes",
    "not_an_image",
    "unsupported_format",
    "animated",
    "too_many_pixels",
    "too_small",
    "truncated",  # ends before its last pixel
    "corrupt",  # anything else the decoder refuses
]
REJECT_REASONS: tuple[str, ...] = get_args(RejectReason)

# Our own limit is checked before any pixel is decoded, and users may raise it above Pillow's.
Image.MAX_IMAGE_PIXELS = None

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


class RejectedImage(Exception):  # noqa: N818
    """An image that will not be used: `reason` from a fixed vocabulary, `detail` for people."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason: RejectReason = reason
        self.detail = detail


def decode_rgb(data: bytes, limits: ImageLimits) -> Pixels:
    """Decode an image to upright pixels (H, W, 3) uint8; rules in the module's docstring.

    All limits are checked on the header, before pixels are decoded.

    Raises:
        RejectedImage: the only failure that hostile or broken bytes can cause.
    """
    image, _ = _decode(data, limits)
    return np.array(image)


def decode_canvas(
    data: bytes, limits: ImageLimits, canvas_px: int, out: Pixels | None = None
) -> tuple[Pixels, tuple[int, int]]:
    """Decode onto a canvas, faster than `fit_canvas(decode_rgb(...))` for large JPEGs.

    The decoder leaves out frequencies (1/2, 1/4 or 1/8 of the size) as long as at least twice the
    size on the canvas is left for the antialiased resize. `out`: a canvas to write to.

    Raises:
        RejectedImage: as `decode_rgb`.
    """
    image, size = _decode(data, limits, at_least_px=2 * canvas_px)
    return _on_canvas(image, size, canvas_px, out)


def _decode(
    data: bytes, limits: ImageLimits, *, at_least_px: int | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """Return the upright RGB image, and its height and width before any reduction."""
    if not data:
        raise RejectedImage("empty", "the file has zero bytes")
    if len(data) > limits.max_bytes:
        raise RejectedImage("too_many_bytes", f"{len(data)} bytes, limit {limits.max_bytes}")
    image_format = _sniff(data)
    # Decoders warn about damaged metadata; the outcome below is all that counts.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = _read_header(data, image_format)
        _check_header(image, image_format, limits)
        width_px, height_px = image.size
        try:
            if at_least_px is not None and image_format == "JPEG":
                scale = at_least_px / max(image.size)
                image.draft(None, (max(1, int(width_px * scale)), max(1, int(height_px * scale))))
            image.load()
            turn = _turn(image)
            if turn in _SWAPS_SIDES:
                width_px, height_px = height_px, width_px
            upright = image if turn is None else image.transpose(turn)
            return _to_rgb(upright), (height_px, width_px)
        except MemoryError:
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


def _sniff(data: bytes) -> str:
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    others = {b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
    for magic, name in others.items():
        if data.startswith(magic):
            raise RejectedImage("unsupported_format", name)
    if data[4:8] == b"ftyp":
        raise RejectedImage("unsupported_format", "HEIF, AVIF or video")
    raise RejectedImage("not_an_image", "the first bytes are of no known image format")


def _read_header(data: bytes, image_format: str) -> Image.Image:
    try:
        return Image.open(BytesIO(data), formats=[image_format])
    except MemoryError:
        raise
    except Exception as error:
        raise RejectedImage("corrupt", f"the {image_format} header cannot be read") from error


def _check_header(image: Image.Image, image_format: str, limits: ImageLimits) -> None:
    width_px, height_px = image.size
    if width_px * height_px > limits.max_pixels:
        detail = f"{width_px} x {height_px} pixels, limit {limits.max_pixels}"
        raise RejectedImage("too_many_pixels", detail)
    if min(width_px, height_px) < limits.min_side_px:
        detail = f"{width_px} x {height_px} pixels, shorter side at least {limits.min_side_px}"
        raise RejectedImage("too_small", detail)
    num_frames = getattr(image, "n_frames", 1)
    if num_frames > 1 and image_format != "JPEG":
        raise RejectedImage("animated", f"{num_frames} frames")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return the transposition that makes the image upright."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except MemoryError:
        raise
    except Exception:  # damaged metadata does not spoil the pixels
        orientation = 1
    return _TURNS.get(orientation) if isinstance(orientation, int) else None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip at 255
        grey = np.asarray(image).astype(np.uint32)
        high = np.minimum(grey >> 8, 255).astype(np.uint8)
        return Image.fromarray(high).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba)
    return image if image.mode == "RGB" else image.convert("RGB")


def _stable_text(error: Exception) -> str:
    # Memory addresses would make two manifests of the same images differ.
    return re.sub(r"0x[0-9a-f]+", "0x", f"{type(error).__name__}: {error}")[:160]
