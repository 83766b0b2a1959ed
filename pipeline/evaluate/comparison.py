"""Methods side by side over several splits and seeds: means, spreads and paired differences.

Two methods that were trained on the same split with the same seed share what makes that split easy
or hard. Their difference on it does not contain it, so differences are taken pair by pair and
averaged afterwards: d = mean_i (a_i - b_i), with the interval of Student's paired t,
d +- t(0.975, n - 1) * s_d / sqrt(n). STD is computed per split before it is averaged or subtracted.

Scores are `sdclr.groups.GroupScores`, so fractions in [0, 1] unless the caller uses percent.
"""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import astuple, dataclass

import numpy as np

from pipeline.console import program
from pipeline.errors import DataError
from pipeline.evaluate.score import fields_of, values_of
from pipeline.record.aggregate import MeanDifference
from pipeline.record.evaluation import METRICS, Evaluation, GroupValues
from pipeline.record.intervals import NORMAL975
from pipeline.record.study import GapClosed
from sdclr.groups import GroupScores, mean_scores

# The 0.975 quantile of Student's t for 1 to 30 degrees of freedom, three decimals.
_T975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


# (protocol, model) -> pair -> scores. A pair is what two models must share to be compared: a split
# and a seed, or a run.
Table = Mapping[tuple[str, str], Mapping[Hashable, GroupScores]]


def method_differences(table: Table) -> tuple[MeanDifference, ...]:
    """Return the difference of every two models by each protocol, over the pairs that both have."""
    found = []
    for (protocol, a), (other, b) in itertools.combinations(table, 2):
        scores, others = table[protocol, a], table[other, b]
        shared = [pair for pair in scores if pair in others]
        if protocol != other or not shared:
            continue
        paired = paired_difference([scores[i] for i in shared], [others[i] for i in shared])
        found.append(
            MeanDifference(
                protocol=protocol,
                a=a,
                b=b,
                n=paired.n,
                **fields_of(paired.mean),
                spread=values_of(paired.spread),
                half_width=values_of(paired.half_width),
            )
        )
    return tuple(found)


def gaps_closed(table: Table, *, base: str, twin: str) -> tuple[GapClosed, ...]:
    """Return what part of the gap in STD to the balanced twin each other method closes.

    Protocols in which STD was not measured for all three are left out.

    Args:
        table: see above.
        base: name of a method on the long-tailed set.
        twin: name of the same method on the balanced twin.
    """
    found = []
    for protocol, model in table:
        rows = [table.get((protocol, name), {}) for name in (base, twin, model)]
        pairs = [pair for pair in rows[0] if all(pair in row for row in rows)]
        if model in (base, twin) or not pairs:
            continue
        base_n, twin_n, model_n = ([row[pair] for pair in pairs] for row in rows)
        gap, change = paired_difference(base_n, twin_n), paired_difference(base_n, model_n)
        if not math.isfinite(gap.mean.std + change.mean.std):
            continue
        half = None if gap.half_width is None else gap.half_width.std
        is_there = half is not None and gap.mean.std > half
        found.append(
            GapClosed(
                protocol=protocol,
                model=model,
                base=base,
                n=len(pairs),
                gap=gap.mean.std,
                gap_half=half,
                closed=change.mean.std / gap.mean.std if is_there else None,
            )
        )
    return tuple(found)


def group_scores_of(values: GroupValues) -> GroupScores:
    """Return the five numbers of a record; nan where one was not measured."""
    known = {m: math.nan if (v := values.metric(m)) is None else v for m in METRICS}
    return GroupScores(**known)


def not_evaluated(run_uri: str) -> DataError:
    """Return the error that a labelled run has no evaluation."""
    return DataError(
        "E-DATA-027",
        "the run has not been evaluated",
        where=run_uri,
        todo=f"{program()} evaluate --resume {shlex.quote(run_uri)}",
    )


def check_same_classes(runs: Sequence[tuple[str, Evaluation]]) -> None:
    """Refuse evaluations, each with the URI of its run, that are about different classes."""
    for uri, evaluation in runs[1:]:
        first_uri, first = runs[0]
        if evaluation.class_names != first.class_names:
            names = (", ".join(e.class_names)[:200] for e in (first, evaluation))
            raise DataError(
                "E-DATA-088",
                f"the runs are about different classes: {' and '.join(names)}",
                where=f"{first_uri} and {uri}",
                todo="name runs of one labelled data set",
            )


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
    width = None
    if summary.spread is not None:
        width = GroupScores(*(half_width(std, summary.n) for std in astuple(summary.spread)))
    return PairedDifference(summary.mean, summary.spread, width, summary.n)


def half_width(std: float, n: int) -> float:
    """Return half of the 95 % interval of a mean of n >= 2 values, by Student's t.

    Args:
        std: their sample standard deviation (ddof 1).
        n: values.
    """
    return student_t975(n - 1) / math.sqrt(n) * std


def welch_half_width(std_a: float, n_a: int, std_b: float, n_b: int) -> float:
    """Return half of the 95 % interval of the difference of two means, unpaired (Welch 1947).

    Args:
        std_a: sample standard deviation (ddof 1) of the values of the first mean.
        n_a: values of the first mean, at least 2.
        std_b: as `std_a`, of the second.
        n_b: as `n_a`, of the second.
    """
    a, b = std_a**2 / n_a, std_b**2 / n_b
    if a + b == 0:
        return 0.0
    degrees = (a + b) ** 2 / (a**2 / (n_a - 1) + b**2 / (n_b - 1))
    # Rounded down, which makes the interval wider; by rounding alone it may fall below the least.
    return student_t975(max(int(degrees), min(n_a, n_b) - 1)) * math.sqrt(a + b)


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
    x = NORMAL975
    return x + (x**3 + x) / (4 * degrees) + (5 * x**5 + 16 * x**3 + 3 * x) / (96 * degrees**2)
