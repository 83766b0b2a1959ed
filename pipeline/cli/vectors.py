"""The stages embed and curate, and what they print."""

from __future__ import annotations

import time

from pipeline import storage
from pipeline.cli.session import Session
from pipeline.cluster.connect import refreshed
from pipeline.cluster.retry import retry_lost_work
from pipeline.config.public_weights import absolute
from pipeline.console import counted, duration
from pipeline.record.context import RunContext


def embed_given(session: Session, checkpoint: str) -> None:
    """Write the vectors of an ingested data set by given weights, which the folder remembers."""
    from pipeline.record.embedding import GIVEN_FILE, GivenWeights

    session.open_record()
    session.record_data()
    given = GivenWeights(uri=absolute(checkpoint))
    given.write(storage.join(session.folder.uri, GIVEN_FILE))
    embed(session)


def embed(session: Session) -> None:
    """Write the vectors of a data set's images, or find them written."""
    from pipeline.embed.stage import embed
    from pipeline.embed.wanted import run_model

    command, console = session.command, session.console
    start_s, set_name = time.monotonic(), command.set_name or "pretrain"
    with session.stage("embed"):
        run = _context(session)
        source = run_model(run).source
        console.stage("embed", f"{run.manifest.name}, {set_name} set, by {source.name}")
        made = retry_lost_work(
            lambda: embed(
                run,
                [source],
                set_name=set_name,
                dtype=command.dtype or "float32",
                cluster=refreshed(session.cluster),
                progress=lambda done, total: console.progress("embed", done, total),
                note=lambda text: console.stage("embed", text),
            ),
            say=lambda text: console.stage("embed", text),
        )
    folder, embedding = made[source.name]
    size = sum(shard.bytes for shard in embedding.shards)
    console.stage(
        "embed",
        f"{counted(embedding.rows, 'vector')} of {embedding.dim} {embedding.dtype} in "
        f"{counted(len(embedding.shards), 'file')}, {size / 1e6:.1f} MB, "
        f"{duration(time.monotonic() - start_s)}: {folder}",
    )


def curate(session: Session) -> None:
    """Find near-duplicates, select, and show what was found."""
    from pipeline.curate.stage import curate
    from pipeline.curate.words import check_words
    from pipeline.embed.wanted import check_set

    command, console = session.command, session.console
    set_name = command.set_name or "pretrain"
    with session.stage("curate"):
        run = _context(session)
        # Before the cluster is joined, which may take half a minute.
        check_set(run.manifest, set_name, stage="curate")
        check_words(command.keep, command.cosine, run.manifest.sets[set_name].rows)
        found = retry_lost_work(
            lambda: curate(
                run,
                cluster=refreshed(session.cluster),
                progress=console.progress,
                set_name=set_name,
                keep=command.keep,
                similarity=command.cosine,
            ),
            say=lambda text: console.stage("curate", text),
        )
    console.stage(
        "curate", f"{found.duplicates} of {found.images} images are near-duplicates of another"
    )
    for pair in found.examples[:5]:
        console.line(f"  {pair.id} is nearly {pair.other}, cosine {pair.similarity:.4f}")
    if found.examples:
        console.line("  these are the least alike; where they differ, raise --similarity")
    for across in (one for one in found.across_sets if one.images):
        console.stage(
            "curate",
            f"look at these pairs: {across.images} of {counted(across.of, 'image')} of "
            f"{across.set} are "
            f"near-duplicates of one of {found.set} by the vectors of this network",
        )
    from pipeline.report.curation_page import clusters_text, write_curation_page
    from pipeline.report.mining import vectors_warning

    for text in vectors_warning(found.vectors):
        console.stage("curate", f"ALARM: {text}")

    page = write_curation_page(session.folder.uri)
    folder = storage.join(session.folder.uri, "curation")
    console.stage(
        "curate",
        f"{counted(found.kept, 'image')} selected, evenly over {clusters_text(found)}: {folder}",
    )
    console.stage("curate", f"pictures: {page}")


def _context(session: Session) -> RunContext:
    """Return the run on its own data set, or on the one of --data."""
    data = session.command.data
    return session.context if data is None else session.context.on_data(storage.absolute(data))
