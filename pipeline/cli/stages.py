"""The stages in order: their run, data set and cluster, and what each reports."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass

from pipeline import storage
from pipeline.cli import vectors
from pipeline.cli.command_line import Command
from pipeline.cli.resolve import resolve
from pipeline.cli.session import Session, plain_errors
from pipeline.cluster import auto
from pipeline.cluster.connect import refreshed
from pipeline.cluster.preflight import look_at_nodes
from pipeline.cluster.retry import retry_lost_work
from pipeline.config.file import load_config
from pipeline.console import Console, counted
from pipeline.dataset.description import described
from pipeline.dataset.manifest import read_manifest
from pipeline.record.folder import existing_run
from pipeline.record.lineage import keep_ancestors

NO_SCORES = "the data set has no labels, so there are no scores"


def run_stages(command: Command, console: Console) -> None:
    """Do what the command says.

    Raises:
        PipelineError: with its exit code; the run's record says the same.
    """
    if command.stage == "report" and command.runs:
        from pipeline.report.comparison import compare

        compare(command.runs, load_config(command.config_file).run.root, console)
        return
    if command.stage in ("log", "gc"):
        (_log if command.stage == "log" else _gc)(command, console)
        return
    folder = resolve(command)
    with ExitStack() as stack:
        session = Session(command, folder, console, stack)
        with session.ends_recorded():
            Stages(session).run()


def _log(command: Command, console: Console) -> None:
    """Give a run's metrics to a tracker, which needs no cluster."""
    from pipeline.track.stage import log_run

    assert command.tracker is not None
    uri = existing_run(command.runs[0], load_config(command.config_file).run.root)
    console.stage("log", f"{uri} to {command.tracker}")
    added, where = log_run(uri, command.tracker, follow=command.follow)
    console.stage("log", f"{counted(added, 'new point')} and pictures in {where}")


def _gc(command: Command, console: Console) -> None:
    """List what nothing needs, or remove it."""
    from pipeline.cli.gc import gc

    assert command.root is not None
    gc(command.root, command.remove, console)


@dataclass(frozen=True)
class Stages:
    """The stages of one invocation, and what each reports to the user."""

    session: Session

    def run(self) -> None:
        """Do the stages of the command, and end the run."""
        session, stage = self.session, self.session.command.stage
        if stage == "ingest":
            self.ingest()
            session.console.line("next: the same command with the stage train, or without a stage")
            return
        if stage == "tune":
            self.tune()
            return
        if stage in ("all", "train"):
            self.pretrain(ingest_first=stage == "all")
            if stage == "all":
                self.evaluate()
                self.report()
        elif stage == "evaluate" and session.folder.is_new:
            self.evaluate_others()
        elif stage == "embed" and session.command.checkpoint is not None:
            self.recorded_or_ingested()
            vectors.embed_given(session, session.command.checkpoint)
        else:
            session.open_record()
            work = {
                "evaluate": self.evaluate, "export": self.export,
                "embed": lambda: vectors.embed(session),
                "curate": lambda: vectors.curate(session),
                "mine": self.mine, "report": self.report,
            }  # fmt: skip
            work[stage]()
            if stage in ("evaluate", "mine", "curate"):
                self.report()  # it shows the scores, and links to the other pages
        session.finish()

    def ingest(self) -> float:
        """Make the data set, or find it made; return the seconds it took."""
        from pipeline.ingest.stage import ingest

        session, console = self.session, self.session.console
        assert session.cluster  # connected before the clock starts
        start_s = time.monotonic()
        console.stage("ingest", f"{session.config.data.source}: images to shards")
        with plain_errors():
            uri, manifest = ingest(
                session.config,
                lambda done, total: console.progress("ingest", done, total),
                lambda text: console.stage("ingest", text),
            )
        session.use_dataset(uri, manifest)
        console.stage("ingest", described(manifest))
        console.stage("ingest", f"data set: {uri}")
        return time.monotonic() - start_s

    def recorded_or_ingested(self) -> float | None:
        """Take the data set that the run began with, else ingest; return the seconds of that."""
        session = self.session
        if not session.folder.data_uri:
            return self.ingest()
        session.find_dataset(session.folder.data_uri)
        session.console.stage("ingest", f"data set of the run: {session.dataset.uri}")
        return None

    def pretrain(self, *, ingest_first: bool) -> None:
        """Ingest if asked to, check, and train; the run exists from here on."""
        from pipeline import feed
        from pipeline.cli.advice import left_out
        from pipeline.ingest.plan import data_set_uri
        from pipeline.train.checks import check, check_memory, uses_gpu
        from pipeline.train.driver import train

        session, console = self.session, self.session.console
        assert session.cluster  # what `auto` means is known from here on
        config = session.config
        gpus = look_at_nodes(session.cluster, config)
        for gpu in gpus:
            console.stage("gpu", f"{gpu.node}: {gpu.name}, driver {gpu.driver}, {gpu.memory}")
            if gpu.slow_views:
                console.stage("gpu", f"{gpu.node}: {gpu.slow_views}")
        ingest_s = None
        if session.folder.data_uri or ingest_first:
            ingest_s = self.recorded_or_ingested()
        else:
            uri = data_set_uri(config)
            session.use_dataset(uri, read_manifest(uri))
        check(config, session.dataset.manifest, session.cluster)
        check_memory(config, session.dataset.manifest, gpus)
        session.open_record()
        session.record_data()
        keep_ancestors(session.folder.uri, config.train.methods)
        if ingest_s is not None:
            session.record.add_stage("ingest", ingest_s)
        methods = " and ".join(config.train.methods)
        device = "GPU" if uses_gpu(config, session.cluster) else "CPU"
        workers = counted(config.train.workers_text, f"{device} worker")
        console.stage("train", f"{methods}, {counted(config.train.epochs, 'epoch')}, {workers}")
        manifest = session.dataset.manifest
        for text in (feed.described(config, manifest), *left_out(config, manifest)):
            console.stage("train", text)
        for text in self._warnings():
            console.stage("warning", text)
        with session.stage("train") as end:
            trained = train(session.context, cluster=session.cluster, console=console)
            end.alarms = trained.alarms
        if trained.gpu is not None:
            session.record.set_gpus([trained.gpu] * config.train.num_workers)

    def _warnings(self) -> list[str]:
        """Name settings that fight each other or the cluster."""
        from pipeline.cli.advice import conflicts

        config, cluster = self.session.config, self.session.cluster
        native = auto.native_on(cluster, config)
        return [
            *conflicts(config, self.session.dataset.manifest),
            *auto.warnings(config, cluster.num_gpus, native),
            *(auto.unseen_gpus(cluster.num_gpus) if cluster.is_local else ()),
        ]

    def evaluate(self) -> None:
        """Score the run's models and show the table."""
        from pipeline.evaluate.stage import evaluate
        from pipeline.record.scores import show_evaluation

        session, console = self.session, self.session.console
        protocols = ", ".join(session.config.evaluate.protocols)
        console.stage("evaluate", protocols if session.dataset.manifest.has_labels() else NO_SCORES)
        with session.stage("evaluate"):
            evaluation = evaluate(
                session.context,
                cluster=lambda: session.cluster,
                console=console,
                given_uri=session.command.checkpoint,
            )
        if evaluation is not None:
            show_evaluation(console, evaluation)

    def evaluate_others(self) -> None:
        """Score a checkpoint that was given, or average the evaluations of several runs."""
        session = self.session
        if not session.command.runs:
            self.ingest()
            session.open_record()
            session.record_data()
            self.evaluate()
            return
        from pipeline.evaluate import aggregate
        from pipeline.record.scores import show_aggregate

        session.open_record()
        with session.stage("evaluate"):
            averaged = aggregate.aggregate(session.command.runs)
            aggregate.write(session.folder.uri, averaged)
        show_aggregate(session.console, averaged)

    def export(self) -> None:
        """Write the trained backbones in the configured formats."""
        from pipeline.export.stage import export

        session = self.session
        session.console.stage("export", ", ".join(session.config.export.formats))
        with session.stage("export"):
            written = export(session.context)
        for folder, names in written.items():
            session.console.stage("export", f"{folder}: {', '.join(names)}")

    def mine(self) -> None:
        """Rank the images of a data set, and show how well the ranking finds rare labels."""
        from pipeline.mine.given_labels import read_labels
        from pipeline.mine.stage import mine
        from pipeline.report.mining_page import show_mining

        session, console = self.session, self.session.console
        given, set_name = session.command.data, session.command.set_name or "pretrain"
        csv = session.command.labels
        with session.stage("mine"):
            labels = None if csv is None else read_labels(csv, session.command.rare)
            run = session.context
            if given is not None:
                run = run.on_data(storage.absolute(given))
            console.stage("mine", f"{run.manifest.name}, {set_name} set")
            retry_lost_work(
                lambda: mine(
                    run,
                    cluster=refreshed(session.cluster),
                    progress=console.progress,
                    set_name=set_name,
                    is_own=given is None,
                    given=labels,
                ),
                say=lambda text: console.stage("mine", text),
            )
        show_mining(console, session.folder.uri)

    def tune(self) -> None:
        """Ingest, search, report, and show what was found."""
        from pipeline.tune.stage import Sweep
        from pipeline.tune.view import show_result

        session = self.session
        ingest_s = self.recorded_or_ingested()
        session.open_record()
        session.record_data()
        if ingest_s is not None:
            session.record.add_stage("ingest", ingest_s)
        with session.stage("tune"):
            found = Sweep(session.context, session.cluster, session.console).run()
        self.report()
        show_result(session.console, session.folder.uri, found)

    def report(self) -> None:
        """Write the pages from the record; the record is complete before it is shown."""
        from pipeline.report.pages import write_pages

        session = self.session
        session.complete()
        with session.stage("report"):
            uri = write_pages(session.folder.uri)
        session.console.stage("report", f"report: {uri}")
