"""Keys of a run and of its stages: training and evaluation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from pipeline.config.public_weights import check_public, check_weights
from pipeline.config.types import (
    Choices,
    Place,
    Range,
    Section,
    Text,
    clean_text,
    without_repeats,
)
from sdclr.methods import METHODS

if TYPE_CHECKING:
    Method = str
else:
    Method = Literal[tuple(METHODS)]
TrackerName = Literal["tensorboard", "mlflow", "wandb"]
Protocol = Literal[
    "cached-linear", "cached-fewshot", "knn",
    "paper-linear", "paper-fewshot", "paper-fewshot-last", "finetune-fewshot", "finetune-10pct",
]  # fmt: skip
MAX_ADAMW_RATE = 0.02
"""AdamW moves every weight by about its learning rate: the rates of SGD are far too high for it."""
NEEDS_VAL = ("paper-linear", "paper-fewshot")
"""Protocols that choose their epoch on the val set."""


class Run(Section):
    """Name, place and seed of a run."""

    name: Annotated[
        str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,40}$"), AfterValidator(clean_text)
    ] = Field(
        default="demo",
        description="folder of the run below run.root",
        json_schema_extra={"words": "1 to 41 of a-z 0-9 . _ - that start with a letter or digit"},
    )
    root: Place = Field(default="runs", description="where runs go: local path or s3:// URI")
    seed: int = Field(default=0, ge=0, lt=2**31, description="all randomness of training follows")
    trackers: Annotated[
        tuple[TrackerName, ...], Field(strict=False), AfterValidator(without_repeats)
    ] = Field(
        default=(), description="each follows the run from its driver; see docs/monitoring.md"
    )


class Train(Section):
    """Optimisation, workers, checkpoints."""

    methods: Annotated[tuple[Method, ...], Choices, AfterValidator(without_repeats)] = Field(
        default=("sdclr", "simclr"), description="trained one after the other"
    )
    epochs: int = Field(default=200, ge=1, description="passes over the pre-training set")
    workers: Annotated[int, Field(ge=1)] | Range | Literal["auto"] = Field(
        default="auto",
        description="training processes; auto: one per GPU of the cluster; without one, 1 on a "
        "single machine, with all its CPUs, and 2 on a cluster; "
        "[4, 8]: from 4 to 8, as the cluster has room for; docs/reliability.md",
        json_schema_extra={"words": "a whole number >= 1, [least, most] of it, or auto"},
    )
    global_batch: int = Field(default=128, ge=2, description="images per step over all workers")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: cuda when the cluster has a GPU per worker"
    )
    optimizer: Literal["sgd", "adamw", "lars"] = Field(
        default="sgd", description="sgd as published, without Nesterov; docs/methods.md"
    )
    lr_per_256: float = Field(
        default=1.0,
        gt=0,
        description="peak learning rate at 256 images a step; used times train.global_batch / 256",
    )
    momentum: float = Field(
        default=0.9, ge=0, lt=1, description="of sgd and lars; the first beta of adamw"
    )
    weight_decay: float = Field(
        default=1e-4, ge=0, description="L2 with sgd and lars, decoupled with adamw"
    )
    decay_all: bool = Field(
        default=True, description="weight decay on norms and biases too, as published"
    )
    warmup_epochs: float = Field(
        default=10.0,
        ge=0,
        description="linear warm-up: at least 30 steps, at most a tenth of the run; 0 = none",
    )
    drop_last: bool = Field(default=True, description="skip the last, partial batch of an epoch")
    sync_batchnorm: bool = Field(default=True, description="statistics over all workers")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="of the forward pass; loss and weights stay float32; auto: bfloat16 where the "
        "device computes it natively (GPUs; CPUs with AVX512-BF16 or AMX), else float32",
    )
    micro_batch: int | None = Field(
        default=None,
        ge=4,
        description="images whose activations a worker holds; null = all; norms see as many",
    )
    compile: bool = Field(default=False, description="torch.compile: minutes of start, for GPUs")
    checkpoint_every_epochs: int = Field(default=20, ge=1, description="and after the last epoch")
    checkpoint_every_s: float | None = Field(
        default=600.0, ge=0, description="and in between, as often as this; null = never"
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="newest ones kept")
    keep_every_epochs: int | None = Field(
        default=None, ge=1, description="those of every n-th epoch are kept as well"
    )
    keep_best: Literal["view_retrieval", "balance_few", "rankme"] | None = Field(
        default=None,
        description="the one with the highest value of this measure of the features is kept as "
        "well, of those at which health.every_epochs looked",
    )
    stop_grace_s: float = Field(
        default=20.0, ge=0, description="for a last checkpoint after SIGTERM or Ctrl-C"
    )
    max_failures: int = Field(
        default=2,
        ge=0,
        description="restarts after errors of a worker; nodes that are reclaimed count apart. A "
        "lone worker on the CPUs of one machine is the driver: it is resumed, not restarted",
    )
    collective_timeout_s: int = Field(
        default=600, ge=1, description="a worker that waits longer for the others gives up"
    )
    init_from: Annotated[Text, AfterValidator(check_weights)] | None = Field(
        default=None,
        description="weights that a new run starts from: URI of a file, {method} in it stands for "
        "the method; or public ones, torchvision:NAME:WEIGHTS or timm:NAME",
    )
    loss_memory: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="momentum of a running mean of every image's loss over the epochs, which mine "
        "can rank by and BCL needs, such as 0.97; null = 0.97 for BCL, else not kept",
    )
    log_every_steps: int | None = Field(
        default=None,
        ge=1,
        description="steps between lines of metrics; null = 1 in a run of up to 200 steps, else 10",
    )

    @field_validator("lr_per_256")
    @classmethod
    def _rate_fits_optimizer(cls, rate: float, info: ValidationInfo) -> float:
        if info.data.get("optimizer") == "adamw" and rate > MAX_ADAMW_RATE:
            raise ValueError(
                f"expected at most {MAX_ADAMW_RATE} with train.optimizer = adamw, such as 0.0005, "
                f"got {rate:g}"
            )
        return rate

    @property
    def num_workers(self) -> int:
        """`workers`, the most of a range; 2 for `auto` as long as no cluster was asked."""
        return self.worker_counts[-1]

    @property
    def worker_counts(self) -> tuple[int, ...]:
        """Numbers of workers that may train: of a range, those that share the batch evenly."""
        if isinstance(self.workers, tuple):
            least, most = self.workers
            return tuple(n for n in range(least, most + 1) if self.global_batch % n == 0)
        return (2 if self.workers == "auto" else self.workers,)

    @property
    def workers_text(self) -> str:
        """`worker_counts` in words."""
        return " or ".join(map(str, self.worker_counts))

    @property
    def forward_precision(self) -> Literal["float32", "bfloat16"]:
        """`precision`; float32 for `auto` as long as no cluster was asked."""
        return "float32" if self.precision == "auto" else self.precision

    @field_validator("workers")
    @classmethod
    def _in_order(cls, workers: object) -> object:
        if isinstance(workers, tuple) and workers[0] >= workers[1]:
            raise ValueError(f"expected the least first, then the most, got {list(workers)}")
        return workers

    @field_validator("global_batch")
    @classmethod
    def _batch_divides(cls, batch: int, info: ValidationInfo) -> int:
        workers = info.data.get("workers")
        if isinstance(workers, tuple) and any(batch % end for end in workers):
            least, most = workers
            both = math.lcm(least, most)
            raise ValueError(
                f"expected a multiple of {least} and {most}, the ends of train.workers = "
                f"[{least}, {most}], such as {-(-batch // both) * both}, got {batch}; or set ends "
                "that divide it"
            )
        if isinstance(workers, int) and batch % workers:
            raise ValueError(f"expected a multiple of train.workers = {workers}, got {batch}")
        return batch

    @field_validator("drop_last", "sync_batchnorm", "micro_batch")
    @classmethod
    def _suits_a_range(cls, value: bool | int | None, info: ValidationInfo) -> bool | int | None:
        workers, wanted = info.data.get("workers"), "null" if value else "true"
        if isinstance(workers, tuple) and value not in (True, None):
            raise ValueError(
                f"expected {wanted} with train.workers = {list(workers)}: a batch must be the same "
                "on any number of workers"
            )
        return value


class Evaluate(Section):
    """Frozen features under labels."""

    protocols: Annotated[tuple[Protocol, ...], Choices, AfterValidator(without_repeats)] = Field(
        default=("cached-linear", "cached-fewshot", "knn"),
        description="cached-*: on features extracted once; paper-*: as published, trained by SGD "
        "on augmented images, much slower; finetune-*: all weights are trained; "
        "docs/evaluation.md explains each",
    )
    split: Literal["test", "val"] = Field(
        default="test", description="labelled set to score on; tune on val, test once"
    )
    public: Annotated[
        tuple[Annotated[Text, AfterValidator(check_public)], ...],
        Field(strict=False),
        AfterValidator(without_repeats),
    ] = Field(
        default=(),
        description="public models scored beside the run's: torchvision:NAME:WEIGHTS, timm:NAME",
    )
    checkpoints: Literal["newest", "all"] = Field(
        default="newest", description="of a run: all = every kept one, as a curve"
    )
    max_leak_frac: float = Field(
        default=0.001,
        ge=0,
        le=1,
        description="images of test or val that another set holds as well, by hash: reported, "
        "and above this fraction the stage fails",
    )
    groups: Literal["tercile", "threshold"] = Field(
        default="tercile",
        description="many/medium/few by class rank (CIFAR), or above 100 / 20 to 100 / below 20",
    )
    fewshot_draws: int = Field(default=10, ge=1, description="few-shot sets to average over")
    shots_per_class: int | None = Field(
        default=None,
        ge=1,
        description="null = 1 % of the labels, >= 1, at most those of the smallest class",
    )
    cv_folds: int = Field(default=5, ge=2, description="cross-validation of the regularisation")
    resize_px: int | None = Field(
        default=None,
        ge=8,
        description="short side before the centre crop; null = augment.crop_px x 256 / 224 for "
        "photographs, the crop itself for small square images",
    )


class Export(Section):
    """A trained backbone in forms that need none of this project's code."""

    formats: Annotated[
        tuple[Literal["safetensors", "torch-export", "onnx"], ...],
        Choices,
        AfterValidator(without_repeats),
    ] = Field(
        default=("safetensors", "torch-export"),
        description="state dict; program with the normalisation inside; the same as ONNX "
        "(needs onnx and onnxscript)",
    )
