"""Files for other tools: what to label as CSV and for Label Studio, all scores for FiftyOne.

    RUN/mining/annotate.csv                  order, id, rank and label of the suggested images
    RUN/mining/label_studio/tasks.json       the same as tasks, with their labelling page
    RUN/mining/label_studio/config.xml       in config.xml
    RUN/mining/fiftyone/data.json            a FiftyOneImageClassificationDataset: files
    RUN/mining/fiftyone/labels.json          and their labels and scores
    RUN/mining/images/*                      suggested images of a source without single files

Shapes: N images of the set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.dataset.formats import format_of
from pipeline.dataset.manifest import Manifest, SetName
from pipeline.dataset.pictures import stored_images
from pipeline.ingest.sources import names
from pipeline.mine import given_labels
from pipeline.record.curation import Selection
from sdclr.heif import HEAD_BYTES
from sdclr.rarity import rank_share

ANNOTATE = "annotate.csv"
MAX_FIFTYONE_IMAGES = 100_000
"""The rarest ones of a larger set; its import reads one JSON text whole."""
_NOT_REPLACED = re.compile(r"scores-\d{5}\.parquet|findings\.csv|images/\d{6}\.[a-z]+")
"""What a ranking writes below RUN/mining that the next one may not write again."""


@dataclass(frozen=True)
class Ranked:
    """A ranked set.

    Args:
        ids: names of the N samples.
        labels_N: int64, -1 where there is no label.
        class_names: by label; None without labels.
        rarity_N: the score that ranks, higher is rarer; of any scale.
        order_N: rows, rarest first.
        batch: rows suggested for annotation, in the order of choice.
        by: method and score, for people.
        given: labels of people, by id.
        selection: what a curation selected from the set; None without one.
    """

    ids: list[str]
    labels_N: NDArray[np.int64]
    class_names: tuple[str, ...] | None
    rarity_N: NDArray[np.float64]
    order_N: NDArray[np.int64]
    batch: list[int]
    by: str
    given: Mapping[str, str] = field(default_factory=dict)
    selection: Selection | None = None

    @property
    def rank_N(self) -> NDArray[np.int64]:
        """Place of each image, 1 = rarest."""
        rank_N = np.empty(len(self.order_N), np.int64)
        rank_N[self.order_N] = np.arange(1, len(self.order_N) + 1)
        return rank_N

    def label(self, row: int) -> str | None:
        """Return the name of an image's class, None without one."""
        number = int(self.labels_N[row])
        return None if number < 0 or self.class_names is None else self.class_names[number]

    def lines(self) -> list[tuple[str, str | None]]:
        """Return the id and label of each suggested image; a label of people comes first."""
        return [
            (self.ids[row], self.given.get(self.ids[row]) or self.label(row)) for row in self.batch
        ]


def annotate_uri(run_uri: str) -> str:
    """Return where the suggested images are listed."""
    return storage.join(run_uri, "mining", ANNOTATE)


def refuse_loss(run_uri: str, ranked: Ranked) -> None:
    """Refuse to rank again over labels that people wrote into annotate.csv.

    Raises:
        ConfigError: they would be lost.
        DataError: the file cannot be read.
    """
    place = {name: row for row, name in enumerate(ranked.ids)}

    def own(name: str) -> str | None:
        return ranked.label(place[name]) if name in place else None

    given_labels.refuse_loss(annotate_uri(run_uri), ranked.lines(), own)


def remove_older(run_uri: str) -> None:
    """Remove what an earlier ranking wrote; files that people put beside it stay."""
    folder = storage.join(run_uri, "mining")
    for name in storage.list_tree(folder):
        if _NOT_REPLACED.fullmatch(name):
            storage.delete_tree(storage.join(folder, name))


def write(
    run_uri: str, ranked: Ranked, *, data_uri: str, manifest: Manifest, set_name: SetName
) -> None:
    """Write all of the files above.

    Raises:
        DataError: a shard of images is broken.
    """
    folder, rank_N = storage.join(run_uri, "mining"), ranked.rank_N
    lines = (
        (place, name, rank_N[row], label)
        for place, (row, (name, label)) in enumerate(
            zip(ranked.batch, ranked.lines(), strict=True), 1
        )
    )
    storage.write_bytes(
        annotate_uri(run_uri),
        storage.to_csv(("order", "id", "rank", "label"), lines),
    )
    root = root_of(manifest)
    if root is not None:
        shown = ranked.order_N[:MAX_FIFTYONE_IMAGES].tolist()
        rows = list(dict.fromkeys([*shown, *ranked.batch]))
        places = {row: names.address(root, ranked.ids[row]) for row in rows}
    else:
        places = _copies(folder, ranked.batch, data_uri, manifest, set_name)
    share_N = rank_share(ranked.rarity_N)
    _write_label_studio(folder, ranked, places, rank_N, share_N)
    _write_fiftyone(folder, ranked, places, rank_N, share_N)


def root_of(manifest: Manifest) -> str | None:
    """Return where the original files are, None for tables, archives and arrays."""
    key = {"folder": "path", "list": "image_root"}.get(str(manifest.source.get("kind")))
    place = manifest.origin.get(key) if key is not None else None
    return None if place is None else place.uri


def _copies(
    folder: str, batch: list[int], data_uri: str, manifest: Manifest, set_name: SetName
) -> dict[int, str]:
    """Write the stored images of the batch, and return where each is."""
    places = {}
    stored = stored_images(data_uri, manifest, set_name, batch)
    for number, row in enumerate(batch, 1):
        data = stored[row]
        ending = (format_of(data[:HEAD_BYTES]) or "bin").lower()
        places[row] = storage.absolute(storage.join(folder, "images", f"{number:06d}.{ending}"))
        storage.write_bytes(places[row], data)
    return places


def _write_label_studio(
    folder: str,
    ranked: Ranked,
    places: dict[int, str],
    rank_N: NDArray[np.int64],
    share_N: NDArray[np.float64],
) -> None:
    """Write tasks, each with a prediction whose score is the place in the ranking, 1 = rarest."""
    kind = "textarea" if ranked.class_names is None else "choices"
    tasks = []
    for row in ranked.batch:
        label = ranked.label(row)
        known = {"from_name": "label", "to_name": "image", "type": kind}
        result = [] if label is None else [known | {"value": {kind: [label]}}]
        data = {"image": _served(places[row]), "path": ranked.ids[row], "rank": int(rank_N[row])}
        prediction = {"model_version": ranked.by, "score": float(share_N[row]), "result": result}
        tasks.append({"data": data, "predictions": [prediction]})
    uri = storage.join(folder, "label_studio")
    storage.write_bytes(storage.join(uri, "tasks.json"), storage.to_json(tasks, indent=1))
    choices = "".join(f"    <Choice value={quoteattr(c)}/>\n" for c in ranked.class_names or ())
    control = (
        '  <TextArea name="label" toName="image" maxSubmissions="1"/>\n'
        if ranked.class_names is None
        else f'  <Choices name="label" toName="image">\n{choices}  </Choices>\n'
    )
    page = f'<View>\n  <Image name="image" value="$image"/>\n{control}</View>\n'
    storage.write_bytes(storage.join(uri, "config.xml"), page.encode())


def _served(place: str) -> str:
    """Return the address by which Label Studio serves a file of its own machine, or the URI."""
    return place if "://" in place else "/data/local-files/?d=" + quote(place.lstrip("/"))


def _write_fiftyone(
    folder: str,
    ranked: Ranked,
    places: dict[int, str],
    rank_N: NDArray[np.int64],
    share_N: NDArray[np.float64],
) -> None:
    order = {row: place for place, row in enumerate(ranked.batch, 1)}
    data, labels = {}, {}
    for row, place in places.items():
        uuid = f"{rank_N[row]:09d}"  # it is sorted by this
        data[uuid] = place
        attributes: dict[str, object] = {
            "path": ranked.ids[row],
            "rank": int(rank_N[row]),
            "rarity": float(share_N[row]),
            "suggested": order.get(row),
        }
        if ranked.selection is not None:
            attributes["selected"] = ranked.ids[row] in ranked.selection.selected
            attributes["near_duplicate_of"] = ranked.selection.near.get(ranked.ids[row])
        labels[uuid] = {"label": ranked.label(row), "attributes": attributes}
    uri = storage.join(folder, "fiftyone")
    storage.write_bytes(storage.join(uri, "data.json"), storage.to_json(data))
    content = {"classes": ranked.class_names, "labels": labels}
    storage.write_bytes(storage.join(uri, "labels.json"), storage.to_json(content))
