"""Hostile and unusual images: each has a defined outcome; the canvas keeps what it promises."""

from __future__ import annotations

import random
import struct
import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pipeline.dataset.formats import HEAD_BYTES, REJECT_REASONS, RejectedImage, format_of
from pipeline.dataset.image import (
    ImageLimits,
    Pixels,
    decode,
    decode_canvas,
    decode_rgb,
    fit_canvas,
    png_bytes,
)
from tests.running import memory_rise_bytes

LIMITS = ImageLimits()


def photo(height_px: int = 24, width_px: int = 32, seed: int = 0) -> Pixels:
    """Smooth enough that JPEG changes it little."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (3, 4, 3), np.uint8)
    resized = Image.fromarray(small).resize((width_px, height_px), Image.Resampling.BICUBIC)
    return np.array(resized)


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    sink = BytesIO()
    image.save(sink, image_format, **options)
    return sink.getvalue()


def claim_png(width_px: int, height_px: int) -> bytes:
    """A PNG of 68 bytes whose header claims any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0\0\0"))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def animated(image_format: str) -> bytes:
    frames = [Image.fromarray(photo(seed=seed)) for seed in range(3)]
    return encoded(frames[0], image_format, save_all=True, append_images=frames[1:])


def rejected(data: bytes, limits: ImageLimits = LIMITS) -> str:
    with pytest.raises(RejectedImage) as caught:
        decode_rgb(data, limits)
    assert caught.value.reason in REJECT_REASONS and caught.value.detail
    assert "0x7" not in caught.value.detail
    return caught.value.reason


def hostile() -> dict[str, tuple[bytes, str]]:
    jpeg = encoded(Image.fromarray(photo(200, 300)), "JPEG")
    png = encoded(Image.fromarray(photo(200, 300)), "PNG")
    webp = encoded(Image.fromarray(photo(200, 300)), "WEBP")
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0xFF
    return {
        "zero bytes": (b"", "empty"),
        "text named .jpg": (b"this is not an image\n", "not_an_image"),
        "truncated JPEG": (jpeg[: len(jpeg) // 2], "truncated"),
        "truncated PNG": (png[: len(png) // 2], "truncated"),
        "truncated WebP": (webp[: len(webp) // 2], "corrupt"),
        "JPEG head only": (jpeg[:10], "corrupt"),
        "PNG signature only": (png[:8], "corrupt"),
        "flipped PNG": (bytes(flipped), "corrupt"),
        "bomb PNG": (claim_png(14_000, 14_000), "too_many_pixels"),
        "absurd PNG": (claim_png(2**31 - 1, 2**31 - 1), "too_many_pixels"),
        "tiny": (encoded(Image.fromarray(photo(7, 300)), "PNG"), "too_small"),
        "AVIF header only": (b"\0\0\0\x20ftypavif" + bytes(40), "corrupt"),
        "video": (b"\0\0\0\x18ftypisom" + bytes(40), "unsupported_format"),
        "float TIFF": (encoded(Image.new("F", (32, 32)), "TIFF"), "unsupported_format"),
        "32-bit TIFF": (encoded(Image.new("I", (32, 32), 70_000), "TIFF"), "unsupported_format"),
        "two letters": (b"BM is no picture, it is text" * 9, "not_an_image"),
    }


@pytest.mark.parametrize("name", hostile())
@pytest.mark.promise("R26")
def test_hostile_images_are_rejected_with_their_reason(name: str) -> None:
    data, reason = hostile()[name]
    assert rejected(data) == reason


@pytest.mark.promise("S3")
def test_the_bomb_is_68_bytes_and_costs_nothing() -> None:
    data = claim_png(14_000, 14_000)
    assert len(data) == 68
    tracemalloc.start()
    assert rejected(data) == "too_many_pixels"
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


# The first image loads Pillow's WebP.
SET_UP = """
from contextlib import suppress
from io import BytesIO
from PIL import Image
from pipeline.dataset.formats import RejectedImage
from pipeline.dataset.image import ImageLimits, decode_rgb

small = BytesIO()
Image.new("RGB", (8, 8)).save(small, "WEBP")
decode_rgb(small.getvalue(), ImageLimits())
"""
DECODE = """
with suppress(RejectedImage):
    decode_rgb(Path(sys.argv[1] + ".webp").read_bytes(), ImageLimits())
"""


def test_a_webp_bomb_is_stopped_by_its_header(tmp_path: Path) -> None:
    data = bytearray(encoded(Image.fromarray(photo()), "WEBP", lossless=True))
    start = data.index(b"VP8L") + 9  # after the chunk's size and the signature byte
    data[start : start + 4] = b"\xff\xff\xff\x0f"  # width and height, 14 bits each
    assert rejected(bytes(data)) == "too_many_pixels"
    (tmp_path / "bomb.webp").write_bytes(data)
    (tmp_path / "whole.webp").write_bytes(encoded(Image.new("RGB", (4000, 4000)), "WEBP"))
    rises = [memory_rise_bytes(SET_UP, DECODE, str(tmp_path / name)) for name in ("bomb", "whole")]
    assert rises[0] < 10_000_000 < 40_000_000 < rises[1]  # control: pixels that are decoded


def test_limits_are_those_given_and_not_pillows() -> None:
    data = encoded(Image.new("RGB", (1000, 1000)), "PNG")
    assert rejected(data, ImageLimits(max_pixels=999_999)) == "too_many_pixels"
    assert rejected(data, ImageLimits(max_bytes=100)) == "too_many_bytes"
    assert decode_rgb(data, ImageLimits(max_pixels=1_000_000)).shape == (1000, 1000, 3)
    # Beyond Pillow's own limit; its pixels are missing, which only decoding can find.
    assert rejected(claim_png(14_000, 14_000), ImageLimits(max_pixels=10**9)) == "truncated"


@pytest.mark.promise("R26")
def test_random_damage_only_ever_rejects() -> None:
    generator = random.Random(0)
    sources = [
        encoded(Image.fromarray(photo()), kind)
        for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
    ]
    for _ in range(300):
        data = bytearray(generator.choice(sources))
        for _ in range(generator.randint(1, 8)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        try:
            rgb = decode_rgb(bytes(data), LIMITS)
        except RejectedImage as reject:
            assert reject.reason in REJECT_REASONS
        else:
            assert rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3


def test_plain_images_decode_exactly() -> None:
    rgb = photo()
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        decoded = decode_rgb(encoded(Image.fromarray(rgb), kind, **options), LIMITS)
        np.testing.assert_array_equal(decoded, rgb)
        assert decoded.dtype == np.uint8 and decoded.flags.c_contiguous and decoded.flags.writeable
    np.testing.assert_array_equal(decode_rgb(png_bytes(rgb), LIMITS), rgb)
    jpeg = decode_rgb(encoded(Image.fromarray(rgb), "JPEG", quality=95), LIMITS)
    assert np.abs(jpeg.astype(int) - rgb).max() < 40


def test_grey_bilevel_and_palette() -> None:
    grey = photo()[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(
        decode_rgb(encoded(Image.fromarray(grey), "PNG"), LIMITS), expected
    )
    bilevel = Image.fromarray(grey > 127)
    assert bilevel.mode == "1"
    np.testing.assert_array_equal(
        decode_rgb(encoded(bilevel, "PNG"), LIMITS), np.where(expected > 127, 255, 0)
    )
    palette = Image.fromarray(photo()).quantize(16)
    assert palette.mode == "P"
    np.testing.assert_array_equal(
        decode_rgb(encoded(palette, "PNG"), LIMITS), np.array(palette.convert("RGB"))
    )


@pytest.mark.promise("R26")
def test_16_bit_samples_keep_their_high_byte() -> None:
    grey16 = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) * 85
    data = encoded(Image.fromarray(grey16), "PNG")
    assert data[24] == 16  # bit depth
    decoded = decode_rgb(data, LIMITS)
    np.testing.assert_array_equal(decoded, np.repeat((grey16 >> 8)[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("bits", "few"), [(8, 8), (9, 10), (10, 10), (12, 12), (14, 14), (16, None)]
)
def test_16_bit_grey_is_scaled_to_the_bits_that_it_uses(bits: int, few: int | None) -> None:
    grey16 = np.linspace(0, 2**bits - 1, 24 * 32).astype(np.uint16).reshape(24, 32)
    for kind in ("PNG", "TIFF"):
        rgb, remarks = decode(encoded(Image.fromarray(grey16), kind), LIMITS)
        np.testing.assert_array_equal(rgb[..., 0], grey16 >> ((few or 16) - 8))
        assert remarks == (() if few is None else ("few bits",))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_the_first_frame_of_several_is_taken(kind: str) -> None:
    colours = [(200, 40, 40), (40, 40, 200)]
    frames = [Image.new("RGB", (32, 24), colour) for colour in colours]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    found = decode(data, LIMITS)
    assert np.abs(found.rgb.astype(int) - colours[0]).max() < 12
    assert found.remarks == ("more frames",)
    assert decode(encoded(frames[0], kind), LIMITS).remarks == ()  # control


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_format_is_known_by_its_first_bytes(kind: str) -> None:
    data = encoded(Image.new("RGB", (32, 24), (200, 40, 40)), kind)
    assert format_of(data[:HEAD_BYTES]) == kind
    assert np.abs(decode_rgb(data, LIMITS).astype(int) - (200, 40, 40)).max() < 12
    assert format_of(b"text" + data) is None


def test_texts_and_profiles_of_a_png_do_not_spoil_its_pixels() -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("workflow", "node, " * 300_000, zip=True)
    image = Image.fromarray(photo())
    for options in ({"pnginfo": texts}, {"icc_profile": bytes(128) + b"lut " * 300_000}):
        data = encoded(image, "PNG", **options)
        with pytest.raises(ValueError, match="MAX_TEXT"):  # control: the decoder refuses it
            Image.open(BytesIO(data), formats=["PNG"]).load()
        np.testing.assert_array_equal(decode_rgb(data, LIMITS), photo())


def test_transparency_lies_over_white() -> None:
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[:8] = (200, 100, 0, 255)
    rgba[8:, :8] = (0, 0, 0, 0)
    rgba[8:, 8:] = (0, 0, 0, 128)
    decoded = decode_rgb(encoded(Image.fromarray(rgba), "PNG"), LIMITS)
    assert decoded[0, 0].tolist() == [200, 100, 0]
    assert decoded[15, 0].tolist() == [255, 255, 255]
    assert abs(int(decoded[15, 15, 0]) - 127) <= 1
    palette = Image.fromarray(np.zeros((16, 16), np.uint8), "L").convert("P")
    decoded = decode_rgb(encoded(palette, "PNG", transparency=0), LIMITS)
    assert (decoded == 255).all()


@pytest.mark.promise("R26")
def test_cmyk_jpeg_is_converted() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red = decode_rgb(encoded(cmyk, "JPEG", quality=95), LIMITS)[8, 8].astype(int)
    assert red[0] > 240 and red[1] < 15 and red[2] < 15


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.promise("R26")
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = photo()
    # What a camera stores when the scene is `upright`, by the definition of the tag.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("PNG", "JPEG", "TIFF"):
        image = Image.fromarray(np.ascontiguousarray(stored))
        decoded = decode_rgb(encoded(image, kind, exif=exif), LIMITS)
        assert decoded.shape == upright.shape
        assert np.abs(decoded.astype(int) - upright).mean() < (8 if kind == "JPEG" else 0.01)


def test_damaged_exif_counts_as_upright() -> None:
    data = encoded(Image.fromarray(photo()), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode_rgb(data, LIMITS).shape == (24, 32, 3)


def test_multi_picture_jpeg_gives_its_main_picture() -> None:
    frames = [Image.fromarray(photo(seed=seed)) for seed in range(2)]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert data[:3] == b"\xff\xd8\xff"
    decoded = decode_rgb(data, LIMITS).astype(int)
    assert np.abs(decoded - photo(seed=0)).mean() < 8 < np.abs(decoded - photo(seed=1)).mean()


def test_canvas_leaves_small_images_as_they_are() -> None:
    rgb = photo(24, 32)
    canvas, size = fit_canvas(rgb, 40)
    assert canvas.shape == (3, 40, 40) and canvas.dtype == np.uint8 and size == (24, 32)
    np.testing.assert_array_equal(canvas[:, :24, :32], rgb.transpose(2, 0, 1))
    assert canvas.sum(dtype=np.int64) == rgb.sum(dtype=np.int64)  # zero elsewhere


@pytest.mark.parametrize(("shape", "size"), [((60, 80), (24, 32)), ((80, 60), (32, 24))])
def test_canvas_reduces_the_long_side(shape: tuple[int, int], size: tuple[int, int]) -> None:
    canvas, found = fit_canvas(photo(*shape), 32)
    assert found == size
    assert canvas[:, : size[0], : size[1]].any(axis=0).all()
    assert not canvas[:, size[0] :].any() and not canvas[:, :, size[1] :].any()


def test_canvas_of_one_colour_and_of_extreme_shapes() -> None:
    canvas, size = fit_canvas(np.full((1000, 9, 3), 77, np.uint8), 32)
    assert size == (32, 1) and (canvas[:, :, 0] == 77).all()


@pytest.mark.parametrize("shape", [(24, 32), (60, 80), (130, 100)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_decoding_onto_a_canvas_is_decoding_and_fitting(shape: tuple[int, int], kind: str) -> None:
    """Exactly, up to four times the canvas: the decoder has nothing to leave out yet."""
    data = encoded(Image.fromarray(photo(*shape)), kind)
    canvas, size = decode_canvas(data, LIMITS, 64)
    expected, expected_size = fit_canvas(decode_rgb(data, LIMITS), 64)
    assert size == expected_size
    np.testing.assert_array_equal(canvas, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_large_photos_are_decoded_smaller_and_look_the_same(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(photo(901, 1203)), "JPEG", exif=exif, quality=90)
    canvas, size = decode_canvas(data, ImageLimits(), 64)
    expected, expected_size = fit_canvas(decode_rgb(data, ImageLimits()), 64)
    assert size == expected_size
    difference = np.abs(canvas.astype(int) - expected)
    assert 0 < difference.max() <= 8  # not the same bits, and hardly another picture
    assert difference.mean() < 1
