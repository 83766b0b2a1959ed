"""Parts that compare: ceilings, float64, host waits, graphs, a stop, a resume, two ranks."""

from __future__ import annotations

import itertools
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from benchmarks.augment import smooth_images
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.cases import FULL, batch_of, case_of, trainer_of
from sdclr import EpochPlan, ImageSet, NonFiniteError, Trainer, capture, nt_xent, restore
from sdclr.augment import apply_view, sample_view
from sdclr.prune import PruneRule, magnitude_masks
from sdclr.rendering import fused_views
from sdclr.step_graph import WARM_UP

CEILING, COPY = "bfloat16 ceiling, matrix product", "memory ceiling, copy"


def ceilings(bench: Bench) -> None:
    """Measure what the device reaches at best: products of each precision, and a copy."""
    side = 64 if bench.small else 8192
    for dtype, name in ((torch.bfloat16, "bfloat16"), (torch.float32, "float32")):
        a = torch.randn(side, side, device=bench.device, dtype=dtype)
        spent = bench.seconds(lambda a=a: a @ a, budget_s=2.0)  # type: ignore[misc]
        speeds = [2 * side**3 / s / 1e12 for s in spent]
        bench.add(f"{name} ceiling, matrix product", speeds, "TFLOP/s")
    source = torch.empty(2**16 if bench.small else 2**30, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    spent = bench.seconds(lambda: target.copy_(source), budget_s=2.0)
    bench.add(COPY, [2 * len(source) / s / 1e9 for s in spent], "GB/s")


def agreement(bench: Bench) -> None:
    """Compare views, masks and gradients of the device with the CPU's, in no TF32."""
    _exact(True)
    case, cpu = case_of("resnet18", small=bench.small), torch.device("cpu")
    images = smooth_images(16, case.canvas_px)
    sizes = torch.tensor(images.shape[2:]).expand(len(images), 2)
    params = sample_view(case.augment, sizes, np.random.default_rng(0))
    views = apply_view(images, params, case.augment)
    there = apply_view(images.to(bench.device), params, case.augment)
    worst = float((views - there.cpu()).abs().max())
    bench.add("views differ from the CPU's by", [worst], "", 1e-4, at_most=True)
    if bench.is_cuda:
        _fused_agreement(bench)
    network = trainer_of(case, cpu).network.backbone
    weights = {n: p.detach() for n, p in network.named_parameters() if p.ndim == 4}
    rule = PruneRule(prune_ratio=0.9)
    here = magnitude_masks(weights, rule)
    moved = magnitude_masks({n: w.to(bench.device) for n, w in weights.items()}, rule)
    unequal = sum(int((here[n] != moved[n].cpu()).sum()) for n in here)
    bench.add("weights whose mask is not the CPU's", [unequal], "", 0, at_most=True)

    def gradient(device: torch.device, dtype: torch.dtype, *, bf16: bool = False) -> Tensor:
        model = trainer_of(case, cpu).model.to(device, dtype)
        shown = views.to(device, dtype)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            f1_BD, f2_BD = model(shown, shown.flip(3))
        nt_xent(f1_BD, f2_BD, temperature=0.2).backward()  # type: ignore[no-untyped-call]
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        return torch.cat([g.flatten().double().cpu() for g in grads])

    exact = gradient(cpu, torch.float64)
    for name, bf16 in (("float32", False), ("bfloat16", True)):
        own = gradient(cpu, torch.float32, bf16=bf16) - exact
        off = gradient(bench.device, torch.float32, bf16=bf16) - exact
        ratio = float(off.norm() / own.norm())
        note = f"the CPU's own is {float(own.norm() / exact.norm()):.2g}"
        bench.add(
            f"gradient in {name}, distance from float64", [ratio], "x", 2.0, at_most=True,
            versus="the CPU's distance", note=note,
        )  # fmt: skip
    _exact(False)


def _fused_agreement(bench: Bench) -> None:
    """Compare the views by Triton with those by torch, of both cases."""
    for name in FULL:
        case = case_of(name, small=bench.small)
        images = smooth_images(32, case.canvas_px)
        sizes = torch.tensor(images.shape[2:]).expand(len(images), 2)
        params = sample_view(case.augment, sizes, np.random.default_rng(0))
        label = f"{case.name}: views by Triton differ from those by torch by"
        try:
            (fused,) = fused_views(images.to(bench.device), [params], case.augment)
        except Exception as error:  # views by torch are a way as well
            bench.failed(label, error)
            continue
        plain = apply_view(images, params, case.augment)
        worst = float((fused.cpu() - plain).abs().max())
        bench.add(label, [worst], "", 1e-4, at_most=True)


def waits(bench: Bench) -> None:
    """Count the host's waits in steps, refresh of the masks included, as torch reports them."""
    case = case_of("resnet18", small=bench.small)
    trainer = trainer_of(case, bench.device)
    plan = EpochPlan(num_images=4 * case.batch, global_batch=case.batch, drop_last=True)
    trainer.steps_per_epoch = plan.num_steps
    for place in ("device", "host"):
        images = ImageSet(smooth_images(4 * case.batch, case.canvas_px))
        if place == "device":
            images = ImageSet(images.images_NCHW.to(bench.device))
        counts = []
        trainer.settle()
        reports = trainer.run(images.feed(plan, seed=0))
        for _ in itertools.islice(reports, plan.num_steps):
            pass
        for _ in range(plan.num_steps + 1):  # over the end of an epoch
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                if bench.is_cuda:
                    torch.cuda.set_sync_debug_mode("warn")
                next(reports)
                if bench.is_cuda:
                    torch.cuda.set_sync_debug_mode("default")
            counts.append(float(len(caught)))
        trainer.settle()
        note = "" if bench.is_cuda else "a CPU never waits"
        name = f"host waits of a step, images on the {place}"
        bench.add(name, counts, "", 0, at_most=True, note=note)


def graph(bench: Bench) -> None:
    """Compare the losses of steps as CUDA graphs with those of single launches."""
    name = "losses of steps as CUDA graphs differ from single launches by"
    if not bench.is_cuda:
        bench.add(name, [], "", note="needs a GPU")
        return
    _exact(True)
    case = case_of("resnet18", small=bench.small)
    batch, losses, num_graphs = batch_of(case, bench.device), {}, 0
    for as_graph in (False, True):
        trainer = trainer_of(case, bench.device, cuda_graph=as_graph)
        reports = [trainer.update(batch) for _ in range(WARM_UP + 4)]
        trainer.settle()
        losses[as_graph] = [report.loss for report in reports]
        num_graphs = trainer.num_graphs
    pairs = zip(losses[True], losses[False], strict=True)
    worst = [abs(a - b) / abs(b) for a, b in pairs][WARM_UP:]
    note = "four replays, the first of them first"
    bench.add(name, worst, "", 1e-3, at_most=True, note=note)
    bench.add("CUDA graphs made for one shape", [num_graphs], "", 1)
    _exact(False)


def faults(bench: Bench) -> None:
    """Stop before a step that is not finite, and resume from a state, both on the device."""
    _exact(True)
    case = case_of("resnet18", small=bench.small)
    trainer, batch = trainer_of(case, bench.device), batch_of(case, bench.device)
    trainer.num_steps = 100
    factor = torch.ones((), device=bench.device)  # of a gradient; a graph reads it as well
    trainer.network.head[0].weight.register_hook(lambda grad: grad * factor)
    for _ in range(3):
        trainer.update(batch)
    state = capture(trainer)
    losses = [trainer.update(batch).loss for _ in range(4)]
    again = trainer_of(case, bench.device)
    again.num_steps = 100
    restore(again, state)
    resumed = [again.update(batch).loss for _ in range(4)]
    worst = max(abs(a - b) / abs(b) for a, b in zip(resumed, losses, strict=True))
    bench.add("losses after a resume differ by", [worst], "", 1e-3, at_most=True)
    _exact(False)
    before = capture(trainer).tensors
    factor.fill_(torch.inf)
    try:
        for _ in range(2):
            trainer.update(batch)
        changed = float("nan")
    except NonFiniteError:
        after = capture(trainer).tensors
        names = [n for n in before if "running" not in n and "tracked" not in n]
        changed = sum(not torch.equal(before[n], after[n]) for n in names)
    bench.add("tensors that a non-finite step changed", [changed], "", 0, at_most=True)


def ranks(bench: Bench) -> None:
    """Train a step on two processes of the one device, and compare with one process.

    Later steps say nothing: what rounding differs by grows tenfold with each of them.
    """
    alone = _first_step(str(bench.device), bench.small)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank_main, (folder, str(bench.device), bench.small), nprocs=2)
        together = torch.load(Path(folder) / "0.pt", weights_only=True)
    worst = abs(together["loss"] - alone["loss"]) / abs(alone["loss"])
    note = "gloo, float32 without TF32"
    name = "the loss of two processes differs from that of one by"
    bench.add(name, [float(worst)], "", 1e-5, at_most=True, note=note)
    far = (together["update"] - alone["update"]).norm() / alone["update"].norm()
    name = "the update of two processes, distance from that of one"
    bench.add(name, [float(far)], "", 1e-2, at_most=True, note=note)


def _rank_main(rank: int, folder: str, device: str, small: bool) -> None:
    torch.set_num_threads(1)
    # They differ along sides of length 1 only.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    place = f"file://{folder}/ranks"
    # NCCL refuses two ranks on one GPU.
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=2)
    found = _first_step(device, small)
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def _first_step(device: str, small: bool) -> dict[str, Tensor]:
    """Return the loss of the first step on this process's rank, and what it adds to all weights."""
    _exact(True)
    case = case_of("resnet18", small=small)
    batch = case.batch if small else 64
    num_ranks = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    plan = EpochPlan(num_images=batch, global_batch=batch, drop_last=True, num_ranks=num_ranks)
    there = torch.device(device)
    trainer: Trainer = trainer_of(case, there, steps_per_epoch=1, epochs=1, lr=0.05)
    before = _weights(trainer)
    images = ImageSet(smooth_images(batch, case.canvas_px).to(there))
    (report,) = trainer.run(images.feed(plan, seed=0, rank=rank))
    return {"loss": torch.tensor(report.loss), "update": _weights(trainer) - before}


def _weights(trainer: Trainer) -> Tensor:
    return torch.cat([p.detach().cpu().reshape(-1) for p in trainer.network.parameters()])


def _exact(on: bool) -> None:
    """Switch TF32 off, which torch has on for convolutions, and fix cuDNN's choice; or back."""
    torch.backends.cudnn.allow_tf32 = not on
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = on
