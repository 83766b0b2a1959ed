"""The stages in order: which run, which data set, which cluster, and what the user is told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.cluster import Cluster, check_placement, connected, grown, now
from pipeline.command_line import Command
from pipeline.config import Config
from pipeline.config.file import config_hash, dump_config, load_config
from pipeline.console import Console
from pipeline.dataset.manifest import Manifest, described
from pipeline.errors import DataError, PipelineError, root_cause
from pipeline.lost import again_when_lost, in_words
from pipeline.record import RunRecord
from pipeline.results import show_results
from pipeline.run_folder import RunFolder, resolve

# Which nodes a stage needs, by the keys of `placement`.
_ON_TRAIN_NODES = ("all", "train", "tune", "evaluate", "mine")
_ON_DATA_NODES = ("ingest", *_ON_TRAIN_NODES)


@dataclass
class Dataset:
    """An ingested data set."""

    uri: str
    manifest: Manifest


def run_stages(command: Command, console: Console) -> None:
    """Do what the command says.

    Raises:
        PipelineError: with its exit code; the run's record says the same.
    """
    if command.runs:
        from pipeline.report.comparison import compare

        compare(command.runs, load_config(command.config_file).run.root, console)
        return
    folder = resolve(command)
    with ExitStack() as stack:
        session = Session(command, folder, console, stack)
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


class Session:
    """One invocation: the run's folder, and a cluster that is connected when first needed."""

    def __init__(
        self, command: Command, folder: RunFolder, console: Console, stack: ExitStack
    ) -> None:
        self.command, self.folder = command, folder
        self.console, self._stack = console, stack
        self.config: Config = folder.config
        self._cluster: Cluster | None = None
        self._record: RunRecord | None = None
        self._dataset: Dataset | None = None

    @property
    def cluster(self) -> Cluster:
        """The cluster; joined or started on first use."""
        if self._cluster is None:
            self.console.stage("ray", "connecting")
            self._cluster = self._stack.enter_context(connected())
            resources = self._resources()
            if self.config.placement.wait_s:
                self._cluster = grown(
                    self._cluster,
                    self._num_workers(),
                    use_gpu=self.config.train.device == "cuda",
                    worker_resource=self.config.placement.train_resource,
                    resources=resources,
                    wait_s=self.config.placement.wait_s,
                )
            check_placement(self._cluster, *resources)
            c = self._cluster
            where = "this machine" if c.is_local else c.address
            dashboard = f", dashboard {c.dashboard_url}" if c.dashboard_url else ""
            self.console.stage("ray", f"{where}: {c.num_cpus} CPU, {c.num_gpus} GPU{dashboard}")
        return self._cluster

    def _resources(self) -> list[str]:
        """Custom resources of the nodes that the stage needs."""
        placement, stage = self.config.placement, self.command.stage
        names = [
            placement.train_resource if stage in _ON_TRAIN_NODES else None,
            placement.data_resource if stage in _ON_DATA_NODES else None,
        ]
        return [name for name in names if name is not None]

    def _num_workers(self) -> int:
        """Training workers at the same time."""
        if self.command.stage == "tune":
            return self.config.tune.trial_workers * (self.config.tune.concurrent or 1)
        return self.config.train.workers if self.command.stage in ("all", "train") else 0

    @property
    def record(self) -> RunRecord:
        """The run's record, once it is created or opened."""
        if self._record is None:
            raise RuntimeError("no run is open")
        return self._record

    def ingest(self) -> float:
        """Make the data set, or find it made; returns the seconds it took."""
        from pipeline.ingest.stage import ingest

        assert self.cluster  # connected before the clock starts
        start_s = time.monotonic()
        self.console.stage("ingest", f"{self.config.data.source}: images to shards")
        with self._plain_errors():
            uri, manifest = ingest(
                self.config,
                lambda done, total: self.console.progress("ingest", done, total),
                lambda text: self.console.stage("ingest", text),
            )
        self._dataset = Dataset(uri, manifest)
        self.console.stage("ingest", described(manifest))
        self.console.stage("ingest", f"data set: {uri}")
        return time.monotonic() - start_s

    def pretrain(self, *, ingest_first: bool) -> None:
        """Ingest if asked to, check, and train; the run exists from here on."""
        from pipeline import feed, models
        from pipeline.dataset.manifest import read_manifest
        from pipeline.ingest.plan import data_set_uri
        from pipeline.train import check, train, uses_gpu

        ingest_s = self.ingest() if ingest_first else None
        if self._dataset is None:
            uri = self.folder.data_uri or data_set_uri(self.config)
            self._dataset = Dataset(uri, read_manifest(uri))
        dataset = self._dataset
        check(self.config, dataset.manifest, self.cluster)
        self.open_record()
        self.record_data()
        if ingest_s is not None:
            self.record.add_timing("ingest", ingest_s)
        methods = " and ".join(self.config.train.methods)
        device = "GPU" if uses_gpu(self.config, self.cluster) else "CPU"
        workers = f"{self.config.train.workers} {device} workers"
        self.console.stage("train", f"{methods}, {self.config.train.epochs} epochs, {workers}")
        self.console.stage("train", feed.described(self.config, dataset.manifest))
        if said := models.advice(self.config):
            self.console.stage("train", said)
        with self._plain_errors(), self.record.stage("train"):
            gpu = train(cluster=self.cluster, console=self.console, **self._common())
        if gpu is not None:
            self.record.set_gpus([gpu] * self.config.train.workers)

    def evaluate(self) -> None:
        """Score the run's models and show the table."""
        from pipeline.evaluate.stage import evaluate
        from pipeline.scores import show_evaluation

        self.console.stage("evaluate", ", ".join(self.config.evaluate.protocols))
        with self._plain_errors(), self.record.stage("evaluate"):
            evaluation = evaluate(cluster=self.cluster, console=self.console, **self._common())
        if evaluation is None:
            self.console.stage("evaluate", "the data set has no labels, so there are no scores")
            return
        show_evaluation(self.console, evaluation)

    def evaluate_others(self) -> None:
        """Score a checkpoint that was given, or average the evaluations of several runs."""
        if not self.config.evaluate.runs:
            self.ingest()
            self.open_record()
            self.record_data()
            self.evaluate()
            return
        from pipeline.evaluate import aggregate
        from pipeline.scores import show_aggregate

        self.open_record()
        with self._plain_errors(), self.record.stage("evaluate"):
            averaged = aggregate.aggregate(self.config.evaluate.runs)
            aggregate.write(self.folder.uri, averaged)
        show_aggregate(self.console, averaged)

    def export(self) -> None:
        """Write the trained backbones in the configured formats."""
        from pipeline.export import export

        self.console.stage("export", ", ".join(self.config.export.formats))
        with self._plain_errors(), self.record.stage("export"):
            written = export(**self._common())
        for folder, names in written.items():
            self.console.stage("export", f"{folder}: {', '.join(names)}")

    def mine(self) -> None:
        """Rank the images of a data set, and show what labels say about the ranking."""
        from pipeline.dataset.manifest import read_manifest
        from pipeline.mine.stage import mine
        from pipeline.report.mining import show_mining

        common = self._common()
        if self.config.mine.data is not None:
            uri = storage.absolute(self.config.mine.data)
            common |= {"data_uri": uri, "manifest": read_manifest(uri)}
        self.console.stage("mine", f"{common['manifest'].name}, {self.config.mine.set} set")
        with self._plain_errors(), self.record.stage("mine"):
            mining = again_when_lost(
                lambda: mine(cluster=now(self.cluster), progress=self.console.progress, **common),
                say=lambda text: self.console.stage("mine", text),
            )
        show_mining(self.console, self.folder.uri, mining)

    def report(self) -> None:
        """Write the page from the record; the record is complete before it is shown."""
        from pipeline.report.page import write_report

        self.record.complete()
        self.console.stage("report", f"report: {write_report(self.folder.uri)}")

    def open_record(self) -> None:
        """Create the run's record, or go on with it; a failure from here on is written to it."""
        uri = self.folder.uri
        if self.folder.is_new:
            storage.write_bytes(storage.join(uri, "config.yaml"), dump_config(self.config).encode())
            self._record = RunRecord.create(
                uri,
                name=self.folder.name,
                config_hash=config_hash(self.config),
                seed=self.config.run.seed,
            )
        else:
            self._record = RunRecord.open(uri)
            self._record.resume()
        self.console.stage("run", f"{uri}  (go on with it: --resume {uri})")

    def record_data(self) -> None:
        """Write into the record which data set the run reads."""
        dataset = self._dataset or self._recorded_dataset()
        self.record.set_data(
            uri=dataset.uri, manifest_hash=dataset.manifest.hash, name=dataset.manifest.name
        )

    def finish(self) -> None:
        """Mark the run complete and say where everything is and what to type next."""
        if self.record.status == "running":
            self.record.complete()
        show_results(
            self.console, self.folder, self.record.content["timings_s"], again=self._again()
        )

    def _again(self) -> str:
        """The words of this run with the next seed."""
        kept = [word for word in self.command.overrides if not word.startswith("run.seed=")]
        if self.command.resume is not None:
            kept = [f"--config {storage.join(self.folder.uri, 'config.yaml')}"]
        elif self.command.config_file is not None:
            kept = [f"--config {self.command.config_file}", *kept]
        return " ".join([*kept, f"run.seed={self.config.run.seed + 1}"])

    def _common(self) -> dict[str, Any]:
        dataset = self._dataset or self._recorded_dataset()
        return {
            "config": self.config,
            "config_json": self.config.model_dump_json(),
            "config_hash": config_hash(self.config),
            "run_uri": self.folder.uri,
            "data_uri": dataset.uri,
            "manifest": dataset.manifest,
        }

    def _recorded_dataset(self) -> Dataset:
        from pipeline.dataset.manifest import read_manifest

        data = self.record.content["data"]
        if data is None:
            raise DataError(
                "the run has no data set yet",
                where=self.folder.uri,
                todo=f"train it first: python pipeline/run.py train --resume {self.folder.uri}",
            )
        self._dataset = Dataset(data["uri"], read_manifest(data["uri"]))
        return self._dataset

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        """Failures inside Ray tasks as what they were; any failure goes to the run's record."""
        try:
            yield
        except BaseException as error:
            root = root_cause(error)
            shown = root if isinstance(root, PipelineError) else in_words(error) or error
            if self._record is not None and self._record.status == "running":
                self._record.fail(shown)
            if shown is error:
                raise
            raise shown from error
