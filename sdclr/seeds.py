"""Random numbers by name: each draw is a function of the seed and a path such as ("view", 1, step).

Nothing here keeps state, so there is no generator to save in a checkpoint: a resumed run asks for
the same names and gets the same numbers. Generators live on the CPU, whose streams are the same on
every machine.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derived_seed(seed: int, *path: str | int) -> int:
    """Derive a 63-bit seed for the stream `path`; different paths give unrelated streams."""
    digest = hashlib.sha256(repr((seed, *path)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def torch_generator(seed: int, *path: str | int) -> torch.Generator:
    """Return a fresh CPU generator at the start of the stream `path`."""
    return torch.Generator().manual_seed(derived_seed(seed, *path))


def numpy_generator(seed: int, *path: str | int) -> np.random.Generator:
    """Return a fresh NumPy generator at the start of the stream `path`."""
    return np.random.default_rng(derived_seed(seed, *path))
