"""Actors that ask for GPUs get every block of decoded rows whole; Ray believes in two GPUs here."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import REPO

CODE = """
import numpy as np
import ray
from pipeline.embed.features import Placement, over_blocks

class Extractor:
    def __init__(self, word):
        self.word = word
    def __call__(self, block):
        assert len(set(block["shard"])) == 1, "blocks were mixed"
        gpus = len(ray.get_runtime_context().get_accelerator_ids()["GPU"])
        return {"told": np.array([f"{self.word} {len(block['shard'])} {gpus}"])}

ray.init(address="local", num_cpus=3, num_gpus=2, include_dashboard=False, log_to_driver=False)
items = [{"shard": n} for n in range(3)]
blocks = ray.data.from_items(items, override_num_blocks=3)
decode = lambda block: {"shard": np.repeat(block["shard"], 5 + block["shard"][0])}
rows = blocks.map_batches(decode, batch_size=1)
place = Placement("cuda", num_workers=2, num_cpus=1, num_gpus=1, num_threads=1)
found = over_blocks(rows, Extractor, ("block",), place, mark=None)
print("TOLD", sorted(str(block["told"][0]) for block in found))
"""


@pytest.mark.ray
def test_blocks_stay_whole_and_each_actor_has_a_gpu() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    result = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=REPO,
        env=environment | {"PYTHONPATH": str(REPO), "CUDA_VISIBLE_DEVICES": "0,1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "TOLD ['block 5 1', 'block 6 1', 'block 7 1']" in result.stdout
