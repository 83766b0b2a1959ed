"""Configuration of a trial, as Ray Tune is given it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.tune.space import Params
from pipeline.tune.trials import Role, trial_name


@dataclass(frozen=True)
class Point:
    """A setting to train.

    Args:
        method: `sdclr` or `simclr`.
        number: in the study of the method, or among the confirmations.
        params: key -> value, of what is searched.
        seed: of the training; None = the sweep's.
        label: what a confirmation is of; empty in a search.
    """

    method: str
    number: int
    params: Params
    seed: int | None = None
    label: str = ""

    @property
    def name(self) -> str:
        """Name of the trial's folder and record."""
        return f"confirm-{self.number:04d}" if self.label else trial_name(self.method, self.number)

    @property
    def role(self) -> Role:
        """Whether the trial is of a search or a confirmation."""
        return "confirm" if self.label else "search"

    def given(self) -> dict[str, object]:
        """Return the flat dictionary that `of` reads."""
        found: dict[str, object] = {"method": self.method, "number": self.number, **self.params}
        return found | {"seed": self.seed, "label": self.label}

    @classmethod
    def of(cls, given: Mapping[str, object]) -> Point:
        """Read what Tune calls a configuration: `method`, `number` and the searched keys.

        A confirmation has `label` and `seed` as well. A point of a grid is stored under `point`.
        """
        inner = given.get("point", given)
        assert isinstance(inner, Mapping)
        seed = inner.get("seed")
        return cls(
            method=inner["method"],
            number=int(inner["number"]),
            params={key: value for key, value in inner.items() if "." in key},
            seed=None if seed is None else int(seed),
            label=inner.get("label", ""),
        )
