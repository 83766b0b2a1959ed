"""Names of public weights, by form alone: `torchvision:NAME:WEIGHTS` and `timm:NAME`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from pipeline import storage
from pipeline.storage.place import FormError
from pipeline.storage.place import check as check_place

_LIBRARIES = ("torchvision:", "timm:")
_FORM = re.compile(r"(torchvision):(\w+):(\w+)|(timm):([\w.-]+)", re.ASCII)
_EXPECTED = "torchvision:NAME:WEIGHTS, such as torchvision:resnet50:IMAGENET1K_V2, or timm:NAME"


@dataclass(frozen=True)
class PublicName:
    """Name of public weights.

    Args:
        library: that downloads them.
        network: its name there; of timm with the tag of its weights, if any.
        weights: of torchvision; empty for timm.
    """

    library: Literal["torchvision", "timm"]
    network: str
    weights: str = ""

    @property
    def backbone(self) -> str:
        """The network as the key model.backbone names it."""
        return self.network if self.library == "torchvision" else f"timm/{self.network}"


def is_public(text: str) -> bool:
    """Return whether a text begins as a name of public weights does; no place begins so."""
    return text.startswith(_LIBRARIES)


def parse_public(text: str) -> PublicName:
    """Return the parts of a name of public weights.

    Raises:
        FormError: it has another form.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise FormError(f"expected {_EXPECTED}")
    _, network, weights, _, of_timm = found.groups()
    return PublicName("timm", of_timm) if of_timm else PublicName("torchvision", network, weights)


def check_public(text: str) -> str:
    """Return the text itself if it is a name of public weights; for validators."""
    parse_public(text)
    return text


def check_weights(text: str) -> str:
    """Return the text itself if it is a place or a name of public weights; for validators."""
    return check_public(text) if is_public(text) else check_place(text)


def absolute(uri: str) -> str:
    """Return the absolute URI of weights; names of public ones stay."""
    return uri if is_public(uri) else storage.absolute(uri)
