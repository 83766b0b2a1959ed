"""The dense branch as a program of its own: normalisation inside, no code of this project needed.

    program(images) = backbone((images - mean) / std),   images (B, 3, H, W) in [0, 1], any B >= 1

H and W are free where the backbone takes any size, as convolutions do; else they are S.

Shapes: B images, S side in px of the training views, F features.
"""

from __future__ import annotations

import copy
import io
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdclr.twin import Network

_CHECK_SEED = 20210718


class FeatureModel(nn.Module):
    """A network without its projection head, in evaluation mode, with its own copy of the weights.

    Args:
        network: on the CPU; it is not changed.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.register_buffer("mean", network.mean.clone())
        self.register_buffer("std", network.std.clone())
        self.backbone = copy.deepcopy(network.backbone)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) float32 in [0, 1] to features (B, F)."""
        features: Tensor = self.backbone((images - self.mean) / self.std)
        return features


def check_images(side_px: int, num_images: int = 3, *, width_px: int | None = None) -> Tensor:
    """Return fixed random images (B, 3, S, W) in [0, 1], to compare an export with the network.

    Args:
        side_px: S.
        num_images: B.
        width_px: W; None = S.
    """
    generator = torch.Generator().manual_seed(_CHECK_SEED)
    return torch.rand(num_images, 3, side_px, width_px or side_px, generator=generator)


def other_width_px(side_px: int) -> int:
    """Return the width of images on which a free size is tried."""
    return side_px + side_px // 2


def _exported(model: FeatureModel, side_px: int) -> torch.export.ExportedProgram:
    """Export with a free batch size, and free sides where the backbone allows them."""
    # Two images: one would be taken for a constant, and so would a width equal to the height.
    batch: Any = torch.export.Dim("batch", min=1, max=2**20)
    free: Any = torch.export.Dim.AUTO
    square, wide = (check_images(side_px, 2, width_px=w) for w in (None, other_width_px(side_px)))
    # The positions of attention belong to one size; windows of it make free sides endless work.
    fixed = any("Attention" in type(module).__name__ for module in model.modules())
    with torch.no_grad():
        try:
            if not fixed:
                shapes = {"images": {0: batch, 2: free, 3: free}}
                program = torch.export.export(model, (wide,), dynamic_shapes=shapes)
                program.module()(square)  # a map of 1 x 1 at this size is a case of its own
                return program
        except Exception:  # of the network or of torch.export: then the size is fixed
            pass
        return torch.export.export(model, (square,), dynamic_shapes={"images": {0: batch}})


def exported_program(model: FeatureModel, *, side_px: int) -> bytes:
    """Export the model by `torch.export`; return the content of the .pt2 file."""
    stream = io.BytesIO()
    torch.export.save(_exported(model, side_px), stream)
    return stream.getvalue()


def onnx_program(model: FeatureModel, *, side_px: int) -> bytes:
    """Export the model as ONNX, input `images` and output `features`.

    torch needs the packages onnx and onnxscript for it.
    """
    with warnings.catch_warnings(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # the exporter warns about itself
        program = torch.onnx.export(
            _exported(model, side_px),
            (),
            dynamo=True,
            input_names=["images"],
            output_names=["features"],
            verbose=False,
        )
        assert program is not None
        file = Path(folder) / "features.onnx"
        program.save(str(file), external_data=False)
        return file.read_bytes()


def largest_difference(features: Tensor, expected: Tensor) -> float:
    """Return the largest |a - b| over max(1, largest |b|), which must stay below 1e-5."""
    scale = max(1.0, float(expected.abs().max()))
    return float((features - expected).abs().max()) / scale
