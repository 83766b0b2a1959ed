"""Everything about one GPU in one run of under 9 minutes; sdclr alone, without Ray.

    python -m benchmarks.gpu                        # on the GPU of this machine
    python -m benchmarks.gpu --device cpu --tiny    # the same logic on small sizes, for the tests

First that the GPU computes what the CPU does; then images per second of the whole step, views
included, in each way to run it, its share of the measured bfloat16 ceiling, its peak memory, and
its ratio to the published scheme: float32, PIL augmentation in 16 loader workers.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms.functional import to_pil_image

from benchmarks.augment import CIFAR, IMAGENET, pil_pipeline, smooth_images
from benchmarks.published import PublishedStep
from benchmarks.table import Row, heading, render, to_json
from sdclr import EpochPlan, ImageSet, Recipe, Trainer, Twin, build_network, cifar_recipe, nt_xent
from sdclr.augment import AugmentRecipe, apply_view, sample_view
from sdclr.imageset import Batch

# A way that compiles takes minutes and cannot be stopped; a limit of ten minutes applies to all.
LIMIT_S, LIMIT_COMPILED_S = 520.0, 350.0
NUM_LOADERS, SHARED_MEMORY = 16, Path("/dev/shm")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, its images, and the ratio that is aimed at."""

    name: str
    backbone: str
    stem: str
    canvas_px: int
    batch: int
    augment: AugmentRecipe
    target: float


CASES = (
    Case(
        name="ResNet-18 32 px, batch 512",
        backbone="resnet18",
        stem="cifar",
        canvas_px=32,
        batch=512,
        augment=CIFAR,
        target=8.0,
    ),
    Case(
        name="ResNet-50 224 px, batch 256",
        backbone="resnet50",
        stem="imagenet",
        canvas_px=256,
        batch=256,
        augment=IMAGENET,
        target=5.0,
    ),
)


def tiny(case: Case) -> Case:
    """Return the case in a size for tests."""
    small = replace(case.augment, crop_px=24)
    return replace(case, backbone="resnet8", canvas_px=28, batch=6, augment=small)


class Pictures(Dataset[tuple[Tensor, Tensor]]):
    """Two PIL views of each image, as the published loader makes them."""

    def __init__(self, images_NCHW: Tensor, augment: AugmentRecipe) -> None:
        self.images = [to_pil_image(image) for image in images_NCHW]
        self.pipeline = pil_pipeline(augment)

    def __len__(self) -> int:
        return 1_000_000  # never ends while it is timed

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index % len(self.images)]
        return self.pipeline(image), self.pipeline(image)


class Bench:
    """One device, its clock, and the rows so far."""

    def __init__(self, device: str, *, small: bool) -> None:
        self.device, self.small = torch.device(device), small
        self.is_cuda = self.device.type == "cuda"
        self.rows: list[Row] = []
        self.start_s = time.monotonic()

    def seconds(self, call: Callable[[], object], *, budget_s: float = 8.0) -> list[float]:
        """Time each call, after three that do not count."""
        spent: list[float] = []
        for _ in range(1 if self.small else 3):
            call()
        self.wait()
        end = time.perf_counter() + (0.0 if self.small else budget_s)
        while len(spent) < 2 or (time.perf_counter() < end and len(spent) < 50):
            start = time.perf_counter()
            call()
            self.wait()
            spent.append(time.perf_counter() - start)
        return spent

    def wait(self) -> None:
        """Wait until the device has finished its work."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def peak_bytes(self, call: Callable[[], object]) -> int:
        """Return the peak of allocated GPU memory during a call; 0 on a CPU."""
        if not self.is_cuda:
            call()
            return 0
        torch.cuda.reset_peak_memory_stats(self.device)
        call()
        self.wait()
        return torch.cuda.max_memory_allocated(self.device)

    def ceiling_flops(self) -> float:
        """Measure floating-point operations per second of a large bfloat16 matrix product."""
        side = 64 if self.small else 8192
        a = torch.randn(side, side, device=self.device, dtype=torch.bfloat16)
        return 2 * side**3 / min(self.seconds(lambda: a @ a, budget_s=2.0))

    def trainer(self, case: Case, **changes: object) -> tuple[Trainer, Batch]:
        """Return a trainer on the device with its images there, and a batch."""
        recipe: Recipe = replace(cifar_recipe("sdclr"), augment=case.augment, **changes)  # type: ignore[arg-type]
        network = build_network(case.backbone, stem=case.stem, head_depth=2, seed=0)
        trainer = Trainer(network, recipe, steps_per_epoch=1, device=self.device)
        assert isinstance(trainer.model, Twin) and recipe.prune is not None
        trainer.model.refresh_masks(recipe.prune)
        images = ImageSet(smooth_images(case.batch, case.canvas_px).to(self.device))
        plan = EpochPlan(num_images=case.batch, global_batch=case.batch, drop_last=True)
        return trainer, next(iter(images.feed(plan, seed=0).batches(0)))

    def agreement(self, case: Case) -> None:
        """Compare views, masks, loss and gradient on the device with those on the CPU."""
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        images = smooth_images(16, case.canvas_px)
        sizes = torch.tensor(images.shape[2:]).expand(len(images), 2)
        params = sample_view(case.augment, sizes, torch.Generator().manual_seed(0))
        here, there = (apply_view(i, params, case.augment) for i in (images, self.put(images)))
        worst = float((here - there.cpu()).abs().max())
        self.add(f"{case.name}: views differ from the CPU's by", [worst], "", 1e-4, at_most=True)
        gradients: dict[str, Tensor] = {}
        for label, device, precision in (
            ("CPU", torch.device("cpu"), "float32"),
            ("float32", self.device, "float32"),
            ("bfloat16", self.device, "bfloat16"),
        ):
            bench = Bench(str(device), small=self.small)
            trainer, _ = bench.trainer(case, precision=precision)
            views = here.to(device), here.flip(3).to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
                f1_BD, f2_BD = trainer.model(*views)
            nt_xent(f1_BD, f2_BD, temperature=0.2).backward()
            grads = [p.grad for p in trainer.model.parameters() if p.grad is not None]
            gradients[label] = torch.cat([g.flatten().cpu() for g in grads])
        for label, most in (("float32", 1e-3), ("bfloat16", 0.2)):
            difference = (gradients[label] - gradients["CPU"]).norm() / gradients["CPU"].norm()
            name = f"{case.name}: gradient, {label}, differs from the CPU's float32 by"
            self.add(name, [float(difference)], "", most, at_most=True)
        torch.backends.cudnn.allow_tf32 = True  # torch's default, which the published code had

    def put(self, images: Tensor) -> Tensor:
        """Return the images on the device."""
        return images.to(self.device)

    def published(self, case: Case) -> list[float]:
        """Time steps of the published scheme, loader included: means of many in a row.

        The batches that the loaders have ready when the clock starts do not count: they are taken
        before.
        """
        trainer, _ = self.trainer(case)
        assert isinstance(trainer.model, Twin)
        step = PublishedStep(
            trainer.model, lr=0.5, momentum=0.9, weight_decay=1e-4, temperature=0.2
        )
        pictures = Pictures(smooth_images(case.batch, case.canvas_px), case.augment)
        workers, ahead = 0 if self.small else NUM_LOADERS, 2
        needed = workers * ahead * 2 * 3 * 4 * case.batch * case.canvas_px**2
        if workers and shutil.disk_usage(SHARED_MEMORY).free < needed:
            raise RuntimeError(f"the loaders need {needed / 2**30:.1f} GiB of {SHARED_MEMORY}")
        loader = iter(
            DataLoader(
                pictures,
                case.batch,
                num_workers=workers,
                prefetch_factor=ahead if workers else None,
                pin_memory=self.is_cuda,
            )
        )

        def call() -> None:
            view1, view2 = next(loader)
            step.step(view1.to(self.device), view2.to(self.device))

        for _ in range(max(1, ahead * workers)):
            call()
        return self.rounds(call, budget_s=25.0)

    def rounds(self, call: Callable[[], object], *, budget_s: float) -> list[float]:
        """Time a call in rounds of several calls, for work that comes in bursts."""
        size = 2 if self.small else 16
        means: list[float] = []
        end = time.perf_counter() + (0.0 if self.small else budget_s)
        while len(means) < 2 or time.perf_counter() < end:
            self.wait()
            start = time.perf_counter()
            for _ in range(size):
                call()
            self.wait()
            means.append((time.perf_counter() - start) / size)
        return means

    def ways(self, case: Case) -> dict[str, Callable[[], tuple[Trainer, Batch]]]:
        """Return the maker of a trainer for each way to run the step, by name."""

        def contiguous() -> tuple[Trainer, Batch]:
            made = self.trainer(case, precision="bfloat16")
            made[0].model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            return made

        def graphs() -> tuple[Trainer, Batch]:
            made = self.trainer(case, precision="bfloat16")
            made[0].model.compile(mode="reduce-overhead")
            return made

        ways: dict[str, Callable[[], tuple[Trainer, Batch]]] = {
            "float32": lambda: self.trainer(case),
            "bfloat16, channels first": contiguous,
            "bfloat16": lambda: self.trainer(case, precision="bfloat16"),
            "bfloat16, micro batch of an eighth": lambda: self.trainer(
                case, precision="bfloat16", micro_batch=max(3, case.batch // 8)
            ),
        }
        if self.is_cuda:
            ways["bfloat16, compiled"] = lambda: self.trainer(
                case, precision="bfloat16", compile=True
            )
            ways["bfloat16, compiled, CUDA graphs"] = graphs
        return ways

    def speed(self, case: Case, ceiling: float) -> None:
        """Time all ways to run the step beside the published one."""
        slow, work = None, None
        try:
            reference = self.published(case)
            slow = min(reference)
            self.add(f"{case.name}: published", [case.batch / s for s in reference], "images/s")
            with FlopCounterMode(display=False) as counter:
                trainer, batch = self.trainer(case)
                trainer.update(batch)
            work = counter.get_total_flops()
        except Exception as error:  # what has no reference still has a speed
            self.failed(f"{case.name}: published", error)
        for way, make in self.ways(case).items():
            name = f"{case.name}: {way}"
            limit_s = LIMIT_COMPILED_S if "compiled" in way else LIMIT_S
            if time.monotonic() - self.start_s > limit_s:
                self.keep(Row(name=name, values=(), unit="x", note="no time was left"))
                continue
            try:
                trainer = batch = None  # type: ignore[assignment]  # before the next one is made
                gc.collect()
                torch.cuda.empty_cache()
                trainer, batch = make()
                spent = self.seconds(lambda t=trainer, b=batch: t.update(b))
                peak = self.peak_bytes(lambda t=trainer, b=batch: t.update(b))
                views = self.seconds(lambda t=trainer, b=batch: t.views(b), budget_s=2.0)
            except Exception as error:  # one way that fails must not hide the others
                self.failed(name, error)
                continue
            target = case.target if way == "bfloat16" else None
            if slow is not None:
                self.add(name, [slow / s for s in spent], "x", target, versus="published scheme")
            self.add(name, [case.batch / s for s in spent], "images/s")
            if work is not None:
                shares = [100 * work / s / ceiling for s in spent]
                self.add(name, shares, "%", versus="bf16 ceiling")
            self.add(name, [100 * min(views) / min(spent)], "%", 10.0, at_most=True, versus="views")
            self.add(name, [peak / 2**30], "GiB", versus="peak memory")

    def add(
        self,
        name: str,
        values: list[float],
        unit: str,
        target: float | None = None,
        *,
        at_most: bool = False,
        versus: str = "",
    ) -> None:
        """Keep a row of values."""
        self.keep(
            Row(name=name, values=values, unit=unit, target=target, at_most=at_most, versus=versus)
        )

    def failed(self, name: str, error: Exception) -> None:
        """Keep what failed, in its first line."""
        lines = str(error).splitlines() or [""]
        note = f"failed: {type(error).__name__}: {lines[0][:80]}"
        self.keep(Row(name=name, values=(), unit="x", note=note))

    def keep(self, row: Row) -> None:
        """Keep a row, and show it at once: a run that is ended from outside has said something."""
        self.rows.append(row)
        said = "  ".join(filter(None, row.cells()))
        print(f"{time.monotonic() - self.start_s:4.0f} s  {said}", flush=True)


def measure(device: str, *, small: bool) -> list[Row]:
    """Return all rows."""
    bench = Bench(device, small=small)
    cases = [tiny(case) for case in CASES] if small else list(CASES)
    bench.agreement(cases[0])
    ceiling = bench.ceiling_flops()
    bench.add("bfloat16 ceiling, matrix product", [ceiling / 1e12], "TFLOP/s")
    for case in cases:
        bench.speed(case, ceiling)
    return bench.rows


def main() -> None:
    """Measure and print; the device is named apart from the machine's CPU."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to test the logic")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    rows = measure(args.device, small=args.tiny)
    content = to_json(rows)
    content["device"] = args.device
    if torch.device(args.device).type == "cuda":
        content["device"] = torch.cuda.get_device_name(args.device)
    print(f"{content['device']}; {heading(content)}")
    print(render(rows))
    if args.json is not None:
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
