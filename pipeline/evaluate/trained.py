"""The published protocols: one Ray task for each model and draw trains a linear classifier.

The labelled images are read and decoded once and shared through the object store. A task yields
after every epoch, so progress is shown while it runs. `paper-fewshot` and `paper-fewshot-last` are
one training: the first takes the epoch that is best on the val set, as the published runs do,
the second the last one, and so uses no label beyond the few-shot set.

Shapes: N labelled images that are trained on, M images that are scored on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import feed
from pipeline.cluster.connect import on_nodes_with
from pipeline.config import Config
from pipeline.console import Console
from pipeline.dataset.manifest import Manifest
from pipeline.embed.features import Placement, SetFeatures
from pipeline.errors import ConfigError
from pipeline.evaluate.probe_task import Labelled, ProbeEnd, ProbeJob, ProbeStep, train_job
from pipeline.feed.rows import RowLedger
from pipeline.model import build
from pipeline.model.source import ModelSource
from pipeline.record.context import RunContext
from sdclr.trained_probe import (
    PAPER_FEWSHOT,
    PAPER_LINEAR,
    ProbeRecipe,
    ProbeView,
)

PROTOCOLS = ("paper-linear", "paper-fewshot", "paper-fewshot-last")
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
        placement: Placement,
        console: Console,
    ) -> None:
        import ray

        config, manifest = run.config, run.manifest
        self.config, self.config_json, self.manifest = config, run.config_json, manifest
        self.draws, self.placement, self.console = draws, placement, console
        everything = "paper-linear" in config.evaluate.protocols
        self.rows = np.unique(
            np.concatenate([*draws, np.arange(num_probe)] if everything else draws)
        )
        check_fits(config, manifest, len(self.rows))
        self.num_probe = num_probe
        images, sizes = _decoded(run, self.rows)
        self.images = [ray.put(images), ray.put(sizes), ray.put(labels_N[self.rows])]
        self.view = probe_view(config, manifest)

    def score(
        self, sources: Sequence[ModelSource], group: str, val: SetFeatures | None, test: SetFeatures
    ) -> dict[str, list[ProbeEnd]]:
        """Train all classifiers of one kind, in parallel.

        Args:
            sources: the models.
            group: `linear` for one classifier a model, `fewshot` for one a model and draw.
            val: features to choose the epoch on, if there is such a set.
            test: features to score on.

        Returns:
            Model -> what `train_job` ended with, for each draw, in the order of the draws.
        """
        jobs = [
            (source.name, number, self._job(source, group, rows))
            for source in sources
            for number, rows in enumerate(
                [np.arange(self.num_probe)] if group == "linear" else self.draws
            )
        ]
        results = self._run(jobs, group, val, test)
        return {
            source.name: [results[key] for key in sorted(results) if key[0] == source.name]
            for source in sources
        }

    def note(self, protocol: str, results: Sequence[ProbeEnd]) -> str:
        """Note how many labels were trained on, which views, and how the epoch was chosen."""
        recipe = _recipe("linear" if protocol == "paper-linear" else "fewshot", self.view)
        num = self.num_probe if protocol == "paper-linear" else len(self.draws[0])
        per = "" if protocol == "paper-linear" else " per draw"
        flips = " with flips" if self.view.hflip_prob else ""
        chosen = f"last of {recipe.epochs} epochs, no other label"
        if protocol != "paper-fewshot-last":
            best = ", ".join(str(result.best_epoch) for result in results)
            num_val = self.manifest.sets["val"].rows
            chosen = f"epoch {best} of {recipe.epochs} chosen on {num_val} val images"
        return f"{num} labels{per}, {self.view.kind}{flips}, {chosen}"

    def _job(self, source: ModelSource, group: str, rows: NDArray[np.int64]) -> ProbeJob:
        return ProbeJob(
            config_json=self.config_json,
            source=source,
            init_from=build.init_uri(self.config),
            rows_n=np.searchsorted(self.rows, rows),
            recipe=_recipe(group, self.view),
            view=self.view,
            num_classes=len(self.manifest.class_names or ()),
            device=self.placement.device,
            num_threads=self.placement.num_threads,
        )

    def _run(
        self,
        jobs: list[tuple[str, int, ProbeJob]],
        group: str,
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
            resources=on_nodes_with(self.config.placement.train_resource),
        )
        held = {
            name: [None if s is None else ray.put(_labelled(s, name)) for s in (val, test)]
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
        self.console.progress(f"paper-{group}", 0, total)
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
                self.console.progress(f"paper-{group}", done, total, extra=extra)
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


def _recipe(group: str, view: ProbeView) -> ProbeRecipe:
    recipe = PAPER_LINEAR if group == "linear" else PAPER_FEWSHOT
    return recipe if view.kind == "padded-crop" else replace(recipe, batch=_PHOTO_BATCH)


def _labelled(found: SetFeatures, model: str) -> Labelled:
    return Labelled(found.by_model[model], found.labels_N)


def _decoded(
    run: RunContext, rows: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return canvases (N, 3, H, W) uint8 and sizes (N, 2) of ascending labelled rows."""
    height_px, width_px = feed.canvas_size(run.config, run.manifest)
    images = np.empty((len(rows), 3, height_px, width_px), np.uint8)
    sizes = np.empty((len(rows), 2), np.int64)
    ledger = RowLedger(f"data set {run.manifest.name}, labelled images", len(rows))
    first_row = 0
    for name, info in run.manifest.sets.items():
        if str(name) not in ("probe", "fewshot"):
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
