"""Methods side by side over several splits and seeds: means, spreads and paired differences.

Two methods that were trained on the same split with the same seed share what makes that split easy
or hard. Their difference on it does not contain it, so differences are taken pair by pair and
averaged afterwards: d = mean_i (a_i - b_i), with the interval of Student's paired t,
d +- t(0.975, n - 1) * s_d / sqrt(n). STD is computed per split before it is averaged or subtracted.

Scores are `sdclr.longtail.GroupScores`, so fractions in [0, 1] unless the caller uses percent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

from sdclr.longtail import GroupScores, mean_scores

# The 0.975 quantile of Student's t for 1 to 30 degrees of freedom, three decimals.
_T975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_NORMAL975 = 1.959964


@dataclass(frozen=True)
class PairedDifference:
    """Method a minus method b over n pairs, field by field.

    Args:
        mean: of the differences.
        spread: sample standard deviation of the differences (ddof 1); None when n = 1.
        half_width: of the 95 % interval around `mean`; None when n = 1.
        n: pairs.
    """

    mean: GroupScores
    spread: GroupScores | None
    half_width: GroupScores | None
    n: int

    def excludes_zero(self, field: str) -> bool:
        """Return whether the 95 % interval of a field, such as `few`, is on one side of 0."""
        if self.half_width is None:
            return False
        mean, half_width = getattr(self.mean, field), getattr(self.half_width, field)
        return bool(abs(mean) > half_width)


def paired_difference(a: Sequence[GroupScores], b: Sequence[GroupScores]) -> PairedDifference:
    """Return the difference a - b of two methods; entry i of both has one split and seed.

    A nan in any pair makes the field nan.

    Raises:
        ValueError: no pairs, or sequences of different lengths.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} scores of one method and {len(b)} of the other are no pairs")
    differences = [
        GroupScores(*np.subtract(astuple(x), astuple(y)).tolist())
        for x, y in zip(a, b, strict=True)
    ]
    summary = mean_scores(differences)
    half_width = None
    if summary.spread is not None:
        factor = student_t975(summary.n - 1) / math.sqrt(summary.n)
        half_width = GroupScores(*(factor * value for value in astuple(summary.spread)))
    return PairedDifference(summary.mean, summary.spread, half_width, summary.n)


def student_t975(degrees: int) -> float:
    """Return the 0.975 quantile of Student's t: a two-sided 95 % interval. Error below 0.001.

    Beyond 30 degrees of freedom by the expansion of Cornish and Fisher (Abramowitz & Stegun
    26.7.5).

    Raises:
        ValueError: degrees < 1.
    """
    if degrees < 1:
        raise ValueError(f"degrees of freedom must be >= 1, got {degrees}")
    if degrees <= len(_T975):
        return _T975[degrees - 1]
    x = _NORMAL975
    return x + (x**3 + x) / (4 * degrees) + (5 * x**5 + 16 * x**3 + 3 * x) / (96 * degrees**2)
