"""Views by Triton: the kernels interpreted on a CPU, compiled for GPUs, launched on one."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from sdclr import rendering
from sdclr.augment import ViewParams, apply_view, sample_view
from sdclr.operations import OperationParams, apply_operations
from sdclr.rendering import parameter_block, problem_of, problem_on, render_views
from tests.conftest import REPO
from tests.interpreted_views import CASES
from tests.recipes import some_images, some_plan, some_trainer
from tests.simulated_gpu import DEVICE, SimulatedGPU
from tests.simulated_kernels import parameters_of
from tests.test_augment import RECIPE, draws, noise

TOLERANCE = 1e-5
LARGE = replace(RECIPE, crop_px=80)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Views of all cases, as Triton's interpreter makes them."""
    pytest.importorskip("triton")
    file = tmp_path_factory.mktemp("views") / "views.pt"
    code = (
        "import os, runpy, sys; os.environ['TRITON_INTERPRET'] = '1'; "
        f"sys.argv = ['views', {str(file)!r}]; "
        "runpy.run_module('tests.interpreted_views', run_name='__main__')"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=REPO, check=True)
    found: dict[str, Tensor] = torch.load(file, weights_only=True)
    return found


def expected(case: str) -> Tensor:
    some = CASES[case]
    return torch.stack([apply_view(some.images, p, some.recipe) for p in some.params])


@pytest.mark.parametrize("case", CASES)
def test_interpreted_kernels_make_the_views(case: str, interpreted: dict[str, Tensor]) -> None:
    assert float((interpreted[case] - expected(case)).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("name", [f.name for f in fields(ViewParams)])
def test_one_wrong_parameter_shows(name: str, interpreted: dict[str, Tensor]) -> None:
    """Of each view of one case at least; what a case does not draw cannot show in it."""
    shown = []
    for case in ("strong", "blur", "tiles"):
        some = CASES[case]
        (params,) = some.params
        values = getattr(params, name)
        wrong = ~values if values.dtype == torch.bool else values.roll(1, 0)
        if name == "blur":
            params = replace(params, blur_sigma=params.blur_sigma + 1)
        changed = replace(params, **{name: wrong})
        fits = (changed.top + changed.height <= some.canvas[0]).all()
        fits &= (changed.left + changed.width <= some.canvas[1]).all()
        if fits:
            view = apply_view(some.images, changed, some.recipe)
            shown.append(float((interpreted[case][0] - view).abs().max()))
    assert max(shown) > 100 * TOLERANCE


def test_views_in_bfloat16_are_rounded_at_the_end(interpreted: dict[str, Tensor]) -> None:
    found, exact = interpreted["bfloat16"], interpreted["one image"]
    assert found.dtype == torch.bfloat16
    # The interpreter cuts off the bits that a GPU rounds.
    error = (found.float() - exact).abs() / exact.clamp_min(1e-30)
    assert 1e-3 < float(error.max()) <= torch.finfo(torch.bfloat16).eps


IN, TO = "*u8 *fp32", "i32 i32 i32"
# Types of the arguments, sizes, warps.
KERNELS: dict[str, tuple[str, dict[str, int], int]] = {
    "small_views": (f"{IN} *bf16 {TO}", {"S": 32, "SIDE": 32, "REACH": 0}, 4),
    "small_views, blur": (f"{IN} *fp32 {TO}", {"S": 28, "SIDE": 32, "REACH": 1}, 4),
    "small_views, 64 px, blur": (f"{IN} *bf16 {TO}", {"S": 64, "SIDE": 64, "REACH": 3}, 16),
    "resize_tiles": (f"{IN} *fp32 *fp32 {TO}", {"S": 224, "TILE": 32}, 4),
    "finish_tiles": (
        "*fp32 *fp32 *fp32 *bf16",
        {"S": 224, "TILE": 32, "REACH": 0, "WIDE": 32, "MOST": 64},
        4,
    ),
    "finish_tiles, blur": (
        "*fp32 *fp32 *fp32 *bf16",
        {"S": 224, "TILE": 32, "REACH": 11, "WIDE": 64, "MOST": 64},
        8,
    ),
}
MAX_SHARED_BYTES = 99 * 1024
"""Of a program, on every GPU since Ampere."""


def compiled(name: str, capability: int) -> int:
    """Compile a kernel to machine code, as on a GPU; returns the shared memory of a program."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sdclr import view_kernels

    types, constants, warps = KERNELS[name]
    kernel = getattr(view_kernels, name.partition(",")[0])
    kinds = [*types.split(), *["constexpr"] * len(constants)]
    signature = dict(zip(kernel.arg_names, kinds, strict=True))
    source = ASTSource(kernel, signature=signature, constexprs=constants)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = triton.compile(
            source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps}
        )
    assert made.asm["cubin"]
    return int(made.metadata.shared)


@pytest.mark.parametrize("name", ["small_views", "resize_tiles", "finish_tiles"])
def test_kernels_compile_for_a_hopper_gpu_without_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert compiled(name, 90) <= MAX_SHARED_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("capability", [80, 86, 90, 100, 120])
def test_kernels_compile_for_other_gpus(
    name: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert compiled(name, capability) <= MAX_SHARED_BYTES


def some_views(num: int, recipe: Any = RECIPE) -> tuple[Tensor, list[ViewParams]]:
    sizes = torch.tensor([48, 40]).expand(num, 2)
    return noise(num, 48, 48), [sample_view(recipe, sizes, draws(s)) for s in (0, 1)]


def test_a_block_holds_all_parameters() -> None:
    _, (params, other) = some_views(50)
    again = parameters_of(parameter_block(params))
    for field in fields(ViewParams):
        values, found = getattr(params, field.name), getattr(again, field.name)
        if field.name == "blur_sigma":  # 0 where there is no blur
            values, found = values[params.blur], found[params.blur]
        assert torch.equal(found.to(values.dtype), values), field.name
    assert not torch.equal(parameter_block(params), parameter_block(other))


@pytest.mark.parametrize(
    ("recipe", "kernels"),
    [(RECIPE, ["small_views"]), (LARGE, ["resize_tiles", "finish_tiles"])],
)
def test_both_views_of_a_batch_are_one_launch_or_two(recipe: Any, kernels: list[str]) -> None:
    images, params = some_views(6, recipe)
    with SimulatedGPU() as gpu:
        there = images.to(DEVICE)
        gpu.forget()
        views = render_views(there, params, recipe)
        launched = [name for name, number in gpu.launches.items() if number == 1]
        assert launched == ["_to_copy", *kernels] and gpu.num_launches == len(launched)
        assert not gpu.waits
        assert all(v.is_contiguous(memory_format=torch.channels_last) for v in views)
        found = [view.cpu() for view in views]
    for view, some in zip(found, params, strict=True):
        assert torch.equal(view, apply_view(images, some, recipe))
    assert not torch.equal(found[0], found[1])


def absent(*_: Any, **__: Any) -> None:
    raise ModuleNotFoundError("No module named 'triton'")


def no_compiler(*_: Any, **__: Any) -> None:
    raise RuntimeError("Failed to find C compiler.\nmore")


def wrong(name: str, num_programs: int, *arguments: Any, **_: int) -> None:
    arguments[2].zero_()


FAULTS: dict[str, tuple[Callable[..., None], str]] = {
    "absent": (absent, "ModuleNotFoundError: No module named 'triton'"),
    "no compiler": (no_compiler, "RuntimeError: Failed to find C compiler."),
    "wrong": (wrong, "they differ from those of the CPU by"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_where_triton_fails_the_torch_path_is_used_and_said_once(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "_problems", {})
    monkeypatch.setattr(rendering, "_warned_of", set())
    launch, reason = FAULTS[fault]
    images, params = some_views(6)
    with SimulatedGPU() as gpu:
        there = images.to(DEVICE)
        with (
            mock.patch.object(rendering, "launch", launch),
            mock.patch.object(rendering, "problem_of", problem_of),
        ):
            with pytest.warns(RuntimeWarning, match=reason) as told:
                first = render_views(there, params, RECIPE)
            gpu.forget()
            again = render_views(there, params, RECIPE)
            assert len(told) == 1 and gpu.num_launches > 200 and not gpu.waits
            assert reason in problem_on(DEVICE)
        for views in (first, again):
            for view, some in zip(views, params, strict=True):
                torch.testing.assert_close(view.cpu(), apply_view(images, some, RECIPE))


def test_the_first_views_of_a_shape_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "_problems", {})
    images, params = some_views(6)
    with SimulatedGPU() as gpu:
        there = images.to(DEVICE)
        assert problem_of(there, params, RECIPE) == "" and gpu.waits
        gpu.forget()
        assert problem_of(there, params, RECIPE) == "" and not gpu.num_launches
        assert problem_of(there, params, LARGE, dtype=torch.bfloat16) == ""
        assert gpu.launches["finish_tiles"] == 1
        assert problem_on(DEVICE) == ""


def test_on_a_cpu_views_are_those_of_apply_view() -> None:
    images, params = some_views(5)
    views = render_views(images, params, RECIPE, dtype=torch.bfloat16)
    for view, some in zip(views, params, strict=True):
        assert torch.equal(view, apply_view(images, some, RECIPE).bfloat16())
    assert render_views(images[:0], [params[0].rows(0, 0)], RECIPE)[0].shape == (0, 3, 32, 32)
    assert render_views(images, [], RECIPE) == []


@pytest.mark.parametrize("method", ["sdclr", "bcl-d"])
def test_a_step_in_bfloat16_gets_views_in_bfloat16(method: str) -> None:
    plan = some_plan(8)
    images = some_images(8)
    with SimulatedGPU():
        trainer = some_trainer(plan, device="cuda:0", method=method, precision="bfloat16")
        batch = next(iter(images.feed(plan, seed=0).batches(0)))
        views = [view.cpu() for view in trainer.views(batch)]
        assert trainer.update(batch).loss > 0
    here = some_trainer(plan, method=method, precision="bfloat16").views(batch)
    for view, exact in zip(views, here, strict=True):
        assert view.dtype == (torch.bfloat16 if method == "sdclr" else torch.float32)
        assert exact.dtype == torch.float32
        assert 0 < float((view.float() - exact).abs().max()) <= torch.finfo(torch.bfloat16).eps / 2


def test_stronger_views_begin_from_any_layout_and_precision() -> None:
    images, (params, _) = some_views(11)
    view = apply_view(images, params, RECIPE).bfloat16()
    operations = OperationParams(torch.arange(11)[:, None], torch.full((11, 1), 0.7))
    expected = apply_operations(view.float(), operations)
    found = apply_operations(view.contiguous(memory_format=torch.channels_last), operations)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert not torch.allclose(expected, view.float(), atol=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", CASES)
def test_a_gpu_makes_the_same_views(case: str) -> None:
    some = CASES[case]
    images = some.images.cuda()
    assert problem_of(images, some.params, some.recipe) == ""
    views = render_views(images, some.params, some.recipe)
    torch.testing.assert_close(torch.stack(views).cpu(), expected(case), atol=1e-4, rtol=0)
