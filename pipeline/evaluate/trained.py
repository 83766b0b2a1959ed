"""Protocols that train on views: one Ray task for each model and draw trains a linear classifier.

The labelled images are read and decoded once and shared through the object store. A task yields
after every epoch, so progress is shown while it runs. `paper-fewshot` and `paper-fewshot-last` are
one training: the first takes the epoch that is best on the val set, as the published runs do,
the second the last one, and so uses no label beyond the few-shot set. `finetune-*` train all
weights, so the images that are scored are decoded for them too.

Shapes: N labelled images that are trained on, M images that are scored on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import feed
from pipeline.cluster.marked_nodes import on_nodes
from pipeline.config import Config
from pipeline.config.stages import NEEDS_VAL
from pipeline.console import Console, counted
from pipeline.dataset.manifest import Manifest
from pipeline.embed.features import Placement, SetFeatures
from pipeline.errors import ConfigError
from pipeline.evaluate.probe_task import (
    Labelled,
    Pictures,
    ProbeEnd,
    ProbeJob,
    ProbeStep,
    train_job,
)
from pipeline.feed.rows import RowLedger
from pipeline.model import build
from pipeline.model.source import ModelSource
from pipeline.record.context import RunContext
from sdclr.fewshot import fraction_draws
from sdclr.trained_probe import (
    FINETUNE_FEWSHOT,
    FINETUNE_TENTH,
    PAPER_FEWSHOT,
    PAPER_LINEAR,
    ProbeRecipe,
    ProbeView,
)

# Training -> the protocols that are read off it.
TRAININGS = MappingProxyType(
    {
        "paper-linear": ("paper-linear",),
        "paper-fewshot": ("paper-fewshot", "paper-fewshot-last"),
        "finetune-fewshot": ("finetune-fewshot",),
        "finetune-10pct": ("finetune-10pct",),
    }
)
PROTOCOLS = tuple(protocol for protocols in TRAININGS.values() for protocol in protocols)
# Published batch sizes: CIFAR, and ImageNet with random resized crops.
_PHOTO_BATCH = 512
_WAIT_S = 5.0


class TrainedProbes:
    """The labelled images of a data set, ready to train on for any model.

    Args:
        run: what is evaluated.
        labels_N: of all images with a label, as `labelled_images` orders them.
        num_probe: how many of them are the labelled set.
        draws: rows of them for each few-shot draw.
        test_labels_M: of the images that are scored.
        placement: of tasks on the cluster.
        console: shows progress.
    """

    def __init__(
        self,
        run: RunContext,
        *,
        labels_N: NDArray[np.int64],
        num_probe: int,
        draws: Sequence[NDArray[np.int64]],
        test_labels_M: NDArray[np.int64],
        placement: Placement,
        console: Console,
    ) -> None:
        import ray

        config, manifest = run.config, run.manifest
        self.config, self.config_json, self.manifest = config, run.config_json, manifest
        self.placement, self.console = placement, console
        self.draws = _draws(config, labels_N[:num_probe], draws)
        self.rows = np.unique(np.concatenate([rows for own in self.draws.values() for rows in own]))
        is_tuned = any(_is_tuned(training) for training in self.draws)
        check_fits(config, manifest, len(self.rows) + is_tuned * len(test_labels_M))
        images, sizes = _decoded(run, ("probe", "fewshot"), self.rows)
        self.images = [ray.put(images), ray.put(sizes), ray.put(labels_N[self.rows])]
        self.view = probe_view(config, manifest)
        self.pictures = ray.put(self._scored(run, test_labels_M)) if is_tuned else None

    def _scored(self, run: RunContext, labels_M: NDArray[np.int64]) -> Pictures:
        """Decode the images that are scored on."""
        found = _decoded(run, (self.config.evaluate.split,), np.arange(len(labels_M)))
        resize_px = build.resize_px(self.config, self.manifest)
        return Pictures(*found, labels_M, self.view.crop_px, resize_px)

    def score(
        self,
        sources: Sequence[ModelSource],
        training: str,
        val: SetFeatures | None,
        test: SetFeatures,
    ) -> dict[str, list[ProbeEnd]]:
        """Train all classifiers of one kind, in parallel.

        Args:
            sources: the models.
            training: one of `TRAININGS` whose protocols are configured.
            val: features to choose the epoch on, if there is such a set.
            test: features to score on.

        Returns:
            Model -> what `train_job` ended with, for each draw, in the order of the draws.
        """
        jobs = [
            (source.name, number, self._job(source, training, rows, test))
            for source in sources
            for number, rows in enumerate(self.draws[training])
        ]
        results = self._run(jobs, training, val, test)
        return {
            source.name: [results[key] for key in sorted(results) if key[0] == source.name]
            for source in sources
        }

    def note(self, protocol: str, results: Sequence[ProbeEnd]) -> str:
        """Note how many labels were trained on, which views, and how the epoch was chosen."""
        training = next(name for name, own in TRAININGS.items() if protocol in own)
        recipe = _recipe(training, self.view)
        num = len(self.draws[training][0])
        per = "" if protocol == "paper-linear" else " per draw"
        flips = " with flips" if self.view.hflip_prob else ""
        chosen = f"last of {counted(recipe.epochs, 'epoch')}, no other label"
        if _is_tuned(training):
            chosen = f"all weights trained, {chosen}"
        elif protocol in NEEDS_VAL:
            best = ", ".join(str(result.best_epoch) for result in results)
            num_val = self.manifest.sets["val"].rows
            chosen = f"epoch {best} of {recipe.epochs} chosen on {counted(num_val, 'val image')}"
        return f"{counted(num, 'label')}{per}, {self.view.kind}{flips}, {chosen}"

    def _job(
        self, source: ModelSource, training: str, rows: NDArray[np.int64], test: SetFeatures
    ) -> ProbeJob:
        return ProbeJob(
            config_json=self.config_json,
            source=source,
            init_from=build.init_uri(self.config),
            rows_n=np.searchsorted(self.rows, rows),
            recipe=_recipe(training, self.view),
            view=self.view,
            num_features=test.by_model[source.name].shape[1],
            num_classes=len(self.manifest.class_names or ()),
            device=self.placement.device,
            num_threads=self.placement.num_threads,
        )

    def _run(
        self,
        jobs: list[tuple[str, int, ProbeJob]],
        training: str,
        val: SetFeatures | None,
        test: SetFeatures,
    ) -> dict[tuple[str, int], ProbeEnd]:
        import ray

        # Given here, not as options, GPUs make Ray end the process with its task: one that went on
        # would keep the GPU that it saw first, whichever it is given next.
        task: Any = ray.remote(num_cpus=self.placement.num_cpus, num_gpus=self.placement.num_gpus)(
            train_job
        )
        task = task.options(
            num_returns="streaming",
            **on_nodes(self.config.placement.train_nodes),
        )
        held = {
            name: [None, self.pictures]
            if _is_tuned(training)
            else [None if s is None else ray.put(_labelled(s, name)) for s in (val, test)]
            for name in {name for name, _, _ in jobs}
        }
        running: dict[Any, tuple[str, int]] = {
            task.remote(job, *self.images, *held[name]): (name, number)
            for name, number, job in jobs
        }
        num_rows = {(name, n): len(j.rows_n) for name, n, j in jobs}
        total = sum(num_rows.values()) * jobs[0][2].recipe.epochs
        done = 0
        results: dict[tuple[str, int], ProbeEnd] = {}
        self.console.progress(training, 0, total)
        while running:
            ready: list[Any] = ray.wait(list(running), num_returns=1, timeout=_WAIT_S)[0]
            for stream in ready:
                key = running[stream]
                try:
                    event: ProbeStep | ProbeEnd = ray.get(next(stream))
                except StopIteration:
                    del running[stream]
                    continue
                if isinstance(event, ProbeEnd):
                    results[key] = event
                    continue
                done += num_rows[key]
                accuracy = "" if event.val is None else f"  val {100 * event.val:.1f}"
                extra = f"{key[0]}  epoch {event.epoch}/{jobs[0][2].recipe.epochs}{accuracy}"
                self.console.progress(training, done, total, extra=extra)
        return results


def probe_view(config: Config, manifest: Manifest) -> ProbeView:
    """Draw the published view: padded crops of small square images, resized crops of photos.

    Flips have probability 1/2, unless training does without (augment.hflip_prob=0), as for digits.
    """
    crop_px, image = build.crop_px(config, manifest), manifest.image
    small = image.height_px == image.width_px == crop_px
    return ProbeView(
        kind="padded-crop" if small else "resized-crop",
        crop_px=crop_px,
        hflip_prob=0.5 if config.augment.hflip_prob > 0 else 0.0,
    )


def check_fits(config: Config, manifest: Manifest, num_images: int) -> None:
    """Refuse labelled images that would not fit the memory that one worker may use.

    Raises:
        ConfigError: naming both sizes.
    """
    height_px, width_px = feed.canvas_size(config, manifest)
    needed = num_images * 3 * height_px * width_px
    if needed > config.feed.max_memory_bytes:
        raise ConfigError(
            "E-CONFIG-015",
            f"the {num_images} decoded labelled images take {needed / 2**30:.1f} GiB, "
            f"feed.max_memory_bytes allows {config.feed.max_memory_bytes / 2**30:.1f} GiB",
            where="feed.max_memory_bytes",
            todo="raise it if the nodes have the memory, or use the cached protocols",
        )


def _draws(
    config: Config, labels_N: NDArray[np.int64], fewshot: Sequence[NDArray[np.int64]]
) -> dict[str, list[NDArray[np.int64]]]:
    """Return the labelled rows that each configured training takes, one entry a draw."""
    wanted = config.evaluate.protocols
    draws = {}
    for training in (t for t, own in TRAININGS.items() if any(p in wanted for p in own)):
        if training == "paper-linear":
            draws[training] = [np.arange(len(labels_N))]
        elif training == "finetune-10pct":
            draws[training] = fraction_draws(
                labels_N, fraction=0.1, num_draws=len(fewshot), seed=config.run.seed
            )
        else:
            draws[training] = list(fewshot)
    return draws


def _is_tuned(training: str) -> bool:
    return training.startswith("finetune")


def _recipe(training: str, view: ProbeView) -> ProbeRecipe:
    if _is_tuned(training):
        return FINETUNE_FEWSHOT if training == "finetune-fewshot" else FINETUNE_TENTH
    recipe = PAPER_LINEAR if training == "paper-linear" else PAPER_FEWSHOT
    return recipe if view.kind == "padded-crop" else replace(recipe, batch=_PHOTO_BATCH)


def _labelled(found: SetFeatures, model: str) -> Labelled:
    return Labelled(found.by_model[model], found.labels_N)


def _decoded(
    run: RunContext, set_names: Sequence[str], rows: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return canvases (N, 3, H, W) uint8 and sizes (N, 2) of ascending rows of sets together."""
    height_px, width_px = feed.canvas_size(run.config, run.manifest)
    images = np.empty((len(rows), 3, height_px, width_px), np.uint8)
    sizes = np.empty((len(rows), 2), np.int64)
    ledger = RowLedger(f"data set {run.manifest.name}, {' and '.join(set_names)}", len(rows))
    first_row = 0
    for name, info in run.manifest.sets.items():
        if str(name) not in set_names:
            continue
        decoded = feed.decoded_rows(run.config, run.data_uri, run.manifest, name)
        for batch in decoded.iter_batches(batch_size=None, batch_format="numpy"):
            row_n = batch["row"] + first_row
            wanted = np.isin(row_n, rows)
            places = np.searchsorted(rows, row_n[wanted])
            images[places], sizes[places] = batch["pixels"][wanted], batch["size"][wanted]
            ledger.add(places)
        first_row += info.rows
    ledger.close()
    return images, sizes
