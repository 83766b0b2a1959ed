"""Triton kernels of the views: what `sdclr.augment.apply_view` does, in one launch or two.

A small view is made by one program, whose registers hold all of its pixels. A large one is cut into
tiles, and contrast needs the mean of the whole: `resize_tiles` works up to it and adds up the luma
of each tile, `finish_tiles` does the rest. Neither has an atomic sum, so the bits repeat.

A view's parameters are a row of 16 float32: top, left, height, width, flip, jitter, gray, sigma of
the blur (0 for none), brightness, contrast, saturation, hue, and the order of these four.

Import this where there is a GPU, or with TRITON_INTERPRET=1: Triton comes with torch on Linux only.

Shapes: V views of B images, view v of image v % B; S x S pixels of a view. Images are uint8
(B, 3, H, W), views channels last.
"""

from __future__ import annotations

import triton
import triton.language as tl

_CONTRAST, _SATURATION, _HUE = tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
_ROW = tl.constexpr(16)
_TINY = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def _clamp(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def _luma(red, green, blue):
    return 0.2989 * red + 0.587 * green + 0.114 * blue


@triton.jit
def _first_tap(out, length, S: tl.constexpr):
    """Return the first pixel under the kernel, and its distance from the kernel's centre.

    The centre length (out + 1/2) / S is split into its whole and its part in integers, so that its
    rounding does not grow with the place in the image.
    """
    ends = (2 * out + 1) * length
    whole = ends // (2 * S)
    part = (ends - whole * (2 * S)).to(tl.float32) / (2 * S)
    reach = 2.0 * tl.maximum(length.to(tl.float32) / S, 1.0)
    step = tl.floor(part - reach - 0.5) + 1.0
    return whole + step.to(tl.int32), step + 0.5 - part


@triton.jit
def _cubic(pixel, distance, length, S: tl.constexpr):
    """Return Keys' cubic, a = -1/2, widened where the image shrinks; 0 outside of the window."""
    d = tl.abs(distance) / tl.maximum(length.to(tl.float32) / S, 1.0)
    near = (1.5 * d - 2.5) * d * d + 1.0
    far = ((2.5 - 0.5 * d) * d - 4.0) * d + 2.0
    weight = tl.where(d < 1.0, near, tl.where(d < 2.0, far, 0.0))
    return tl.where((pixel >= 0) & (pixel < length), weight, 0.0)


@triton.jit
def _resized(images, row, image, oy, ox, height_px, width_px, S: tl.constexpr):
    """Return three channels of the crop at rows `oy` (Y, 1) and columns `ox` (1, X)."""
    top, left = tl.load(row).to(tl.int32), tl.load(row + 1).to(tl.int32)
    height, width = tl.load(row + 2).to(tl.int32), tl.load(row + 3).to(tl.int32)
    ox = tl.where(tl.load(row + 4) > 0, S - 1 - ox, ox)
    y, dy = _first_tap(oy, height, S)
    x, dx = _first_tap(ox, width, S)
    # As many pixels as an open interval of four kernel widths can hold.
    num_y, num_x = tl.maximum(4, tl.cdiv(4 * height, S)), tl.maximum(4, tl.cdiv(4 * width, S))
    plane = height_px * width_px
    start = images + image.to(tl.int64) * (3 * plane) + top * width_px + left
    red = tl.zeros([oy.shape[0], ox.shape[1]], tl.float32)
    green, blue = red, red
    sum_y, sum_x = dy * 0.0, dx * 0.0
    for j in range(num_x):
        sum_x += _cubic(x + j, dx + j, width, S)
    for i in range(num_y):
        weight_y = _cubic(y + i, dy + i, height, S)
        sum_y += weight_y
        for j in range(num_x):
            weight = weight_y * _cubic(x + j, dx + j, width, S)
            at = start + (y + i) * width_px + (x + j)
            seen = (y + i >= 0) & (y + i < height) & (x + j >= 0) & (x + j < width)
            red += weight * tl.load(at, mask=seen, other=0).to(tl.float32)
            green += weight * tl.load(at + plane, mask=seen, other=0).to(tl.float32)
            blue += weight * tl.load(at + 2 * plane, mask=seen, other=0).to(tl.float32)
    scale = 255.0 * sum_y * sum_x
    return _clamp(red / scale), _clamp(green / scale), _clamp(blue / scale)


@triton.jit
def _ramp(t):
    return _clamp(tl.abs(t) - 1.0)


@triton.jit
def _hue_shifted(red, green, blue, turns):
    """Turn the hue; `sdclr.colour.shift_hue_` derives how."""
    high = tl.maximum(tl.maximum(red, green), blue)
    low = tl.minimum(tl.minimum(red, green), blue)
    chroma = high - low
    t = ((green - red) + blue - low) / tl.maximum(chroma, _TINY) + 1.0
    t = tl.where(green < blue, -tl.abs(t), tl.abs(t)) + 6.0 * turns
    t -= 6.0 * tl.floor(t / 6.0 + 0.5)
    return high - chroma * _ramp(t), low + chroma * _ramp(t + 1.0), low + chroma * _ramp(t - 1.0)


@triton.jit
def _adjusted(red, green, blue, row, op, mean):
    """Return the channels after one operation of the jitter."""
    factor = tl.load(row + 8 + op)
    if op == _HUE:
        red, green, blue = _hue_shifted(red, green, blue, factor)
    else:
        luma = _luma(red, green, blue)
        rest = tl.where(op == _CONTRAST, mean, tl.where(op == _SATURATION, luma, 0.0))
        rest *= 1.0 - factor
        red = _clamp(factor * red + rest)
        green = _clamp(factor * green + rest)
        blue = _clamp(factor * blue + rest)
    return red, green, blue


@triton.jit
def _grayed(red, green, blue, row):
    if tl.load(row + 6) > 0:
        red = _luma(red, green, blue)
        green, blue = red, red
    return red, green, blue


@triton.jit
def _stored(out, view, oy, ox, red, green, blue, taps, S: tl.constexpr, BLUR: tl.constexpr):
    """Store a view's pixels channels last, with BLUR after a product with `taps` on both sides.

    In TF32 alone such a product would lose 13 bits; in three parts of TF32 it loses next to none.
    """
    at = out + view.to(tl.int64) * (3 * S * S) + (oy * S + ox) * 3
    for channel in range(3):  # not unrolled: one product in the program instead of three
        x = tl.where(channel == 0, red, tl.where(channel == 1, green, blue))
        if BLUR:
            x = tl.dot(taps, x, input_precision="tf32x3")
            x = _clamp(tl.dot(x, tl.trans(taps), input_precision="tf32x3"))
        tl.store(at + channel, x.to(out.dtype.element_ty), mask=(oy < S) & (ox < S))


@triton.jit
def _gauss(distance, sigma, REACH: tl.constexpr):
    k = distance.to(tl.float32) / sigma
    return tl.where(tl.abs(distance) <= REACH, tl.exp(-0.5 * k * k), 0.0)


@triton.jit(do_not_specialize=["num_images"])  # a last batch needs no kernel of its own
def small_views(
    images, block, out, num_images, height_px, width_px,
    S: tl.constexpr, SIDE: tl.constexpr, REACH: tl.constexpr,
):  # fmt: skip
    """Make one view: SIDE is the power of 2, at least 16, that holds S; REACH is 0 without blur."""
    view = tl.program_id(0)
    row = block + view * _ROW
    line = tl.arange(0, SIDE)
    oy, ox = line[:, None], line[None, :]
    inside = (oy < S) & (ox < S)
    red, green, blue = _resized(images, row, view % num_images, oy, ox, height_px, width_px, S)
    if tl.load(row + 5) > 0:
        for place in range(4):
            op, mean = tl.load(row + 12 + place).to(tl.int32), 0.0
            if op == _CONTRAST:
                mean = tl.sum(tl.where(inside, _luma(red, green, blue), 0.0)) / (S * S)
            red, green, blue = _adjusted(red, green, blue, row, op, mean)
    red, green, blue = _grayed(red, green, blue, row)
    if REACH > 0:
        sigma = tl.load(row + 7)
        if sigma > 0:
            # A border mirrors: pixel i is also -i and 2 (S - 1) - i.
            taps = _gauss(ox - oy, sigma, REACH)
            taps += tl.where(ox > 0, _gauss(ox + oy, sigma, REACH), 0.0)
            taps += tl.where(ox < S - 1, _gauss(2 * (S - 1) - ox - oy, sigma, REACH), 0.0)
            taps = tl.where(inside, taps, 0.0)
            taps /= tl.maximum(tl.sum(taps, 1), _TINY)[:, None]
            red, green = tl.where(inside, red, 0.0), tl.where(inside, green, 0.0)
            blue = tl.where(inside, blue, 0.0)
            _stored(out, view, oy, ox, red, green, blue, taps, S, True)
            return
    _stored(out, view, oy, ox, red, green, blue, 0, S, False)


@triton.jit(do_not_specialize=["num_images"])
def resize_tiles(
    images, block, half, lumas, num_images, height_px, width_px,
    S: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Write a tile of a view (V, 3, S, S) as it is before contrast, and the sum of its luma."""
    across = tl.cdiv(S, TILE)
    tiles = across * across
    view, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    row = block + view * _ROW
    line = tl.arange(0, TILE)
    oy, ox = (tile // across * TILE + line)[:, None], (tile % across * TILE + line)[None, :]
    inside = (oy < S) & (ox < S)
    red, green, blue = _resized(images, row, view % num_images, oy, ox, height_px, width_px, S)
    before = tl.load(row + 5) > 0
    for place in range(4):
        op = tl.load(row + 12 + place).to(tl.int32)
        before = before & (op != _CONTRAST)
        if before:
            red, green, blue = _adjusted(red, green, blue, row, op, 0.0)
    tl.store(lumas + tl.program_id(0), tl.sum(tl.where(inside, _luma(red, green, blue), 0.0)))
    at = half + view.to(tl.int64) * (3 * S * S) + oy * S + ox
    tl.store(at, red, mask=inside)
    tl.store(at + S * S, green, mask=inside)
    tl.store(at + 2 * S * S, blue, mask=inside)


@triton.jit
def _rest(half, row, view, oy, ox, mean, S: tl.constexpr):
    """Return channels at pixels that may be outside, after contrast and all that follows it."""
    at = half + view.to(tl.int64) * (3 * S * S) + oy * S + ox
    inside = (oy < S) & (ox < S)
    red = tl.load(at, mask=inside, other=0.0)
    green = tl.load(at + S * S, mask=inside, other=0.0)
    blue = tl.load(at + 2 * S * S, mask=inside, other=0.0)
    jittered = tl.load(row + 5) > 0
    reached = tl.load(row + 5) < 0  # not yet
    for place in range(4):
        op = tl.load(row + 12 + place).to(tl.int32)
        reached = reached | (jittered & (op == _CONTRAST))
        if reached:
            red, green, blue = _adjusted(red, green, blue, row, op, mean)
    return _grayed(red, green, blue, row)


@triton.jit
def finish_tiles(
    block, half, lumas, out,
    S: tl.constexpr, TILE: tl.constexpr, REACH: tl.constexpr, WIDE: tl.constexpr,
    MOST: tl.constexpr,
):  # fmt: skip
    """Finish a tile; WIDE holds TILE + 2 REACH and MOST the number of tiles, as powers of 2."""
    across = tl.cdiv(S, TILE)
    tiles = across * across
    view, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    row = block + view * _ROW
    part = tl.arange(0, MOST)
    mean = tl.sum(tl.load(lumas + view * tiles + part, mask=part < tiles, other=0.0)) / (S * S)
    line = tl.arange(0, TILE)
    oy, ox = (tile // across * TILE + line)[:, None], (tile % across * TILE + line)[None, :]
    if REACH > 0:
        sigma = tl.load(row + 7)
        if sigma > 0:
            # A border mirrors; what is further out is not used.
            wide = tl.arange(0, WIDE) - REACH
            y, x = tl.abs(tile // across * TILE + wide), tl.abs(tile % across * TILE + wide)
            y = tl.abs(S - 1 - tl.abs(S - 1 - y))
            x = tl.abs(S - 1 - tl.abs(S - 1 - x))
            red, green, blue = _rest(half, row, view, y[:, None], x[None, :], mean, S)
            taps = _gauss(wide[None, :] - line[:, None], sigma, REACH)
            taps /= tl.sum(taps, 1)[:, None]
            _stored(out, view, oy, ox, red, green, blue, taps, S, True)
            return
    red, green, blue = _rest(half, row, view, oy, ox, mean, S)
    _stored(out, view, oy, ox, red, green, blue, 0, S, False)
