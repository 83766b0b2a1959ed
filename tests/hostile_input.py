"""Every hostile or unusual input, made from nothing, and what becomes of each.

`python -m tests.hostile_input` writes the tables of docs/hostile-input.md from what ingest really
does; tests/test_hostile_input.py checks the outcomes, and that the page is up to date.
"""

from __future__ import annotations

import io
import pickle
import shutil
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.dataset.image import ImageLimits, decode_rgb
from pipeline.errors import DataError
from pipeline.ingest import plan
from tests.sources import image_bytes, index_of, ingested, stored, write_tar

PAGE = Path(__file__).resolve().parents[1] / "docs" / "hostile-input.md"
_START, _END = "<!-- tables: python -m tests.hostile_input -->", "<!-- end of the tables -->"
EXECUTED: list[str] = []  # what a payload that runs would leave here


class Case(NamedTuple):
    """One input: what it is, and the outcome that is promised (a beginning of its text)."""

    what: str
    make: Callable[[], bytes]
    outcome: str


def payload() -> None:
    """What a hostile pickle would run."""
    EXECUTED.append("payload ran")


class Payload:
    """Unpickling it is seen in EXECUTED."""

    def __reduce__(self) -> tuple[Any, ...]:
        return payload, ()


def photo() -> Image.Image:
    """60 x 40 px, upright: red above, blue below."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :, 0], pixels[20:, :, 2] = 220, 220
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def claimed_png(width_px: int, height_px: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0\0\0"))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def flipped(data: bytes) -> bytes:
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 0xFF
    return bytes(damaged)


def animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (60, 40), (shade, 0, 0)) for shade in (0, 100, 200)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def rotated() -> bytes:
    """Stored lying; the EXIF tag 6 says that the top is on the right."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(photo().transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)


def transparent() -> bytes:
    image = photo().convert("RGBA")
    image.putalpha(0)
    return encoded(image, "PNG")


def noise(kind: str) -> bytes:
    return image_bytes(0, (300, 200), kind)


JPEG, PNG = lambda: encoded(photo(), "JPEG"), lambda: encoded(photo(), "PNG")

IMAGES = {
    "truncated.jpg": Case("JPEG cut short", lambda: noise("JPEG")[:20_000], "rejected: truncated"),
    "truncated.png": Case("PNG cut in half", lambda: noise("PNG")[:90_000], "rejected: truncated"),
    "truncated.webp": Case(
        "WebP cut in half", lambda: noise("WEBP")[:10_000], "rejected: corrupt"
    ),
    "flipped.png": Case("PNG, bits flipped", lambda: flipped(noise("PNG")), "rejected: corrupt"),
    "flipped.jpg": Case(
        "JPEG with flipped bits: the format has no checksum, so a picture comes out; its bytes are "
        "hashed as they are",
        lambda: flipped(noise("JPEG")),
        "accepted: 300 x 200 px",
    ),
    "empty.jpg": Case("zero bytes", lambda: b"", "rejected: empty"),
    "text.jpg": Case("text named .jpg", lambda: b"no image\n", "rejected: not_an_image"),
    "pickle.png": Case(
        "pickled object named .png", lambda: pickle.dumps(Payload()), "rejected: not_an_image"
    ),
    "grey16.png": Case(
        "16-bit grey PNG: the high byte of each sample",
        lambda: encoded(Image.fromarray(np.full((40, 60), 0x8040, np.uint16)), "PNG"),
        "accepted: 60 x 40 px, centre (128, 128, 128)",
    ),
    "palette.png": Case(
        "palette PNG: colours looked up",
        lambda: encoded(photo().quantize(16), "PNG"),
        "accepted: 60 x 40 px, top (220, 0, 0)",
    ),
    "transparent.png": Case(
        "transparent PNG: laid over white", transparent, "accepted: 60 x 40 px, top (255, 255, 255)"
    ),
    "cmyk.jpg": Case(
        "CMYK JPEG: converted by the plain formula",
        lambda: encoded(Image.new("CMYK", (60, 40), (0, 255, 255, 0)), "JPEG", quality=95),
        "accepted: 60 x 40 px, top (25",
    ),
    "rotated.jpg": Case(
        "EXIF-rotated JPEG: turned upright", rotated, "accepted: 60 x 40 px, top (2"
    ),
    "exif.jpg": Case(
        "damaged EXIF block: counts as upright",
        lambda: encoded(photo(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
        "accepted: 60 x 40 px",
    ),
    "gif.jpg": Case("animated GIF named .jpg: its first frame", lambda: animated("GIF"),
                    "accepted: 60 x 40 px"),
    "animated.webp": Case("animated WebP: its first frame", lambda: animated("WEBP"),
                          "accepted: 60 x 40 px"),
    "animated.png": Case("animated PNG: its first frame", lambda: animated("PNG"),
                         "accepted: 60 x 40 px"),
    "bomb.png": Case(
        "PNG of 68 bytes that claims 196 megapixels: refused by its header",
        lambda: claimed_png(14_000, 14_000),
        "rejected: too_many_pixels",
    ),
    "tiny.png": Case("3 x 3 px", lambda: encoded(Image.new("RGB", (3, 3)), "PNG"),
                     "rejected: too_small"),
    "large.png": Case(
        "a file above the limit (here 1 MB): not read beyond that",
        lambda: PNG() + bytes(1_000_000),
        "rejected: too_many_bytes",
    ),
}  # fmt: skip


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def tar_with(name: str, content: bytes | tarfile.TarInfo) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        entries = {"000.png": PNG(), name: content, "001.png": PNG()}
        return write_tar(Path(folder) / "t.tar", entries).read_bytes()


def table_with(images: list[bytes], **metadata: Any) -> bytes:
    sink = io.BytesIO()
    field = pa.field("image", pa.binary(), metadata=metadata.get("field"))
    pq.write_table(pa.table([pa.array(images, pa.binary())], schema=pa.schema([field])), sink)
    return sink.getvalue()


PICKLED_TYPE = {
    b"ARROW:extension:name": b"ray.data.arrow_pickled_object",
    b"ARROW:extension:metadata": pickle.dumps(Payload()),
}

CONTAINERS = {
    "parent.tar": Case("tar with an entry `../../evil.png`",
                       lambda: tar_with("../../evil.png", PNG()), "refused: the archive"),
    "absolute.tar": Case("tar with an entry `/tmp/evil.png`",
                         lambda: tar_with("/tmp/evil.png", PNG()), "refused: the archive"),
    "symlink.tar": Case("tar with a symbolic link to /etc/passwd",
                        lambda: tar_with("a.png", link("a.png", tarfile.SYMTYPE)),
                        "refused: the archive"),
    "hardlink.tar": Case("tar with a hard link to /etc/passwd",
                         lambda: tar_with("a.png", link("a.png", tarfile.LNKTYPE)),
                         "refused: the archive"),
    "device.tar": Case("tar with a device",
                       lambda: tar_with("a.png", link("a.png", tarfile.CHRTYPE)),
                       "refused: the archive"),
    "pickle.tar": Case("WebDataset sample with a `.pkl` entry",
                       lambda: tar_with("000.pkl", pickle.dumps(Payload())),
                       "refused: the archive"),
    "lying.tar": Case("tar that ends within an entry", lambda: tar_with("a.png", PNG())[:600],
                      "refused: the archive is broken"),
    "compressed.tar": Case("gzip named .tar", lambda: b"\x1f\x8b\x08" + bytes(700),
                           "refused: the archive is broken"),
    "extension.parquet": Case(
        "Parquet column of Ray's pickled-object type",
        lambda: table_with([pickle.dumps(Payload())] * 2, field=PICKLED_TYPE),
        "refused: the table declares an Arrow extension type",
    ),
    "pickles.parquet": Case(
        "Parquet column of plain bytes that hold pickles: they are no images",
        lambda: table_with([pickle.dumps(Payload()), PNG()]),
        "rejected: not_an_image",
    ),
    "text.parquet": Case("text named .parquet", lambda: b"PAR1 no table",
                         "refused: the table cannot be read"),
    "repeated.parquet": Case(
        "Parquet of a few kB whose dictionary repeats one image 100,000 times: read one by one",
        lambda: table_with([image_bytes(0)] * 100_000),
        "accepted: 100000 rows listed",
    ),
}  # fmt: skip


def image_outcomes(folder: Path) -> dict[str, str]:
    """Ingest all images at once."""
    for name, case in IMAGES.items():
        (folder / "in").mkdir(exist_ok=True)
        (folder / "in" / name).write_bytes(case.make())
    small = ImageLimits(max_bytes=1_000_000)
    with mock.patch.object(plan, "ImageLimits", return_value=small):
        uri, manifest, _ = ingested(
            "folder", folder / "in", folder / "out", ingest={"max_reject_frac": 1.0}
        )
    outcomes = {
        reject.id: f"rejected: {reject.reason} ({reject.detail})"
        for reject in manifest.rejects.examples
    }
    for name, data in stored(uri, manifest).items():
        rgb = decode_rgb(data, ImageLimits())
        height_px, width_px = rgb.shape[:2]
        place = "centre" if name == "grey16.png" else "top"
        pixel = rgb[height_px // 2 if place == "centre" else 5, width_px // 2]
        colour = ", ".join(str(value) for value in pixel)
        outcomes[name] = f"accepted: {width_px} x {height_px} px, {place} ({colour})"
    return outcomes


def container_outcome(folder: Path, name: str) -> str:
    """Ingest one archive or table."""
    (folder / name).write_bytes(CONTAINERS[name].make())
    source = "webdataset" if name.endswith(".tar") else "parquet"
    try:
        if name == "repeated.parquet":  # 100,000 decodes would prove no more
            return f"accepted: {len(index_of(source, folder / name).ids)} rows listed"
        limits = {"max_reject_frac": 1.0}
        _, manifest, _ = ingested(source, folder / name, folder / "out", ingest=limits)
    except DataError as error:
        left = [path for path in (folder / "out").rglob("*") if path.is_file()]
        assert not left, "something was written"
        return f"refused: {error.what}"
    (reject,) = manifest.rejects.examples
    return f"rejected: {reject.reason} ({reject.detail})"


def outcomes() -> tuple[dict[str, str], dict[str, str]]:
    """What becomes of every image, and of every archive and table."""
    images, containers = Path(tempfile.mkdtemp()), {}
    try:
        for name in CONTAINERS:
            folder = images / name.replace(".", "-")
            folder.mkdir()
            containers[name] = container_outcome(folder, name)
        return image_outcomes(images), containers
    finally:
        shutil.rmtree(images)


def page(images: dict[str, str], containers: dict[str, str]) -> str:
    """The whole page with its tables written anew."""
    rows = []
    for cases, found in ((IMAGES, images), (CONTAINERS, containers)):
        rows += ["", "| file | what it is | outcome |", "|---|---|---|"]
        rows += [f"| `{n}` | {c.what} | {found[n].replace('|', '/')} |" for n, c in cases.items()]
    before, _, rest = PAGE.read_text().partition(_START)
    after = rest.partition(_END)[2]
    return "\n".join([f"{before}{_START}", *rows, "", f"{_END}{after}"])


if __name__ == "__main__":
    PAGE.write_text(page(*outcomes()))
