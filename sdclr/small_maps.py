"""Convolutions on small feature maps, on a CPU: one matrix product for each tap of the kernel.

The last stages of a network that sees small images have many channels and few places: 512 channels
on 2 x 2 px for a ResNet-18 on 64 px. There oneDNN, which torch uses on CPUs, multiplies padding and
writes the gradient of the weights in a layout that has to be turned, which takes up to 50 times as
long as the products alone. Here each tap multiplies the places where it meets the map:

    y[o] = sum over taps t of W_t x[o s + t - p]      grad W_t = sum over o of g[o] x[o s + t - p]'

Large maps stay with oneDNN, whose kernels then are at the limit of the processor. The two bounds
below come from measurements, see docs/performance.md and `benchmarks.small_maps`.

Shapes: B images, H x W input, I and O channels, K x L kernel, Y x X output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdclr.idle_taps import keep_idle_gradients_zero
from sdclr.recipe import Recipe

# Weights of a tap for each place of the output, above which the products are faster.
_FOR_WEIGHTS = 512
_FOR_MAPS = 8192


@dataclass(frozen=True)
class _Reach:
    """Places of one axis where a tap meets the map: outputs start..stop, inputs from `first` on."""

    start: int
    stop: int
    first: int
    stride: int

    @property
    def outputs(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def inputs(self) -> slice:
        num = self.stop - self.start
        return slice(self.first, self.first + (num - 1) * self.stride + 1, self.stride)


def _reaches(num_in: int, num_out: int, size: int, stride: int, padding: int) -> list[_Reach]:
    """Return the reach of each tap of one axis; start = stop for one that meets padding only."""
    reaches = []
    for tap in range(size):
        start = max(0, -((tap - padding) // stride))
        stop = min(num_out, (num_in - 1 - tap + padding) // stride + 1)
        reaches.append(_Reach(start, max(start, stop), start * stride + tap - padding, stride))
    return reaches


@dataclass(frozen=True)
class _Taps:
    """The taps of a convolution that meet its map, by (row, column, row's and column's reach)."""

    met: tuple[tuple[int, int, _Reach, _Reach], ...]

    @classmethod
    def of(cls, conv: SmallMapConv2d, inputs: torch.Size, outputs: tuple[int, int]) -> _Taps:
        down, across = (
            _reaches(inputs[2 + n], outputs[n], conv.kernel_size[n], conv.stride[n], conv.pads[n])
            for n in range(2)
        )
        return cls(
            tuple(
                (row, column, y, x)
                for row, y in enumerate(down)
                for column, x in enumerate(across)
                if y.start < y.stop and x.start < x.stop
            )
        )

    def output(self, x_BIHW: Tensor, weight_OIKL: Tensor, sides: tuple[int, int]) -> Tensor:
        """Return the convolution (B, O, Y, X) without a bias."""
        x_BHWI = x_BIHW.permute(0, 2, 3, 1)
        out_BYXO = x_BIHW.new_zeros(len(x_BIHW), *sides, len(weight_OIKL))
        for row, column, y, x in self.met:
            met_BYXI = x_BHWI[:, y.inputs, x.inputs]
            out_BYXO[:, y.outputs, x.outputs] += met_BYXI @ weight_OIKL[:, :, row, column].T
        return out_BYXO.permute(0, 3, 1, 2)

    def input_gradient(self, grad_BOYX: Tensor, weight_OIKL: Tensor, inputs: torch.Size) -> Tensor:
        """Return (B, I, H, W)."""
        grad_BYXO = grad_BOYX.permute(0, 2, 3, 1)
        found_BHWI = grad_BOYX.new_zeros(inputs[0], *inputs[2:], inputs[1])
        for row, column, y, x in self.met:
            part_BYXO = grad_BYXO[:, y.outputs, x.outputs]
            found_BHWI[:, y.inputs, x.inputs] += part_BYXO @ weight_OIKL[:, :, row, column]
        return found_BHWI.permute(0, 3, 1, 2)

    def weight_gradient(self, grad_BOYX: Tensor, x_BIHW: Tensor, kernel: tuple[int, int]) -> Tensor:
        """Return (O, I, K, L), channels last."""
        grad_BYXO, x_BHWI = grad_BOYX.permute(0, 2, 3, 1), x_BIHW.permute(0, 2, 3, 1)
        num_out, num_in = grad_BYXO.shape[3], x_BHWI.shape[3]
        idle = len(self.met) < kernel[0] * kernel[1]
        new = x_BIHW.new_zeros if idle else x_BIHW.new_empty
        found_OKLI = new(num_out, *kernel, num_in)
        for row, column, y, x in self.met:
            part_PO = grad_BYXO[:, y.outputs, x.outputs].reshape(-1, num_out)
            met_PI = x_BHWI[:, y.inputs, x.inputs].reshape(-1, num_in)
            found_OKLI[:, row, column] = part_PO.T @ met_PI
        return found_OKLI.permute(0, 3, 1, 2)


class _TapProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, conv: SmallMapConv2d) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.conv = conv
        sides = conv.output_sides(x)
        if conv.is_worth(sides, _FOR_MAPS):
            return _Taps.of(conv, x.shape, sides).output(x, weight, sides)
        return F.conv2d(x, weight, None, conv.stride, conv.pads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x, weight), conv, grad = ctx.saved_tensors, ctx.conv, grads[0]
        sides = (grad.shape[2], grad.shape[3])
        taps = _Taps.of(conv, x.shape, sides)
        by_x = by_weight = None
        if ctx.needs_input_grad[0] and conv.is_worth(sides, _FOR_MAPS):
            by_x = taps.input_gradient(grad, weight, x.shape)
        elif ctx.needs_input_grad[0]:
            by_x = torch.ops.aten.convolution_backward(
                grad, x, weight, None, conv.stride, conv.pads, (1, 1), False, (0, 0), 1,
                [True, False, False],
            )[0]  # fmt: skip
        if ctx.needs_input_grad[1]:
            by_weight = taps.weight_gradient(grad, x, conv.kernel)
        return by_x, by_weight, None


class SmallMapConv2d(nn.Conv2d):
    """`Conv2d` that trains on small maps by the module's products, and elsewhere as it always does.

    Same tensors, same values up to rounding.
    """

    @property
    def kernel(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.kernel_size[0], self.kernel_size[1]

    @property
    def pads(self) -> tuple[int, int]:
        """Padding above and on the left."""
        assert not isinstance(self.padding, str)
        return self.padding[0], self.padding[1]

    def output_sides(self, x_BIHW: Tensor) -> tuple[int, int]:
        """Return Y and X."""
        down, across = (
            (x_BIHW.shape[2 + n] + 2 * self.pads[n] - self.kernel[n]) // self.stride[n] + 1
            for n in range(2)
        )
        return down, across

    def is_worth(self, sides: tuple[int, int], weights_per_place: int) -> bool:
        """Return whether there are as many weights in a tap for each place of the output."""
        return self.in_channels * self.out_channels >= weights_per_place * sides[0] * sides[1]

    def forward(self, x_BIHW: Tensor) -> Tensor:
        """Map (B, I, H, W) to (B, O, Y, X)."""
        is_meant = (
            self.training
            and torch.is_grad_enabled()
            and x_BIHW.device.type == "cpu"
            and x_BIHW.dtype == self.weight.dtype != torch.bfloat16
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and x_BIHW.ndim == 4
        )
        sides = self.output_sides(x_BIHW) if is_meant else (0, 0)
        if min(sides) < 1 or not self.is_worth(sides, _FOR_WEIGHTS):
            return super().forward(x_BIHW)
        out: Tensor = _TapProducts.apply(x_BIHW, self.weight, self)
        return out if self.bias is None else out + self.bias[:, None, None]


def multiply_small_maps(network: nn.Module) -> list[str]:
    """Let the convolutions of a network train by products where that is faster; return their names.

    Those in groups, dilated, padded otherwise than with zeros or of a class of their own stay as
    they are.
    """
    changed = [
        name
        for name, module in network.named_modules()
        if type(module) is nn.Conv2d
        and module.groups == 1
        and set(module.dilation) == {1}
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    ]
    for name in changed:
        network.get_submodule(name).__class__ = SmallMapConv2d
    return changed


def suit_cpu(network: nn.Module, recipe: Recipe) -> None:
    """Make up for what oneDNN does badly, or wrongly, on small maps."""
    multiply_small_maps(network)
    if recipe.precision == "bfloat16":
        keep_idle_gradients_zero(network, recipe.augment.crop_px)
