"""Weights of a backbone that a mask covers, and the magnitudes by which they are ranked.

Published (Jiang et al. 2021) for ResNets: the weight of every Conv2d, ranked by |w|. For other
families that rule is void or breaks them, see docs/backbones.md. So here:

- Where convolutions hold less than `CONV_SHARE` of the backbone, as in transformers and ConvNeXts,
  weights of Linear layers and of attention are covered as well.
- Depthwise convolutions are left whole. At p = 0.9 four of ten 3x3 kernels would lose all nine
  weights, and with them their channel.
- Layers of different kinds are initialised at different scales, so |w| would compare scales. Each
  weight is ranked by |w| / rms(w of its layer). Layers then lose equal shares at the start, and
  later those whose weights differ most among each other keep most.

The last rule does not hold where every convolution is ungrouped and without bias, and convolutions
hold `CONV_SHARE`: ResNets, DenseNets, Inception. There |w| is compared as published.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdclr.prune import PruneRule

CONV_SHARE = 0.9
"""Share of the backbone's weights from which convolutions alone are pruned."""

_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def prunable_weights(backbone: nn.Module) -> dict[str, Tensor]:
    """Map names to the weights that a mask covers, in registration order, the stem first."""
    with_linear = conv_share(backbone) < CONV_SHARE
    found: dict[str, Tensor] = {}
    for name, module in backbone.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, nn.Conv2d):
            if not _is_depthwise(module):
                found[f"{prefix}weight"] = module.weight
        elif with_linear and isinstance(module, nn.Linear):
            found[f"{prefix}weight"] = module.weight
        elif with_linear and isinstance(module, nn.MultiheadAttention):
            own = {key: getattr(module, key) for key in _ATTENTION}
            found |= {f"{prefix}{key}": weight for key, weight in own.items() if weight is not None}
    return found


@torch.no_grad()
def ranked_weights(backbone: nn.Module) -> dict[str, Tensor]:
    """Map the names of `prunable_weights` to tensors whose magnitudes can be compared.

    Returns:
        The weights themselves where the published rule holds; else each divided by its layer's root
        mean square, new tensors of the same shapes.
    """
    weights = prunable_weights(backbone)
    if is_published_rule(backbone):
        return weights
    tiny = torch.finfo(torch.float32).tiny
    return {n: w / w.square().mean().sqrt().clamp_min(tiny) for n, w in weights.items()}


def is_published_rule(backbone: nn.Module) -> bool:
    """Return whether weights are ranked by plain |w|, as published for ResNets."""
    plain = all(conv.groups == 1 and conv.bias is None for conv in _convolutions(backbone))
    return plain and conv_share(backbone) >= CONV_SHARE


def conv_share(backbone: nn.Module) -> float:
    """Return the share of all parameters of a backbone that convolutions' weights hold, 0..1."""
    num = sum(parameter.numel() for parameter in backbone.parameters())
    return sum(conv.weight.numel() for conv in _convolutions(backbone)) / max(num, 1)


def switched_off(backbone: nn.Module, rule: PruneRule) -> float:
    """Return the share of all parameters of a backbone that a rule's mask switches off, 0..1."""
    num = sum(parameter.numel() for parameter in backbone.parameters())
    sizes = [weight.numel() for weight in prunable_weights(backbone).values()]
    return rule.prune_ratio * sum(sizes[1:] if rule.exclude_stem else sizes) / max(num, 1)


def _convolutions(backbone: nn.Module) -> list[nn.Conv2d]:
    return [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return conv.groups > 1 and conv.groups == conv.in_channels
