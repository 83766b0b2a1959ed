"""Cost of a sweep for --dry-run, from a few timed steps of the network on random images.

Not counted: start-up, reading the data set, the fits of the few-shot probes.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace

import torch

from pipeline.cluster.connect import connected, joined_address
from pipeline.config import Config
from pipeline.errors import ErrorReport
from pipeline.ingest.plan import DryRun
from pipeline.model.build import crop_px, loss_memory, new_network, training_recipe
from pipeline.tune.objective import PROBE_IMAGES
from pipeline.tune.placement import CPUS_PER_WORKER, Placement, place_here, place_on
from pipeline.tune.space import configured_point, measure_every, published_point, trial_config
from pipeline.tune.stage import REDUCTION_FACTOR, grace_epochs
from sdclr import EpochPlan, ImageSet, NonFiniteError, Recipe, StarvedLayerError, Trainer
from sdclr.step_graph import WARM_UP

_WARM_UP_STEPS, _TIMED_STEPS = 1, 3
_TIMING_LR = 1e-9  # what is timed learns nothing


@dataclass(frozen=True)
class Estimate:
    """Estimate of a whole sweep.

    Args:
        num_trials: of the search, and `num_retrained` with fresh seeds.
        step_s: seconds of a training step, mean of the methods.
        most_h: hours when no trial is stopped early.
        likely_h: hours when ASHA lets one in `REDUCTION_FACTOR` pass each rung.
        gpu_hours: at most; 0 on CPUs.
        price_usd: at most; None without a price.
    """

    num_trials: int
    num_retrained: int
    epochs: int
    step_s: float
    most_h: float
    likely_h: float
    gpu_hours: float
    price_usd: float | None


def estimate(config: Config, plan: DryRun) -> tuple[Estimate, Placement]:
    """Estimate the cost on this machine, or on the cluster at RAY_ADDRESS.

    Raises:
        ConfigError: the size of views is not known.
        ClusterError: no trial can be placed.
        TrainingError: a timed step is not finite, or pruning leaves a layer without weights.
    """
    side_px = crop_px(config, plan.manifest)
    try:
        placement, seconds = _timed(config, side_px)
    except (NonFiniteError, StarvedLayerError) as error:
        where, todo = "the steps timed on random images", "change the keys named above"
        raise ErrorReport.of(error, where=where, todo=todo).error() from error
    return of_seconds(config, plan, placement, *seconds), placement


def _timed(config: Config, side_px: int) -> tuple[Placement, tuple[float, float]]:
    if joined_address() is not None:
        import ray

        with connected() as cluster:
            placement = place_on(config, cluster)
            on_worker = ray.remote(
                num_cpus=placement.cpus / config.tune.trial_workers,
                num_gpus=placement.gpus_per_worker,
            )
            probe = on_worker(probe_s)
            return placement, ray.get(probe.remote(config, side_px, placement.gpus > 0))
    placement = place_here(config)
    return placement, probe_s(config, side_px, placement.gpus > 0)


def probe_s(
    config: Config,
    side_px: int,
    on_gpu: bool,
    *,
    batch: int | None = None,
    num_threads: int = CPUS_PER_WORKER,
) -> tuple[float, float]:
    """Time one training step of one worker, and one image in a forward pass, in seconds.

    Args:
        config: of the sweep, whose trials have `tune.trial_workers`.
        side_px: side of a view.
        on_gpu: whether the step runs on a GPU.
        batch: images of the step; None = a worker's share of the batch.
        num_threads: of this process.
    """
    device = "cuda" if on_gpu else "cpu"
    torch.set_num_threads(num_threads)
    batch = batch or max(2, config.train.global_batch // config.tune.trial_workers)
    # A GPU launches its first steps one by one, then captures a graph: neither is a usual step.
    num_untimed = _WARM_UP_STEPS + (WARM_UP if on_gpu else 0)
    shape = (batch * (num_untimed + _TIMED_STEPS), 3, side_px, side_px)
    images = ImageSet(torch.randint(0, 256, shape, dtype=torch.uint8))
    plan = EpochPlan(num_images=len(images), global_batch=batch, drop_last=True)
    steps_s, image_s = [], []
    for method in config.train.methods:
        one = trial_config(config, method, {}, seed=config.run.seed)
        sized = one.model_copy(
            update={"augment": one.augment.model_copy(update={"crop_px": side_px})}
        )
        # At the full rate, without a warm-up, the second step on noise may not be finite.
        recipe = replace(_recipe(sized, method), epochs=1, lr=_TIMING_LR)
        trainer = Trainer(
            new_network(sized, method),
            recipe,
            steps_per_epoch=plan.num_steps,
            device=device,
            memory=loss_memory(sized, method, plan.num_images),
        )
        before_s, taken = time.perf_counter(), []
        for _ in trainer.run(images.feed(plan, seed=0)):
            now_s = time.perf_counter()
            taken.append(now_s - before_s)
            before_s = now_s
        steps_s.append(statistics.median(taken[num_untimed:]))
        views = torch.rand(batch, 3, side_px, side_px, device=device)
        with torch.inference_mode():
            trainer.network.eval().features(views).sum().item()  # the first one loads kernels
            start_s = time.perf_counter()
            trainer.network.features(views).sum().item()
            image_s.append((time.perf_counter() - start_s) / batch)
    return statistics.fmean(steps_s), statistics.fmean(image_s)


def _recipe(config: Config, method: str) -> Recipe:
    from pipeline.dataset.manifest import ImageInfo, Manifest, Rejects, SetInfo

    nothing = Manifest(
        "", {}, ImageInfo("original", None, None), None, {"pretrain": SetInfo(0, None, ())}, (),
        Rejects(0, {}, ()), {}, "",
    )  # fmt: skip
    return training_recipe(config, nothing, method)


def of_seconds(
    config: Config, plan: DryRun, placement: Placement, step_s: float, image_s: float
) -> Estimate:
    """Compute the cost from the seconds of a step and of an image."""
    t, epochs = config.tune, config.train.epochs
    epoch = EpochPlan(
        num_images=plan.sets["pretrain"].rows,
        global_batch=config.train.global_batch,
        drop_last=config.train.drop_last,
        num_ranks=t.trial_workers,
    )
    measured_s = _images_measured(config, plan) * image_s
    epoch_s = epoch.num_steps * step_s + measured_s / measure_every(epochs)
    num_trials = t.trials * len(config.train.methods)
    method = config.train.methods[0]
    same = configured_point(config, method) == published_point(config, method)
    num_retrained = t.retrain_seeds * (len(config.train.methods) + (1 if same else 2))
    early = t.early_stopping and not t.balance

    def hours(epochs_of_search: float) -> float:
        trained = num_trials * epochs_of_search + num_retrained * epochs
        return trained * epoch_s / placement.concurrent / 3600

    most_h = hours(epochs)
    gpu_hours = most_h * placement.concurrent * placement.gpus
    price = config.cost.price_per_gpu_hour_usd
    likely = expected_epochs(epochs, grace_epochs(config)) if early else epochs
    return Estimate(
        num_trials=num_trials,
        num_retrained=num_retrained,
        epochs=epochs,
        step_s=step_s,
        most_h=most_h,
        likely_h=hours(likely),
        gpu_hours=gpu_hours,
        price_usd=None if price is None else price * gpu_hours,
    )


def expected_epochs(epochs: int, grace: int, factor: int = REDUCTION_FACTOR) -> float:
    """Return the mean epochs of a trial when one in `factor` passes each rung."""
    expected, share, rung = 0.0, 1.0, grace
    before = 0
    while rung < epochs:
        expected += share * (rung - before)
        share, before, rung = share / factor, rung, rung * factor
    return expected + share * (epochs - before)


def _images_measured(config: Config, plan: DryRun) -> int:
    if config.tune.objective != "fewshot":
        return 2 * min(PROBE_IMAGES, plan.sets["pretrain"].rows)
    probe, val = (plan.sets[name].rows if name in plan.sets else 0 for name in ("probe", "val"))
    num_classes = len(plan.class_names or ())
    shots = config.evaluate.shots_per_class
    shots = max(1, round(0.01 * probe / max(1, num_classes))) if shots is None else shots
    return val + min(probe, config.evaluate.fewshot_draws * shots * num_classes)
