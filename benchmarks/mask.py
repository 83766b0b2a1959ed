"""The mask refresh beside one that sorts all weights with NumPy, ResNet-18 (11 million weights).

    python -m benchmarks.mask

Both make boolean masks of all convolutions from the live weights; NumPy's sort uses AVX-512 where
the CPU has it. Time is CPU time of one thread.
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from torch import Tensor

from benchmarks.table import Row, main
from benchmarks.timing import in_turns, ratios
from sdclr import PruneRule, build_network, magnitude_masks
from sdclr.prunable import prunable_weights

RULE = PruneRule(prune_ratio=0.9)


def sorted_masks(weights: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Return masks by the definition: |w| >= sort(|w|)[k], k = ceil(p N)."""
    arrays = {name: np.abs(w.detach().numpy()) for name, w in weights.items()}
    everything = np.sort(np.concatenate([a.ravel(order="K") for a in arrays.values()]))
    threshold = everything[math.ceil(RULE.prune_ratio * everything.size)]
    return {name: array >= threshold for name, array in arrays.items()}


def rows() -> list[Row]:
    """Measure time and ratio, and compare the masks."""
    torch.set_num_threads(1)
    network = build_network("resnet18", stem="cifar", head_depth=2, seed=0)
    weights = prunable_weights(network.backbone.to(memory_format=torch.channels_last))
    expected = sorted_masks(weights)
    masks = magnitude_masks(weights, RULE)
    num_wrong = sum(int((masks[name].numpy() != expected[name]).sum()) for name in weights)
    spent = in_turns(
        {
            "NumPy": lambda: sorted_masks(weights),
            "sdclr": lambda: magnitude_masks(weights, RULE),
        },
        repeats=15,
        clock=time.process_time,
    )
    name = f"mask refresh, {sum(w.numel() for w in weights.values()) / 1e6:.1f} M weights"
    return [
        Row(name=name, values=[1e3 * s for s in spent["sdclr"]], unit="ms"),
        Row(
            name=name,
            values=ratios(spent["NumPy"], spent["sdclr"]),
            unit="x",
            versus="NumPy sort",
            target=5.0,
        ),
        Row(
            name="mask entries that differ from the sort's",
            values=[num_wrong],
            unit="",
            target=0.0,
            at_most=True,
        ),
    ]


if __name__ == "__main__":
    main(rows)
