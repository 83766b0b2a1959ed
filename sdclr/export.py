"""The dense branch as a program of its own: normalisation inside, no code of this project needed.

    program(images) = backbone((images - mean) / std),   images (B, 3, S, S) in [0, 1], any B >= 1

Shapes: B images, S side in px, F features.
"""

from __future__ import annotations

import copy
import io
import tempfile
import warnings
from pathlib import Path

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
        """Map images (B, 3, S, S) float32 in [0, 1] to features (B, F)."""
        features: Tensor = self.backbone((images - self.mean) / self.std)
        return features


def check_images(side_px: int, num_images: int = 3) -> Tensor:
    """Return fixed random images (B, 3, S, S) in [0, 1], to compare an export with the network."""
    generator = torch.Generator().manual_seed(_CHECK_SEED)
    return torch.rand(num_images, 3, side_px, side_px, generator=generator)


def exported_program(model: FeatureModel, *, side_px: int) -> bytes:
    """Export the model by `torch.export` with a free batch size; return the .pt2 content."""
    # Two images: a batch of one would be taken for a constant.
    batch = torch.export.Dim("batch", min=1, max=2**20)
    with torch.no_grad():
        program = torch.export.export(
            model, (check_images(side_px, 2),), dynamic_shapes={"images": {0: batch}}
        )
    stream = io.BytesIO()
    torch.export.save(program, stream)
    return stream.getvalue()


def onnx_program(model: FeatureModel, *, side_px: int) -> bytes:
    """Export the model as ONNX, input `images` and output `features`, with a free batch size.

    torch needs the packages onnx and onnxscript for it.
    """
    batch = torch.export.Dim("batch", min=1, max=2**20)
    with warnings.catch_warnings(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # the exporter warns about itself
        program = torch.onnx.export(
            model,
            (check_images(side_px, 2),),
            dynamo=True,
            dynamic_shapes={"images": {0: batch}},
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
