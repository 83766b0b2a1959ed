"""Every configuration key, once: type, unit, range, default and meaning.

`Config()` is the demo: handwritten digits, made long-tailed, on a CPU within minutes. Values are
never coerced, except a whole number where a number is expected, and never filled in later: a key
that is null stays null, and the stage that uses it derives the number. Files and command lines are
read by `pipeline.config_file`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from pipeline.config_types import Choices, Text, Texts, clean_text, without_repeats

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

Source = Literal["digits", "cifar10", "cifar100", "folder"]
Method = Literal["sdclr", "simclr"]
Protocol = Literal["cached-linear", "cached-fewshot", "knn-k20"]
Backbone = Literal[
    "resnet8", "resnet18", "resnet34", "resnet50", "resnet101", "wide_resnet50_2",
    "resnext50_32x4d", "convnext_tiny", "convnext_small",
]  # fmt: skip


class Section(BaseModel):
    """Frozen, strict, without unknown keys, infinities or NaN."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, validate_default=True,
        hide_input_in_errors=True,
    )  # fmt: skip


class Run(Section):
    """Name, place and seed of a run."""

    name: Annotated[
        str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,40}$"), AfterValidator(clean_text)
    ] = Field(
        default="demo",
        description="folder of the run below run.root",
        json_schema_extra={"words": "1 to 41 of a-z 0-9 . _ - that start with a letter or digit"},
    )
    root: Text = Field(default="runs", description="where runs go: local path or s3:// URI")
    seed: int = Field(default=0, ge=0, lt=2**31, description="all randomness of training follows")


class Data(Section):
    """Source images, and the long-tailed set made of them."""

    source: Source = Field(
        default="digits",
        description="digits: scikit-learn's handwritten digits, upscaled to 16 px, no download; "
        "folder: image files, flat (unlabelled) or one folder per class",
    )
    download: bool = Field(default=False, description="fetch CIFAR when data.path lacks it")
    path: Text | None = Field(
        default=None,
        description="where the source images are; needed by folder, and by CIFAR without download",
    )
    root: Text = Field(default="data", description="where shards go: local path or s3:// URI")
    imbalance_ratio: float | None = Field(
        default=50.0, ge=1, description="most over least frequent class; null = counts as they are"
    )
    num_max: int | None = Field(
        default=None, ge=1, description="images of the most frequent class; null = all there are"
    )
    profile: Literal["exponential", "pareto"] = Field(
        default="exponential", description="how class counts fall from the first to the last rank"
    )
    split_seed: int = Field(
        default=0, ge=0, lt=2**31, description="draws the order of classes and their images"
    )
    pretrain_index: Text | None = Field(
        default=None, description=".npy/.txt/.json list of pre-training images; replaces the draw"
    )
    probe_index: Text | None = Field(default=None, description="list of labelled probe images")
    val_index: Text | None = Field(default=None, description="list of validation images")
    fewshot_index: Texts = Field(default=(), description="few-shot lists, one per draw")
    num_test_per_class: int | None = Field(
        default=None, ge=1, description="for sources without a test set; null = the source decides"
    )
    labelled: bool | None = Field(
        default=None, description="folder only: one folder per class? null = seen from the layout"
    )

    @field_validator("path")
    @classmethod
    def _path_fits_source(cls, path: str | None, info: ValidationInfo) -> str | None:
        source, download = info.data.get("source"), info.data.get("download")
        if source == "digits" and path is not None:
            raise ValueError("has no use with data.source = digits; set data.source as well")
        if source == "folder" and path is None:
            raise ValueError("is needed with data.source = folder")
        if source in ("cifar10", "cifar100") and path is None and download is False:
            raise ValueError(f"is needed with data.source = {source}, or set data.download = true")
        return path


class Ingest(Section):
    """From source images to verified shards."""

    shard_bytes: int = Field(default=64 * MIB, ge=64 * KIB, description="size of a shard, about")
    max_reject_frac: float = Field(
        default=0.001, ge=0, le=1, description="rejected images above this fraction fail the stage"
    )
    max_image_bytes: int = Field(default=64 * MIB, ge=1, description="larger files are rejected")
    max_image_pixels: int = Field(
        default=64_000_000, ge=1, description="images of more pixels are rejected before decoding"
    )
    min_side_px: int = Field(default=8, ge=1, description="smaller images are rejected")


class Model(Section):
    """The network."""

    backbone: Backbone = Field(default="resnet8", description="torchvision's, without classifier")
    stem: Literal["cifar", "imagenet"] = Field(
        default="cifar",
        description="cifar: 3x3 stride 1, no max-pool; imagenet: 7x7 stride 2, max-pool",
    )
    embedding_dim: int = Field(default=128, ge=2, description="output of the projection head")

    @field_validator("stem")
    @classmethod
    def _stem_fits_backbone(cls, stem: str, info: ValidationInfo) -> str:
        backbone = info.data.get("backbone")
        is_resnet = backbone is None or "resnet" in backbone or "resnext" in backbone
        if stem == "cifar" and not is_resnet:
            raise ValueError(f"expected imagenet with model.backbone = {backbone}, got cifar")
        return stem


class SDCLR(Section):
    """The self-damaging method (Jiang et al. 2021)."""

    prune_ratio: float = Field(
        default=0.9, ge=0, le=1, description="fraction of convolution weights the twin lacks"
    )
    temperature: float = Field(default=0.2, gt=0, le=10, description="of NT-Xent")
    head_depth: int = Field(default=2, ge=2, le=3, description="linear layers of the head")
    scope: Literal["global", "layerwise"] = Field(
        default="global", description="one magnitude threshold for all layers, or one for each"
    )
    exclude_stem: bool = Field(default=False, description="leave the first convolution whole")
    random_ratio: float = Field(
        default=0.0, ge=0, le=1, description="part of prune_ratio that is drawn at random"
    )

    @field_validator("random_ratio")
    @classmethod
    def _random_part(cls, ratio: float, info: ValidationInfo) -> float:
        whole = info.data.get("prune_ratio")
        if whole is not None and ratio > whole:
            raise ValueError(f"expected at most sdclr.prune_ratio = {whole}, got {ratio}")
        return ratio


class SimCLR(Section):
    """The baseline (Chen et al. 2020)."""

    temperature: float = Field(default=0.2, gt=0, le=10, description="of NT-Xent")
    head_depth: int = Field(default=2, ge=2, le=3, description="linear layers of the head")


class Train(Section):
    """Optimisation, workers, checkpoints."""

    methods: Annotated[tuple[Method, ...], Choices, AfterValidator(without_repeats)] = Field(
        default=("sdclr", "simclr"), description="trained one after the other"
    )
    epochs: int = Field(default=200, ge=1, description="passes over the pre-training set")
    workers: int = Field(default=2, ge=1, description="training processes, one per GPU")
    global_batch: int = Field(default=128, ge=2, description="images per step over all workers")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: cuda when the cluster has a GPU per worker"
    )
    lr: float = Field(default=0.5, gt=0, description="peak learning rate of SGD, never rescaled")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of SGD, without Nesterov")
    weight_decay: float = Field(default=1e-4, ge=0, description="L2, on all parameters")
    warmup_epochs: float = Field(
        default=10.0, ge=0, description="linear warm-up, at most a tenth of the run"
    )
    final_lr: float = Field(default=1e-6, ge=0, description="where the cosine ends")
    drop_last: bool = Field(default=True, description="skip the last, partial batch of an epoch")
    sync_batchnorm: bool = Field(default=True, description="statistics over all workers")
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of the forward pass; loss and weights stay float32"
    )
    checkpoint_every_epochs: int = Field(default=20, ge=1, description="and after the last epoch")
    keep_checkpoints: int = Field(default=2, ge=1, description="newest ones kept")
    max_failures: int = Field(default=2, ge=0, description="restarts after errors of a worker")
    init_from: Text | None = Field(
        default=None, description="URI of a backbone.safetensors that a new run starts from"
    )
    log_every_steps: int = Field(default=10, ge=1, description="steps between lines of metrics")

    @field_validator("global_batch")
    @classmethod
    def _batch_divides(cls, batch: int, info: ValidationInfo) -> int:
        workers = info.data.get("workers")
        if workers is not None and batch % workers:
            raise ValueError(f"expected a multiple of train.workers = {workers}, got {batch}")
        return batch


class Augment(Section):
    """The two random views of an image."""

    crop_px: int | None = Field(
        default=None, ge=4, description="side of a view; null = side of the stored images"
    )
    crop_scale_min: float = Field(default=0.4, gt=0, le=1, description="least area, fraction")
    crop_scale_max: float = Field(default=1.0, gt=0, le=1, description="most area, fraction")
    crop_ratio_min: float = Field(default=0.75, gt=0, description="least width / height")
    crop_ratio_max: float = Field(default=4 / 3, gt=0, description="most width / height")
    hflip_prob: float = Field(default=0.0, ge=0, le=1, description="mirror left and right")
    jitter_prob: float = Field(default=0.8, ge=0, le=1, description="of the four that follow")
    brightness: float = Field(default=0.4, ge=0, le=1, description="factor 1 +- this")
    contrast: float = Field(default=0.4, ge=0, le=1, description="factor 1 +- this")
    saturation: float = Field(default=0.0, ge=0, le=1, description="factor 1 +- this")
    hue: float = Field(default=0.0, ge=0, le=0.5, description="shift +- this, in turns")
    gray_prob: float = Field(default=0.0, ge=0, le=1, description="drop the colours")
    blur_prob: float = Field(default=0.0, ge=0, le=1, description="Gaussian blur")
    blur_sigma_min: float = Field(default=0.1, gt=0, description="least sigma, px")
    blur_sigma_max: float = Field(default=2.0, gt=0, description="most sigma, px")

    @field_validator("crop_scale_max", "crop_ratio_max", "blur_sigma_max")
    @classmethod
    def _not_below_min(cls, most: float, info: ValidationInfo) -> float:
        name = str(info.field_name).removesuffix("max") + "min"
        least = info.data.get(name)
        if least is not None and most < least:
            raise ValueError(f"expected at least augment.{name} = {least}, got {most}")
        return most


class Feed(Section):
    """From shards to batches."""

    canvas_px: int | None = Field(
        default=None,
        ge=8,
        description="square that decoded images are reduced to fit; needed for image files",
    )
    cache_bytes: int = Field(
        default=2 * GIB, ge=0, description="memory of each worker for the decoded images"
    )


class Evaluate(Section):
    """Frozen features under labels."""

    protocols: Annotated[tuple[Protocol, ...], Choices, AfterValidator(without_repeats)] = Field(
        default=("cached-linear", "cached-fewshot", "knn-k20"),
        description="linear probe on all labels, on few, and 20 nearest neighbours",
    )
    split: Literal["test", "val"] = Field(
        default="test", description="labelled set to score on; tune on val, test once"
    )
    groups: Literal["tercile", "threshold"] = Field(
        default="tercile",
        description="many/medium/few by class rank (CIFAR), or above 100 / 20 to 100 / below 20",
    )
    fewshot_draws: int = Field(default=10, ge=1, description="few-shot sets to average over")
    shots_per_class: int | None = Field(
        default=None, ge=1, description="null = 1 % of the labels, >= 1"
    )
    batch: int = Field(default=256, ge=1, description="images per forward pass")
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of the networks when features are extracted"
    )
    cv_folds: int = Field(default=5, ge=2, description="cross-validation of the regularisation")
    resize_px: int | None = Field(
        default=None, ge=8, description="short side before the centre crop; null = no resize"
    )


class Config(Section):
    """One run, whole."""

    run: Run = Run()
    data: Data = Data()
    ingest: Ingest = Ingest()
    model: Model = Model()
    sdclr: SDCLR = SDCLR()
    simclr: SimCLR = SimCLR()
    train: Train = Train()
    augment: Augment = Augment()
    feed: Feed = Feed()
    evaluate: Evaluate = Evaluate()
