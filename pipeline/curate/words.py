"""The numbers of `curate` on the command line: what is refused before anything starts."""

from __future__ import annotations

from pipeline.errors import ConfigError

SIMILARITY = 0.99
"""Cosine from which on two images are near-duplicates, unless another one is asked for."""


def check_words(
    keep: int | None, similarity: float = SIMILARITY, num_images: int | None = None
) -> None:
    """Refuse numbers that no selection can have.

    Args:
        keep: images to select; None = half of those that are no near-duplicates.
        similarity: cosine of near-duplicates.
        num_images: of the set; None where it is not known yet.

    Raises:
        ConfigError: naming the word.
    """
    if not 0 < similarity <= 1:
        raise ConfigError(
            "E-CONFIG-661",
            f"a cosine similarity of near-duplicates is above 0 and at most 1, got {similarity:g}",
            where="curate --similarity",
            todo=f"choose one such as {SIMILARITY}",
        )
    if keep is None or (keep >= 1 and (num_images is None or keep <= num_images)):
        return
    known = num_images is not None
    raise ConfigError(
        "E-CONFIG-662",
        f"{keep} images cannot be selected" + (f" from {num_images}" if known else ""),
        where="curate --keep",
        todo=f"choose a number from 1 {f'to {num_images}' if known else 'on'}",
    )
