"""The report's sections on the images: the data set, and what pruning forgets."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.console import counted
from pipeline.record.evaluation import Evaluation, Forgotten, GroupMean
from pipeline.report.charts import plots
from pipeline.report.charts.plots import Bar
from pipeline.report.names import GROUPS, frequency_order, group_of, title
from pipeline.report.parts import Figure, Pairs, Swatch, Table, Thumb, thumb
from pipeline.report.views import Manifest

_MAX_EXAMPLES = 10
_MAX_IMAGES = 16


@dataclass(frozen=True)
class DataSection:
    """The sets of the data set, the class histogram, and the images that were left out."""

    source: str
    sets: Pairs
    figure: Figure | None
    num_rejected: int
    reasons: Pairs
    examples: Table


def data_section(manifest: Manifest, evaluation: Evaluation | None) -> DataSection:
    """Return what is known of the data set."""
    rejects = manifest.rejects
    reasons = sorted(rejects.by_reason.items(), key=lambda item: -item[1])
    return DataSection(
        source=f"{manifest.source.get('kind', 'unknown')}, {_image_text(manifest)}",
        sets=tuple((name, str(part.rows)) for name, part in manifest.sets.items() if part),
        figure=_histogram(manifest, evaluation),
        num_rejected=rejects.total,
        reasons=tuple((reason, str(count)) for reason, count in reasons),
        examples=Table(
            "Rejected images",
            ("Id", "Reason", "Detail"),
            tuple((e.id, e.reason, e.detail) for e in rejects.examples[:_MAX_EXAMPLES]),
        ),
    )


def _histogram(manifest: Manifest, evaluation: Evaluation | None) -> Figure | None:
    counts, names = manifest.counts("pretrain"), manifest.class_names
    if not counts or not names:
        return None
    group = group_of(evaluation)
    bars = [
        Bar(names[i], counts[i], group.get(i, ("", "g0"))[1], str(counts[i]))
        for i in frequency_order(counts)
    ]
    ratio = max(counts) / max(1, min(counts))
    text = f"{counted(len(counts), 'class')} from {max(counts)} to {counted(min(counts), 'image')}"
    drawing = plots.bars(
        bars,
        label=f"Images per class in the pre-training set: {text}",
        x_label="classes, most frequent first",
        y_label="images",
    )
    legend = tuple(Swatch(name, css) for _, name, css in GROUPS) if group else ()
    caption = f"{text}: the most frequent class has {ratio:.0f} times the images of the rarest."
    return Figure("Pre-training images per class", Markup(drawing), caption, legend)


def _image_text(manifest: Manifest) -> str:
    image = manifest.image
    if image.encoding == "raw":
        return f"{image.width_px} x {image.height_px} px, RGB, stored as pixels"
    return "stored as the original files"


@dataclass(frozen=True)
class ForgottenSection:
    """The images that pruning changes most and least, and whether rare classes lead."""

    method: str
    prune_percent: str
    scored: int
    lists: tuple[tuple[str, tuple[Thumb, ...]], ...]
    figure: Figure | None
    labelled: bool


def forgotten_section(forgotten: Forgotten, manifest: Manifest | None) -> ForgottenSection:
    """Return what forgotten.json says."""
    names = manifest.class_names if manifest is not None else None
    return ForgottenSection(
        method=title(forgotten.method),
        prune_percent=f"{100 * forgotten.prune_ratio:g}",
        scored=forgotten.scored,
        lists=(
            ("Forgotten most", tuple(thumb(i, names) for i in forgotten.most[:_MAX_IMAGES])),
            ("Forgotten least", tuple(thumb(i, names) for i in forgotten.least[:_MAX_IMAGES])),
        ),
        figure=_group_figure(forgotten),
        labelled=names is not None,
    )


def _group_figure(forgotten: Forgotten) -> Figure | None:
    means = forgotten.group_mean
    found: dict[str, GroupMean | None] = {key: getattr(means, key, None) for key, _, _ in GROUPS}
    bars = [
        Bar(name, one.mean, css, f"{one.mean:.3f}{_half(one.half)}, {counted(one.images, 'image')}")
        for key, name, css in GROUPS
        if (one := found[key]) is not None
    ]
    if len(bars) < 2:
        return None
    drawing = plots.bars(
        bars,
        label="Mean disagreement of dense and pruned embeddings: "
        + ", ".join(f"{bar.name} {bar.text}" for bar in bars),
        x_label="",
        y_label="mean disagreement",
    )
    caption = "± is half of a 95 % interval over images."
    many, few = found["many"], found["few"]
    if many is not None and few is not None and many.half is not None and few.half is not None:
        gap, half = few.mean - many.mean, math.hypot(many.half, few.half)
        word = "within chance" if abs(gap) <= half else "more" if gap > 0 else "less"
        says = {
            "within chance": "is not shown to forget rare classes first",
            "more": "forgets rare classes first",
            "less": "forgets frequent classes first",
        }
        caption += f" Few minus Many is {gap:+.3f}{_half(half)}: pruning {says[word]}."
    return Figure("Mean disagreement by group", Markup(drawing), caption)


def _half(half: float | None) -> str:
    return "" if half is None else f" ± {half:.3f}"
