"""The grammar below the charts: an SVG canvas, scales, ticks and axes.

Elements are built as an XML tree, never as text, so a class name such as `<script>` can only end up
as characters. Colours are CSS classes that the page defines for light and dark; sizes are units of
a viewBox 480 wide, which the page scales to the column.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

WIDTH = 480.0
ROW = 24.0
MAX_ROWS = 24
CHAR = 8.6  # width of a character in the page's larger font for phones
_GAP_FRAC = 0.04


def canvas(height: float, label: str) -> ET.Element:
    """Open an empty drawing of `height` units with the text for screen readers."""
    attributes = {"viewBox": f"0 0 {_number(WIDTH)} {_number(height)}", "role": "img"}
    return ET.Element("svg", {**attributes, "aria-label": printable(label), "class": "chart"})


def add(parent: ET.Element, tag: str, text: str = "", **attributes: str | float) -> ET.Element:
    """Append an element; `class_` means class, other underscores become hyphens."""
    names = {key: "class" if key == "class_" else key.replace("_", "-") for key in attributes}
    values = {
        names[key]: value if isinstance(value, str) else _number(value)
        for key, value in attributes.items()
    }
    element = ET.SubElement(parent, tag, values)
    element.text = printable(text) or None
    return element


def to_text(drawing: ET.Element) -> str:
    """Return the drawing as markup for inlining in HTML."""
    return ET.tostring(drawing, encoding="unicode")


def printable(text: str) -> str:
    """Remove control characters, which XML does not allow even escaped; keep lines."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"
        else c
        for c in text
    )


def minus(text: str) -> str:
    """Return a number's text with a true minus sign, as wide as a plus."""
    return text.replace("-", "\N{MINUS SIGN}")


def shorten(text: str, num_chars: int) -> str:
    """Cut a text to at most `num_chars` characters, in its middle: many names differ at the end."""
    if len(text) <= num_chars:
        return text
    head = max(1, num_chars // 2)
    return text[:head] + "…" + text[len(text) - max(0, num_chars - 1 - head) :]


@dataclass(frozen=True)
class Scale:
    """Linear or logarithmic map of values in [low, high] to positions from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the position of a value; values out of range move to the nearer end."""
        value = min(max(value, self.low), self.high)
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        fraction = (value - low) / (high - low) if high > low else 0.5
        return self.start + fraction * (self.end - self.start)

    def ticks(self, num_max: int = 5) -> list[float]:
        """Round values inside the range, at most about `num_max`."""
        return _log_ticks(self, num_max) if self.log else _linear_ticks(self, num_max)


def spanning(
    values: Sequence[float], start: float, end: float, *, zero: bool = False, top: float = math.inf
) -> Scale:
    """Return a linear scale around finite `values` with a small gap on both sides.

    Args:
        values: what has to fit; not empty.
        start: position of the low end.
        end: position of the high end.
        zero: begin at 0 (needed wherever length shows the value).
        top: never reach above this.
    """
    low, high = min(values), max(values)
    gap = (high - low) * _GAP_FRAC or abs(high) * _GAP_FRAC or 1.0
    bottom = 0.0 if zero else low - gap
    if low >= 0:
        bottom = max(0.0, bottom)
    return Scale(bottom, min(top, high + gap), start, end)


def tick_text(value: float) -> str:
    """Format a tick's value briefly: 0.05, 12, 1.5k, 2M, 1e-06."""
    if value == 0:
        return "0"
    for limit, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.3g}"


def axes(
    drawing: ET.Element,
    x: Scale,
    y: Scale,
    *,
    x_label: str,
    y_label: str,
    suffix: str = "",
    x_ticks: bool = True,
) -> None:
    """Draw a horizontal grid with values at the left, ticks below, labels above and below."""
    for value in y.ticks(6):
        add(drawing, "path", d=f"M{_number(x.start)} {_number(y(value))}H{_number(x.end)}",
            class_="grid")  # fmt: skip
        add(drawing, "text", tick_text(value) + suffix, x=x.start - 6, y=y(value) + 4.5,
            text_anchor="end")  # fmt: skip
    if x_ticks:
        for value in x.ticks(6):
            add(drawing, "text", tick_text(value), x=x(value), y=y.start + 20,
                text_anchor="middle")  # fmt: skip
    add(drawing, "text", y_label, x=2, y=14, class_="axis")
    add(drawing, "text", x_label, x=x.end, y=y.start + 40, text_anchor="end", class_="axis")


def hover(
    parent: ET.Element, *, x: float, y: float, width: float, height: float, text: str
) -> None:
    """Lay an invisible field over a drawing that shows `text` under the pointer."""
    field = add(parent, "rect", x=x, y=y, width=width, height=height, class_="hover")
    add(field, "title", text)


def name_width(names: Sequence[str]) -> float:
    """Return the width of the column of row names."""
    return min(190.0, max(map(len, names)) * CHAR + 10)


def row_name(drawing: ET.Element, name: str, left: float, middle: float) -> None:
    """Write the name of the row whose centre is `middle`, ending left of `left`."""
    text = add(drawing, "text", shorten(name, int((left - 8) / CHAR)), x=left - 8,
               y=middle + 4.5, text_anchor="end", class_="name")  # fmt: skip
    if len(name) > int((left - 8) / CHAR):
        add(text, "title", name)


def _linear_ticks(scale: Scale, num_max: int) -> list[float]:
    span = scale.high - scale.low
    if span <= 0:
        return [scale.low]
    power = 10.0 ** math.floor(math.log10(span / num_max))
    step = next(m * power for m in (1, 2, 5, 10, 20) if span / (m * power) <= num_max)
    first, last = math.ceil(scale.low / step - 1e-9), math.floor(scale.high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def _log_ticks(scale: Scale, num_max: int) -> list[float]:
    exponents = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
    for mantissas in ((1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**e for e in exponents for m in mantissas]
        found = [value for value in found if scale.low <= value <= scale.high]
        if len(found) <= num_max:
            break
    return found[:: max(1, math.ceil(len(found) / num_max))]


def _number(value: float) -> str:
    """Format a coordinate to one hundredth of a unit, which no screen can show."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
