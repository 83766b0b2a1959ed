"""Names that other trainers give to the tensors of a backbone: any prefix, three namings.

A file is read by the names that it has. Every part of a name up to a dot or an underscore may be
the prefix (`module.`, `_orig_mod.`, `backbone.0.`, `module.encoder_q.`, `teacher_`); the one below
which most tensors of the backbone are found counts. What follows is named by torchvision, by timm,
or by the number of the child, as `nn.Sequential(*network.children())` names it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from pipeline.model.timm_names import from_timm, to_timm

# Of two copies that fit equally well, the one that was trained by gradients is taken.
_AVERAGED = re.compile(r"(^|[._])(ema|momentum|teacher|target|averaged?|encoder_k|k|key)([._]|$)")

# Parts in which torchvision and timm have the last norm of some networks beside the classifier.
_CLASSIFIERS = {"classifier", "head", "heads"}


@dataclass(frozen=True)
class Fit:
    """The tensors of a file below its best prefix, under torchvision's names.

    Args:
        prefix: in the file, `encoder.` for example; may be empty.
        tensors: all below it, those that the backbone lacks included.
        num_found: tensors of the backbone that the file has.
        unknown: names, as in the file below the prefix, of tensors that the backbone lacks in parts
            that it has: `layer1.2.conv1.weight` of a deeper network.
    """

    prefix: str
    tensors: dict[str, Tensor]
    num_found: int
    unknown: tuple[str, ...] = ()


def best_fit(backbone: nn.Module, name: str, tensors: dict[str, Tensor]) -> Fit:
    """Return the tensors under the prefix and naming that fit the backbone best.

    Args:
        backbone: of `sdclr.backbone`.
        name: its name there.
        tensors: of a file, under its names.
    """
    wanted = backbone.state_dict()
    namings: list[dict[str, str]] = [
        {ours: ours for ours in wanted},
        dict(zip(to_timm(name, wanted), wanted, strict=True)),
        _by_number(backbone, wanted),
    ]
    counts = Counter(
        (number, prefix)
        for file_name in tensors
        for prefix, rest in _splits(file_name)
        for number, naming in enumerate(namings)
        if rest in naming
    )
    if not counts:
        return Fit("", dict(tensors), 0)
    (number, prefix), num_found = min(
        counts.items(),
        key=lambda item: (
            -item[1], bool(_AVERAGED.search(item[0][1])), len(item[0][1]), item[0],
        ),
    )  # fmt: skip
    below = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    naming = namings[number]
    parts = {_part(n) for n in naming} - _CLASSIFIERS
    unknown = tuple(n for n in below if n not in naming and _part(n) in parts)
    if number == 1:
        below = from_timm(name, below)
    elif number == 2:
        below = {namings[2].get(n, n): t for n, t in below.items()}
    return Fit(prefix, below, num_found, unknown)


def common_prefix(names: list[str]) -> str:
    """Return what all names begin with, up to a dot; empty when they share nothing."""
    first, last = min(names, default=""), max(names, default="")
    shared = 0
    for shared, (a, b) in enumerate(zip(first, last, strict=False)):  # noqa: B007
        if a != b:
            break
    return first[: first.rfind(".", 0, shared) + 1]


def _part(name: str) -> str:
    """Return the part of a network that a tensor is of: `layer1` of `layer1.0.conv1.weight`."""
    return name.partition(".")[0]


def _splits(name: str) -> Iterator[tuple[str, str]]:
    yield "", name
    for end, char in enumerate(name, start=1):
        if char in "._":
            yield name[:end], name[end:]


def _by_number(backbone: nn.Module, wanted: dict[str, Tensor]) -> dict[str, str]:
    """Return name by the number of the child -> name, as `nn.Sequential` numbers children."""
    numbers = {child: str(n) for n, (child, _) in enumerate(backbone.named_children())}
    found = {}
    for ours in wanted:
        child, dot, rest = ours.partition(".")
        if child in numbers:
            found[numbers[child] + dot + rest] = ours
    return found
