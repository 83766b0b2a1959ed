"""NT-Xent, the contrastive loss of SimCLR (Chen et al. 2020, eq. 1), over the images of all ranks.

    loss = mean over i of  -log( exp(z_i . z_p(i) / T) / sum over k != i of exp(z_i . z_k / T) )

over the 2N unit rows z, where p(i) is the other view of the same image. SDCLR (Jiang et al. 2021,
eq. 2) takes the second view from the pruned branch.

Shapes: B images on this rank, N images on all ranks, D embedding size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sdclr import collective


def nt_xent(u_BD: Tensor, v_BD: Tensor, *, temperature: float | Tensor) -> Tensor:
    """Return the mean loss of this rank's 2B rows against the 2N rows of all ranks.

    Row i of both inputs shows the same image; every other row, of either view and any rank, is a
    negative. The mean over ranks of the result, and of its gradients, equals the loss of one rank
    that holds all N images.

    N = 1 gives 0. Identical embeddings give log(2N - 1). A NaN anywhere makes the result NaN.

    Args:
        u_BD: embeddings of the first views, need not be normalised; computed in float32 (float64
            stays).
        v_BD: embeddings of the second views, same shape on every rank.
        temperature: divides cosine similarities, dimensionless, > 0; as a tensor on the device it
            is not checked, which would wait.

    Returns:
        A scalar; its gradient reaches both inputs on every rank.

    Raises:
        ValueError: the shapes differ, or the temperature is not positive.
    """
    with torch.autocast(u_BD.device.type, enabled=False):
        logits, partner = _logits(u_BD, v_BD, temperature)
        # Cross-entropy, not exp/sum/log: the same value, but finite at temperature 0.005.
        return F.cross_entropy(logits, partner)


@torch.no_grad()
def image_losses(u_BD: Tensor, v_BD: Tensor, *, temperature: float | Tensor) -> Tensor:
    """Return the loss of each of this rank's images (B,), without gradient: its two rows' mean.

    Their mean is `nt_xent`, whose arguments it takes.
    """
    with torch.autocast(u_BD.device.type, enabled=False):
        logits, partner = _logits(u_BD, v_BD, temperature)
        return F.cross_entropy(logits, partner, reduction="none").view(2, -1).mean(dim=0)


def _logits(u_BD: Tensor, v_BD: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return similarities of this rank's 2B rows to all 2N rows, and each partner's column."""
    if u_BD.shape != v_BD.shape or u_BD.ndim != 2:
        raise ValueError(
            f"two (B, D) tensors expected, got {tuple(u_BD.shape)}, {tuple(v_BD.shape)}"
        )
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    u_BD, v_BD = _unit(u_BD), _unit(v_BD)
    z_rows = torch.cat([u_BD, v_BD])  # (2B, D)
    # Side by side, both views travel in one collective.
    pairs = collective.gather_rows(torch.cat([u_BD, v_BD], dim=1))  # (N, 2D)
    z_columns = torch.cat(pairs.chunk(2, dim=1))  # (2N, D)
    logits = z_rows @ z_columns.T / temperature  # (2B, 2N)

    num_local, num_all = len(u_BD), len(z_columns) // 2
    local = torch.arange(num_local, device=logits.device) + collective.rank() * num_local
    this = torch.cat([local, local + num_all])
    partner = torch.cat([local + num_all, local])
    logits[torch.arange(2 * num_local, device=logits.device), this] = -torch.inf
    return logits, partner


def _unit(rows_BD: Tensor) -> Tensor:
    wide = rows_BD if rows_BD.dtype == torch.float64 else rows_BD.float()
    return F.normalize(wide, dim=1)
