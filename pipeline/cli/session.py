"""One invocation: the run's folder and record, its data set, and a cluster that is joined late."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from pipeline import storage
from pipeline.cli.command_line import Command
from pipeline.cli.next_steps import show_results
from pipeline.cluster import auto
from pipeline.cluster.connect import Cluster, connected, wait_for_nodes
from pipeline.cluster.marked_nodes import check_placement
from pipeline.cluster.retry import cluster_error_of
from pipeline.config import Config
from pipeline.config.file import config_hash, dump_config
from pipeline.console import Console, program
from pipeline.dataset.manifest import MANIFEST_NAME, Manifest, read_manifest
from pipeline.errors import DataError, PipelineError, root_cause
from pipeline.record.abandoned import with_end
from pipeline.record.context import RunContext
from pipeline.record.folder import RunFolder
from pipeline.record.keeper import RunRecord, StageEnd
from pipeline.record.run import INTERRUPTED, RUNNING, Run

# Which nodes a stage needs, by the keys of `placement`.
_ON_TRAIN_NODES = ("all", "train", "tune", "evaluate", "embed", "curate", "mine")
_ON_DATA_NODES = ("ingest", *_ON_TRAIN_NODES)


@dataclass
class Dataset:
    """An ingested data set."""

    uri: str
    manifest: Manifest


def _cpus(cluster: Cluster) -> str:
    """Return the CPUs in words: on one machine Ray has one more than there are, for the data."""
    if cluster.is_local:
        return f"{cluster.num_cpus - 1} CPU (Ray counts one more, for reading data)"
    return f"{cluster.num_cpus} CPU"


def local_roots(config: Config) -> list[str]:
    """Return the keys of the folders on a disk of one machine."""
    roots = {"run.root": config.run.root, "data.root": config.data.root}
    return [key for key, root in roots.items() if not root.startswith("s3://")]


def marks_of_stage(config: Config, stage: str) -> list[str]:
    """Return the marks of the nodes that a stage needs."""
    names = [
        config.placement.train_nodes if stage in _ON_TRAIN_NODES else None,
        config.placement.data_nodes if stage in _ON_DATA_NODES else None,
    ]
    return [name for name in names if name is not None]


class Session:
    """One invocation of the program about one run."""

    def __init__(
        self, command: Command, folder: RunFolder, console: Console, stack: ExitStack
    ) -> None:
        self.command, self.folder = command, folder
        self.console, self._stack = console, stack
        self.config: Config = folder.config
        self._cluster: Cluster | None = None
        self._record: RunRecord | None = None
        self._dataset: Dataset | None = None
        self._is_sweep = command.stage == "tune"
        # An evaluation or a page of an existing run says nothing about how its training went.
        self._is_the_run = folder.is_new or command.stage in ("all", "train", "tune")

    @property
    def cluster(self) -> Cluster:
        """The cluster; joined or started on first use."""
        if self._cluster is None:
            self.console.stage("ray", "connecting")
            self._cluster = self._stack.enter_context(connected())
            marks = marks_of_stage(self.config, self.command.stage)
            if self.config.placement.wait_s:
                self._cluster = wait_for_nodes(
                    self._cluster,
                    self._num_workers(),
                    use_gpu=self.config.train.device == "cuda",
                    worker_mark=self.config.placement.train_nodes,
                    marks=marks,
                    wait_s=self.config.placement.wait_s,
                )
            check_placement(self._cluster.marks, *marks)
            c = self._cluster
            where = "this machine" if c.is_local else c.address
            dashboard = f", dashboard {c.dashboard_url}" if c.dashboard_url else ""
            self.console.stage("ray", f"{where}: {_cpus(c)}, {c.num_gpus} GPU{dashboard}")
            self.config = auto.settled(self.config, c)
            if c.num_cpus > c.largest_node_cpus:
                for key in local_roots(self.config):
                    self.console.stage("ray", f"{key} must be a folder that every node mounts")
        return self._cluster

    def _num_workers(self) -> int:
        """Return the number of training workers that run at the same time, at least."""
        if self.command.stage == "tune":
            return self.config.tune.trial_workers
        is_training = self.command.stage in ("all", "train")
        return self.config.train.worker_counts[0] if is_training else 0

    @property
    def record(self) -> RunRecord:
        """The run's record, once it is created or opened."""
        if self._record is None:
            raise RuntimeError("no run is open")
        return self._record

    def open_record(self) -> None:
        """Create the run's record, or resume it; a failure from here on is written to it."""
        uri, is_new = self.folder.uri, self.folder.is_new
        if is_new or self._is_sweep:  # a sweep may have become longer
            storage.write_bytes(storage.join(uri, "config.yaml"), dump_config(self.config).encode())
        if is_new:
            self._record = RunRecord.create(
                uri,
                name=self.folder.name,
                config_hash=config_hash(self.config, sweep=self._is_sweep),
                seed=self.config.run.seed,
            )
        else:
            self._record = RunRecord.open(uri)
            if self._is_the_run:
                self._show_end(with_end(uri, self._record.run))
                self._record.resume()
            else:
                self.show_alarms()
        how = (
            "the same command resumes it"
            if self._is_sweep
            else f"resume it: --resume {shlex.quote(uri)}"
        )
        self.console.how_to_resume = how
        self.console.stage("run", f"{uri}  ({how})")
        trackers = self.config.run.trackers if self._is_the_run and not self._is_sweep else ()
        if trackers:
            from pipeline.track.stage import following

            def warn(text: str) -> None:
                self.console.stage("warning", f"tracker {text}")

            self._stack.enter_context(following(uri, trackers, warn))

    def _show_end(self, run: Run) -> None:
        """Say how the run that is resumed had ended, if it did not end well."""
        if run.status == INTERRUPTED:
            how = run.error.what if run.error else INTERRUPTED
            what = "" if how == INTERRUPTED else f": {how}"
            self.console.stage("run", f"it was interrupted{what}")

    @contextmanager
    def stage(self, name: str) -> Iterator[StageEnd]:
        """Keep the state of a stage in the record; failures inside Ray come out as they were."""
        with self.record.stage(name) as end, plain_errors():
            yield end

    @contextmanager
    def ends_recorded(self) -> Iterator[None]:
        """Write how the invocation ended, whatever ends it; as the outermost of all."""
        try:
            yield
        except BaseException as error:
            if self._record is not None:
                stage = "train" if self.command.stage == "all" else self.command.stage
                with suppress(PipelineError):  # the first error is the one to report
                    self._record.fail(error, stage=stage)
            raise

    def use_dataset(self, uri: str, manifest: Manifest) -> None:
        """Take a data set for this invocation; that of an existing run may not have changed.

        Raises:
            DataError: the run was begun with other images, which may now be in other sets.
        """
        _refuse_another(self.folder, uri, manifest)
        self._dataset = Dataset(uri, manifest)

    def find_dataset(self, recorded_uri: str) -> None:
        """Take the data set of an existing run, see `dataset_of`."""
        self._dataset = dataset_of(self.folder, self.config, recorded_uri)

    @property
    def dataset(self) -> Dataset:
        """The data set that was taken, else the one that the run's record names."""
        if self._dataset is None:
            data = self.record.run.data
            if data is None:
                raise DataError(
                    "E-DATA-002",
                    "the run has no data set yet",
                    where=self.folder.uri,
                    todo=f"train it first: {program()} train --resume "
                    f"{shlex.quote(self.folder.uri)}",
                )
            self.find_dataset(data.uri)
        assert self._dataset is not None
        return self._dataset

    def record_data(self) -> None:
        """Write into the record which data set the run reads."""
        manifest = self.dataset.manifest
        self.record.set_data(uri=self.dataset.uri, manifest_hash=manifest.hash, name=manifest.name)

    def finish(self) -> None:
        """End the run, and say where everything is, what to type next, and what is wrong."""
        self.complete()
        run = self.record.run
        labelled = self._dataset is not None and self._dataset.manifest.class_names is not None
        show_results(
            self.console,
            self.folder,
            run.done_s,
            again=self._again(),
            is_labelled=labelled,
        )
        self.show_alarms()

    def complete(self) -> None:
        """End the run as its stages did, if it is what this invocation was about."""
        if self._is_the_run and self.record.run.status == RUNNING:
            self.record.finish()

    def show_alarms(self) -> None:
        """Say what is wrong with the trained models, alarms last, with a command to paste."""
        config = storage.join(self.folder.uri, "config.yaml")
        for alarm in reversed(self.record.run.alarms):
            command = shlex.join(["--config", config, *alarm.words])
            todo = f"; try: {program()} {command}" if alarm.words else ""
            text = f"{alarm.method}: {alarm.text}; {alarm.change}{todo}"
            self.console.line(
                f"{alarm.level.upper() if alarm.level == 'alarm' else alarm.level}: {text}"
            )

    def _again(self) -> str:
        """Return the command words of this run with the next seed."""
        kept = [word for word in self.command.overrides if not word.startswith("run.seed=")]
        if self.command.resume is not None or self.command.extend is not None:
            kept = ["--config", storage.join(self.folder.uri, "config.yaml")]
        elif self.command.config_file is not None:
            kept = ["--config", self.command.config_file, *kept]
        return shlex.join([*kept, f"run.seed={self.config.run.seed + 1}"])

    @property
    def context(self) -> RunContext:
        """What every stage works on."""
        data = self.dataset
        return RunContext(self.config, self.folder.uri, data.uri, data.manifest)


def dataset_of(folder: RunFolder, config: Config, recorded_uri: str) -> Dataset:
    """Return the data set of an existing run: below `data.root`, or where the record has it.

    Raises:
        DataError: it is in neither place, or what is there is another one.
    """
    name = recorded_uri.rstrip("/").rpartition("/")[2]
    moved_uri = storage.join(storage.absolute(config.data.root), name)
    places = [
        uri
        for uri in dict.fromkeys((moved_uri, recorded_uri))
        if storage.exists(storage.join(uri, MANIFEST_NAME))
    ]
    if not places:
        raise DataError(
            "E-DATA-830",
            f"the run's data set {name} is not there",
            where=" or ".join(dict.fromkeys((moved_uri, recorded_uri))),
            todo=f"set data.root to the folder that holds {name}, or make it again: "
            f"{program()} ingest --config {shlex.quote(storage.join(folder.uri, 'config.yaml'))}",
        )
    found = [Dataset(uri, read_manifest(uri)) for uri in places]
    known = folder.manifest_hash
    dataset = next((one for one in found if one.manifest.hash == known), found[-1])
    _refuse_another(folder, dataset.uri, dataset.manifest)
    return dataset


def _refuse_another(folder: RunFolder, uri: str, manifest: Manifest) -> None:
    known = folder.manifest_hash
    if known is not None and known != manifest.hash:
        raise DataError(
            "E-DATA-001",
            "the data set is not the one that the run was begun with",
            where=uri,
            todo="set data.root to the folder that holds it, or start a new run",
        )


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise failures inside Ray tasks as what they were."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise  # it may have come while Ray is half imported, so nothing here may look at Ray
    except BaseException as error:
        root = root_cause(error)
        shown = root if isinstance(root, PipelineError) else cluster_error_of(error) or error
        if shown is error:
            raise
        raise shown from error
