"""Views of mining.json: what the pages show of it."""

from __future__ import annotations

from pipeline.report.views import View


class ScoreFound(View):
    """The success of one score of one network in finding images of the rare classes."""

    model: str
    score: str
    auroc: float
    auroc_low: float
    auroc_high: float
    precision: dict[str, float]


class ClassPlace(View):
    """Mean place of a class in the ranking, 0 = most common."""

    name: str
    count: int
    mean_rank_share: float


class Batch(View):
    """The images suggested for annotation."""

    images: int
    few: int
    few_expected_by_chance: float
    classes: int


class Findings(View):
    """The judgement of the labels on the ranking."""

    few_classes: tuple[str, ...]
    num_few: int
    base_rate: float
    scores: tuple[ScoreFound, ...]
    classes: tuple[ClassPlace, ...]
    batch: Batch


class Map(View):
    """Coordinates of some images."""

    method: str
    note: str
    x: tuple[float, ...]
    y: tuple[float, ...]


class Maps(View):
    """The maps of the same images, with one entry a point in every list."""

    maps: tuple[Map, ...]
    label: tuple[int | None, ...]
    rank_share: tuple[float, ...]


class MinedData(View):
    """The data set that was ranked."""

    uri: str
    name: str


class Mining(View):
    """mining.json."""

    data: MinedData
    set: str
    method: str
    step: int
    score: str
    prune_ratios: tuple[float, ...]
    num_views: int
    knn_k: int
    num_reference: int
    scored: int
    class_names: tuple[str, ...] | None
    findings: Findings | None
    groups: dict[str, tuple[int, ...]] | None
    map: Maps
