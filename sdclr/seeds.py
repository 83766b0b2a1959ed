"""Random numbers by name: each draw is a function of the seed and a path such as ("view", 1, step).

Nothing here keeps state, so there is no generator to save in a checkpoint: a resumed run asks for
the same names and gets the same numbers. Generators live on the CPU, whose streams are the same on
every machine.

What is drawn for the images of a batch comes from a counter (Philox, Salmon et al. 2011). The
numbers of an image are a function of its place in the global batch, so a rank draws for its own
images alone, and R ranks together draw what one would.
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


def place_generator(seed: int, *path: str | int, place: int, num_each: int) -> np.random.Generator:
    """Return a NumPy generator of the stream `path`, at the numbers of one place of a batch.

    Args:
        seed: of the run.
        path: of the stream.
        place: 0, 1, ... in the global batch.
        num_each: numbers of 64 random bits for each place, such as doubles; a multiple of 4.

    Raises:
        ValueError: `num_each` is no multiple of 4, the numbers that one count gives.
    """
    if num_each % 4:
        raise ValueError(f"num_each must be a multiple of 4, got {num_each}")
    bits = np.random.Philox(key=derived_seed(seed, *path))
    return np.random.Generator(bits.advance(place * num_each // 4))


def numpy_generator(seed: int, *path: str | int) -> np.random.Generator:
    """Return a fresh NumPy generator at the start of the stream `path`."""
    return np.random.default_rng(derived_seed(seed, *path))
