"""The stage tune from the command line: its folder, its record and its messages."""

from __future__ import annotations

from contextlib import ExitStack

from pipeline import storage
from pipeline.cli.command_line import Command
from pipeline.cli.resolve import resolve
from pipeline.cli.stages import Stages
from pipeline.config.file import config_hash, dump_config
from pipeline.console import Console
from pipeline.record.run import RunRecord
from pipeline.tune.stage import Sweep
from pipeline.tune.view import show_result


def run_sweep(command: Command, console: Console) -> None:
    """Start or resume the sweep of a configuration.

    Raises:
        PipelineError: with its exit code; the sweep's record says the same.
    """
    folder = resolve(command)
    with ExitStack() as stack:
        SweepSession(command, folder, console, stack).tune()


class SweepSession(Stages):
    """One invocation of a sweep."""

    def tune(self) -> None:
        """Ingest, search, report, and show what was found."""
        ingest_s = self.recorded_or_ingested()
        dataset = self.dataset
        self.open_record()
        self.record_data()
        if ingest_s is not None:
            self.record.add_timing("ingest", ingest_s)
        with self.plain_errors(), self.record.stage("tune"):
            found = Sweep(
                self.config,
                self.folder.uri,
                dataset.uri,
                dataset.manifest,
                self.cluster,
                self.console,
            ).run()
        self.report()
        show_result(self.console, self.folder.uri, found)

    def open_record(self) -> None:
        """Open the record as for a run; store the configuration again, as a sweep may grow."""
        uri = self.folder.uri
        storage.write_bytes(storage.join(uri, "config.yaml"), dump_config(self.config).encode())
        if self.folder.is_new:
            self._record = RunRecord.create(
                uri,
                name=self.folder.name,
                config_hash=config_hash(self.config, sweep=True),
                seed=self.config.run.seed,
            )
        else:
            self._record = RunRecord.open(uri)
            self._record.resume()
        self.console.stage("run", f"{uri}  (the same command resumes it)")
