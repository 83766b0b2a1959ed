"""RUN/mining.json: how the images of a set were ranked, and what the labels say of the ranking."""

from __future__ import annotations

from typing import Literal

from pipeline.record.embedding import VectorHealth
from pipeline.record.evaluation import ClassGroups
from pipeline.record.schema import Measured, Part, Record


class ScoreFound(Part):
    """The success of one score of one network in finding images of the rare classes.

    Args:
        model: `trained` or `untrained`.
        score: its name.
        auroc: area under the ROC curve, with the ends of its 95 % bootstrap interval.
        precision: number of images, from the rarest on -> share of them that are of a rare class.
    """

    model: str
    score: str
    auroc: float
    auroc_low: float
    auroc_high: float
    precision: dict[str, float]


class ClassPlace(Part):
    """Mean place of a class of `count` images in the ranking, 0 = most common, 1 = rarest."""

    name: str
    count: int
    mean_rank_share: float


class Batch(Part):
    """The images suggested for annotation, and how many of them are of a rare class."""

    images: int
    few: int
    few_expected_by_chance: float
    classes: int


class Findings(Part):
    """The judgement of the labels on the ranking.

    Args:
        few_classes: the rare classes, `num_few` images in all.
        tied_classes: those with as few images that only the order of classes keeps out.
        base_rate: the share of rare images.
    """

    few_classes: tuple[str, ...]
    tied_classes: tuple[str, ...] = ()
    num_few: int
    base_rate: float
    scores: tuple[ScoreFound, ...]
    classes: tuple[ClassPlace, ...]
    batch: Batch


class LabelledBatch(Part):
    """The judgement of labels from a CSV on the images suggested for annotation.

    Args:
        csv: where the labels were.
        rare: the labels of rare classes.
        absent: those of them that no image of the CSV has.
        rare_by_count: true where nobody named them: they have the fewest images in the CSV.
        suggested, labelled: images of the batch, and those of them that have a label.
        others: labelled images outside the batch.
        hits: labelled images of the batch that are of a rare class.
        precision: their share, with its 95 % Wilson interval.
        first: number of images, in the order of the batch -> share of rare ones among them.
        classes: label -> labelled images of the batch, the most frequent first.
    """

    csv: str
    rare: tuple[str, ...]
    absent: tuple[str, ...]
    rare_by_count: bool
    suggested: int
    labelled: int
    others: int
    hits: int
    precision: float
    low: float
    high: float
    first: dict[str, float]
    classes: dict[str, int]


class Map(Part):
    """Coordinates of some images in [-1, 1]."""

    method: str
    note: str
    x: tuple[Measured, ...]
    y: tuple[Measured, ...]


class Maps(Part):
    """The maps of the same images, with one entry a point in every list."""

    maps: tuple[Map, ...]
    label: tuple[int | None, ...]
    rank_share: tuple[float, ...]


class MinedData(Part):
    """The data set that was ranked."""

    uri: str
    name: str
    manifest_hash: str


class Mining(Record):
    """RUN/mining.json.

    Args:
        data: the data set.
        set: which of its sets.
        method: whose network ranks.
        step: of its checkpoint; null for weights that were given.
        score: that the ranking is made of.
        prune_ratios, num_views, knn_k: as configured.
        num_reference: images among which neighbours were sought.
        scored: images that were ranked.
        class_names: null without labels.
        findings: null without labels of all images, or without images of rare classes.
        groups: of the classes; null without labels.
        map: of a sample of the images.
        labelled: null unless a CSV of labels was given.
        vectors: whether the network distinguishes the images at all; null in older records.
    """

    schema_version: Literal[1] = 1
    data: MinedData
    set: str
    method: str
    step: int | None
    score: str
    prune_ratios: tuple[float, ...]
    num_views: int
    knn_k: int
    num_reference: int
    scored: int
    class_names: tuple[str, ...] | None
    findings: Findings | None
    groups: ClassGroups | None
    map: Maps
    labelled: LabelledBatch | None = None
    vectors: VectorHealth | None = None
