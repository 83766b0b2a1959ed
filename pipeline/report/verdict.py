"""The answers at the top: did it learn, and does it help the rare classes?

Every answer carries its numbers: how many images and classes it rests on, and a 95 % interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from markupsafe import Markup

from pipeline.console import counted
from pipeline.record.evaluation import Evaluation, Score
from pipeline.record.intervals import NORMAL975
from pipeline.record.rows import HealthRow
from pipeline.record.scores import percent
from pipeline.redact import redact
from pipeline.report.charts.forest import Gap, forest
from pipeline.report.inputs import Inputs
from pipeline.report.names import listed, signed, style, title
from pipeline.report.views import Manifest

Tone = Literal["good", "bad", "open"]


@dataclass(frozen=True)
class Answer:
    """A question, the answer in a word or two, and the sentences with its numbers."""

    question: str
    word: str
    tone: Tone
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """Accuracy on Few of model a minus model b by one protocol, fractions.

    Args:
        protocol: which measured it.
        a, b: names of the models.
        values: accuracy of a and of b.
        half: half of the 95 % interval; None when the images of each class are not known.
        num_images: test images of the rare classes; None when not known.
        num_classes: rare classes that have test images.
    """

    protocol: str
    a: str
    b: str
    values: tuple[float, float]
    half: float | None
    num_images: int | None
    num_classes: int

    @property
    def value(self) -> float:
        """A minus b."""
        return self.values[0] - self.values[1]

    @property
    def sign(self) -> int:
        """1 or -1 when the interval excludes 0, else 0."""
        if self.half is None or abs(self.value) <= self.half:
            return 0
        return 1 if self.value > 0 else -1


@dataclass(frozen=True)
class Verdict:
    """The top of the page."""

    answers: tuple[Answer, ...]
    forest: Markup
    note: str


def verdict(inputs: Inputs) -> Verdict:
    """Return the answers that the records allow."""
    answers = []
    if inputs.health:
        found = learned(inputs.newest_health(), inputs.history)
        answers.append(replace(found, texts=(*started_from(inputs), *found.texts)))
    evaluation, manifest = inputs.evaluation, inputs.manifest
    gaps: list[Difference] = []
    if evaluation is not None:
        names = [model.name for model in evaluation.models]
        ours = "sdclr" if "sdclr" in names else next((n for n in names if n != "untrained"), None)
        for other in ("simclr", "untrained"):
            if ours is None or ours == other or other not in names:
                continue
            some = list(differences(evaluation, manifest, ours, other))
            answers.append(better(some, ours, other))
            gaps += some
    note = ""
    if gaps:
        images = gaps[0].num_images
        rests = (
            f"{images} {evaluation.scored_on if evaluation else ''} images"
            if images
            else "few images"
        )
        note = (
            f"Few is {counted(gaps[0].num_classes, 'rare class')}, measured on {rests}. "
            "Intervals are 95 % "
            "over those images and the draws of labels, with the two models taken as independent. "
            "They do not cover another training seed: for that, compare runs of several seeds."
        )
    return Verdict(tuple(answers), Markup(_drawn(gaps)), note)


def learned(newest: dict[str, HealthRow], rows: Sequence[HealthRow]) -> Answer:
    """Return whether the features of each method became better than before training."""
    words, texts = [], []
    for method, last in newest.items():
        first = next(row for row in rows if row.method == method)
        word, text = _learned(first, last)
        words.append(word)
        texts.append(f"{title(method)}: {text}")
    if len(set(words)) == 1:
        word = words[0]
    elif {"Yes", "With alarms"} & set(words):
        word = "Partly"
    else:
        word = "No" if "No" in words else "Not shown"
    tone: Tone = "good" if set(words) == {"Yes"} else "bad" if "No" in words else "open"
    return Answer("Did it learn?", word, tone, tuple(texts))


def started_from(inputs: Inputs) -> list[str]:
    """Return which weights a run started from, and what it is compared with; empty if by seed."""
    if inputs.start is None:
        return []
    chains = list(inputs.ancestors.values())
    start = chains[0][-1].name if chains and chains[0] else inputs.start
    compared = [next((run for run in chain if run.checks), None) for chain in chains]
    baselines = {
        "these weights" if run is None
        else f"the untrained network of {run.name}" if run.is_first
        else f"the weights that {run.name} started from"
        for run in compared
    }  # fmt: skip
    against = listed(sorted(baselines)) or "these weights"
    return [redact(f"Started from the weights of {start}; compared with {against}.")]


def _learned(first: HealthRow, last: HealthRow) -> tuple[str, str]:
    """Return the word and the sentences: a rise counts from 2 standard errors on."""
    if last.step == 0:
        return "Not yet", "measured before training only."
    before, after = (row.measures.get("view_retrieval") for row in (first, last))
    ranks = [row.measures.get("rankme") for row in (first, last)]
    if after is None or before is None:
        return "No", "the features are not finite."
    rank = ""
    if ranks[0] is not None and ranks[1] is not None:
        rank = f", RankMe from {ranks[0]:.3g} to {ranks[1]:.3g}"
    text = (
        f"{percent(after)} % of {last.num_images} images are found by another view of them "
        f"({percent(before)} % before training){rank}."
    )
    error = math.sqrt(sum(p * (1 - p) / last.num_images for p in (before, after)))
    rises, severe = after - before > 2 * error, any(alarm.is_severe for alarm in last.alarms)
    if rises:
        return ("With alarms" if severe else "Yes"), text
    if after < before or after == before < 1:
        return "No", f"{text} That is no rise."
    margin = (
        f"{text} {percent(before)} to {percent(after)} %: a rise of less than "
        f"{200 * error:.1f} points is within chance for {counted(last.num_images, 'image')}."
    )
    return ("No" if severe else "Not shown"), margin


def differences(
    evaluation: Evaluation, manifest: Manifest | None, a: str, b: str
) -> Iterator[Difference]:
    """Yield the difference on Few of two models for each protocol that scored both."""
    classes = evaluation.groups.few
    counts = manifest.counts(evaluation.scored_on) if manifest is not None else ()
    known = len(counts) == len(evaluation.class_names)
    for protocol in evaluation.protocols:
        by_name = {model.name: score for model, score in evaluation.scores_by(protocol)}
        if a not in by_name or b not in by_name:
            continue
        one, other = by_name[a], by_name[b]
        if one.few is None or other.few is None:
            continue
        half = None
        if known and classes:
            variance = sum(few_variance(score, classes, counts) for score in (one, other))
            half = NORMAL975 * math.sqrt(variance)
        images = sum(counts[c] for c in classes) if known else None
        measured = sum(counts[c] > 0 for c in classes) if known else len(classes)
        yield Difference(protocol, a, b, (one.few, other.few), half, images, measured)


def few_variance(score: Score, classes: Sequence[int], counts: Sequence[int]) -> float:
    """Return the variance of the mean accuracy over those of `classes` that have images.

    Binomial within each class, with two successes and two failures added (Agresti and Coull), so
    that a class without an error is not certain; plus that of the mean over the draws.
    """
    total, measured = 0.0, 0
    for c in classes:
        share = score.per_class[c]
        if share is None or not counts[c]:
            continue
        measured += 1
        n = counts[c] + 4
        p = (share * counts[c] + 2) / n
        total += p * (1 - p) / n
    spread = score.spread.few if score.spread is not None else None
    draws = spread**2 / score.n if spread is not None and score.n > 1 else 0.0
    return total / max(1, measured) ** 2 + draws


def better(found: Sequence[Difference], a: str, b: str) -> Answer:
    """Return whether model a beats model b on the rare classes."""
    other = "the untrained network" if b == "untrained" else title(b)
    question = f"Is {title(a)} better than {other} on Few?"
    if not found:
        return Answer(
            question, "Not measured", "open", ("No protocol scored both on rare classes.",)
        )
    best = found[0]
    text = (
        f"{best.protocol}: {percent(best.values[0])} against {percent(best.values[1])} %, "
        f"{_interval(best)}."
    )
    known = all(gap.half is not None for gap in found)
    return by_protocols(question, text, {gap.protocol: gap.sign for gap in found}, known=known)


def by_protocols(
    question: str, text: str, signs: Mapping[str, int], *, known: bool = True
) -> Answer:
    """Return the answer that protocols give together.

    Args:
        question: about a difference.
        text: its number by the first protocol.
        signs: protocol -> 1 or -1 where its interval excludes 0, else 0; at least one.
        known: whether there are intervals.
    """
    word, tone = _word(set(signs.values()), known=known)
    texts = [text]
    if len(signs) > 1 and len(set(signs.values())) == 1:
        texts.append(f"The same answer by all {counted(len(signs), 'protocol')}.")
    elif len(signs) > 1:
        for sign, said in ((1, "Better"), (-1, "Worse"), (0, "No difference")):
            if names := [protocol for protocol, found in signs.items() if found == sign]:
                texts.append(f"{said} by {listed(names)}.")
    return Answer(question, word, tone, tuple(texts))


def _interval(gap: Difference) -> str:
    points = f"a difference of {signed(100 * gap.value)} points"
    if gap.half is None or gap.num_images is None:
        return points
    low, high = 100 * (gap.value - gap.half), 100 * (gap.value + gap.half)
    return (
        f"{points} (95 % interval {signed(low)} to {signed(high)}, n = "
        f"{counted(gap.num_images, 'image')})"
    )


def _word(signs: set[int], *, known: bool) -> tuple[str, Tone]:
    if not known:
        return "Unclear", "open"
    if signs == {1}:
        return "Yes", "good"
    if signs == {-1}:
        return "No, worse", "bad"
    if signs == {0}:
        return "No difference shown", "open"
    if -1 not in signs:
        return "Yes, by some protocols", "good"
    return "It depends on the protocol", "open"


def _drawn(gaps: Sequence[Difference]) -> str:
    rows = [
        Gap(
            f"{title(gap.a)} minus {title(gap.b)}",
            gap.protocol,
            100 * gap.value,
            None if gap.half is None else 100 * gap.half,
            style(gap.b),
            signed(100 * gap.value, None if gap.half is None else 100 * gap.half),
        )
        for gap in gaps
    ]
    texts = (f"{r.group}, {r.name} {r.text}" for r in rows)
    label = "Differences on Few in points: " + "; ".join(texts)
    return forest(rows, label=label, low_label="worse on Few", high_label="better on Few")
