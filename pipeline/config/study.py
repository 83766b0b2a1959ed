"""A study: one configuration trained with several seeds, in several arms, and compared.

    title: what it asks
    config: demo.yaml                 # beside the study, or a path
    seeds: [11, 12, 13]               # of run.seed and of data.split_seed
    keys: [train.epochs=100]          # of all runs; may be left out
    arms:                             # name -> keys; the first arm is the one that is asked about
      long-tailed: []
      balanced twin: [data.balanced_twin=true, "train.methods=[simclr]"]
    twin: balanced twin               # the arm of a balanced set of the same size, if there is one
    mine: true                        # rank the images of each run of the first arm as well
    places:                           # words that the user has to give, `data=FOLDER`
      data: the folder that holds cifar-10-batches-py

`{seed}` in a key is the seed of the run, `{data}` what the user gave as `data`. The file is YAML;
unknown keys are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

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
    twin: Name | None = None
    places: dict[Annotated[str, Field(pattern=r"^[a-z]+$")], Name] = Field(default={})

    @model_validator(mode="after")
    def _twin_is_an_arm(self) -> Self:
        if self.twin is not None and self.twin not in list(self.arms)[1:]:
            raise ValueError(f"twin names no later arm: {self.twin}")
        return self

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
        twin: the arm of the balanced twin, if there is one.
        places: words that the user has to give, and what each is.
    """

    name: str
    title: str
    config_file: str
    seeds: tuple[int, ...]
    keys: tuple[str, ...]
    arms: tuple[Arm, ...]
    mine: bool
    twin: str | None
    places: Mapping[str, str]

    def trainings(self, words: tuple[str, ...] = ()) -> tuple[Training, ...]:
        """Return the runs, seed by seed, so that a first comparison is there early.

        Args:
            words: the places, as `data=FOLDER`, and keys of all runs, after those of the arms.

        Raises:
            ConfigError: a place is missing, or a key is wrong or is set by the study.
        """
        given, overrides = self._given(words)
        runs = []
        for seed in self.seeds:
            for arm in self.arms:
                values = {**given, "seed": str(seed)}
                own = [_filled(key, values) for key in (*self.keys, *arm.keys)]
                names = {key.partition("=")[0] for key in own}
                seeds = [
                    f"{key}={seed}" for key in ("run.seed", "data.split_seed") if key not in names
                ]
                words = (*seeds, *own, *overrides)
                config = load_config(self.config_file, words)
                runs.append(Training(arm, seed, words, config))
        return tuple(runs)

    def _given(self, words: tuple[str, ...]) -> tuple[dict[str, str], tuple[str, ...]]:
        """Return the places among the words, and the others."""
        pairs = [word.partition("=") for word in words]
        given = {name: place for name, _, place in pairs if name in self.places and place}
        missing = [name for name in self.places if name not in given]
        if missing:
            needs = "; ".join(f"{name} is {self.places[name]}" for name in missing)
            raise ConfigError(
                "E-CONFIG-860",
                f"the study {self.name} needs a place that is not given: {needs}",
                where=f"reproduce {self.name}",
                todo=f"add {' '.join(f'{name}=FOLDER' for name in missing)}",
            )
        others = [w for w, pair in zip(words, pairs, strict=True) if pair[0] not in self.places]
        return given, tuple(others)


def _filled(key: str, values: Mapping[str, str]) -> str:
    """Put values, escaped as in double quotes of YAML, in place of their names in braces."""
    for name, value in values.items():
        key = key.replace("{" + name + "}", json.dumps(value, ensure_ascii=False)[1:-1])
    return key


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
        twin=file.twin,
        places=file.places,
    )


def _wrong(path: str, what: str) -> ConfigError:
    return ConfigError(
        "E-CONFIG-721",
        f"the study is wrong: {redact(what)}",
        where=redact(path),
        todo="give it the keys of tune_configs/study_demo.yaml",
    )
