"""A trained backbone with the view that it was trained for: from photographs to features.

encoder = sdclr.load_backbone("runs/photos-1a2b3c4d/models/sdclr/backbone.safetensors")
features = sdclr.embed("photos", encoder)        # features.features_NF, features.paths
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdclr.augment import centre_view
from sdclr.backbone import build_backbone
from sdclr.imageset import ImageSet
from sdclr.photographs import read_photographs
from sdclr.twin import Network
from sdclr.weights_file import WeightsFileError, read_weights, save_weights

RESIZE_PER_CROP = 256 / 224
"""Short side of a photograph over the side of the centre crop, as published for ImageNet."""
CANVAS_PER_CROP = 1.5 * RESIZE_PER_CROP
"""Long side of a stored photograph over the side of a view: at 3:2 its short side is the resize."""


class Encoder(nn.Module):
    """Normalisation and backbone, in evaluation mode, with the side of its view.

    Args:
        backbone: maps (B, 3, H, W) to features (B, F).
        architecture, stem: its names in `sdclr.backbone`.
        crop_px: side of the view, px.
    """

    def __init__(self, backbone: nn.Module, *, architecture: str, stem: str, crop_px: int) -> None:
        super().__init__()
        self.network = Network(backbone, nn.Identity())
        self.architecture, self.stem, self.crop_px = architecture, stem, crop_px
        # The layout in which convolutions are fastest, and the one that training used.
        self.to(memory_format=torch.channels_last).eval()

    @property
    def resize_px(self) -> int:
        """Short side of a photograph before the centre crop, px."""
        return round(self.crop_px * RESIZE_PER_CROP)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Map images (B, 3, H, W) float in [0, 1] to features (B, F)."""
        return self.network.features(images_BCHW)

    @torch.inference_mode()
    def encode(self, images: ImageSet, *, batch: int = 64) -> Tensor:
        """Return features (N, F) float32, on the CPU, of the centre view of each image."""
        device = self.network.mean.device
        parts = []
        for start in range(0, len(images), batch):
            rows_B = torch.arange(start, min(start + batch, len(images)))
            pixels_BCHW, sizes_B2 = images.take(rows_B)
            view_BCHW = centre_view(
                pixels_BCHW.to(device), sizes_B2, crop_px=self.crop_px, resize_px=self.resize_px
            )
            parts.append(self(view_BCHW).float().cpu())
        return torch.cat(parts)

    def save(self, path: str | Path, **facts: Any) -> None:
        """Write the weights under torchvision's names, with what `load_backbone` needs.

        Args:
            path: a file that ends in `.safetensors`.
            facts: more to remember, values that JSON can hold.
        """
        own = {"architecture": self.architecture, "stem": self.stem, "crop_px": self.crop_px}
        save_weights(path, self.network.backbone.state_dict(), {**facts, **own})


def load_backbone(
    path: str | Path, *, crop_px: int | None = None, device: str | torch.device = "cpu"
) -> Encoder:
    """Return the encoder of a file that `Encoder.save`, a run or `run.py export` wrote.

    Args:
        path: `backbone.safetensors`.
        crop_px: side of the view in px; None takes that of the file.
        device: where it computes.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsFileError: it is of another format, or says not how to use it.
    """
    tensors, facts = read_weights(path)
    crop_px = facts.get("crop_px") if crop_px is None else crop_px
    architecture, stem = facts.get("architecture"), facts.get("stem")
    if not isinstance(architecture, str) or not isinstance(stem, str):
        raise WeightsFileError(f"{path} does not name its architecture: it is no file of sdclr")
    if not isinstance(crop_px, int) or crop_px < 1:
        raise WeightsFileError(f"{path} does not name the side of its view: give crop_px")
    backbone, _ = build_backbone(architecture, stem=stem, seed=0, image_px=crop_px)
    try:
        backbone.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise WeightsFileError(f"{path} does not hold a {architecture}: {error}") from error
    return Encoder(backbone, architecture=architecture, stem=stem, crop_px=crop_px).to(device)


@dataclass(frozen=True)
class Embeddings:
    """Features of photographs.

    Attributes:
        features_NF: float32, one row a photograph.
        paths: N paths, in the order of the rows.
        rejects: path and reason of each photograph that could not be read.
    """

    features_NF: Tensor
    paths: tuple[Path, ...]
    rejects: tuple[tuple[Path, str], ...]


def embed(
    source: str | Path | Iterable[str | Path],
    encoder: Encoder,
    *,
    batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Embeddings:
    """Return the features of a folder of photographs, or of a list of files.

    Args:
        source: a folder, or paths.
        encoder: of `load_backbone` or `pretrain`.
        batch: photographs of one forward pass.
        progress: called with how many photographs are read and how many there are.

    Raises:
        FileNotFoundError: there is no such folder, or no photograph in it.
        ValueError: none of the photographs can be read.
    """
    canvas_px = round(encoder.crop_px * CANVAS_PER_CROP)
    found = read_photographs(source, canvas_px=canvas_px, progress=progress)
    return Embeddings(encoder.encode(found.images, batch=batch), found.paths, found.rejects)
