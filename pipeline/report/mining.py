"""The evidence, maps and tables of mining.json, for the pages and the console."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline import storage
from pipeline.console import counted, program
from pipeline.record.embedding import VectorHealth
from pipeline.record.mining import Findings, LabelledBatch, Mining, ScoreFound
from pipeline.record.run import Run
from pipeline.record.scores import ABSENT
from pipeline.record.steps import behind
from pipeline.redact import redact
from pipeline.report.charts.forest import Gap, forest
from pipeline.report.charts.scatter import Cloud, scatter
from pipeline.report.names import GROUPS, listed, title
from pipeline.report.parts import Figure, Swatch, Table, class_name
from pipeline.report.verdict import Tone

FINDINGS_HEADERS = ("Score", "Network", "AUROC", "95 % interval", "P@50", "P@100", "P@Few")
_QUARTILES = (
    ("commonest quarter", "g0"), ("second quarter", "g1"), ("third quarter", "g2"),
    ("rarest quarter", "g3"),
)  # fmt: skip
_MAX_LISTED = 6


@dataclass(frozen=True)
class Outdated:
    """A ranking by an older checkpoint: which one, and the command that ranks again."""

    text: str
    command: str


@dataclass(frozen=True)
class Evidence:
    """The answer whether the ranking finds rare classes, in a sentence and a figure."""

    word: str
    tone: Tone
    text: str
    figure: Figure | None


def evidence(mining: Mining) -> Evidence:
    """Return whether labels confirm the ranking; without labels, that nothing does."""
    found = mining.findings
    if found is None and mining.labelled is not None:
        return Evidence(
            "Checked on the suggested images",
            "open",
            "The data set has no labels of rare classes, so the ranking of all images is not "
            "checked. The labels that were given count the suggested images.",
            None,
        )
    if found is None:
        return Evidence(
            "Not checked",
            "open",
            "There are no labels of rare classes, so nothing here says whether the ranking finds "
            "rare things. Look at the pictures; label the suggested images to find out.",
            None,
        )
    own = next((e for e in found.scores if (e.model, e.score) == ("trained", mining.score)), None)
    if own is None:
        return Evidence("Not checked", "open", "The score was not compared with labels.", None)
    word: str
    tone: Tone
    if own.auroc_low > 0.5:
        word, tone = "Better than chance", "good"
    elif own.auroc_high < 0.5:
        word, tone = "Worse than chance", "bad"
    else:
        word, tone = "No better than chance", "bad"
    classes = _some(found.few_classes)
    text = (
        f"AUROC {own.auroc:.3f} (95 % interval {own.auroc_low:.3f} to {own.auroc_high:.3f}, chance "
        f"0.5) for finding the {counted(found.num_few, 'image')} of the rare classes {classes} "
        "among "
        f"{mining.scored}."
    )
    if found.tied_classes:
        text += f" Not counted, though they have as few images: {_some(found.tied_classes)}."
    others = {"untrained": "The untrained network reaches", "pixels": "Raw pixels reach"}
    for e in found.scores:
        if e.model in others and e.score == mining.score:
            span = f"{e.auroc_low:.3f} to {e.auroc_high:.3f}"
            text += f" {others[e.model]} {e.auroc:.3f} ({span})."
    return Evidence(word, tone, text, _forest(found.scores))


def _some(names: Sequence[str]) -> str:
    """Return names as a list in a sentence, the first ones of many."""
    more = len(names) - _MAX_LISTED
    return listed(names[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def _forest(scores: Sequence[ScoreFound]) -> Figure | None:
    gaps = [
        Gap(
            "raw pixels" if e.model == "pixels" else f"{e.model} network",
            e.score,
            100 * (e.auroc - 0.5),
            50 * (e.auroc_high - e.auroc_low),
            "c1" if e.model == "trained" else "c3",
            f"AUROC {e.auroc:.3f}",
        )
        for e in sorted(scores, key=lambda e: e.model != "trained")
    ]
    drawing = forest(
        gaps,
        label="AUROC minus chance: " + ", ".join(f"{g.name} {g.text}" for g in gaps),
        low_label="worse than chance",
        high_label="better than chance",
    )
    caption = "AUROC minus 0.5, in points, with 95 % bootstrap intervals over images."
    return Figure("Each score against the labels", Markup(drawing), caption) if drawing else None


def of_older(run_uri: str, run: Run, mining: Mining) -> Outdated | None:
    """Return that a run has a newer checkpoint than the one that ranked; None when it has not."""
    late = behind(run_uri, mining.method, mining.step)
    if late is None:
        return None
    words = [program(), "mine", "--resume", shlex.quote(redact(run_uri))]
    if mining.set != "pretrain":
        words += ["--set", mining.set]
    if run.data is None or mining.data.manifest_hash != run.data.manifest_hash:
        words += ["--data", shlex.quote(mining.data.uri)]
    return Outdated(f"of an older checkpoint: {late}", " ".join(words))


def how_scored(mining: Mining) -> str:
    """Return what the score of an image means."""
    by = {
        "disagreement": "how much of an image's embedding pruning changes",
        "knn_distance": "how far an image is from its nearest neighbours",
        "training_loss": "the mean loss of an image in training",
        "both": "the mean of two ranks: how much pruning changes an image's embedding, and how far "
        "the image is from its nearest neighbours. 1 is the rarest place, 0 the most common",
    }.get(mining.score, mining.score)
    ratios = listed([f"{100 * ratio:g}" for ratio in mining.prune_ratios])
    with_pruning = mining.score in ("disagreement", "both")
    how = (
        f", pruned by {ratios} %, {counted(mining.num_views, 'view')} an image"
        if with_pruning
        else ""
    )
    network = "The given weights"
    if mining.step is not None:
        network = f"{title(mining.method)} after {counted(mining.step, 'step')}"
    return (
        f"The score is {by}. {network}{how}, {counted(mining.knn_k, 'neighbour')} among "
        f"{counted(mining.num_reference, 'image')}. Labels took no part."
    )


def vectors_warning(found: VectorHealth | None) -> tuple[str, ...]:
    """Return why not to trust what these vectors say; empty where nothing is known against it."""
    if found is None or not found.alarms:
        return ()
    rank, cosine = (ABSENT if v is None else f"{v:.4g}" for v in (found.rankme, found.mean_cosine))
    return (
        "The network hardly distinguishes these images. Do not rely on what follows.",
        f"Over the centre crops of {found.num_images} of them two have a mean cosine of {cosine}, "
        f"and RankMe is {rank}.",
        *(f"{alarm.text[0].upper()}{alarm.text[1:]}." for alarm in found.alarms),
        f"To do: {found.alarms[0].change}.",
    )


def score_text(score: float | None) -> str:
    """Return a score with three significant digits, so that small ones differ as well."""
    if score is None:
        return ""
    decimals = 2 - math.floor(math.log10(abs(score))) if score else 0
    return f"{score:.{min(12, max(0, decimals))}f}"


def findings_tables(mining: Mining) -> tuple[Table, ...]:
    """Return how well each score does, and the place of each class; empty without labels."""
    found = mining.findings
    if found is None:
        return ()
    classes = sorted(found.classes, key=lambda entry: -entry.count)
    return (
        Table("How well each score finds the rare classes", FINDINGS_HEADERS, findings_rows(found)),
        Table(
            "Mean place of each class",
            ("Class", "Images", "Mean place"),
            tuple((e.name, str(e.count), f"{e.mean_rank_share:.3f}") for e in classes),
        ),
    )


def batch_text(found: Findings) -> str:
    """Return how many of the suggested images are of rare classes."""
    batch = found.batch
    if batch.images >= sum(place.count for place in found.classes):
        return "All images are suggested for annotation: a smaller mine.batch_images chooses."
    return (
        f"Of the {counted(batch.images, 'image')} suggested for annotation {batch.few} are of "
        f"rare classes; {batch.few_expected_by_chance:.1f} would be by chance. They cover "
        f"{counted(batch.classes, 'class')}."
    )


def labelled_text(found: LabelledBatch) -> str:
    """Return what given labels say of the suggested images."""
    rare = listed(found.rare[:_MAX_LISTED])
    more = len(found.rare) - _MAX_LISTED
    by_count = ", the labels with the fewest images in the CSV" if found.rare_by_count else ""
    shares = [f"{100 * share:.0f} % of the first {k}" for k, share in found.first.items()]
    others = f" {found.others} labelled images are not among them." if found.others else ""
    if found.absent:
        others += f" In the CSV no image has the label {', '.join(found.absent)}."
    return (
        f"By the given labels {found.hits} of {found.labelled} suggested images are rare, "
        f"{100 * found.precision:.0f} % (95 % interval {100 * found.low:.0f} to "
        f"{100 * found.high:.0f})"
        + (f"; {listed(shares)}" if shares else "")
        + f". {found.labelled} of {found.suggested} have a label, of "
        f"{counted(len(found.classes), 'class')}; "
        f"rare are {rare}{f' and {more} more' if more > 0 else ''}{by_count}.{others}"
    )


def findings_rows(found: Findings) -> tuple[tuple[str, ...], ...]:
    """Return rows below `FINDINGS_HEADERS`; the last one is chance."""
    rows = []
    for entry in found.scores:
        cells = [_share(entry.precision.get(k)) for k in ("50", "100", str(found.num_few))]
        interval = f"{entry.auroc_low:.3f} to {entry.auroc_high:.3f}"
        rows.append((entry.score, entry.model, f"{entry.auroc:.3f}", interval, *cells))
    base = _share(found.base_rate)
    return (*rows, ("chance", ABSENT, "0.500", ABSENT, base, base, base))


def findings_csv(found: Findings) -> bytes:
    """Return the same at full precision, one row for each score and k."""
    rows = [
        [e.score, e.model, e.auroc, e.auroc_low, e.auroc_high, k, precision, found.base_rate]
        for e in found.scores
        for k, precision in e.precision.items()
    ]
    header = ("score", "network", "auroc", "low", "high", "k", "precision", "base_rate")
    return storage.to_csv(header, rows)


def _share(value: float | None) -> str:
    return ABSENT if value is None else f"{100 * value:.1f} %"


def map_figures(mining: Mining) -> tuple[Figure, ...]:
    """Return the maps, coloured by frequency group, or by rank where there are no groups."""
    clouds = _clouds(mining)
    legend = tuple(Swatch(name, css) for name, css, _ in clouds)
    drawn, places = mining.map, mining.map.rank_share
    texts = [
        f"{class_name(label, mining.class_names)} place {place:.2f}".strip()
        for label, place in zip(drawn.label, places, strict=True)
    ]
    return tuple(
        Figure(
            f"Map of the features, {one.method}",
            Markup(
                scatter(
                    [
                        Cloud(
                            name,
                            css,
                            [_known(one.x[i]) for i in rows],
                            [_known(one.y[i]) for i in rows],
                            [texts[i] for i in rows],
                        )
                        for name, css, rows in clouds
                    ],
                    label=f"Map of {counted(len(one.x), 'image')} by {one.method}",
                )
            ),
            f"{counted(len(one.x), 'image')}, {one.note}. Near means alike to the network; the "
            "axes have no "
            "unit.",
            legend,
        )
        for one in drawn.maps
    )


def _known(place: float | None) -> float:
    return math.nan if place is None else place


def _clouds(mining: Mining) -> list[tuple[str, str, list[int]]]:
    """Return (name, CSS class, rows of the map) for each colour: by group, or else by rank."""
    labels, groups = mining.map.label, mining.groups
    num = len(labels)
    if groups is not None and all(label is not None for label in labels):
        return [
            (name, css, [i for i in range(num) if labels[i] in getattr(groups, key)])
            for key, name, css in GROUPS
        ]
    quarter = [min(3, int(4 * share)) for share in mining.map.rank_share]
    return [
        (name, css, [i for i in range(num) if quarter[i] == q])
        for q, (name, css) in enumerate(_QUARTILES)
    ]
