"""Backbones: classification networks without their classifier, from images to features.

Any network of `torchvision.models`, by its name there, `resnet8`, and those of a library that
`add_library` was given. What differs from the library's own network:

- The classifier, its last linear layer (or convolution), is left out.
- The stem `cifar` is the one of SimCLR's and SDCLR's CIFAR runs (3x3 stride 1, no max-pool), in
  place of a 7x7 stride 2 with max-pool. `imagenet` is the network's own stem.
- Dropout and stochastic depth are off. They draw from the generator of the process, so a resumed
  run would differ, and so would the two branches of a twin.

Nothing else is changed: state dicts carry the library's key names, and weights are initialised as
the library does it. For ResNets that is kaiming-normal fan-out for convolutions, BatchNorm weight 1
and bias 0, also in the last BatchNorm of each residual block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from sdclr.resnet8 import ResNet8
from sdclr.shapes import forward_by_shape

STEMS = ("cifar", "imagenet")
USUAL_PX = 224
"""Side of the images where none is given."""

Builder = Callable[[str, int | None], nn.Module]
"""From a network's name and the side of its images in px to the network, with or without head."""

_LIBRARIES: dict[str, Builder] = {}
# The first convolution and the max-pool of networks that can have the stem `cifar`.
_STEMS = (("conv1", "maxpool"), ("features.conv0", "features.pool0"))
_DROPPING = (
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
_DROPPING_NAME = "StochasticDepth"  # of torchvision, which need not have been imported
_RATES = ("p", "drop_prob", "drop_rate", "dropout", "attention_dropout")


class BackboneError(ValueError):
    """There is no such backbone, or none with this stem or for images of this size."""


class UnknownBackboneError(BackboneError):
    """No library has a network of this name."""


def known_backbones() -> tuple[str, ...]:
    """Return the names of the networks that need no `add_library`."""
    from sdclr.zoo import NETWORKS

    return ("resnet8", *NETWORKS)


def add_library(prefix: str, build: Builder) -> None:
    """Make a library's networks known as `PREFIX/NAME`.

    Args:
        prefix: such as `timm`.
        build: returns a freshly initialised network; raises UnknownBackboneError or ValueError.
    """
    _LIBRARIES[prefix] = build


def build_backbone(
    name: str, *, stem: str, seed: int, image_px: int | None = None
) -> tuple[nn.Module, int]:
    """Return a freshly initialised backbone and the width of its features.

    Args:
        name: one of `known_backbones`, or `LIBRARY/NAME`.
        stem: `cifar` or `imagenet`; the former needs a 7x7 convolution and a max-pool to replace.
        seed: of the initialisation; the process-wide generator is left as it was.
        image_px: side of the images; None = 224. Transformers are built for one side only.

    Raises:
        UnknownBackboneError: no such name.
        BackboneError: it has no such stem, or cannot take images of this side.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            network = _new(name, image_px)
        except BackboneError:
            raise
        except (ValueError, AssertionError) as error:
            raise BackboneError(f"backbone {name} cannot be built: {error}") from error
        if stem == "cifar":
            _make_small_stem(network, name)
        elif stem not in STEMS:
            raise BackboneError(f"backbone {name} has no stem {stem!r}")
    for module, rate in _random_parts(network):
        setattr(module, rate, 0.0)
    if type(network) is ResNet8:  # as it is in this package
        return network, network.num_features
    return network, feature_width(network, name, image_px or USUAL_PX)


def feature_width(network: nn.Module, name: str, image_px: int) -> int:
    """Return the width of the features: two images go through the network, by shape alone.

    Args:
        network: of `build_backbone`; left as it was.
        name: for messages.
        image_px: side of the images.

    Raises:
        BackboneError: it cannot take images of this side, or returns no vector for each.
    """
    try:
        features = forward_by_shape(network, image_px, num_images=2)
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BackboneError(
            f"backbone {name} cannot take images of {image_px} px: {reason}"
        ) from error
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 2:
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise BackboneError(f"backbone {name} gives no vector for each image, but {found}")
    return features.shape[1]


def random_layers(network: nn.Module) -> list[str]:
    """List the modules that draw random numbers in training: dropout, stochastic depth."""
    names = {module: name for name, module in network.named_modules()}
    return [f"{names[module]}.{rate}" for module, rate in _random_parts(network)]


def _new(name: str, image_px: int | None) -> nn.Module:
    """Build a network and leave out its classifier."""
    library, slash, rest = name.partition("/")
    if slash:
        if library not in _LIBRARIES:
            raise UnknownBackboneError(f"unknown library {library!r} of backbone {name!r}")
        return _LIBRARIES[library](rest, image_px)
    if name == "resnet8":
        network: nn.Module = ResNet8()
    else:
        from sdclr.zoo import NETWORKS, new_network

        if name not in NETWORKS:
            known = ", ".join(known_backbones())
            raise UnknownBackboneError(f"unknown backbone {name!r}; known: {known}")
        network = new_network(name, image_px or USUAL_PX)
    layers = [n for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    linear = [n for n in layers if isinstance(network.get_submodule(n), nn.Linear)]
    # SqueezeNet alone classifies by a convolution.
    _replace(network, (linear or layers)[-1], nn.Identity())
    return network


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


def _make_small_stem(network: nn.Module, name: str) -> None:
    for conv_name, pool_name in _STEMS:
        modules = dict(network.named_modules())
        conv, pool = modules.get(conv_name), modules.get(pool_name)
        if isinstance(conv, nn.Conv2d) and conv.kernel_size == (7, 7) and pool is not None:
            small = nn.Conv2d(3, conv.out_channels, 3, stride=1, padding=1, bias=False)
            nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
            _replace(network, conv_name, small)
            _replace(network, pool_name, nn.Identity())
            return
    raise BackboneError(f"backbone {name} has no stem 'cifar'")


def _random_parts(network: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Yield the modules that draw random numbers in training, and the attribute of the rate."""
    for module in network.modules():
        drops = isinstance(module, _DROPPING) or type(module).__name__ == _DROPPING_NAME
        for rate in _RATES:
            value = getattr(module, rate, None)
            # `p` of another module is the exponent of a norm.
            if isinstance(value, float) and value > 0 and (drops or rate != "p"):
                yield module, rate
