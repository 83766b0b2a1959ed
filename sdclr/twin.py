"""The target network and its pruned self-competitor as one module (Jiang et al. 2021, section 3).

There is one set of weights. The pruned branch is a functional view of it: the same unmodified
modules, called with masked weights and with a second set of norms. That set has parameters and
statistics of BatchNorm, and parameters of LayerNorm and GroupNorm. So any backbone works, one
forward runs both branches, and one backward gives the published gradient.

Shapes: B images on this rank, D embedding size, F feature size.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sdclr import prune
from sdclr.backbone import build_backbone
from sdclr.batchnorm import AnyBatchNorm
from sdclr.prunable import prunable_weights, ranked_weights
from sdclr.seeds import derived_seed

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

DUAL_NORMS = (AnyBatchNorm, nn.LayerNorm, nn.GroupNorm)
"""Norms that the pruned branch has of its own; those without parameters are the same in both."""


class Network(nn.Module):
    """Normalisation, backbone, projection head: from images in [0, 1] to embeddings."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.backbone, self.head = backbone, head

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Map images in [0, 1] to features (B, F), computed in the network's own float type."""
        features: Tensor = self.backbone((images_BCHW.to(self.mean.dtype) - self.mean) / self.std)
        return features

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Map images in [0, 1] to embeddings (B, D)."""
        embeddings: Tensor = self.head(self.features(images_BCHW))
        return embeddings


def projection_head(num_features: int, embedding_dim: int, *, depth: int) -> nn.Sequential:
    """Build the published head: `Linear BN ReLU [Linear BN ReLU] Linear(no bias) BN`.

    The published second layer of three has no bias. Here it has one, which the norm behind it takes
    away again.

    Args:
        num_features: width of the backbone's features, and of the hidden layers.
        embedding_dim: width of the output.
        depth: number of linear layers, 2 or 3.

    Raises:
        ValueError: another depth.
    """
    if depth not in (2, 3):
        raise ValueError(f"head depth must be 2 or 3, got {depth}")
    layers: list[nn.Module] = []
    for _ in range(depth - 1):
        layers += [nn.Linear(num_features, num_features), nn.BatchNorm1d(num_features), nn.ReLU()]
    layers += [nn.Linear(num_features, embedding_dim, bias=False), nn.BatchNorm1d(embedding_dim)]
    return nn.Sequential(*layers)


def build_network(
    backbone: str,
    *,
    stem: str,
    head_depth: int,
    embedding_dim: int = 128,
    seed: int,
    image_px: int | None = None,
) -> Network:
    """Build a freshly initialised network; equal seeds give equal weights.

    Args:
        backbone: its name, see `sdclr.backbone`.
        stem: `cifar` or `imagenet`.
        head_depth: linear layers of the head, 2 or 3.
        embedding_dim: width of the output.
        seed: of the initialisation.
        image_px: side of the images; None = 224. Transformers are built for one side only.

    Raises:
        BackboneError: there is no such backbone.
    """
    trunk, num_features = build_backbone(
        backbone, stem=stem, seed=derived_seed(seed, "backbone"), image_px=image_px
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(seed, "head"))
        return Network(trunk, projection_head(num_features, embedding_dim, depth=head_depth))


class SimCLR(nn.Module):
    """The baseline (Chen et al. 2020): both views through the same network, in one batch."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, view1_BCHW: Tensor, view2_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings (B, D) of both views; BatchNorm sees the 2B images together."""
        f1_BD, f2_BD = self.network(torch.cat([view1_BCHW, view2_BCHW])).chunk(2)
        return f1_BD, f2_BD


class Twin(nn.Module):
    """SDCLR: view 1 through the dense branch, view 2 through the pruned one, never swapped.

    Masked weights get their gradient from the dense branch only; all other weights from both.

    Args:
        network: of the dense branch.
        dual_norm: whether the pruned branch has norms of its own; without, both branches share
            parameters and statistics, and the statistics see both.
    """

    def __init__(self, network: Network, *, dual_norm: bool = True) -> None:
        super().__init__()
        self.network = network
        norms = {n: m for n, m in network.named_modules() if isinstance(m, DUAL_NORMS)}
        norms = norms if dual_norm else {}
        # A dot is not allowed in a registered name; a slash is not used by any module.
        self.pruned_norms = nn.ModuleDict(
            OrderedDict((n.replace(".", "/"), copy.deepcopy(m)) for n, m in norms.items())
        )
        self.masks = nn.Module()
        for name, weight in self._by_network_name(prunable_weights(network.backbone)).items():
            whole = torch.ones_like(weight, dtype=torch.bool)
            self.masks.register_buffer(name.replace(".", "/"), whole)
        # A flag on the device: while it is not 0 the masks stay, whatever `refresh_masks` finds.
        self.keep_masks: Tensor | None = None

    def mask_by_weight(self) -> dict[str, Tensor]:
        """Map each weight's name in the network to its boolean mask."""
        return {name.replace("/", "."): mask for name, mask in self.masks.named_buffers()}

    @torch.no_grad()
    def refresh_masks(
        self, rule: prune.PruneRule, generator: torch.Generator | None = None
    ) -> Mapping[str, float]:
        """Recompute all masks from the live dense weights; returns the fraction kept per layer.

        Nothing waits for a GPU. There the old masks stay as well when a layer would keep nothing;
        `prune.refuse_starved` says so when the fractions are read.

        Raises:
            StarvedLayerError: a layer would keep nothing, on a CPU; the old masks stay.
        """
        weights = self._by_network_name(ranked_weights(self.network.backbone))
        masks = prune.magnitude_masks(weights, rule, generator)
        kept_frac = prune.KeptFractions(masks)
        stay = (kept_frac.counts_L == 0).any()
        if not stay.is_cuda:
            prune.refuse_starved(kept_frac)
        if self.keep_masks is not None:
            stay = stay | (self.keep_masks != 0)
        for name, mask in self.mask_by_weight().items():
            mask.copy_(torch.where(stay, mask, masks[name]))
        return kept_frac

    def pruned(self, images_BCHW: Tensor, *, through: Network | None = None) -> Tensor:
        """Return embeddings (B, D) of the self-competitor.

        Args:
            images_BCHW: in [0, 1].
            through: modules to call, with the tensors of `network`; None = its own.
        """
        weights = self._by_network_name(prunable_weights(self.network.backbone))
        # As bytes a mask is converted fast on a CPU; compiled for a GPU, the view is refused.
        view: dict[str, Tensor] = {
            n: weights[n] * (m if m.is_cuda else m.view(torch.uint8)).to(weights[n].dtype)
            for n, m in self.mask_by_weight().items()
        }
        for name, norm in self.pruned_norms.items():
            prefix = name.replace("/", ".")
            view |= {f"{prefix}.{key}": value for key, value in norm.named_parameters()}
            view |= {f"{prefix}.{key}": value for key, value in norm.named_buffers()}
        embeddings: Tensor = functional_call(through or self.network, view, (images_BCHW,))
        return embeddings

    @staticmethod
    def _by_network_name(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"backbone.{name}": weight for name, weight in weights.items()}

    def forward(self, view1_BCHW: Tensor, view2_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings f1 = dense(view 1) and f2 = pruned(view 2), each (B, D)."""
        return self.network(view1_BCHW), self.pruned(view2_BCHW)
