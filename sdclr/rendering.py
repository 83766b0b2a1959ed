"""Views on whatever device the images are on: on a GPU by Triton, elsewhere by `apply_view`.

    view1_BCHW, view2_BCHW = render_views(images_BCHW, [params1, params2], recipe)

`apply_view` is some 240 launches and 16 small copies for each view. Here all views of a batch are
one launch where they are small, two where they are photographs, and one copy of their parameters;
the host waits for nothing. The values are the same up to rounding. Triton comes with torch on
Linux, and needs a C compiler. Where it fails, `apply_view` is used, and a warning says so once.

Shapes: V views of B images, C = 3 channels, H x W pixels of the canvas.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sdclr.augment import AugmentRecipe, ViewParams, apply_view, check_images, sample_view
from sdclr.colour import blur_kernel_px
from sdclr.recipe import cifar_recipe
from sdclr.seeds import numpy_generator
from sdclr.transfer import to_device

MAX_SMALL_PX = 64  # of a side; a larger view does not fit the registers of one program
TILE_PX = 32
TOLERANCE = 1e-3
_CHECKED_IMAGES = 4
_problems: dict[tuple[object, ...], str] = {}  # what was tried -> why it failed; "" if it did not
_warned_of: set[str] = set()
SLOW_VIEWS = "views take hundreds of launches instead of two, since Triton cannot make them"


def render_views(
    images_BCHW: Tensor,
    params: Sequence[ViewParams],
    recipe: AugmentRecipe,
    *,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Return views (B, 3, crop_px, crop_px) in [0, 1], one for each of `params`.

    The first views of each shape are compared with `apply_view` on a few images; only then the host
    waits. Views made by Triton are stored channels last, as convolutions want them.

    Args:
        images_BCHW: uint8.
        params: of these images, each as for `apply_view`.
        recipe: as for `apply_view`.
        dtype: of the views; rounded once, at the end.

    Raises:
        ValueError: as `apply_view`.
    """
    if images_BCHW.is_cuda and len(images_BCHW) and params:
        params = [some.to("cpu") for some in params]
        problem = problem_of(images_BCHW, params, recipe, dtype=dtype)
        if not problem:
            return fused_views(images_BCHW, params, recipe, dtype=dtype)
        if problem not in _warned_of:
            _warned_of.add(problem)
            warnings.warn(f"{SLOW_VIEWS}: {problem}", RuntimeWarning, stacklevel=2)
    return [apply_view(images_BCHW, some, recipe).to(dtype) for some in params]


def problem_of(
    images_BCHW: Tensor,
    params: Sequence[ViewParams],
    recipe: AugmentRecipe,
    *,
    dtype: torch.dtype = torch.float32,
) -> str:
    """Return why Triton cannot make such views, empty if it can; tried once for each shape.

    A few images are rendered on the device and by `apply_view` on the CPU, and compared. What
    fails may be Triton itself, its compiler, or the kernel on this GPU.
    """
    blurred = has_blur(params)
    key = (images_BCHW.device, images_BCHW.shape[2:], recipe.crop_px, blurred, dtype)
    if key not in _problems:
        # Each image with its own parameters, those that are blurred first.
        rows = params[0].blur.cpu().long().argsort(descending=True)[:_CHECKED_IMAGES]
        few = [params[0].to("cpu").take(rows)]
        some_BCHW = images_BCHW.index_select(0, to_device(rows, images_BCHW.device))
        expected = apply_view(some_BCHW.cpu(), few[0], recipe)
        try:
            found = fused_views(some_BCHW, few, recipe, dtype=dtype, blur=blurred)[0]
            worst = float((found.cpu().float() - expected).abs().max())
        except Exception as error:  # compilers, drivers and Triton have no class in common
            first = (str(error).splitlines() or [""])[0]
            _problems[key] = f"{type(error).__name__}: {first}"
        else:
            rounding = torch.finfo(dtype).eps / 2
            wrong = f"they differ from those of the CPU by {worst:.2g}"
            _problems[key] = "" if worst <= TOLERANCE + rounding else wrong
    return _problems[key]


def problem_on(device: torch.device) -> str:
    """Return why Triton cannot make small views on a GPU, empty if it can; takes seconds once."""
    published = cifar_recipe("sdclr", epochs=1, seed=0).augment
    recipe = replace(published, crop_px=16, jitter_prob=1.0)
    draws = numpy_generator(0, "views that are tried")
    shape = (_CHECKED_IMAGES, 3, 32, 32)
    images_BCHW = torch.from_numpy(draws.integers(256, size=shape, dtype=np.uint8))
    sizes_B2 = torch.tensor(shape[2:]).expand(len(images_BCHW), 2)
    params = sample_view(recipe, sizes_B2, draws)
    return problem_of(to_device(images_BCHW, device), [params], recipe)


def has_blur(params: Sequence[ViewParams]) -> bool:
    """Return whether any of these views is blurred; `params` on the CPU."""
    return any(bool(some.blur.any()) for some in params)


def fused_views(
    images_BCHW: Tensor,
    params: Sequence[ViewParams],
    recipe: AugmentRecipe,
    *,
    dtype: torch.dtype = torch.float32,
    blur: bool | None = None,
) -> list[Tensor]:
    """Return the views as Triton's kernels make them, whether that was tried or not.

    Args:
        images_BCHW: as for `render_views`; at least one.
        params: as for `render_views`; at least one.
        recipe: as for `render_views`.
        dtype: as for `render_views`.
        blur: whether the kernels know blur; None = if one of the views needs it.

    Raises:
        ValueError: images of another type or shape, or another number of params.
    """
    check_images(images_BCHW, *params)
    block_VR = to_device(torch.cat([parameter_block(some) for some in params]), images_BCHW.device)
    images_BCHW = images_BCHW.contiguous()
    num_views, px = len(block_VR), recipe.crop_px
    size = (len(images_BCHW), *images_BCHW.shape[2:])
    view_VOOC = images_BCHW.new_empty((num_views, px, px, 3), dtype=dtype)
    reach = blur_kernel_px(px) // 2 if (has_blur(params) if blur is None else blur) else 0
    if px <= MAX_SMALL_PX:
        side = max(16, _power_of_2(px))
        sizes = {"S": px, "SIDE": side, "REACH": reach, "num_warps": max(1, side**2 // 256)}
        launch("small_views", num_views, images_BCHW, block_VR, view_VOOC, *size, **sizes)
    else:
        tiles = (-(-px // TILE_PX)) ** 2
        half_VCOO = images_BCHW.new_empty((num_views, 3, px, px), dtype=torch.float32)
        lumas_VT = half_VCOO.new_empty((num_views, tiles))
        before = (images_BCHW, block_VR, half_VCOO, lumas_VT, *size)
        launch("resize_tiles", num_views * tiles, *before, S=px, TILE=TILE_PX)
        after = (block_VR, half_VCOO, lumas_VT, view_VOOC)
        sizes = {"S": px, "TILE": TILE_PX, "REACH": reach, "MOST": _power_of_2(tiles)}
        sizes |= {"WIDE": _power_of_2(TILE_PX + 2 * reach), "num_warps": 8 if reach else 4}
        launch("finish_tiles", num_views * tiles, *after, **sizes)
    view_VCOO, num_images = view_VOOC.permute(0, 3, 1, 2), len(images_BCHW)
    return [view_VCOO[n : n + num_images] for n in range(0, num_views, num_images)]


def parameter_block(params: ViewParams) -> Tensor:
    """Return the parameters as one float32 block (B, 16), in the order of `sdclr.view_kernels`."""
    p = params.to("cpu")
    sigma_B = torch.where(p.blur, p.blur_sigma, 0.0)
    columns = [p.top, p.left, p.height, p.width, p.flip, p.jitter, p.gray, sigma_B]
    columns += [p.brightness, p.contrast, p.saturation, p.hue, *p.order.T]
    return torch.stack([column.float() for column in columns], dim=1)


def launch(name: str, num_programs: int, *arguments: Tensor | int, **constants: int) -> None:
    """Launch a kernel of `sdclr.view_kernels` on the device of its first argument."""
    from sdclr import view_kernels  # only here: Triton is not everywhere, and slow to import

    first = arguments[0]
    assert isinstance(first, Tensor)
    with torch.cuda.device(first.device) if first.is_cuda else nullcontext():
        getattr(view_kernels, name)[(num_programs,)](*arguments, **constants)


def _power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()
