"""A forward pass by shape alone: no values, no memory, milliseconds for any network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

Visit = Callable[[str, nn.Module, Tensor, Tensor], None]
"""Takes a module's name, the module, its input and its output, which have shapes only."""


def forward_by_shape(
    network: nn.Module, image_px: int, *, num_images: int = 1, visit: Visit | None = None
) -> object:
    """Return what a network returns for images, on torch's meta device, in evaluation mode.

    Args:
        network: left as it was.
        image_px: side of the images.
        num_images: of the batch.
        visit: called for each module without children, in the order of the forward pass.

    Raises:
        RuntimeError, ValueError, AssertionError: what the network raises for images of this side.
    """
    shapes = {n: t.to("meta") for n, t in network.state_dict().items()}
    shapes |= {n: t.to("meta") for n, t in network.named_parameters()}
    shapes |= {n: t.to("meta") for n, t in network.named_buffers()}  # some are not saved
    images_BCHW = torch.empty(num_images, 3, image_px, image_px, device="meta")
    modes = [(module, module.training) for module in network.modules()]
    hooks = [] if visit is None else [
        module.register_forward_hook(_calling(visit, name))
        for name, module in network.named_modules()
        if not any(True for _ in module.children())
    ]  # fmt: skip
    network.eval()  # one image has no batch statistics
    try:
        with torch.no_grad():
            return functional_call(network, shapes, (images_BCHW,))
    finally:
        for module, mode in modes:
            module.training = mode
        for hook in hooks:
            hook.remove()


def _calling(visit: Visit, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        visit(name, module, inputs[0], output)

    return hook
