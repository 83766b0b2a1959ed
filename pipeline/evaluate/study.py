"""Means and paired differences over the seeds of a study, and what its rankings found.

Runs of one seed are pairs, whatever their arm: they share the split's classes, the held-out images
and the initial weights. Every arm is scored by the frequency groups of the first arm, so that Few
means the same classes in all of them: a balanced set has no rare ones of its own.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from pipeline import storage
from pipeline.evaluate.aggregate import mean_entry
from pipeline.evaluate.comparison import (
    Table,
    check_same_classes,
    gaps_closed,
    group_scores_of,
    half_width,
    method_differences,
    not_evaluated,
)
from pipeline.model.source import UNTRAINED
from pipeline.record.aggregate import MeanDifference, MeanScore
from pipeline.record.evaluation import Evaluation, Score
from pipeline.record.mining import Mining, ScoreFound
from pipeline.record.study import GapClosed, RareFound, StudyRun
from sdclr.groups import Groups, GroupScores, group_scores

NUM_RAREST = 12
"""Images at the head of a ranking that a person looks at first."""


@dataclass(frozen=True)
class StudyScores:
    """Scores of a study, by protocol and model."""

    scored_on: str
    scores: tuple[MeanScore, ...]
    differences: tuple[MeanDifference, ...]
    gaps: tuple[GapClosed, ...]


def study_scores(runs: Sequence[StudyRun], twin: str | None = None) -> StudyScores:
    """Average the evaluations of a study's runs; models of later arms are `model, arm`.

    Args:
        runs: of the study.
        twin: the arm of the balanced twin, if there is one.

    Raises:
        DataError: a run has no evaluation, or the runs are about different classes.
    """
    found = [(run, _evaluation(run.uri)) for run in runs]
    check_same_classes([(run.uri, evaluation) for run, evaluation in found])
    first_arm = runs[0].arm
    groups = {run.seed: _groups(e) for run, e in found if run.arm == first_arm}
    table: dict[tuple[str, str], dict[Hashable, GroupScores]] = {}
    for protocol in found[0][1].protocols:
        for arm in dict.fromkeys(run.arm for run in runs):
            for run, evaluation in (pair for pair in found if pair[0].arm == arm):
                for model, score in evaluation.scores_by(protocol):
                    if arm != first_arm and model.name == UNTRAINED:
                        continue  # the same network in every arm
                    name = model.name if arm == first_arm else f"{model.name}, {arm}"
                    own = arm == first_arm
                    scores = group_scores_of(score) if own else _in(groups[run.seed], score)
                    table.setdefault((protocol, name), {})[run.seed] = scores
    return StudyScores(
        scored_on=found[0][1].scored_on,
        scores=tuple(mean_entry(*name, list(scores.values())) for name, scores in table.items()),
        differences=method_differences(table),
        gaps=_gaps(table, twin),
    )


def _gaps(table: Table, twin: str | None) -> tuple[GapClosed, ...]:
    """Return the gaps of the methods of the first arm; the twin's first method is the base."""
    of_twin = [name for _, name in table if twin is not None and name.endswith(f", {twin}")]
    if not of_twin:
        return ()
    base = of_twin[0].removesuffix(f", {twin}")
    own = {
        key: scores
        for key, scores in table.items()
        if key[1] == of_twin[0] or ("," not in key[1] and key[1] != UNTRAINED)
    }
    return gaps_closed(own, base=base, twin=of_twin[0])


def rare_found(runs: Sequence[StudyRun]) -> tuple[RareFound, ...]:
    """Average how well the rankings of several runs find images of rare classes."""
    minings = [m for run in runs if (m := Mining.find(storage.join(run.uri, "mining.json")))]
    findings = [mining.findings for mining in minings if mining.findings is not None]
    rows: dict[tuple[str, str], list[ScoreFound]] = {}
    for mining in minings:
        for score in mining.findings.scores if mining.findings is not None else ():
            if score.score == mining.score:  # what was to rank, not what the labels like best
                rows.setdefault((score.model, score.score), []).append(score)
    return tuple(
        _mean_found(scores, fmean(finding.base_rate for finding in findings))
        for scores in rows.values()
    )


def _mean_found(scores: Sequence[ScoreFound], base_rate: float) -> RareFound:
    num_images = _head(scores[0].precision)
    aurocs = [score.auroc for score in scores]
    shares = [score.precision[str(num_images)] for score in scores]
    return RareFound(
        model=scores[0].model,
        score=scores[0].score,
        n=len(scores),
        auroc=fmean(aurocs),
        auroc_half=_half(aurocs),
        num_images=num_images,
        precision=fmean(shares),
        precision_half=_half(shares),
        base_rate=base_rate,
    )


def _head(precision: Mapping[str, float]) -> int:
    return min((int(n) for n in precision), key=lambda n: abs(n - NUM_RAREST))


def _half(values: Sequence[float]) -> float | None:
    return half_width(stdev(values), len(values)) if len(values) > 1 else None


def _evaluation(uri: str) -> Evaluation:
    evaluation = Evaluation.find(storage.join(uri, "evaluation.json"))
    if evaluation is None:
        raise not_evaluated(uri)
    return evaluation


def _groups(evaluation: Evaluation) -> Groups:
    groups = evaluation.groups
    return Groups(groups.many, groups.medium, groups.few)


def _in(groups: Groups, score: Score) -> GroupScores:
    """Score one model by the groups of another arm; STD of several draws needs each draw."""
    accuracies = [math.nan if value is None else value for value in score.per_class]
    found = group_scores(accuracies, groups)
    return found if score.n == 1 else replace(found, std=math.nan)
