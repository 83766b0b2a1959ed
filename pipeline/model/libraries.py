"""Backbones of timm, where it is installed, and what to say of a backbone that cannot be used."""

from __future__ import annotations

import difflib

from torch import nn

from pipeline.errors import ConfigError
from sdclr.backbone import BackboneError, UnknownBackboneError, add_library, known_backbones

TIMM = "timm"
_INSTALL = "python -m pip install timm"


def timm_network(name: str, image_px: int | None) -> nn.Module:
    """Build a network of timm without its classifier, freshly initialised.

    Args:
        name: timm's, with or without the tag of its weights.
        image_px: side of the images, for networks that are built for one side; None = timm's own.

    Raises:
        ConfigError: timm is not installed.
        UnknownBackboneError: it has no such network.
    """
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            "E-CONFIG-760",
            "the backbone needs a package that is not installed: timm",
            where=f"model.backbone={TIMM}/{name}",
            todo=f"{_INSTALL}, or choose a network of torchvision",
        ) from error
    if not timm.is_model(name):
        raise UnknownBackboneError(f"timm has no network {name!r}")
    more = timm_arguments(name, image_px)
    network: nn.Module = timm.create_model(
        name.partition(".")[0], pretrained=False, num_classes=0, **more
    )
    return network


def timm_arguments(name: str, image_px: int | None) -> dict[str, int]:
    """Return the argument for the side of the images: of networks built for one side."""
    import timm

    found = timm.models.get_pretrained_cfg(name.partition(".")[0])
    fixed = found is not None and found.fixed_input_size
    return {"img_size": image_px} if fixed and image_px else {}


def unusable(name: str, error: BackboneError) -> ConfigError:
    """Return the error of a configuration, with the nearest name if there is none of this name."""
    if not isinstance(error, UnknownBackboneError):
        return ConfigError(
            "E-CONFIG-762",
            str(error),
            where=f"model.backbone={name}",
            todo="set model.stem=imagenet and an augment.crop_px that the network can take, or "
            "choose another backbone",
        )
    library, slash, rest = name.rpartition("/")
    near = difflib.get_close_matches(rest, _names(library), n=3)
    meant = f"set it to {' or '.join(library + slash + n for n in near)}" if near else ""
    return ConfigError(
        "E-CONFIG-761",
        f"{'timm' if library else 'torchvision'} has no classification network {rest!r}",
        where=f"model.backbone={name}",
        todo=meant
        or "set it to a name that torchvision.models.list_models() or timm.list_models() has",
    )


def _names(library: str) -> list[str]:
    if library != TIMM:
        return list(known_backbones())
    import timm

    return list(timm.list_models())


add_library(TIMM, timm_network)
