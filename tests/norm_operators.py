"""torch's five operators of a BatchNorm over ranks, which exist on GPUs only, for the CPU.

They are written from their definitions, as plainly as can be, one channel after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def batch_norm_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(variance + eps) of each channel of this rank, in float32 at least."""
    means, invstds = [], []
    for values in _by_channel(x):
        means.append(values.mean())
        invstds.append(1 / torch.sqrt(((values - values.mean()) ** 2).mean() + eps))
    return torch.stack(means), torch.stack(invstds)


def batch_norm_gather_stats_with_counts(
    x: Tensor,
    mean_RC: Tensor,
    invstd_RC: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    counts_R: Tensor,
) -> tuple[Tensor, Tensor]:
    """Merge the statistics of ranks with so many values each; moves the running ones."""
    assert mean_RC.shape == invstd_RC.shape == (len(counts_R), x.shape[1])
    assert running_mean is None or counts_R.dtype == running_mean.dtype  # as the kernel asks
    total = counts_R.sum()
    mean_C, var_C = torch.zeros_like(mean_RC[0]), torch.zeros_like(mean_RC[0])
    for count, mean in zip(counts_R, mean_RC, strict=True):
        mean_C += count / total * mean
    for count, mean, invstd in zip(counts_R, mean_RC, invstd_RC, strict=True):
        var_C += count / total * (1 / invstd**2 - eps + (mean - mean_C) ** 2)
    if running_mean is not None and running_var is not None:
        running_mean.copy_((1 - momentum) * running_mean + momentum * mean_C)
        unbiased_C = var_C * total / (total - 1)
        running_var.copy_((1 - momentum) * running_var + momentum * unbiased_C)
    return mean_C, 1 / torch.sqrt(var_C + eps)


def batch_norm_elemt(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, invstd: Tensor, eps: float
) -> Tensor:
    """Normalise with given statistics; the result has the type of `x`."""
    out = torch.empty_like(x)
    for c in range(x.shape[1]):
        scale = 1.0 if weight is None else weight[c]
        shift = 0.0 if bias is None else bias[c]
        out[:, c] = (x[:, c].to(mean.dtype) - mean[c]) * invstd[c] * scale + shift
    return out


def batch_norm_backward_reduce(
    grad: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None,
    input_g: bool, weight_g: bool, bias_g: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Sums of this rank: of dy, of dy (x - mean), and the gradients of weight and bias."""
    assert grad.stride() == x.stride()  # another layout makes the kernels copy, or refuse
    pairs = list(zip(_by_channel(grad), _by_channel(x), strict=True))
    sum_C = torch.stack([dy.sum() for dy, _ in pairs])
    product_C = torch.stack([(dy * (v - m)).sum() for (dy, v), m in zip(pairs, mean, strict=True)])
    return sum_C, product_C, product_C * invstd, sum_C.clone()


def batch_norm_backward_elemt(
    grad: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None,
    sum_C: Tensor, product_C: Tensor, counts_R: Tensor,
) -> Tensor:  # fmt: skip
    """Return the gradient of the input from the sums of all ranks."""
    assert counts_R.dtype == torch.int32  # as the kernel asks
    out, total = torch.empty_like(x), int(counts_R.sum())
    for c in range(x.shape[1]):
        dy, centred = grad[:, c].to(mean.dtype), x[:, c].to(mean.dtype) - mean[c]
        slope = product_C[c] / total * invstd[c] ** 2
        scale = invstd[c] * (1.0 if weight is None else weight[c])
        out[:, c] = (dy - sum_C[c] / total - centred * slope) * scale
    return out


def _by_channel(x: Tensor) -> list[Tensor]:
    wide = x if x.dtype == torch.float64 else x.float()
    return [wide[:, c].flatten() for c in range(x.shape[1])]


@contextmanager
def on_the_cpu() -> Iterator[None]:
    """Let torch find these functions for tensors of the CPU."""
    library = torch.library.Library("aten", "IMPL")
    for operator in (
        batch_norm_stats, batch_norm_gather_stats_with_counts, batch_norm_elemt,
        batch_norm_backward_reduce, batch_norm_backward_elemt,
    ):  # fmt: skip
        library.impl(operator.__name__, operator, "CPU")
    try:
        yield
    finally:
        library._destroy()
