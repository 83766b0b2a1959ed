"""Taps of convolutions that meet nothing but padding, and the gradient of their weights: zero.

Where a feature map is smaller than a kernel, as 1 x 1 px under 3 x 3 with stride 2, most taps of
the kernel meet padding wherever the kernel stands. The gradient of such a weight is zero. The
bfloat16 kernels of oneDNN, which torch 2.14 uses on CPUs with AVX512-BF16 or AMX, do not write it:
what is found there is what the memory held before, now and then infinite. Without an error
message, every training of small images with a deep network would be spoilt on such a CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sdclr.shapes import forward_by_shape


def idle_taps(network: nn.Module, image_px: int) -> dict[str, Tensor]:
    """Return the idle taps of each convolution that has some, as masks (kh, kw), by its name.

    Args:
        network: left as it was.
        image_px: side of the images.

    Raises:
        RuntimeError, ValueError, AssertionError: what the network raises for images of this side.
    """
    meeting: dict[str, Tensor] = {}

    def visit(name: str, module: nn.Module, inputs: Tensor, output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            sides = zip(inputs.shape[2:], output.shape[2:], strict=True)
            meets_KL = torch.outer(*(_meets(module, n, *side) for n, side in enumerate(sides)))
            meeting[name] = (
                meeting.get(name, torch.tensor(False)) | meets_KL
            )  # a layer called twice

    forward_by_shape(network, image_px, visit=visit)
    return {name: ~meets_KL for name, meets_KL in meeting.items() if not meets_KL.all()}


def keep_idle_gradients_zero(network: nn.Module, image_px: int) -> list[str]:
    """Set the gradient of weights of idle taps to zero from now on; return the convolutions.

    It happens before ranks exchange gradients and before their norm is taken.

    Args:
        network: whose gradients are computed from images of `image_px`.
        image_px: side of the images.
    """
    found = idle_taps(network, image_px)
    for name, idle_KL in found.items():
        weight_OIKL = network.get_submodule(name).weight
        assert isinstance(weight_OIKL, nn.Parameter)
        if weight_OIKL.requires_grad:
            weight_OIKL.register_hook(_zero_where(idle_KL.to(weight_OIKL.device)))  # type: ignore[no-untyped-call]
    return list(found)


def _meets(conv: nn.Conv2d, axis: int, num_in: int, num_out: int) -> Tensor:
    """Return for each tap of one axis (K,) whether it is on a pixel anywhere."""
    size, stride, dilation = conv.kernel_size[axis], conv.stride[axis], conv.dilation[axis]
    if conv.padding_mode != "zeros" or conv.padding == "valid":
        return torch.ones(size, dtype=torch.bool)
    same = dilation * (size - 1) // 2  # an odd one more comes last
    padding = same if isinstance(conv.padding, str) else conv.padding[axis]
    place_OK = torch.arange(num_out)[:, None] * stride + torch.arange(size) * dilation - padding
    return ((place_OK >= 0) & (place_OK < num_in)).any(dim=0)


def _zero_where(idle_KL: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient.masked_fill(idle_KL, 0)  # a product would keep NaN
