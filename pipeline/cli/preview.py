"""--dry-run: check the configuration and the source, show the plan, write nothing.

No Ray is started; that of a sweep joins the cluster at RAY_ADDRESS to time a few steps there.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from pipeline import storage
from pipeline.cli.advice import conflicts, left_out
from pipeline.cli.command_line import Command
from pipeline.cli.gc import gc
from pipeline.cli.here import check_start, check_workers_here
from pipeline.cli.preview_vectors import show_new_vectors, show_vectors
from pipeline.cli.resolve import resolve
from pipeline.cli.scale import si
from pipeline.cli.session import dataset_of
from pipeline.cluster import auto
from pipeline.cluster.auto import settled_here
from pipeline.cluster.connect import usable_cpus
from pipeline.config import Config
from pipeline.config.file import changed_keys, config_hash
from pipeline.console import Console, counted, duration
from pipeline.dataset.description import left_out_text
from pipeline.dataset.image import remarked
from pipeline.ingest.plan import DryRun, dry_run, made_before
from pipeline.ingest.sample import SIDES_PX, Sample
from pipeline.record.folder import RunFolder
from pipeline.record.provenance import machine_memory_bytes

_NUM_REJECTS = 10
_NUM_CLASSES = 40
# No cluster is asked, so the feed is held to its own key only.
_UNKNOWN_BYTES = 2**62


def preview(command: Command, console: Console) -> None:
    """Show what the command would do.

    Raises:
        PipelineError: what the real command would have failed with, as far as it can be known.
    """
    if command.runs or command.root is not None:
        _show_reading(command, console)
        return
    folder = resolve(command)
    config = settled_here(folder.config)
    storage.check_writable(storage.absolute(config.run.root))
    console.stage("run", f"{'new run' if folder.is_new else 'resume'} {folder.uri}")
    for change in changed_keys(Config(), folder.config):
        console.line(f"  {change}")
    check_start(config, command.stage)
    found = None
    if folder.data_uri and command.data is None and command.stage not in ("report", "tune"):
        found = dataset_of(folder, config, folder.data_uri)
        folder = replace(folder, data_uri=found.uri)
    if command.stage in ("embed", "curate", "mine") and not folder.is_new:
        show_vectors(command, folder, config, console)
        return
    if command.stage == "export":
        _show_export(folder, config, console)
        return
    if command.stage == "report":
        console.stage("report", f"{folder.uri}: pages of its records, no images")
        return
    plan = dry_run(config) if found is None else made_before(found.uri, found.manifest)
    _show_data(plan, console)
    if command.stage == "tune":
        _show_sweep(config, plan, console)
    elif command.stage == "embed":
        show_new_vectors(command, config, plan, console, where=folder.uri)
    elif command.stage != "ingest":
        _show_training(config, plan, console, where=folder.uri, stage=command.stage)


def _show_data(plan: DryRun, console: Console) -> None:
    """Show the images that will be used, and what will be left out."""
    if not plan.exists:  # a complete data set is only read
        storage.check_writable(plan.data_uri)
    state = "is complete and will be reused" if plan.exists else "will be made"
    console.stage("ingest", f"{plan.data_uri} {state}")
    console.table(
        ["set", "images", "shards", "MB"],
        [
            [name, str(p.rows), str(p.num_shards), f"{p.num_bytes / 1e6:.1f}"]
            for name, p in plan.sets.items()
        ],
    )
    for note in plan.notes:
        console.line(note)
    if plan.manifest.left_out:
        console.line(f"left out: {left_out_text(plan.manifest)}")
    _show_classes(plan, console)
    _show_sample(plan.sample, plan.num_images, console)


def _show_reading(command: Command, console: Console) -> None:
    """Show what a command would do that reads records only."""
    if command.root is not None:
        gc(command.root, None, console)
    elif command.stage == "log":
        console.line(f"log {command.runs[0]}: reads its metrics, writes to {command.tracker}")
    else:
        console.line(
            f"{command.stage} {counted(len(command.runs), 'run')}: reads their records, no images"
        )


def _show_export(folder: RunFolder, config: Config, console: Console) -> None:
    """Show which checkpoint of each method would be exported, in which formats, to where."""
    from pipeline.export.stage import check_formats, folder_of
    from pipeline.model import checkpoint

    check_formats(config.export.formats)
    for method in config.train.methods:
        state, found = checkpoint.newest(folder.uri, method, config_hash=config_hash(folder.config))
        for text in found.refused:
            console.stage("export", f"{method}: would skip {text}")
        console.stage(
            "export",
            f"{method}, step {int(state.numbers['step'])}: {', '.join(config.export.formats)} to "
            f"{folder_of(folder.uri, method)}",
        )


def _show_sweep(config: Config, plan: DryRun, console: Console) -> None:
    from pipeline.tune.estimate import estimate
    from pipeline.tune.images import needed_sets
    from pipeline.tune.space import parameters

    needed_sets(config, plan.manifest)
    for method in config.train.methods:
        for p in parameters(config, method):
            how = f"{p.choices}" if p.choices else f"{p.low:g} to {p.high:g}"
            console.stage("tune", f"{method}: {p.key} {how}{', by logarithm' if p.log else ''}")
    cost, placement = estimate(config, plan)
    console.stage(
        "tune",
        f"{counted(cost.num_trials, 'trial')} of {counted(cost.epochs, 'epoch')}, then up to "
        f"{counted(cost.num_retrained, 'training')} with fresh seeds; {placement.concurrent} at a "
        f"time; {1e3 * cost.step_s:.0f} ms a step",
    )
    val = plan.sets.get("val")
    if config.tune.objective == "fewshot" and val is not None:
        console.stage(
            "tune",
            f"scored on {counted(val.rows, 'val image')}: one is {100 / val.rows:.1f} points in "
            "100, and smaller differences mean nothing",
        )
    most, likely = duration(3600 * cost.most_h), duration(3600 * cost.likely_h)
    console.stage("tune", f"at most {most}, about {likely} with early stopping")
    if placement.gpus:
        price = "" if cost.price_usd is None else f", {cost.price_usd:.2f} USD"
        console.stage("tune", f"at most {cost.gpu_hours:.1f} GPU hours{price}")
    elif config.cost.price_per_gpu_hour_usd is not None:
        console.stage("tune", "no price: trials would run on CPUs; RAY_ADDRESS names a cluster")


def _show_classes(plan: DryRun, console: Console) -> None:
    counts = plan.sets["pretrain"].class_counts
    if counts is None or plan.class_names is None:
        console.line("no labels: training does not need them, scores do")
        return
    ranked = sorted(zip(counts, plan.class_names, strict=True), key=lambda pair: -pair[0])
    names = [f"{name if name == name.strip() else repr(name)} {count}" for count, name in ranked]
    if len(names) > _NUM_CLASSES:
        half = _NUM_CLASSES // 2
        names[half:-half] = [f"... {len(names) - _NUM_CLASSES} more classes ..."]
    console.line("images per class: " + ", ".join(names))


def _show_sample(sample: Sample | None, num_images: int, console: Console) -> None:
    if sample is None:  # the data set is there
        return
    n = sample.num_images
    counts = ", ".join(
        f"{name} {count}"
        for name, count in zip(_side_names(), sample.side_counts, strict=True)
        if count
    )
    console.line(
        f"of {counted(n, 'image')} drawn by seed, shorter side in px: "
        f"{counts or 'none can be used'}"
    )
    for reject in sample.rejects[:_NUM_REJECTS]:
        console.line(f"  would be rejected: {reject.id} ({reject.reason}: {reject.detail})")
    if len(sample.rejects) > _NUM_REJECTS:
        console.line(f"  and {len(sample.rejects) - _NUM_REJECTS} more of the {n}")
    for text in remarked(sample.remarks):
        console.line(f"of these {n}, {text}")
    one_core_s = num_images * sample.s_per_image
    console.line(
        f"{sample.mean_stored_bytes / 1e3:.1f} kB an image as stored; at "
        f"{1 / sample.s_per_image:.0f} images/s, measured in one process, "
        f"{duration(one_core_s)} of one core, {duration(one_core_s / usable_cpus())} on this "
        "machine, less on a cluster"
    )


def _side_names() -> list[str]:
    inner = [f"{low}-{high - 1}" for low, high in pairwise(SIDES_PX)]
    return [f"below {SIDES_PX[0]}", *inner, f"{SIDES_PX[-1]} and more"]


def _show_training(
    config: Config, plan: DryRun, console: Console, *, where: str, stage: str
) -> None:
    from pipeline import feed
    from pipeline.cli.timing import (
        evaluation_images,
        evaluation_reading_s,
        kept_checkpoints,
        mining_images,
        mining_reading_s,
        shown,
    )
    from pipeline.model import build
    from pipeline.model.backbone import pruning_texts
    from pipeline.train.checks import check_data

    check_data(config, plan.manifest, object_store_bytes=_UNKNOWN_BYTES)
    if stage in ("all", "train"):
        check_workers_here(config, plan.manifest)
    # Before the steps are timed, which settings that fight can make slow.
    for text in (*conflicts(config, plan.manifest), *_device_warnings(config)):
        console.stage("warning", text)
    crop_px, counts_reading = build.crop_px(config, plan.manifest), plan.sample is not None
    timing = shown(config, crop_px, console, where=where, counts_reading=counts_reading)
    for text in timing.memory_warnings(config, crop_px, machine_memory_bytes()):
        console.stage("warning", text)
    labelled = plan.manifest.has_labels()
    epoch, t = feed.epoch_plan(config, plan.manifest), config.train
    steps = epoch.num_steps * t.epochs
    if stage in ("all", "train"):
        for method in t.methods:
            console.stage(
                "train",
                f"{method}: {config.model.backbone}, {counted(t.epochs, 'epoch')}, "
                f"{counted(steps, 'step')} of {counted(t.global_batch, 'image')} on "
                f"{counted(t.workers_text, 'worker')} in {t.forward_precision}, "
                f"peak lr {build.peak_lr(config):g}",
            )
            weight_bytes, state_bytes = build.state_bytes(config, method)
            written, kept = kept_checkpoints(config)
            console.line(
                f"  {duration(steps * timing.step_s)} at {timing.step_text} a step; "
                f"{si(timing.worker_bytes, 'B')} of memory for each worker; "
                f"{counted(written, 'checkpoint')} of {si(state_bytes, 'B')}, {kept} kept: "
                f"{si(kept * state_bytes + weight_bytes, 'B')} of disk"
            )
        for text in pruning_texts(config):
            console.stage("train", text)
        for text in (feed.described(config, plan.manifest), *left_out(config, plan.manifest)):
            console.stage("train", text)
    features_s = timing.features_s(evaluation_images(config, plan))
    features_s += evaluation_reading_s(config, plan)
    if not labelled:
        also = f"; images that pruning forgets: {duration(features_s)}" if features_s else ""
        console.stage("evaluate", f"no scores, without labels{also}")
    else:
        console.stage("evaluate", f"features {duration(features_s)}, which all protocols share")
        for protocol in config.evaluate.protocols:
            console.line(f"  {protocol}: {_PROTOCOL_TIMES[protocol.partition('-')[0]]}")
    mined = mining_images(config, plan.sets["pretrain"].rows, labelled=labelled)
    mining_s = timing.features_s(mined) + mining_reading_s(config, plan)
    console.stage("mine", f"{duration(mining_s)}, if you mine the run afterwards")


_PROTOCOL_TIMES = {
    "cached": "its fits come on top: seconds to minutes on a CPU",
    "knn": "seconds",
    "paper": "trains classifiers on augmented images: hours without a GPU",
    "finetune": "trains all weights on augmented images: hours without a GPU",
}


def _device_warnings(config: Config) -> list[str]:
    num_gpus = auto.gpus_here()
    native = auto.native_precision(num_gpus > 0 and auto.uses_gpu(config, num_gpus))
    return [*auto.warnings(config, num_gpus, native), *auto.unseen_gpus(num_gpus)]
