"""Context of a stage: one configuration, one run, one data set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from pipeline.config import Config
from pipeline.config.file import config_hash
from pipeline.dataset.manifest import Manifest, read_manifest


@dataclass(frozen=True)
class RunContext:
    """The argument of every stage.

    Args:
        config: the resolved configuration.
        run_uri: folder of the run, absolute.
        data_uri: folder of the data set, absolute.
        manifest: of that data set.
    """

    config: Config
    run_uri: str
    data_uri: str
    manifest: Manifest

    @cached_property
    def config_hash(self) -> str:
        """Hex digest that ties checkpoints and records to the configuration."""
        return config_hash(self.config)

    @cached_property
    def config_json(self) -> str:
        """The configuration for another process."""
        return self.config.model_dump_json()

    def on_data(self, data_uri: str) -> RunContext:
        """Return the same run on another data set; raises as `read_manifest`."""
        return replace(self, data_uri=data_uri, manifest=read_manifest(data_uri))
