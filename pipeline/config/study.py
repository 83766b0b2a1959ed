"""A study: one configuration trained with several seeds, in several arms, and compared.

    title: what it asks
    config: demo.yaml                 # beside the study, or a path
    seeds: [11, 12, 13]               # of run.seed and of data.split_seed
    keys: [train.epochs=100]          # of all runs; may be left out
    arms:                             # name -> keys; the first arm is the one that is asked about
      long-tailed: []
      balanced twin: [data.imbalance_ratio=1, "train.methods=[simclr]"]
    mine: true                        # rank the images of each run of the first arm as well

The file is YAML; unknown keys are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline.config import Config
from pipeline.config.file import SHIPPED, load_config, text_of
from pipeline.config.strict_yaml import YamlRefusedError, read
from pipeline.errors import ConfigError
from pipeline.redact import redact

Key = Annotated[str, Field(pattern=r"^[a-z_]+\.[a-z_0-9]+=|^preset=")]
Name = Annotated[str, Field(min_length=1, max_length=60)]


class _File(BaseModel):
    """The keys of a study file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    title: Name | None = None
    config: str
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    keys: list[Key] = Field(default=[])
    arms: dict[Name, list[Key]] = Field(min_length=1)
    mine: bool = False

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is named twice")
        return seeds


@dataclass(frozen=True)
class Arm:
    """One way to train: its name and the keys that it sets."""

    name: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Training:
    """One run of a study: its arm, its seed, and the words that make its configuration."""

    arm: Arm
    seed: int
    words: tuple[str, ...]
    config: Config


@dataclass(frozen=True)
class Study:
    """A study as read.

    Args:
        name: of the file, without `study_` and its ending.
        config_file: of all runs.
        keys: of all runs, before those of an arm.
        mine: whether the runs of the first arm rank their images.
    """

    name: str
    title: str
    config_file: str
    seeds: tuple[int, ...]
    keys: tuple[str, ...]
    arms: tuple[Arm, ...]
    mine: bool

    def trainings(self, overrides: tuple[str, ...] = ()) -> tuple[Training, ...]:
        """Return the runs, seed by seed, so that a first comparison is there early.

        Args:
            overrides: keys of all runs, after those of the arms.

        Raises:
            ConfigError: a key is wrong, or is set by the study.
        """
        runs = []
        for seed in self.seeds:
            for arm in self.arms:
                seeds = (f"run.seed={seed}", f"data.split_seed={seed}")
                words = (*seeds, *self.keys, *arm.keys, *overrides)
                config = load_config(self.config_file, words)
                runs.append(Training(arm, seed, words, config))
        return tuple(runs)


def shipped_studies() -> list[str]:
    """Return the names of the studies that come with the project."""
    return sorted(file.stem.removeprefix("study_") for file in SHIPPED.glob("study_*.yaml"))


def load_study(name: str) -> Study:
    """Read a shipped study by its name, or a file.

    Raises:
        ConfigError: there is none, or it has not the form above.
    """
    shipped = SHIPPED / f"study_{name}.yaml"
    is_file = name.endswith((".yaml", ".yml"))
    if not is_file and name not in shipped_studies():
        raise ConfigError(
            "E-CONFIG-720",
            f"there is no study {redact(name)!r}",
            where="reproduce",
            todo=f"name one of {', '.join(shipped_studies())}, or a YAML file",
        )
    path = name if is_file else str(shipped)
    try:
        document, _ = read(text_of(path))
        file = _File.model_validate(document)
    except YamlRefusedError as error:
        raise _wrong(path, "; ".join(f"line {n}: {what}" for n, what in error.problems)) from None
    except ValidationError as error:
        wrong = [
            f"{'.'.join(map(str, problem['loc'])) or 'the file'}: {problem['msg'].lower()}"
            for problem in error.errors(include_input=False, include_url=False)
        ]
        raise _wrong(path, "; ".join(wrong)) from None
    beside = Path(path).parent / file.config
    stem = Path(path).stem.removeprefix("study_")
    return Study(
        name=stem,
        title=file.title or stem,
        config_file=str(beside if beside.is_file() else file.config),
        seeds=tuple(file.seeds),
        keys=tuple(file.keys),
        arms=tuple(Arm(arm, tuple(keys)) for arm, keys in file.arms.items()),
        mine=file.mine,
    )


def _wrong(path: str, what: str) -> ConfigError:
    return ConfigError(
        "E-CONFIG-721",
        f"the study is wrong: {redact(what)}",
        where=redact(path),
        todo="give it the keys of tune_configs/study_demo.yaml",
    )
