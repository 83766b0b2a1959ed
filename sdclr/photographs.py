"""Photographs of a folder as one set in memory, for a notebook and a folder that fits one machine.

    photographs = read_photographs("photos", canvas_px=96)
    photographs.images      # an ImageSet; photographs.paths[i] is its row i
    photographs.rejects     # what could not be read, with the reason: nothing is lost in silence

Each photograph is turned as its EXIF data says and reduced, never enlarged, until its longer side
fits the canvas. Pipelines over millions of images use `pipeline/ingest` instead.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sdclr.heif import HEAD_BYTES, HEIF_BRANDS, NEEDS_HEIF, brands_of, reads_heif
from sdclr.imageset import ImageSet

# Endings of what Pillow may be able to read; torchvision brings Pillow along.
ENDINGS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .tif .tiff .avif .heic .ppm .pgm".split()
)


@dataclass(frozen=True)
class Photographs:
    """The photographs that could be read, and those that could not.

    Attributes:
        images: N images on a square canvas, uint8.
        paths: N paths, in the order of the rows.
        rejects: path and reason of each photograph that could not be read.
    """

    images: ImageSet
    paths: tuple[Path, ...]
    rejects: tuple[tuple[Path, str], ...] = ()


def find_photographs(folder: str | Path) -> list[Path]:
    """Return the files below a folder that end like photographs, sorted; hidden ones are left out.

    Args:
        folder: searched at any depth; links are not followed.

    Raises:
        FileNotFoundError: there is no such folder, or no photograph in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}")
    found = []
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX", "@eaDir"))]
        found += [
            Path(parent, name)
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in ENDINGS
        ]
    if not found:
        raise FileNotFoundError(f"the folder {root} holds no photographs ({' '.join(ENDINGS)})")
    return sorted(found)


def read_photographs(
    source: str | Path | Iterable[str | Path],
    *,
    canvas_px: int,
    progress: Callable[[int, int], None] | None = None,
) -> Photographs:
    """Read a folder, or a list of files, onto one canvas.

    Args:
        source: a folder, or paths in the order wanted.
        canvas_px: side of the square that every photograph is reduced to, px.
        progress: called with how many are done and how many there are.

    Raises:
        FileNotFoundError: there is no such folder, or no photograph in it.
        ValueError: none of the photographs can be read; the first reason is named.
    """
    if isinstance(source, str | Path):
        paths = [Path(source)] if Path(source).is_file() else find_photographs(source)
    else:
        paths = [Path(path) for path in source]
    images, sizes, kept, rejects = [], [], [], []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = pool.map(lambda path: _read(path, canvas_px), paths)
        for number, (path, result) in enumerate(zip(paths, jobs, strict=True), 1):
            if isinstance(result, str):
                rejects.append((path, result))
            else:
                canvas = torch.zeros(3, canvas_px, canvas_px, dtype=torch.uint8)
                height_px, width_px = result.shape[1:]
                canvas[:, :height_px, :width_px] = result
                images.append(canvas)
                sizes.append((height_px, width_px))
                kept.append(path)
            if progress is not None:
                progress(number, len(paths))
    if not images:
        what = f"{rejects[0][0]}: {rejects[0][1]}" if rejects else "the list is empty"
        raise ValueError(f"no photograph can be read; the first: {what}")
    return Photographs(ImageSet(torch.stack(images), torch.tensor(sizes)), (*kept,), (*rejects,))


def _read(path: Path, canvas_px: int) -> Tensor | str:
    """Return the pixels (3, h, w) uint8 on the scale of the canvas, or why there are none."""
    try:
        with path.open("rb") as file:
            is_heif = bool(brands_of(file.read(HEAD_BYTES)) & HEIF_BRANDS)
        if is_heif and not reads_heif():
            return NEEDS_HEIF
        pixels = _decode(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return str(error).strip().partition("\n")[0][:200] or type(error).__name__
    height_px, width_px = pixels.shape[1:]
    scale = min(1.0, canvas_px / max(height_px, width_px))
    size = [max(1, round(height_px * scale)), max(1, round(width_px * scale))]
    from torchvision.transforms.v2 import functional as transforms  # takes seconds to import

    resized: Tensor = transforms.resize(pixels, size, antialias=True)
    return resized


def _decode(path: Path) -> Tensor:
    with warnings.catch_warnings():  # about damaged metadata; the pixels are all that counts
        warnings.simplefilter("ignore")
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.mode.startswith(("I", "F")):  # 16 bits a channel: Pillow would clip them
                levels = np.asarray(picture, np.float32)
                grey = np.clip(levels / 257.0, 0, 255).round().astype(np.uint8)
                return torch.from_numpy(grey).expand(3, *grey.shape).contiguous()
            pixels_HWC = np.asarray(picture.convert("RGB"))
    return torch.from_numpy(pixels_HWC.transpose(2, 0, 1).copy())
