"""Batch normalisation over the images of all ranks, on any device.

torch's own SyncBatchNorm runs on GPUs only, and makes the host wait three times in each norm to
leave out ranks without images. Here all ranks hold equally many, which the host knows. So nothing
waits on a GPU, and two workers with B images each train exactly as one with 2B on any device.

On a GPU a norm is torch's own kernels for it, one gather forward and one reduction backward. On a
CPU it is the kernels of the ordinary layer.

Shapes: B images on this rank, C channels, R ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sdclr import collective

# What all BatchNorm layers of torch have in common has no public name.
AnyBatchNorm: TypeAlias = _BatchNorm


class _GlobalBatchNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps = eps
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        grad_y = grads[0].contiguous(memory_format=_layout(x))
        invstd = torch.rsqrt(var + ctx.eps)
        # With statistics held constant: grad_x = grad_y * weight * invstd, and the two channel sums
        # we need.
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad_y, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        sums_2C = collective.stack_over_ranks(torch.stack([grad_weight, grad_bias])).sum(0)
        count = x.numel() // x.shape[1] * collective.world_size()
        # What flows through the mean and the variance is, per channel, an affine function of x.
        slope_C = -weight * invstd.square() * sums_2C[0] / count
        shift_C = -weight * invstd * sums_2C[1] / count - slope_C * mean
        shape = (1, -1) + (1,) * (x.ndim - 2)
        grad_x = grad_x.add_(torch.addcmul(shift_C.view(shape), x, slope_C.view(shape)))
        return grad_x, grad_weight, grad_bias, None, None, None


class _GpuBatchNormFunction(torch.autograd.Function):
    """The same on a GPU; the running statistics move in the kernel that merges those of ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        rate: float,
        eps: float,
    ) -> Tensor:
        x = x.contiguous(memory_format=_layout(x))
        stats_2C = torch.stack(torch.batch_norm_stats(x, eps))
        stats_R2C = collective.stack_over_ranks(stats_2C)
        counts_R = stats_2C.new_full((len(stats_R2C),), x.numel() // x.shape[1])
        mean_C, invstd_C = torch.batch_norm_gather_stats_with_counts(
            x, stats_R2C[:, 0], stats_R2C[:, 1], running_mean, running_var, rate, eps, counts_R
        )
        ctx.save_for_backward(x, weight, mean_C, invstd_C, counts_R)
        out: Tensor = torch.batch_norm_elemt(x, weight, bias, mean_C, invstd_C, eps)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean_C, invstd_C, counts_R = ctx.saved_tensors
        grad_y = grads[0].contiguous(memory_format=_layout(x))
        has_weight, has_bias = ctx.needs_input_grad[1:3]
        sum_C, product_C, grad_weight, grad_bias = torch.batch_norm_backward_reduce(
            grad_y, x, mean_C, invstd_C, weight, True, has_weight, has_bias
        )
        sums_2C = collective.sum_over_ranks(torch.stack([sum_C, product_C]))
        grad_x = torch.batch_norm_backward_elemt(
            grad_y, x, mean_C, invstd_C, weight, sums_2C[0], sums_2C[1], counts_R.to(torch.int32)
        )
        own = (grad_weight if has_weight else None, grad_bias if has_bias else None)
        return grad_x, *own, None, None, None, None


def _layout(x: Tensor) -> torch.memory_format:
    is_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format


def _global_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance per channel, merged over ranks (Chan et al. 1979)."""
    # The fused kernel of the ordinary layer; torch.var_mean takes twenty times as long on a CPU.
    mean_C, var_C = torch.batch_norm_update_stats(x.detach(), None, None, 0.0)
    return _merged(collective.stack_over_ranks(torch.stack([mean_C, var_C])))


def _traced_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same with gradient, from operations that a compiler can take apart and fuse."""
    var_C, mean_C = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
    return _merged(collective.gather_rows(torch.stack([mean_C, var_C]).unsqueeze(0)))


def _merged(both_R2C: Tensor) -> tuple[Tensor, Tensor]:
    mean = both_R2C[:, 0].mean(0)
    return mean, both_R2C[:, 1].mean(0) + (both_R2C[:, 0] - mean).square().mean(0)


class GlobalBatchNorm(_BatchNorm):
    """BatchNorm1d/2d whose training statistics cover all ranks; the same keys, the same evaluation.

    All ranks must hold equally many images.
    """

    @property
    def update_rate(self) -> float:
        """Share of the newest batch in the running statistics; a plain average is not supported."""
        if self.momentum is None:
            raise ValueError("a BatchNorm with momentum=None cannot be synchronised")
        return self.momentum

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim not in (2, 4):
            raise ValueError(f"expected (B, C) or (B, C, H, W), got {tuple(input.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C) or (B, C, H, W); updates the running statistics when training."""
        if not (self.training and collective.is_distributed()):
            return super().forward(x)
        self._check_input_dim(x)
        is_traced = torch.compiler.is_compiling()
        if x.is_cuda and not is_traced:
            return self._on_gpu(x)
        # Statistics of bfloat16 activations are taken, and kept, in the precision of the weights.
        dtype, x = x.dtype, x.to(self.weight.dtype)
        mean, var = _traced_statistics(x) if is_traced else _global_statistics(x)
        self._move_running(x, mean.detach(), var.detach())
        if is_traced:
            slope_C = self.weight * torch.rsqrt(var + self.eps)
            shape = (1, -1) + (1,) * (x.ndim - 2)
            return (x * slope_C.view(shape) + (self.bias - mean * slope_C).view(shape)).to(dtype)
        out: Tensor = _GlobalBatchNormFunction.apply(x, self.weight, self.bias, mean, var, self.eps)
        return out.to(dtype)

    def _move_running(self, x: Tensor, mean: Tensor, var: Tensor) -> None:
        if self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                count = x.numel() // x.shape[1] * collective.world_size()
                self.running_mean.lerp_(mean, self.update_rate)
                self.running_var.lerp_(var * (count / max(count - 1, 1)), self.update_rate)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)

    def _on_gpu(self, x: Tensor) -> Tensor:
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        own = (self.weight, self.bias, self.running_mean, self.running_var)
        out: Tensor = _GpuBatchNormFunction.apply(x, *own, self.update_rate, self.eps)
        return out


@contextmanager
def running_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Restore the running statistics of all norms on exit."""
    norms = [module for module in model.modules() if isinstance(module, AnyBatchNorm)]
    buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
    copies = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, copy in zip(buffers, copies, strict=True):
            buffer.copy_(copy)


def synchronise(network: nn.Module) -> nn.Module:
    """Make every BatchNorm of `network` cover all ranks; its tensors stay the same objects.

    Returns the network.

    Raises:
        ValueError: a BatchNorm of another library does more than normalise, which would be lost.
    """
    refuse_unsynchronisable(network)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(parent, name, _converted(child))
    return network


def refuse_unsynchronisable(network: nn.Module) -> None:
    """Raise ValueError when a BatchNorm is of a class of its own: it may hold an activation."""
    plain = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, GlobalBatchNorm)
    for name, module in network.named_modules():
        if isinstance(module, AnyBatchNorm) and type(module) not in plain:
            raise ValueError(
                f"statistics of {name}, a {type(module).__name__}, cannot cover all ranks"
            )


def _converted(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> GlobalBatchNorm:
    layer = GlobalBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine)
    layer.weight, layer.bias = norm.weight, norm.bias
    layer.running_mean, layer.running_var = norm.running_mean, norm.running_var
    layer.num_batches_tracked = norm.num_batches_tracked
    layer.training = norm.training
    return layer
