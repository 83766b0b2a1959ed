"""Streams of random numbers by name, and by the place of an image in its batch."""

from __future__ import annotations

import numpy as np
import pytest

from sdclr.seeds import derived_seed, numpy_generator, place_generator, torch_generator

BITS = (1 << 64) - 1


def philox(counter: int, key: int) -> list[int]:
    """Philox4x64-10 (Salmon et al. 2011, section 4.3), one round after another."""
    x = [(counter >> 64 * n) & BITS for n in range(4)]
    k = [key & BITS, key >> 64]
    for _ in range(10):
        low, high = x[0] * 0xD2E7470EE14C6C93, x[2] * 0xCA5A826395121157
        x = [high >> 64 ^ x[1] ^ k[0], high & BITS, low >> 64 ^ x[3] ^ k[1], low & BITS]
        k = [(k[0] + 0x9E3779B97F4A7C15) & BITS, (k[1] + 0xBB67AE8584CAA73B) & BITS]
    return x


def slow_numbers(seed: int, place: int, num_each: int) -> list[float]:
    """The doubles of one place: 53 bits of each number of its counts, which begin at 1."""
    key, first = derived_seed(seed, "view", 1, 7), place * num_each // 4 + 1
    words = [word for n in range(num_each // 4) for word in philox(first + n, key)]
    return [(word >> 11) / 2**53 for word in words]


def test_the_counter_is_philox() -> None:
    # The first known answer of its authors: count and key are 0.
    expected = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert philox(0, 0) == expected
    for place in (0, 1, 5, 10**12):
        generator = place_generator(3, "view", 1, 7, place=place, num_each=12)
        assert generator.random(12).tolist() == slow_numbers(3, place, 12)
    assert place_generator(3, "view", 1, 8, place=0, num_each=12).random(12).tolist() != (
        slow_numbers(3, 0, 12)
    )


def test_a_place_has_the_same_numbers_whoever_draws_them() -> None:
    whole = place_generator(0, "view", place=0, num_each=8).random((10, 8))
    part = place_generator(0, "view", place=6, num_each=8).random((4, 8))
    assert np.array_equal(whole[6:], part)
    assert not np.array_equal(whole[5:9], part)
    with pytest.raises(ValueError, match="multiple of 4"):
        place_generator(0, "view", place=1, num_each=6)


def test_names_give_unrelated_streams() -> None:
    first, again, other = (numpy_generator(0, "a", n).random(500) for n in (1, 1, 2))
    assert np.array_equal(first, again)
    assert abs(float(np.corrcoef(first, other)[0, 1])) < 0.2
    assert torch_generator(0, "a").initial_seed() == derived_seed(0, "a") < 2**63
