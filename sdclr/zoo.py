"""The networks of torchvision, and what must be known to build some of them.

torchvision takes about as long to import as torch, as it brings torch's compiler along. So this
module is imported where one of these networks is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torchvision.models
from torch import nn
from torchvision.models import MNASNet

NETWORKS: tuple[str, ...] = tuple(torchvision.models.list_models(module=torchvision.models))
"""The classification networks, by torchvision's names."""
# Keyword of the side of the images, for networks that are built for one side.
_SIDES: dict[str, Callable[[int], dict[str, Any]]] = {
    "vit": lambda px: {"image_size": px},
    "maxvit": lambda px: {"input_size": (px, px)},
}
# Published weights of these expect the input to be converted inside.
_AUXILIARY = ("googlenet", "inception")
_MNASNET_VERSION = 2  # of torchvision's tensors


class _MNASNet(MNASNet):  # type: ignore[misc]  # torchvision is untyped
    """A network that also loads state dicts without torch's hidden metadata."""

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any
    ) -> None:
        current = {**local_metadata, "version": _MNASNET_VERSION}
        super()._load_from_state_dict(state_dict, prefix, current, *rest)


def new_network(name: str, image_px: int) -> nn.Module:
    """Build a network with its classifier, freshly initialised.

    Args:
        name: one of `NETWORKS`.
        image_px: side of the images. Transformers are built for one side only.
    """
    if name.startswith("mnasnet"):
        return _MNASNet(float(name.removeprefix("mnasnet").replace("_", ".")))
    sides = _SIDES.get(name.partition("_")[0])
    more = sides(image_px) if sides else {}
    if name.startswith(_AUXILIARY):
        more = {"aux_logits": False, "init_weights": True, "transform_input": True}
    network: nn.Module = torchvision.models.get_model(name, weights=None, **more)
    return network
