"""What the stages ask of Ray for their work on marked nodes; tests/test_placement.py runs some."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.data

from pipeline import feed
from pipeline.cluster.connect import Cluster
from pipeline.cluster.marked_nodes import on_nodes
from pipeline.config.file import load_config
from pipeline.embed.features import SetFeatures, placement
from pipeline.embed.stage import embed
from pipeline.evaluate.leaks import find_leaks
from pipeline.evaluate.trained import TrainedProbes
from pipeline.mine import scoring
from pipeline.model.source import ModelSource
from pipeline.record.context import RunContext
from tests.test_leaks import data_set

CONFIG = load_config(None, ["placement.train_nodes=zone=a", "placement.data_nodes=data"])
# Of several machines: on one, work is done in this process and asks for nothing.
CLUSTER = Cluster("", False, 4, 0, "", largest_node_cpus=4)


class Asked(Exception):
    """What was asked for; nothing goes on from there."""


def ask(*given: Any, **options: Any) -> Any:
    raise Asked({n: options[n] for n in ("resources", "label_selector") if n in options})


class Work:
    """A Ray task or dataset that tells what is asked for it."""

    options = map_batches_internal = staticmethod(ask)


def remote(*functions: Any, **given: Any) -> Any:
    """Stand in for `ray.remote`, with or without options."""
    if {"resources", "label_selector"} & set(given):
        ask(**given)
    return Work if functions else lambda function: Work


def read_hashes(folder: Path) -> None:
    manifest = data_set(folder, probe=[1, 2], test=[3, 4])
    find_leaks(str(folder), manifest, mark=CONFIG.placement.data_nodes)


def train_probes(folder: Path) -> None:
    probes = object.__new__(TrainedProbes)
    probes.config, probes.placement = CONFIG, placement(CONFIG, CLUSTER)
    probes._run([], "linear", None, SetFeatures([], np.zeros(0, np.int64)))


def run_of(folder: Path) -> RunContext:
    manifest = data_set(folder, pretrain=[1, 2])
    return RunContext(CONFIG, str(folder), str(folder), manifest)


def embed_images(folder: Path) -> None:
    embed(run_of(folder), [ModelSource("untrained")], cluster=CLUSTER, progress=lambda *said: None)


def measure_change(folder: Path) -> None:
    scoring.disagreements(
        run_of(folder), ModelSource("sdclr"), set_name="pretrain", with_untrained=False,
        cluster=CLUSTER, progress=lambda *said: None,
    )  # fmt: skip


def measure_density(folder: Path) -> None:
    found = scoring.ScoredSet(["a"], np.zeros(1, np.int64))
    scoring._density(found, "trained", 1, CONFIG.placement.train_nodes, lambda *said: None)


@pytest.mark.parametrize(
    ("work", "mark"),
    [
        (read_hashes, "data"),
        (train_probes, "zone=a"),
        (embed_images, "zone=a"),
        (measure_change, "zone=a"),
        (measure_density, "zone=a"),
    ],
)
def test_work_is_asked_for_on_its_nodes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[[Path], None],
    mark: str,
) -> None:
    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(feed, "decoded_rows", lambda *given, **how: Work)
    with pytest.raises(Asked) as asked:
        work(tmp_path)
    assert asked.value.args == (on_nodes(mark),)
