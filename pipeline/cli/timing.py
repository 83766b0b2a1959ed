"""Time and needs of a run's stages, from a few real steps on random images.

The steps are timed in this process, on the kind of device that the run would use here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from pipeline.cli.scale import si
from pipeline.cluster import auto
from pipeline.cluster.connect import usable_cpus
from pipeline.config import Config
from pipeline.console import Console, duration
from pipeline.curate import selection
from pipeline.errors import ErrorReport
from pipeline.ingest.plan import DryRun
from pipeline.model import build, memory
from pipeline.record.embedding import DType
from pipeline.tune.estimate import probe_s
from sdclr import NonFiniteError, StarvedLayerError
from sdclr.backbone import USUAL_PX, feature_width
from sdclr.logistic import one_thread
from sdclr.methods import METHODS

_CPU_PIXELS = 2 * 224**2
_FEWEST, _MOST = 2, 64
_SAMPLE_VECTORS = 2048


@dataclass(frozen=True)
class Timing:
    """Measured time and memory.

    Args:
        device: in words.
        step_s: seconds of a training step.
        image_s: seconds of one image in a forward pass, in one worker.
        worker_bytes: that a worker needs for its share of a step; on a CPU with its libraries.
        num_workers: that share the images of evaluation and mining.
        on_gpu: where the steps were timed.
    """

    device: str
    step_s: float
    image_s: float
    worker_bytes: int
    num_workers: int
    on_gpu: bool

    @property
    def step_text(self) -> str:
        """The seconds of a step in words."""
        return f"{1e3 * self.step_s:.0f} ms" if self.step_s < 1 else duration(self.step_s)

    def features_s(self, num_images: int) -> float:
        """Return the seconds of one forward pass of so many images."""
        return num_images * self.image_s / self.num_workers

    def memory_warnings(self, config: Config, crop_px: int, machine_bytes: int | None) -> list[str]:
        """Name a training on CPUs that by estimate needs more memory than the machine has."""
        needed = self.worker_bytes * config.train.num_workers
        if self.on_gpu or machine_bytes is None or needed <= machine_bytes:
            return []
        share = machine_bytes // config.train.num_workers
        fits = memory.fitting_micro_batch(config, crop_px, share)
        return [
            f"a step needs about {si(needed, 'B')} of memory, this machine has "
            f"{si(machine_bytes, 'B')}: set train.micro_batch={fits}, or lower train.global_batch "
            "or augment.crop_px"
        ]


def shown(
    config: Config, crop_px: int, console: Console, *, where: str, counts_reading: bool = False
) -> Timing:
    """Return what `measure` does; say that steps are timed, and what their times leave out."""
    console.stage("device", "a few steps are timed")
    timing = measure(config, crop_px, where=where)
    text = "times below are this machine's, from a few steps, without the start of Ray"
    text += "" if counts_reading else " and without reading"
    console.stage("device", f"{timing.device}; {text}")
    return timing


def measure(config: Config, crop_px: int, *, where: str) -> Timing:
    """Time a few steps of the configured training; on a CPU with part of a batch.

    Args:
        config: settled.
        crop_px: side of a view.
        where: the run, for messages.

    Raises:
        TrainingError: the first mask would leave a layer without weights, or a step on random
            images is not finite.
    """
    num_gpus, t = auto.gpus_here(), config.train
    on_gpu = auto.uses_gpu(config, num_gpus) and num_gpus > 0
    share = max(2, t.global_batch // t.num_workers)
    batch = share if on_gpu else min(share, max(_FEWEST, min(_MOST, _CPU_PIXELS // crop_px**2)))
    tune = config.tune.model_copy(update={"trial_workers": t.num_workers})
    base_bytes = 0 if on_gpu else memory.process_bytes()
    threads_before = torch.get_num_threads()
    try:
        step_s, image_s = probe_s(
            config.model_copy(update={"tune": tune}), crop_px, on_gpu, batch=batch,
            num_threads=1 if on_gpu else max(1, usable_cpus() // t.num_workers),
        )  # fmt: skip
    except (NonFiniteError, StarvedLayerError) as error:
        todo = "change the keys named above"
        raise ErrorReport.of(error, where=where, todo=todo).error() from error
    finally:
        torch.set_num_threads(threads_before)
    if on_gpu:
        device = f"{num_gpus} GPU ({torch.cuda.get_device_name(0)})"
    else:
        device = f"no GPU here: {usable_cpus()} CPU"
    return Timing(
        device=device,
        step_s=step_s * share / batch,
        image_s=image_s,
        worker_bytes=memory.worker_bytes(config, crop_px, memory.images_held(config)) + base_bytes,
        num_workers=t.num_workers,
        on_gpu=on_gpu,
    )


def evaluation_images(config: Config, plan: DryRun) -> int:
    """Return how many forward passes of an image evaluation makes, over all networks.

    Without labels those are of the images that pruning forgets, for a method with a pruned branch.
    """
    names = _scored_sets(config, plan)
    images = sum(plan.sets[name].rows for name in names)
    own = plan.sets["pretrain"].rows * 2 if _has_twin(config) else 0
    if names and _is_probe_pretrain(plan):
        own //= 2  # their dense features are those of the probe
    return images * (len(config.train.methods) + len(config.evaluate.public) + 1) + own


def evaluation_reading_s(config: Config, plan: DryRun) -> float:
    """Return the seconds that evaluation reads and decodes images, on all CPUs here."""
    names = _scored_sets(config, plan)
    if _has_twin(config) and not (names and _is_probe_pretrain(plan)):
        names |= {"pretrain"}
    return _reading_s(plan, sum(plan.sets[name].rows for name in names))


def mining_reading_s(config: Config, plan: DryRun) -> float:
    """Return the seconds that mining reads and decodes images: for vectors, and for pruning."""
    times = 2 if config.mine.score in ("disagreement", "both") else 1
    return _reading_s(plan, times * plan.sets["pretrain"].rows)


def _reading_s(plan: DryRun, num_images: int) -> float:
    """Return the seconds by the sample; 0 where no image was read, as of a set that is made."""
    if plan.sample is None:
        return 0.0
    return num_images * plan.sample.s_per_image / usable_cpus()


def _scored_sets(config: Config, plan: DryRun) -> set[str]:
    """Return the sets whose features protocols need; none without labels."""
    names = {"probe", "fewshot", config.evaluate.split} if plan.manifest.has_labels() else set()
    if names and any(protocol.startswith("paper") for protocol in config.evaluate.protocols):
        names.add("val")
    return names & {*plan.sets}


def _has_twin(config: Config) -> bool:
    return any(METHODS[method].has_twin for method in config.train.methods)


def _is_probe_pretrain(plan: DryRun) -> bool:
    """Return whether the probe set holds the images of the pre-training set, stored once."""
    probe, rows = plan.sets.get("probe"), plan.sets["pretrain"].rows
    return probe is not None and not probe.num_shards and probe.rows == rows


def mining_images(config: Config, num_images: int, *, labelled: bool) -> int:
    """Return how many forward passes mining makes: plain ones, and those of pruned networks."""
    passes = 1
    if config.mine.score in ("disagreement", "both"):
        passes += config.mine.num_views * (1 + len(config.mine.prune_ratios))
    return num_images * passes * (2 if labelled else 1)


def vector_bytes(config: Config, dtype: DType) -> int:
    """Return the bytes of one vector of the configured backbone."""
    network = build.new_network(config, config.train.methods[0])
    side_px = config.augment.crop_px or USUAL_PX
    dim = feature_width(network.backbone, config.model.backbone, side_px)
    return dim * (2 if dtype == "float16" else 4)


def kept_checkpoints(config: Config) -> tuple[int, int]:
    """Return the checkpoints that a method writes at the ends of epochs, and those it keeps."""
    t = config.train
    written = -(-t.epochs // t.checkpoint_every_epochs)
    lasting = t.epochs // t.keep_every_epochs if t.keep_every_epochs else 0
    kept = min(written, t.keep_checkpoints) + lasting + (t.keep_best is not None)
    return written, kept


def clusters_s(num_images: int, dim: int) -> float:
    """Return the seconds of the clusters and near-duplicates, by the rate of a small part here."""
    unit_NF = torch.nn.functional.normalize(torch.randn(_SAMPLE_VECTORS, dim), dim=1)
    centres_KF = unit_NF[: selection.num_cells(_SAMPLE_VECTORS)]
    with one_thread():
        selection.nearest(unit_NF, centres_KF)  # the first call is slower
        start_s = time.perf_counter()
        selection.nearest(unit_NF, centres_KF)
        spent_s = time.perf_counter() - start_s
    rate = len(unit_NF) * len(centres_KF) * dim / spent_s
    return selection.multiply_adds(num_images, dim) / rate
