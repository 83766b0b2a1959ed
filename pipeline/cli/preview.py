"""--dry-run: check the configuration and the source, show the plan, write nothing.

No Ray is started; that of a sweep joins the cluster at RAY_ADDRESS to time a few steps there.
"""

from __future__ import annotations

from itertools import pairwise

from pipeline.cli.advice import conflicts
from pipeline.cli.command_line import Command
from pipeline.cli.resolve import resolve
from pipeline.cluster.connect import usable_cpus
from pipeline.config import Config
from pipeline.config.file import changed_keys
from pipeline.console import Console, duration
from pipeline.dataset.manifest import left_out_text
from pipeline.errors import ConfigError
from pipeline.ingest.plan import DryRun, dry_run
from pipeline.ingest.sample import SIDES_PX, Sample

_NUM_REJECTS = 10
# No cluster is asked, so the feed is held to its own key only.
_UNKNOWN_BYTES = 2**62


def preview(command: Command, console: Console) -> None:
    """Show what the command would do.

    Raises:
        PipelineError: what the real command would have failed with, as far as it can be known.
    """
    folder = resolve(command)
    config = folder.config
    console.stage("run", f"{'new run' if folder.is_new else 'resume'} {folder.uri}")
    for change in changed_keys(Config(), config):
        console.line(f"  {change}")
    plan = dry_run(config)
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
    if plan.sample is not None:
        _show_sample(plan.sample, plan.num_images, console)
    if command.stage == "tune":
        _show_sweep(config, plan, console)
    elif command.stage != "ingest":
        _show_training(config, plan, console)


def _show_sweep(config: Config, plan: DryRun, console: Console) -> None:
    from pipeline.tune.estimate import estimate
    from pipeline.tune.space import parameters

    if config.tune.objective == "fewshot" and "val" not in plan.sets:
        raise ConfigError(
            "E-CONFIG-006",
            "a sweep is scored on a validation set, and the data set has none",
            where=plan.data_uri,
            todo="set data.num_val_per_class or data.sets.val, or tune.objective=view_retrieval",
        )
    for method in config.train.methods:
        for p in parameters(config, method):
            how = f"{p.choices}" if p.choices else f"{p.low:g} to {p.high:g}"
            console.stage("tune", f"{method}: {p.key} {how}{', by logarithm' if p.log else ''}")
    cost, placement = estimate(config, plan)
    console.stage(
        "tune",
        f"{cost.num_trials} trials of {cost.epochs} epochs, then {cost.num_retrained} trainings "
        f"with fresh seeds; {placement.concurrent} at a time; {1e3 * cost.step_s:.0f} ms a step",
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
    ranked = sorted(zip(counts, plan.class_names, strict=True), reverse=True)
    shown = ranked if len(ranked) <= 12 else [*ranked[:6], *ranked[-6:]]
    console.line("images per class: " + ", ".join(f"{name} {count}" for count, name in shown))


def _show_sample(sample: Sample, num_images: int, console: Console) -> None:
    n = sample.num_images
    counts = ", ".join(
        f"{name} {count}"
        for name, count in zip(_side_names(), sample.side_counts, strict=True)
        if count
    )
    console.line(f"of {n} images drawn by seed, shorter side in px: {counts or 'none can be used'}")
    for reject in sample.rejects[:_NUM_REJECTS]:
        console.line(f"  would be rejected: {reject.id} ({reject.reason}: {reject.detail})")
    if len(sample.rejects) > _NUM_REJECTS:
        console.line(f"  and {len(sample.rejects) - _NUM_REJECTS} more of the {n}")
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


def _show_training(config: Config, plan: DryRun, console: Console) -> None:
    from pipeline import feed
    from pipeline.train.driver import check_data

    check_data(config, plan.manifest, object_store_bytes=_UNKNOWN_BYTES)
    epoch = feed.epoch_plan(config, plan.manifest)
    steps = epoch.num_steps * config.train.epochs
    for method in config.train.methods:
        console.stage(
            "train",
            f"{method}: {config.model.backbone}, {config.train.epochs} epochs of "
            f"{epoch.num_steps} steps = {steps} steps of {config.train.global_batch} images on "
            f"{config.train.num_workers} workers",
        )
        _show_scale(config, method, plan, console)
    console.stage("train", feed.described(config, plan.manifest))
    for text in conflicts(config, plan.manifest):
        console.stage("warning", text)
    unlabelled = plan.sets["pretrain"].class_counts is None
    scores = "nothing, without labels" if unlabelled else ", ".join(config.evaluate.protocols)
    console.stage("evaluate", scores)


def _show_scale(config: Config, method: str, plan: DryRun, console: Console) -> None:
    """Show what the run needs, by the formulas of docs/scale.md."""
    from pipeline import feed
    from pipeline.cli.scale import Workload, si
    from pipeline.model import build

    planned = plan.sets["pretrain"]
    weight_bytes, state_bytes = build.state_bytes(config, method)
    work = Workload(
        num_images=planned.rows,
        image_bytes=planned.num_bytes // max(1, planned.rows),
        shard_bytes=config.ingest.shard_bytes,
        canvas_px=feed.canvas_px(config) or 0,
        global_batch=config.train.global_batch,
        embedding_dim=config.model.embedding_dim,
        parameter_bytes=weight_bytes,
        state_bytes=state_bytes,
        epochs=config.train.epochs,
        checkpoints=-(-config.train.epochs // config.train.checkpoint_every_epochs),
        num_workers=config.train.num_workers,
        workers_per_node=1,
    )
    console.line(
        f"  per step {si(work.gathered_bytes, 'B')} of embeddings gathered and "
        f"{si(work.node_bytes_per_step, 'B')} sent by each worker"
    )
    console.line(
        f"  {work.checkpoints} checkpoints of {si(state_bytes, 'B')}; time and price: "
        "python -m pipeline.cli.scale --help"
    )
