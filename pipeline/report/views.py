"""Views of a run's records: what the pages show of each file. Other keys are ignored."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict, Field


class View(BaseModel):
    """A frozen view of a part of a record."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Alarm(View):
    """A fault of the features, and what to change."""

    text: str
    level: str
    change: str

    @property
    def is_severe(self) -> bool:
        """Whether the network failed to learn; a warning may pass."""
        return self.level == "alarm"


class Step(View):
    """One logged training step; `epoch` counts from 0."""

    method: str
    epoch: int
    step: int
    num_steps: int
    loss: float | None
    lr: float
    temperature: float
    images_per_s: float
    data_wait_frac: float


class Mask(View):
    """Kept fraction of each layer at the start of an epoch, which counts from 0."""

    epoch: int
    prune_ratio: float
    kept_frac: dict[str, float]


class Health(View):
    """Label-free measures of one method at one step; step 0 is before training."""

    method: str
    epoch: int
    step: int
    num_images: int
    measures: dict[str, float | None]
    alarms: tuple[Alarm, ...]

    @property
    def epochs_trained(self) -> int:
        """Whole epochs behind the measure."""
        return self.epoch + 1 if self.step else 0


class Score(View):
    """Accuracies of one model by one protocol, fractions; `spread` is over the n draws."""

    protocol: str
    n: int
    many: float | None
    medium: float | None
    few: float | None
    std: float | None
    all: float | None
    spread: dict[str, float | None] | None = None
    per_class: tuple[float | None, ...]
    note: str = ""
    group_confusion: tuple[tuple[float | None, ...], ...] | None = None

    def metric(self, name: str) -> float | None:
        """Return one of many, medium, few, std and all."""
        value: float | None = getattr(self, name)
        return value


class Model(View):
    """A model and its scores."""

    name: str
    step: int | None = None
    epochs: float | None = None
    scores: tuple[Score, ...]


class Evaluation(View):
    """evaluation.json."""

    class_names: tuple[str, ...]
    pretrain_counts: tuple[int, ...]
    groups: dict[str, tuple[int, ...]]
    sets: dict[str, int]
    scored_on: str = "test"
    seed: int | None = None
    models: tuple[Model, ...]
    curve: tuple[Model, ...] = ()

    @property
    def protocols(self) -> list[str]:
        """Protocol ids in the order in which they are first met."""
        return list(dict.fromkeys(s.protocol for model in self.models for s in model.scores))

    def scores_by(self, protocol: str) -> Iterator[tuple[Model, Score]]:
        """Yield the models that a protocol scored, in the order of the record."""
        for model in self.models:
            for score in model.scores:
                if score.protocol == protocol:
                    yield model, score


class Picture(View):
    """One image of a contact sheet."""

    id: str
    label: int | None
    score: float
    png_base64: str | None = None


class GroupSpread(View):
    """Mean, number and sample standard deviation of a value over the images of a group."""

    mean: float
    n: int
    std: float | None


class Forgotten(View):
    """forgotten.json."""

    method: str
    prune_ratio: float
    scored: int
    most: tuple[Picture, ...]
    least: tuple[Picture, ...]
    group_mean: dict[str, float | GroupSpread | None] | None


class ImageInfo(View):
    """The form in which images are stored."""

    encoding: str
    height_px: int | None
    width_px: int | None


class SetInfo(View):
    """One set of images."""

    rows: int
    class_counts: tuple[int, ...] | None


class RejectExample(View):
    """One image that was left out."""

    id: str
    reason: str
    detail: str


class Rejects(View):
    """Images that were left out."""

    total: int = 0
    by_reason: dict[str, int] = Field(default_factory=dict)
    examples: tuple[RejectExample, ...] = ()


class Manifest(View):
    """manifest.json of the data set."""

    name: str
    source: dict[str, object]
    image: ImageInfo
    class_names: tuple[str, ...] | None
    sets: dict[str, SetInfo | None]
    rejects: Rejects = Rejects()
    config: dict[str, dict[str, object]] = Field(default_factory=dict)

    def counts(self, set_name: str) -> tuple[int, ...]:
        """Return images of each class in a set; empty where that is not known."""
        info = self.sets.get(set_name)
        return (info.class_counts or ()) if info else ()

    @property
    def is_labelled(self) -> bool:
        """Whether there are classes."""
        return self.class_names is not None


class RunError(View):
    """The failure of a run."""

    what: str
    where: str = ""
    todo: str = ""
    exit_code: int | str = 1


class Note(View):
    """A later invocation about a run."""

    utc: str
    command: str


class Git(View):
    """State of the checkout."""

    commit: str | None = None
    dirty: bool | None = None


class Hardware(View):
    """The machine."""

    platform: str | None = None
    cpu_count: int | None = None
    memory_bytes: int | None = None
    gpus: tuple[str, ...] = ()


class DataRef(View):
    """The data set that a run names."""

    uri: str
    name: str
    manifest_hash: str


class Run(View):
    """run.json."""

    run: str
    status: str
    config_hash: str
    command: str
    seed: int
    started_utc: str
    git: Git = Git()
    versions: dict[str, str | None] = Field(default_factory=dict)
    hardware: Hardware = Hardware()
    data: DataRef | None
    timings_s: dict[str, float] = Field(default_factory=dict)
    resumes: tuple[Note, ...] = ()
    error: RunError | None
