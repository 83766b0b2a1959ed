"""RUN/mining.html: a page to work with, made from mining.json, gallery.json and run.json.

Everything that comes from data is text in escaped attributes and elements. The one script is our
own, named by its hash in the page's content policy, so no other can run; it loads nothing.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from pipeline import storage
from pipeline.console import Console, counted
from pipeline.record.gallery import Gallery, gallery_uri
from pipeline.record.mining import Mining
from pipeline.redact import redact
from pipeline.report import mining
from pipeline.report.head import Head, head
from pipeline.report.inputs import Inputs, load, require
from pipeline.report.links import links
from pipeline.report.parts import Figure, Link, Table, class_name, image_source
from pipeline.report.template import source, to_html


@dataclass(frozen=True)
class Card:
    """One image: what is known of it, and pictures as data URIs, empty where there is none."""

    place: int
    path: str
    name: str
    rank: str
    score: str
    cluster: str
    near: str
    thumb: str
    large: str

    @property
    def label(self) -> str:
        """What a screen reader says."""
        return ", ".join(word for word in (self.name, f"rank {self.rank}", self.path) if word)


@dataclass(frozen=True)
class Sheet:
    """A list of images with its heading and what to know about it."""

    id: str
    name: str
    text: str
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Page:
    """All of mining.html."""

    head: Head
    data: str
    outdated: mining.Outdated | None
    warnings: tuple[str, ...]
    evidence: mining.Evidence
    how: str
    batch: str
    labelled: str
    sheets: tuple[Sheet, ...]
    others: tuple[Card, ...]
    classes: tuple[str, ...]
    clusters: tuple[tuple[str, str], ...]
    tables: tuple[Table, ...]
    maps: tuple[Figure, ...]
    script: Markup
    csv_name: str


def write_mining_page(run_uri: str) -> tuple[str, Mining]:
    """Make mining.html, and mining/findings.csv where there are labels.

    Returns:
        The page's URI, and what mining.json says.

    Raises:
        DataError: a record is missing or broken; the file is named.
    """
    found = require(Mining, storage.join(run_uri, "mining.json"))
    gallery = Gallery.read(gallery_uri(run_uri))
    if found.findings is not None:
        table = mining.findings_csv(found.findings)
        storage.write_bytes(storage.join(run_uri, "mining", "findings.csv"), table)
    uri = storage.join(run_uri, "mining.html")
    inputs = load(run_uri)
    late = mining.of_older(run_uri, inputs.run, found)
    text = render(inputs, found, gallery, links(run_uri, "mining.html"), late)
    storage.write_bytes(uri, text.encode())
    return uri, found


def render(
    inputs: Inputs,
    found: Mining,
    gallery: Gallery,
    ways: tuple[Link, ...],
    outdated: mining.Outdated | None,
) -> str:
    """Return the page as HTML."""
    cards = [_card(gallery, i, found.class_names) for i in range(len(gallery.images))]
    seen: set[int] = set()

    def sheet(places: Sequence[int]) -> tuple[Card, ...]:
        """Return cards; a larger picture is embedded once."""
        shown = tuple(replace(cards[i], large="") if i in seen else cards[i] for i in places)
        seen.update(places)
        return shown

    sheets = (
        Sheet(
            "rarest",
            "Rarest first",
            "Rare, odd, or not what belongs here: broken and mislabelled images end up here too.",
            sheet(gallery.rarest),
        ),
        Sheet(
            "annotate",
            "To label first",
            "Taken in turns from clusters of the rarest images. The whole list is in "
            "mining/annotate.csv, and in mining/label_studio.",
            sheet(gallery.annotate),
        ),
        Sheet(
            "commonest",
            "Most common first",
            "What the collection has plenty of. Near-duplicates gather here.",
            sheet(gallery.commonest),
        ),
    )
    names = dict.fromkeys(c.name for c in sorted(cards, key=lambda c: c.name) if c.name)
    used = {gallery.images[i].cluster for i in seen}
    script = source("mining.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = Page(
        head=head(inputs, "Rare images", ways),
        data=f"{counted(found.scored, 'image')} of the {found.set} set",
        outdated=outdated,
        warnings=mining.vectors_warning(found.vectors),
        evidence=mining.evidence(found),
        how=mining.how_scored(found),
        batch=mining.batch_text(found.findings) if found.findings is not None else "",
        labelled=mining.labelled_text(found.labelled) if found.labelled is not None else "",
        sheets=sheets,
        others=tuple(card for i, card in enumerate(cards) if i not in seen),
        classes=tuple(names),
        clusters=tuple(
            (str(k + 1), f"{k + 1} ({size} of the sample)")
            for k, size in enumerate(gallery.cluster_sizes)
            if k in used
        ),
        tables=mining.findings_tables(found),
        maps=mining.map_figures(found),
        script=Markup(script),
        csv_name=f"{inputs.run.run}-ticked.csv",
    )
    return to_html("mining.html.j2", page, policy=f"'sha256-{digest}'")


def _card(gallery: Gallery, place: int, class_names: Sequence[str] | None) -> Card:
    image = gallery.images[place]
    return Card(
        place=place,
        path=redact(storage.join(gallery.folder, image.id) if gallery.folder else image.id),
        name=class_name(image.label, class_names),
        rank="" if image.rank is None else str(image.rank),
        score=mining.score_text(image.score),
        cluster="" if image.cluster is None else str(image.cluster + 1),
        near=" ".join(str(i) for i in image.near),
        thumb=image_source(image.thumb),
        large=image_source(image.large),
    )


def show_mining(console: Console, run_uri: str) -> None:
    """Make the page, and say what labels say about the ranking and where everything is."""
    page, found = write_mining_page(run_uri)
    for text in mining.vectors_warning(found.vectors):
        console.stage("mine", f"ALARM: {text}")
    labels = found.findings
    if labels is not None:
        console.line()
        console.table(
            list(mining.FINDINGS_HEADERS), [list(row) for row in mining.findings_rows(labels)]
        )
        console.line(
            f"how well each score finds the {counted(labels.num_few, 'image')} of the rare classes "
            f"({', '.join(labels.few_classes)}); labels were used for this table only"
        )
        console.line()
    proof = mining.evidence(found)
    console.stage("mine", f"{proof.word.lower()}: {proof.text}")
    if found.labelled is not None:
        console.stage("mine", mining.labelled_text(found.labelled))
    folder = storage.join(run_uri, "mining")
    console.stage("mine", f"scores of all images: {folder}")
    console.stage("mine", f"to annotate first: {storage.join(folder, 'annotate.csv')}")
    others = [storage.join(folder, name) for name in ("label_studio", "fiftyone")]
    console.stage("mine", f"for other tools: {', '.join(others)}")
    console.stage("mine", f"pictures: {page}")
