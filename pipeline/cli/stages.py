"""The stages in order: their run, data set and cluster, and what each reports."""

from __future__ import annotations

import time
from contextlib import ExitStack

from pipeline import storage
from pipeline.cli.command_line import Command
from pipeline.cli.resolve import resolve
from pipeline.cli.session import Session
from pipeline.cluster import auto
from pipeline.cluster.connect import refreshed
from pipeline.cluster.retry import retry_lost_work
from pipeline.config.file import load_config
from pipeline.console import Console
from pipeline.dataset.manifest import described, read_manifest


def run_stages(command: Command, console: Console) -> None:
    """Do what the command says.

    Raises:
        PipelineError: with its exit code; the run's record says the same.
    """
    if command.stage == "report" and command.runs:
        from pipeline.report.comparison import compare

        compare(command.runs, load_config(command.config_file).run.root, console)
        return
    folder = resolve(command)
    with ExitStack() as stack:
        session = Stages(command, folder, console, stack)
        if command.stage == "ingest":
            session.ingest()
            console.line("next: the same command with the stage train, or without a stage")
        elif command.stage in ("all", "train"):
            session.pretrain(ingest_first=command.stage == "all")
            if command.stage == "all":
                session.evaluate()
                session.report()
            session.finish()
        elif command.stage == "evaluate" and folder.is_new:
            session.evaluate_others()
            session.finish()
        else:
            session.open_record()
            work = {
                "evaluate": session.evaluate, "export": session.export, "mine": session.mine,
                "report": session.report,
            }  # fmt: skip
            work[command.stage]()
            session.finish()


class Stages(Session):
    """The stages of one invocation, and what each reports to the user."""

    def ingest(self) -> float:
        """Make the data set, or find it made; returns the seconds it took."""
        from pipeline.ingest.stage import ingest

        assert self.cluster  # connected before the clock starts
        start_s = time.monotonic()
        self.console.stage("ingest", f"{self.config.data.source}: images to shards")
        with self.plain_errors():
            uri, manifest = ingest(
                self.config,
                lambda done, total: self.console.progress("ingest", done, total),
                lambda text: self.console.stage("ingest", text),
            )
        self.use_dataset(uri, manifest)
        self.console.stage("ingest", described(manifest))
        self.console.stage("ingest", f"data set: {uri}")
        return time.monotonic() - start_s

    def recorded_or_ingested(self) -> float | None:
        """Take the data set that the run began with, else ingest; returns the seconds of that."""
        if not self.folder.data_uri:
            return self.ingest()
        self.find_dataset(self.folder.data_uri)
        self.console.stage("ingest", f"data set of the run: {self.dataset.uri}")
        return None

    def pretrain(self, *, ingest_first: bool) -> None:
        """Ingest if asked to, check, and train; the run exists from here on."""
        from pipeline import feed
        from pipeline.ingest.plan import data_set_uri
        from pipeline.train.driver import check, train, uses_gpu

        assert self.cluster  # what `auto` means is known from here on
        ingest_s = None
        if self.folder.data_uri or ingest_first:
            ingest_s = self.recorded_or_ingested()
        else:
            uri = data_set_uri(self.config)
            self.use_dataset(uri, read_manifest(uri))
        check(self.config, self.dataset.manifest, self.cluster)
        self.open_record()
        self.record_data()
        if ingest_s is not None:
            self.record.add_timing("ingest", ingest_s)
        methods = " and ".join(self.config.train.methods)
        device = "GPU" if uses_gpu(self.config, self.cluster) else "CPU"
        workers = f"{self.config.train.num_workers} {device} workers"
        self.console.stage("train", f"{methods}, {self.config.train.epochs} epochs, {workers}")
        self.console.stage("train", feed.described(self.config, self.dataset.manifest))
        for text in self._warnings():
            self.console.stage("warning", text)
        with self.plain_errors(), self.record.stage("train"):
            gpu = train(self.context, cluster=self.cluster, console=self.console)
        if gpu is not None:
            self.record.set_gpus([gpu] * self.config.train.num_workers)

    def _warnings(self) -> list[str]:
        """Name settings that fight each other or the cluster."""
        from pipeline.cli.advice import conflicts

        native = auto.native_on(self.cluster, self.config)
        return [
            *conflicts(self.config, self.dataset.manifest),
            *auto.warnings(self.config, self.cluster.num_gpus, native),
        ]

    def evaluate(self) -> None:
        """Score the run's models and show the table."""
        from pipeline.evaluate.stage import evaluate
        from pipeline.record.scores import show_evaluation

        self.console.stage("evaluate", ", ".join(self.config.evaluate.protocols))
        with self.plain_errors(), self.record.stage("evaluate"):
            evaluation = evaluate(
                self.context,
                cluster=self.cluster,
                console=self.console,
                given_uri=self.command.checkpoint,
            )
        if evaluation is None:
            self.console.stage("evaluate", "the data set has no labels, so there are no scores")
            return
        show_evaluation(self.console, evaluation.content())

    def evaluate_others(self) -> None:
        """Score a checkpoint that was given, or average the evaluations of several runs."""
        if not self.command.runs:
            self.ingest()
            self.open_record()
            self.record_data()
            self.evaluate()
            return
        from pipeline.evaluate import aggregate
        from pipeline.record.scores import show_aggregate

        self.open_record()
        with self.plain_errors(), self.record.stage("evaluate"):
            averaged = aggregate.aggregate(self.command.runs)
            aggregate.write(self.folder.uri, averaged)
        show_aggregate(self.console, averaged.content())

    def export(self) -> None:
        """Write the trained backbones in the configured formats."""
        from pipeline.export.stage import export

        self.console.stage("export", ", ".join(self.config.export.formats))
        with self.plain_errors(), self.record.stage("export"):
            written = export(self.context)
        for folder, names in written.items():
            self.console.stage("export", f"{folder}: {', '.join(names)}")

    def mine(self) -> None:
        """Rank the images of a data set, and show how well the ranking finds rare labels."""
        from pipeline.mine.stage import mine
        from pipeline.report.mining import show_mining

        with self.plain_errors():
            run = self.context
            given, set_name = self.command.data, self.command.set_name or "pretrain"
            if given is not None:
                run = run.on_data(storage.absolute(given))
            self.console.stage("mine", f"{run.manifest.name}, {set_name} set")
            with self.record.stage("mine"):
                mining = retry_lost_work(
                    lambda: mine(
                        run,
                        cluster=refreshed(self.cluster),
                        progress=self.console.progress,
                        set_name=set_name,
                        is_own=given is None,
                    ),
                    say=lambda text: self.console.stage("mine", text),
                )
        show_mining(self.console, self.folder.uri, mining)

    def report(self) -> None:
        """Write the page from the record; the record is complete before it is shown."""
        from pipeline.report.page import write_report

        self.complete()
        self.console.stage("report", f"report: {write_report(self.folder.uri)}")
