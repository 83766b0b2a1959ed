"""Names and colours of methods, groups and layers: the same in every table and chart."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.dataset.description import source_name
from pipeline.record.evaluation import Evaluation
from pipeline.report.charts.svg import minus
from pipeline.report.views import Manifest
from sdclr.methods import METHODS

TITLES = {name: entry.title for name, entry in METHODS.items()} | {"untrained": "untrained"}
_COLOURS = ("c1", "c2", "c4", "c5", "c6", "c7")
STYLES = dict(zip(METHODS, _COLOURS * len(METHODS), strict=False)) | {"untrained": "c3"}
GROUPS = (("many", "Many", "g1"), ("medium", "Medium", "g2"), ("few", "Few", "g3"))


def title(method: str) -> str:
    """Return a method's or model's name as a reader knows it."""
    return TITLES.get(method, method)


def style(method: str) -> str:
    """Return the CSS class of a method's colour."""
    return STYLES.get(method, "c4")


def layer_name(name: str) -> str:
    """Return a weight's name without what all weights share."""
    return name.removesuffix(".weight").removeprefix("backbone.")


def data_title(manifest: Manifest | None, fallback: str | None) -> str:
    """Return the user's folder and the number of images; digits, 391 images."""
    if manifest is None:
        return fallback or "a run without a data set"
    pretrain = manifest.sets.get("pretrain")
    return f"{source_name(manifest)}, {pretrain.rows if pretrain else 0:,} images"


def signed(points: float, half: float | None = None) -> str:
    """Return a difference in points, and its interval in brackets where there is one."""
    if half is None:
        return minus(f"{points:+.1f}")
    return minus(f"{points:+.1f} ({points - half:+.1f} to {points + half:+.1f})")


def listed(words: Sequence[str]) -> str:
    """Return words as a list in a sentence: a, b and c."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def frequency_order(counts: Sequence[int]) -> list[int]:
    """Return class indices, most frequent first; equal counts keep their order."""
    return sorted(range(len(counts)), key=lambda i: -counts[i])


def group_of(evaluation: Evaluation | None) -> dict[int, tuple[str, str]]:
    """Return class index -> (group title, CSS class); empty before the evaluation."""
    if evaluation is None:
        return {}
    return {i: (name, css) for key, name, css in GROUPS for i in getattr(evaluation.groups, key)}
