"""The report's sections on training: loss and learning rate, health of the features, pruning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from markupsafe import Markup

from pipeline.console import counted
from pipeline.record.rows import HealthRow, MaskRow, StepRow
from pipeline.record.scores import ABSENT
from pipeline.report.bounds import bounds
from pipeline.report.charts import plots
from pipeline.report.charts.plots import Bar, Curve
from pipeline.report.names import layer_name, style, title
from pipeline.report.parts import Figure, Swatch, Table

# Measure -> name, unit factor, what to look for. In the order of the table; the first four are
# drawn as well.
MEASURES: dict[str, tuple[str, float, str]] = {
    "view_retrieval": ("view retrieval, %", 100,
                       "Healthy features rise: an image is found by another view of it."),
    "rankme": ("RankMe", 1, "The effective number of dimensions. A fall means a collapse."),
    "balance_few": ("view retrieval in small clusters, %", 100,
                    "Small clusters stand in for rare classes."),
    "disagreement": ("disagreement of the branches", 1,
                     "Near 0 the pruned branch no longer differs, and SDCLR is SimCLR."),
    "balance_std": ("spread over cluster sizes, %", 100, ""),
    "alpha_req": ("alpha-ReQ", 1, ""),
    "alignment": ("alignment", 1, ""),
    "uniformity": ("uniformity", 1, ""),
    "dead_frac": ("dead dimensions, %", 100, ""),
}  # fmt: skip
_NUM_DRAWN = 4
_FEW_POINTS = 5


@dataclass(frozen=True)
class TrainingSection:
    """Curves over steps, and a table with the end of each method."""

    figures: tuple[Figure, ...]
    legend: tuple[Swatch, ...]
    table: Table
    note: str
    bounds: str


def training_section(steps: Sequence[StepRow]) -> TrainingSection | None:
    """Return what was logged of the steps; None before the first."""
    by_method = _by_method(steps)
    if not by_method:
        return None
    longest = max(map(len, by_method.values()))
    drawn = []
    for name, key, caption in (
        ("Loss", "loss", "The two losses differ by construction: compare shapes, not heights."
         if len(by_method) > 1 else ""),
        ("Learning rate", "lr", ""),
    ):  # fmt: skip
        data = [
            Curve(title(m), style(m), [r.step for r in rows], [getattr(r, key) for r in rows])
            for m, rows in by_method.items()
        ]
        ends = ", ".join(f"{c.name} ends at {_number(c.y[-1])} (step {c.x[-1]:.0f})" for c in data)
        drawing = plots.curves(
            data, label=f"{name} over steps: {ends}", x_label="step", y_label=name.lower()
        )
        if drawing:
            drawn.append(Figure(name, Markup(drawing), _caption(caption, key, longest)))
    note = ""
    if longest < _FEW_POINTS:
        note = f"Only {longest} steps were logged: too few to judge a curve by."
    rows = tuple(_training_row(method, found) for method, found in by_method.items())
    headers = (
        "Method", "Step", "Epoch", "First loss", "Last loss", "Temperature", "Images/s (median)",
        "Waiting for data",
    )  # fmt: skip
    legend = tuple(Swatch(title(m), style(m)) for m in by_method)
    return TrainingSection(
        tuple(drawn), legend, Table("Training", headers, rows), note, bounds(steps)
    )


def _caption(text: str, key: str, longest: int) -> str:
    if longest < _FEW_POINTS:
        return ""
    if key == "loss":
        text = f"Healthy: falls, then levels off. {text}"
    averaged = " Neighbouring steps are averaged." if longest > plots.MAX_POINTS else ""
    return (text + averaged).strip()


def _training_row(method: str, rows: Sequence[StepRow]) -> tuple[str, ...]:
    last = rows[-1]
    return (
        title(method),
        f"{last.step} of {last.num_steps}",
        str(last.epoch + 1),
        _number(rows[0].loss),
        _number(last.loss),
        f"{last.temperature:g}",
        f"{median(r.images_per_s for r in rows):.0f}",
        f"{100 * fmean(r.data_wait_frac for r in rows):.1f} %",
    )


@dataclass(frozen=True)
class HealthSection:
    """Label-free measures over the epochs, and the last of each method."""

    figures: tuple[Figure, ...]
    legend: tuple[Swatch, ...]
    table: Table
    num_images: int
    last: str


def health_section(rows: Sequence[HealthRow]) -> HealthSection | None:
    """Return the measures that were taken in training; None when there are none."""
    by_method: dict[str, list[HealthRow]] = {}
    for row in rows:
        by_method.setdefault(row.method, []).append(row)
    if not by_method:
        return None
    series = [(title(m), style(m), found) for m, found in by_method.items()]
    newest = [found[-1] for found in by_method.values()]
    return HealthSection(
        health_figures(series),
        tuple(Swatch(name, css) for name, css, _ in series),
        Table(
            "Label-free measures at the last check",
            ("Measure", *(name for name, _, _ in series)),
            tuple(
                (label, *(measured(row, name) for row in newest))
                for name, (label, _, _) in MEASURES.items()
            ),
        ),
        newest[0].num_images,
        _last_check(newest),
    )


def _last_check(newest: Sequence[HealthRow]) -> str:
    """Return what no alarm at the last check of each method says of the training."""
    if any(row.step == 0 for row in newest):
        return " The last check was before training, so it says nothing of it."
    return " No alarm at the last check."


def health_figures(
    series: Sequence[tuple[str, str, Sequence[HealthRow]]], num: int = _NUM_DRAWN
) -> tuple[Figure, ...]:
    """Return the first `num` measures over epochs; `series` are (name, CSS class, rows)."""
    drawn = []
    for name, (label, factor, caption) in list(MEASURES.items())[:num]:
        data = [
            Curve(who, css, [float(r.epochs_trained) for r in found],
                  [_value(r, name, factor) for r in found])
            for who, css, found in series
        ]  # fmt: skip
        drawing = plots.curves(
            data, label=f"{label} over epochs", x_label="epochs trained", y_label=label
        )
        if drawing:
            drawn.append(Figure(label[0].upper() + label[1:], Markup(drawing), caption))
    return tuple(drawn)


def measured(row: HealthRow, name: str) -> str:
    """Return one measure as text in the unit of its name."""
    value = _value(row, name, MEASURES[name][1])
    return ABSENT if value is None else f"{value:.3g}"


def _value(row: HealthRow, name: str, factor: float) -> float | None:
    value = row.measures.get(name)
    return factor * value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class PruningSection:
    """Kept weights of each layer in the last epoch, and of three layers over the epochs."""

    figures: tuple[Figure, ...]
    table: Table


def pruning_section(masks: Sequence[MaskRow]) -> PruningSection | None:
    """Return what the masks kept; None when no method prunes."""
    if not masks:
        return None
    last = masks[-1]
    layers = last.kept_frac
    lowest = min(layers, key=lambda name: layers[name])
    bars = [Bar(layer_name(n), 100 * kept, "c1", _percent_text(kept)) for n, kept in layers.items()]
    fewest = f"{layer_name(lowest)} ({_percent_text(layers[lowest])})"
    drawing = plots.bars(
        bars,
        label=f"Weights kept in each of {counted(len(layers), 'layer')} in epoch "
        f"{last.epoch + 1}; fewest in "
        f"{fewest}",
        x_label="pruned layers, input side first",
        y_label="weights kept, %",
    )
    caption = (
        f"Input side first; {100 * last.prune_ratio:g} % of their weights are pruned. Fewest in "
        f"{fewest}."
    )
    now = Figure(f"Weights kept per layer, epoch {last.epoch + 1}", Markup(drawing), caption)
    rows = tuple((bar.name, bar.text) for bar in bars)
    table = Table("Weights kept per layer", ("Layer", "Kept"), rows)
    return PruningSection((now, *_kept_over_epochs(masks, lowest)), table)


def _kept_over_epochs(masks: Sequence[MaskRow], lowest: str) -> tuple[Figure, ...]:
    names = list(masks[-1].kept_frac)
    chosen = {names[0]: "first", lowest: "fewest kept", names[-1]: "last"}
    shown = [
        Curve(
            f"{layer_name(name)} ({role})",
            css,
            [m.epoch + 1 for m in masks],
            [100 * m.kept_frac[name] if name in m.kept_frac else None for m in masks],
        )
        for (name, role), css in zip(chosen.items(), ("c1", "c2", "c5"), strict=False)
    ]
    if len({m.epoch for m in masks}) < 2:
        return ()
    drawing = plots.curves(
        shown,
        label="Weights kept over the epochs in " + ", ".join(c.name for c in shown),
        x_label="epoch",
        y_label="weights kept, %",
    )
    caption = "A layer that drifts towards 0 is being cut off."
    legend = tuple(Swatch(c.name, c.style) for c in shown)
    return (Figure("Weights kept over the epochs", Markup(drawing), caption, legend),)


def _by_method(steps: Sequence[StepRow]) -> dict[str, list[StepRow]]:
    found: dict[str, list[StepRow]] = {}
    for row in steps:
        found.setdefault(row.method, []).append(row)
    return found


def _number(value: float | None) -> str:
    return "not finite" if value is None or not math.isfinite(value) else f"{value:.4g}"


def _percent_text(fraction: float) -> str:
    """Return two significant digits below 10 %, so that 0.84 % does not read as 1 %."""
    value = 100 * fraction
    if 0 < value < 0.001:
        return "< 0.001 %"
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.2g} %"
