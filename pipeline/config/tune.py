"""Keys of a sweep: what is searched, by which measure, with which budget; and what time costs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from pipeline.config.types import Pair, Section

Searched = Literal["prune_ratio", "temperature", "lr", "weight_decay", "head_depth"]
BOUNDS: dict[Searched, Pair] = {
    "prune_ratio": (0.0, 0.999), "temperature": (1e-3, 10.0), "lr": (1e-6, 100.0),
    "weight_decay": (1e-9, 1.0),
}  # fmt: skip
"""Within which a range of `tune.search` may be."""
_WARPS_LOSS = {"prune_ratio", "temperature"}


class Tune(Section):
    """A sweep: every method of train.methods gets the same number of trials."""

    search: dict[Searched, Pair | None] = Field(
        default={"prune_ratio": None, "temperature": None},
        min_length=1,
        description="what is searched, and from where to where; null = the usual range. "
        "prune_ratio is for sdclr only, the others are for each method, head_depth is 2 or 3",
        json_schema_extra={
            "words": "a mapping of prune_ratio, temperature, lr, weight_decay or head_depth to "
            "null or two numbers, the least first"
        },
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
    early_stopping: bool = Field(
        default=True, description="ASHA: stop the worst trials at epochs that grow geometrically"
    )
    grace_epochs: int | None = Field(
        default=None,
        ge=1,
        description="before any trial is stopped; more than the warm-up; null = a third of the "
        "run, or the warm-up and one more",
    )
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
    gpus_per_worker: float | None = Field(
        default=None, gt=0, le=1, description="part of a GPU; null = a whole one where there are"
    )

    @field_validator("search")
    @classmethod
    def _in_range(cls, search: dict[Searched, Pair | None]) -> dict[Searched, Pair | None]:
        for name, pair in search.items():
            if pair is None:
                continue
            if name not in BOUNDS:
                raise ValueError(f"{name} has no range; write {name}: null")
            (lowest, highest), (least, most) = BOUNDS[name], pair
            if not lowest <= least < most <= highest:
                raise ValueError(
                    f"expected two numbers in [{lowest:g}, {highest:g}] for {name}, the least "
                    f"first, got [{least:g}, {most:g}]"
                )
        return search

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


class Cost(Section):
    """Price of time, for --dry-run."""

    price_per_gpu_hour_usd: float | None = Field(
        default=None, ge=0, description="null = no price is shown"
    )
