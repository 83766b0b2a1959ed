"""The dry run of the stages that need vectors: embed, curate and mine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline import storage
from pipeline.cli.command_line import Command
from pipeline.cli.scale import si
from pipeline.config import Config
from pipeline.console import Console, counted, duration
from pipeline.dataset.manifest import Manifest, read_manifest
from pipeline.ingest.plan import DryRun
from pipeline.record.folder import RunFolder

if TYPE_CHECKING:
    from pipeline.cli.timing import Timing


def show_new_vectors(
    command: Command, config: Config, plan: DryRun, console: Console, *, where: str
) -> None:
    """Show what vectors of given weights would take."""
    from pipeline.cli.timing import measure, vector_bytes
    from pipeline.model import build

    timing = measure(config, build.crop_px(config, plan.manifest), where=where)
    rows = plan.sets[command.set_name or "pretrain"].rows
    size = rows * vector_bytes(config, command.dtype or "float32")
    took = duration(timing.features_s(rows))
    console.stage(
        "embed", f"{counted(rows, 'image')} on {timing.device}: {took}, {si(size, 'B')} of vectors"
    )


def show_vectors(command: Command, folder: RunFolder, config: Config, console: Console) -> None:
    """Show what the stages embed and mine would do with an ingested data set."""
    from pipeline.cli.timing import mining_images, shown, vector_bytes
    from pipeline.embed.wanted import check_set
    from pipeline.model import build

    uri = storage.absolute(command.data) if command.data is not None else folder.data_uri
    manifest, set_name = read_manifest(uri), command.set_name or "pretrain"
    check_set(manifest, set_name, stage=command.stage)
    info = manifest.sets[set_name]
    labelled = manifest.has_labels(set_name)
    timing = shown(config, build.crop_px(config, manifest), console, where=folder.uri)
    what = f"{manifest.name}, {counted(info.rows, 'image')} of the set {set_name}"
    if command.stage == "curate":
        _show_curation(command, config, manifest, timing, console)
        return
    if command.labels is not None:
        from pipeline.mine.given_labels import read_labels

        given_labels = read_labels(command.labels, command.rare)
        console.stage("mine", f"{counted(len(given_labels.labels), 'label')} in {command.labels}")
    if command.stage == "embed":
        size = info.rows * vector_bytes(config, command.dtype or "float32")
        took = duration(timing.features_s(info.rows))
        console.stage("embed", f"{what}: {took}, {si(size, 'B')} of vectors")
        return
    num_passes = mining_images(config, info.rows, labelled=labelled)
    console.stage(
        "mine",
        f"{what}, by {config.mine.score}: {counted(num_passes // info.rows, 'forward pass')} each, "
        f"{duration(timing.features_s(num_passes))}; vectors that are there are read",
    )


def _show_curation(
    command: Command, config: Config, manifest: Manifest, timing: Timing, console: Console
) -> None:
    from pipeline.cli.timing import clusters_s, vector_bytes
    from pipeline.curate import selection
    from pipeline.curate.stage import held_out
    from pipeline.curate.words import check_words

    set_name = command.set_name or "pretrain"
    rows = manifest.sets[set_name].rows
    check_words(command.keep, command.cosine, rows)
    compared = held_out(manifest, set_name)
    in_all = rows + sum(manifest.sets[name].rows for name in compared)
    size = vector_bytes(config, "float32")
    console.stage(
        "curate",
        f"{manifest.name}, {counted(rows, 'image')} of the set {set_name}"
        + "".join(f", {manifest.sets[name].rows} of {name}" for name in compared)
        + f": vectors {duration(timing.features_s(in_all))}, {si(in_all * size, 'B')}; "
        "those that are there are read",
    )
    num_cells, kept = selection.num_cells(rows), command.keep or max(1, rows // 2)
    console.stage(
        "curate",
        f"{counted(num_cells, 'cluster')} and near-duplicates: about "
        f"{duration(clusters_s(rows, size // 4))} of one core, {si(2 * in_all * size, 'B')} of "
        f"memory; at most {counted(kept, 'image')} selected",
    )
