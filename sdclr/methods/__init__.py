"""The methods by name: one line each. Read without torch; a class is imported when it is made.

A method is a class on `sdclr.methods.method.Method`, in a file of this package.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from sdclr.methods.method import Method


@dataclass(frozen=True)
class Entry:
    """One line of the list.

    Args:
        title: as tables and charts show it.
        home: module in this package, and class: `sdclr:SDCLR`.
        keys: section of the configuration that gives temperature and head. With `sdclr` the second
            view goes through the pruned branch.
        source: the paper.
        own: further sections of the configuration that apply to it.
    """

    title: str
    home: str
    keys: Literal["sdclr", "simclr"]
    source: str
    own: tuple[str, ...] = ()

    @property
    def has_twin(self) -> bool:
        """Whether the second view goes through the pruned branch."""
        return self.keys == "sdclr"


METHODS = {
    "sdclr": Entry("SDCLR", "sdclr:SDCLR", "sdclr",
                   "Self-Damaging Contrastive Learning (Jiang et al., ICML 2021)"),
    "simclr": Entry("SimCLR", "simclr:SimCLRMethod", "simclr", "SimCLR (Chen et al., ICML 2020)"),
    "sdclr-ts": Entry("SDCLR-TS", "temperature:SDCLRTS", "sdclr",
                      "SDCLR (Jiang et al., ICML 2021) with a temperature schedule "
                      "(Kukleva et al., ICLR 2023)", own=("ts",)),
    "simclr-ts": Entry("SimCLR-TS", "temperature:SimCLRTS", "simclr",
                       "SimCLR with a temperature schedule (Kukleva et al., ICLR 2023)",
                       own=("ts",)),
    "bcl-i": Entry("BCL-I", "bcl:BCLI", "simclr",
                   "Boosted Contrastive Learning on SimCLR (Zhou et al., ICML 2022)",
                   own=("bcl",)),
    "bcl-d": Entry("BCL-D", "bcl:BCLD", "sdclr",
                   "Boosted Contrastive Learning on SDCLR (Zhou et al., ICML 2022)",
                   own=("bcl",)),
}  # fmt: skip


def method_class(name: str) -> type[Method]:
    """Import the class of a method.

    Raises:
        ValueError: there is no method of that name.
    """
    if name not in METHODS:
        raise ValueError(f"there is no method {name!r}; the methods are {', '.join(METHODS)}")
    module, _, cls = METHODS[name].home.partition(":")
    found: type[Method] = getattr(import_module(f"{__name__}.{module}"), cls)
    return found
