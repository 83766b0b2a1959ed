"""What the kernels of `sdclr.view_kernels` do, by torch operations, for the simulated GPU.

A kernel reads and writes its own arguments only, as it does on a GPU. That the kernels themselves
do the same is shown by Triton's interpreter, in tests/test_rendering.py.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from sdclr.augment import ViewParams, apply_view
from tests.recipes import AUGMENT


def parameters_of(block_VR: Tensor) -> ViewParams:
    """Return the parameters that `parameter_block` put into rows."""
    columns = block_VR.T
    top, left, height, width = columns[:4].long()
    return ViewParams(
        top=top,
        left=left,
        height=height,
        width=width,
        flip=columns[4] > 0,
        jitter=columns[5] > 0,
        gray=columns[6] > 0,
        blur=columns[7] > 0,
        blur_sigma=columns[7].clamp_min(0.1),
        brightness=columns[8],
        contrast=columns[9],
        saturation=columns[10],
        hue=columns[11],
        order=block_VR[:, 12:].long(),
    )


def compute(name: str, *arguments: Tensor | int, **constants: int) -> None:
    """Compute what a kernel would write; all values of a large view are made by its first one."""
    tensors = [t for t in arguments if isinstance(t, Tensor)]
    if name == "finish_tiles":
        _, half_VCOO, _, out_VOOC = tensors
        out_VOOC.copy_(half_VCOO.permute(0, 2, 3, 1))
        return
    images_BCHW, block_VR, out, *_ = tensors
    num_images = len(images_BCHW)
    recipe = replace(AUGMENT, crop_px=constants["S"])
    for start in range(0, len(block_VR), num_images):
        part = slice(start, start + num_images)
        view_BCOO = apply_view(images_BCHW, parameters_of(block_VR[part]), recipe)
        out[part] = view_BCOO.permute(0, 2, 3, 1) if name == "small_views" else view_BCOO
