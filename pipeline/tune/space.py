"""Search space of a sweep: parameters by method, known points, a trial's configuration.

A parameter's name is its configuration key. Each method has its own space, since `prune_ratio`
means nothing to SimCLR, and so its own study, which gets the same number of trials.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from pipeline.config import Config
from pipeline.errors import ConfigError
from sdclr.methods import METHODS

Params = dict[str, float | int]
Sections = Mapping[str, Mapping[str, object]]

# Global pruning starves a 7x7 stem long before a 3x3 one: ResNet-50 at 0.9 keeps 0.84 % of it.
_PRUNE_RATIO = {"cifar": (0.3, 0.98), "imagenet": (0.1, 0.7)}
_KEYS = {"temperature": "{keys}.temperature", "lr": "train.lr_per_256",
         "weight_decay": "train.weight_decay"}  # fmt: skip
_BY_LOGARITHM = {"temperature": (0.05, 1.0), "lr": (0.05, 2.0), "weight_decay": (1e-5, 1e-3)}
_OF_ADAMW = {"lr": (5e-5, 5e-3), "weight_decay": (1e-3, 0.3)}
# The published settings (Jiang et al. 2021) by stem: prune ratio and temperature.
_PUBLISHED = {"cifar": (0.9, 0.2), "imagenet": (0.3, 0.3)}
_PUBLISHED_SIMCLR_TEMPERATURE = 0.2
_MEASURES = 100


@dataclass(frozen=True)
class Parameter:
    """One searched key: a range (linear or logarithmic), or a few choices."""

    key: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[int, ...] = ()

    def distribution(self) -> BaseDistribution:
        """Return the range as Optuna's distribution."""
        if self.choices:
            return CategoricalDistribution(self.choices)
        return FloatDistribution(self.low, self.high, log=self.log)

    def contains(self, value: float) -> bool:
        """Return whether a trial could have this value."""
        return value in self.choices if self.choices else self.low <= value <= self.high

    def fraction(self, value: float) -> float:
        """Return the position of a value between the ends of the range, in [0, 1]."""
        if self.choices:
            return self.choices.index(int(value)) / max(1, len(self.choices) - 1)
        if self.log:
            value, low, high = math.log(value), math.log(self.low), math.log(self.high)
            return (value - low) / (high - low)
        return (value - self.low) / (self.high - self.low)


def parameters(config: Config, method: str) -> tuple[Parameter, ...]:
    """Return the searched parameters of one method in `tune.search` order; may be empty."""
    found = []
    entry = METHODS[method]
    for name, given in config.tune.search.items():
        if name == "head_depth":
            found.append(Parameter(f"{entry.keys}.head_depth", choices=(2, 3)))
        elif name == "prune_ratio":
            if entry.has_twin:
                low, high = given or _PRUNE_RATIO[config.model.stem]
                found.append(Parameter("sdclr.prune_ratio", low, high))
        elif name != "temperature" or "ts" not in entry.own:
            usual = _BY_LOGARITHM | (_OF_ADAMW if config.train.optimizer == "adamw" else {})
            low, high = given or usual[name]
            found.append(Parameter(_KEYS[name].format(keys=entry.keys), low, high, log=True))
    return tuple(found)


def known_points(config: Config, method: str) -> list[Params]:
    """Return the points that are tried first: the configured, then the published values.

    Points outside the searched ranges are left out, and so are repetitions.
    """
    searched = parameters(config, method)
    points: list[Params] = []
    for point in (configured_point(config, method), published_point(config, method)):
        if point not in points and all(p.contains(point[p.key]) for p in searched):
            points.append(point)
    return points


def configured_point(config: Config, method: str) -> Params:
    """Return the searched keys as configured, inside their ranges or not."""
    return {p.key: configured_value(config, p.key) for p in parameters(config, method)}


def published_point(config: Config, method: str) -> Params:
    """Return the published values of the searched keys; where none is, the configured."""
    prune_ratio, temperature = _PUBLISHED[config.model.stem]
    published = {
        "sdclr.prune_ratio": prune_ratio,
        "sdclr.temperature": temperature,
        "simclr.temperature": _PUBLISHED_SIMCLR_TEMPERATURE,
    }
    return {k: published.get(k, v) for k, v in configured_point(config, method).items()}


def configured_value(config: Config, key: str) -> float | int:
    """Return the value of `section.key`."""
    section, name = key.split(".")
    value: float | int = getattr(getattr(config, section), name)
    return value


def measure_every(epochs: int) -> int:
    """Return the epochs between two measures of a trial: some 100 measures in a long trial."""
    return max(1, epochs // _MEASURES)


def trial_config(
    config: Config, method: str, params: Mapping[str, float | int], *, seed: int
) -> Config:
    """Return the configuration of one trial: method, parameters, workers and seed.

    Raises:
        ConfigError: the values do not go together.
    """
    train = {
        "methods": (method,),
        "workers": config.tune.trial_workers,
        # A trial that is interrupted loses no measured epoch.
        "checkpoint_every_epochs": measure_every(config.train.epochs),
    }
    health = {"every_epochs": config.train.epochs}
    return _built(config, {"train": train, "health": health, "run": {"seed": seed}}, params)


def best_config(config: Config, method: str, params: Mapping[str, float | int]) -> Config:
    """Return the sweep's configuration with the best parameters, for `run.py train`."""
    name = f"{config.run.name[:36]}-best"
    return _built(config, {"train": {"methods": (method,)}, "run": {"name": name}}, params)


def _built(config: Config, changes: Sections, params: Mapping[str, float | int]) -> Config:
    values = config.model_dump()
    for section, changed in changes.items():
        values[section] |= changed
    for key, value in params.items():
        section, name = key.split(".")
        values[section][name] = value
    # A sampled prune ratio below a fixed random part would be refused: the part shrinks with it.
    sdclr = values["sdclr"]
    sdclr["random_ratio"] = min(sdclr["random_ratio"], sdclr["prune_ratio"])
    try:
        return Config.model_validate(values)
    except ValueError as error:
        raise ConfigError(
            "E-CONFIG-040",
            f"a trial's configuration is not valid: {error}",
            where="tune",
            todo="choose tune.trial_workers and the searched ranges so that every trial is valid",
        ) from error
