"""The published training step, as a reference for speed and numbers (Jiang et al. 2021).

Their scheme, written from its description: a network whose convolutions carry a mask and whose
batch norms come twice, and for each step

    f2 = pruned(v2) without gradient;  f1 = dense(v1);   loss(f1, f2).backward()
    f2 = pruned(v2) with gradient;                       loss(f1 detached, f2).backward()

in float32: three forwards and two backwards, 3 + 2 * 2 = 7 units of arithmetic where one joint
forward and backward take 2 + 2 * 2 = 6. The sum of both gradients is that of the joint loss.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdclr import Network, Twin


class MaskedConv2d(nn.Module):
    """A convolution that multiplies its weight by its mask while the network is pruned."""

    def __init__(self, conv: nn.Conv2d, mask: Tensor) -> None:
        super().__init__()
        self.weight, self.bias, self.mask = conv.weight, conv.bias, mask
        self.stride, self.padding = conv.stride, conv.padding
        self.is_pruned = False

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with the dense or the pruned weight."""
        weight = self.weight * self.mask if self.is_pruned else self.weight
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class DualBatchNorm(nn.Module):
    """Two batch norms, one for each branch."""

    def __init__(self, dense: nn.Module, pruned: nn.Module) -> None:
        super().__init__()
        self.dense, self.pruned = dense, pruned
        self.is_pruned = False

    def forward(self, x: Tensor) -> Tensor:
        """Normalise with the set of the current branch."""
        normed: Tensor = (self.pruned if self.is_pruned else self.dense)(x)
        return normed


class PublishedStep:
    """The published step on the weights, masks and batch norms that a `Twin` has.

    Args:
        twin: copied.
        lr, momentum, weight_decay: of SGD.
        temperature: of NT-Xent.
    """

    def __init__(
        self, twin: Twin, *, lr: float, momentum: float, weight_decay: float, temperature: float
    ) -> None:
        twin = copy.deepcopy(twin)
        self.temperature = temperature
        self.network: Network = twin.network
        # The published network is stored channels first.
        self.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        masks = twin.mask_by_weight()
        self.layers: list[MaskedConv2d | DualBatchNorm] = []
        for name, module in list(self.network.named_modules()):
            layer: MaskedConv2d | DualBatchNorm
            if isinstance(module, nn.Conv2d):
                mask = masks[f"{name}.weight"].to(module.weight.dtype).contiguous()
                layer = MaskedConv2d(module, mask)
            elif name.replace(".", "/") in twin.pruned_norms:
                layer = DualBatchNorm(module, twin.pruned_norms[name.replace(".", "/")])
            else:
                continue
            self.layers.append(layer)
            self.network.set_submodule(name, layer)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay
        )

    def branch(self, images_BCHW: Tensor, *, pruned: bool) -> Tensor:
        """Return embeddings (B, D) of one branch."""
        for layer in self.layers:
            layer.is_pruned = pruned
        embeddings: Tensor = self.network(images_BCHW)
        return embeddings

    def gradient(self, view1_BCHW: Tensor, view2_BCHW: Tensor) -> float:
        """Run three forwards and two backwards; return the loss."""
        self.optimizer.zero_grad()
        with torch.no_grad():
            f2_BD = self.branch(view2_BCHW, pruned=True)
        f1_BD = self.branch(view1_BCHW, pruned=False)
        loss = published_loss(f1_BD, f2_BD, self.temperature)
        loss.backward()
        f2_BD = self.branch(view2_BCHW, pruned=True)
        published_loss(f1_BD.detach(), f2_BD, self.temperature).backward()
        return loss.item()

    def step(self, view1_BCHW: Tensor, view2_BCHW: Tensor) -> float:
        """Compute the gradient and update the weights; return the loss."""
        loss = self.gradient(view1_BCHW, view2_BCHW)
        self.optimizer.step()
        return loss


def published_loss(f1_BD: Tensor, f2_BD: Tensor, temperature: float) -> Tensor:
    """Return NT-Xent, the mean over the 2B rows."""
    z = F.normalize(torch.cat([f1_BD, f2_BD]), dim=1)
    similarity = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    partner = torch.arange(len(z), device=z.device).roll(len(f1_BD))
    return F.cross_entropy(similarity, partner)
