"""Keys of a sweep: what is searched, by which measure, with which budget; and what time costs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from pipeline.config.types import Choices, Section, without_repeats

Searched = Literal["prune_ratio", "temperature", "lr", "weight_decay", "head_depth"]
_WARPS_LOSS = {"prune_ratio", "temperature"}


class Tune(Section):
    """A sweep: every method of train.methods gets the same number of trials."""

    search: Annotated[tuple[Searched, ...], Choices, AfterValidator(without_repeats)] = Field(
        default=("prune_ratio", "temperature"),
        description="what is searched; prune_ratio for sdclr only, the others for each method",
    )
    trials: int = Field(
        default=16, ge=1, description="per method; the same command with more goes on"
    )
    sampler: Literal["tpe", "random", "nsga2"] = Field(
        default="tpe", description="Optuna's: multivariate TPE, random, or NSGA-II"
    )
    objective: Literal["fewshot", "view_retrieval", "train_loss"] = Field(
        default="fewshot",
        description="maximised: fewshot, balanced accuracy on the val set with few labels; "
        "view_retrieval, without labels, lowered where RankMe is below its floor; or train_loss, "
        "minimised, for searches that do not change the loss itself",
    )
    balance: bool = Field(
        default=False,
        description="a second objective, minimised: STD over many/medium/few on val, or without "
        "labels over terciles of clusters; the result is a Pareto front, no trial is stopped early",
    )
    rankme_floor: float = Field(
        default=8.0, ge=1, description="effective rank below which view_retrieval is scaled down"
    )
    probe_images: int = Field(
        default=1024, ge=16, description="pre-training images that are measured without labels"
    )
    prune_ratio_min: float | None = Field(
        default=None, ge=0, lt=1, description="null = by model.stem: 0.3 cifar, 0.1 imagenet"
    )
    prune_ratio_max: float | None = Field(
        default=None, gt=0, lt=1, description="null = by model.stem: 0.98 cifar, 0.7 imagenet"
    )
    temperature_min: float = Field(default=0.05, gt=0, le=10, description="log-uniform")
    temperature_max: float = Field(default=1.0, gt=0, le=10, description="log-uniform")
    lr_min: float = Field(default=0.05, gt=0, description="log-uniform")
    lr_max: float = Field(default=1.0, gt=0, description="log-uniform")
    weight_decay_min: float = Field(default=1e-5, gt=0, description="log-uniform")
    weight_decay_max: float = Field(default=1e-3, gt=0, description="log-uniform")
    early_stopping: bool = Field(
        default=True, description="ASHA: stop the worst trials at epochs that grow geometrically"
    )
    grace_epochs: int | None = Field(
        default=None,
        ge=1,
        description="before any trial is stopped; more than the warm-up; null = a third of the "
        "run, or the warm-up and one more",
    )
    reduction_factor: int = Field(
        default=3, ge=2, description="of the trials that come to a rung, one in this many goes on"
    )
    measure_every_epochs: int = Field(default=1, ge=1, description="and after the last epoch")
    retrain_seeds: int = Field(
        default=3,
        ge=0,
        description="fresh seeds with which the best setting, the configured one, the published "
        "one and the best of the other methods are trained at the end",
    )
    trial_workers: int = Field(
        default=1,
        ge=1,
        description="1: the trial trains in its own process; more: a Ray Train run for each trial",
    )
    cpus_per_trial: int = Field(default=1, ge=1, description="threads of a trial without a GPU")
    gpus_per_worker: float | None = Field(
        default=None, gt=0, le=1, description="part of a GPU; null = a whole one where there are"
    )
    concurrent: int | None = Field(
        default=None, ge=1, description="trials at the same time; null = as many as fit"
    )
    placement_timeout_s: float = Field(
        default=600.0, gt=0, description="give up when no trial could be placed for so long"
    )

    @field_validator("objective")
    @classmethod
    def _loss_is_comparable(cls, objective: str, info: ValidationInfo) -> str:
        warped = sorted(_WARPS_LOSS & set(info.data.get("search") or ()))
        if objective == "train_loss" and warped:
            raise ValueError(
                f"training losses under different {' or '.join(warped)} are values of different "
                "functions: the lowest says nothing about the features; use fewshot or "
                "view_retrieval, or take it out of tune.search"
            )
        return objective

    @field_validator("prune_ratio_max", "temperature_max", "lr_max", "weight_decay_max")
    @classmethod
    def _above_min(cls, most: float | None, info: ValidationInfo) -> float | None:
        name = str(info.field_name).removesuffix("max") + "min"
        least = info.data.get(name)
        if most is not None and least is not None and most <= least:
            raise ValueError(f"expected more than tune.{name} = {least}, got {most}")
        return most


class Cost(Section):
    """Price of time, for --dry-run."""

    price_per_gpu_hour_usd: float | None = Field(
        default=None, ge=0, description="null = no price is shown"
    )
