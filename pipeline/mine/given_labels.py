"""Labels that people gave to suggested images: read from a CSV, and what they say of the batch.

The columns `path` or `id`, and `label`, are read: annotate.csv with its last column filled in, or
what Label Studio exports as CSV, whose own `id` is no name of an image: so `path` comes first.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipeline import storage
from pipeline.errors import ConfigError, DataError
from pipeline.ingest.sources.list_file import decoded
from pipeline.record.intervals import wilson
from pipeline.record.mining import LabelledBatch
from sdclr.groups import groups_by_tercile

Own = Callable[[str], str | None]

_KS = (10, 25, 50, 100)
_NUM_NAMED = 3


@dataclass(frozen=True)
class GivenLabels:
    """Labels by the name of the image, as in the CSV, and which of them are of rare classes.

    Args:
        uri: of the CSV.
        labels: image -> label.
        rare: labels.
        counted: whether `rare` was counted here, not named by a person.
    """

    uri: str
    labels: dict[str, str]
    rare: tuple[str, ...]
    counted: bool

    def below(self, root: str | None) -> GivenLabels:
        """Return them by names below `root`, where the original files are; paths become names.

        Raises:
            DataError: two names are of one image.
        """
        if root is None:
            return self
        prefix = root.rstrip("/") + "/"
        names = [name.removeprefix(prefix) for name in self.labels]
        if len(set(names)) < len(names):
            raise _repeated(self.uri, names)
        return replace(self, labels=dict(zip(names, self.labels.values(), strict=True)))


def read_labels(uri: str, rare: Sequence[str] = ()) -> GivenLabels:
    """Read a CSV of labels; every line counts, or all is refused.

    Args:
        uri: of the CSV.
        rare: labels of rare classes; without one, the third of the labels with the fewest images.

    Raises:
        DataError: it is torn, lacks a column or a label, or names an image twice.
        ConfigError: no label is named, and there are too few to count.
        StorageError: it is missing or the storage does not answer.
    """
    rows = _rows(uri)
    labels: dict[str, str] = {}
    for number, name, label in rows:
        if not name or not label:
            without = [number for number, *cells in rows if not all(cells)]
            raise DataError(
                "E-DATA-792",
                f"{len(without)} of {len(rows)} rows lack an image or a label, first that of line "
                f"{without[0]}",
                where=uri,
                todo="fill in their labels, or delete these lines",
            )
        if name in labels:
            raise _repeated(uri, [name for _, name, _ in rows])
        labels[name] = label
    counts = Counter(labels.values())
    if rare:
        return GivenLabels(uri, labels, tuple(rare), counted=False)
    names = sorted(counts)
    few = groups_by_tercile([counts[name] for name in names]).few
    if not few:
        raise ConfigError(
            "E-CONFIG-791",
            f"{len(names)} labels are too few to tell by their counts which are rare",
            where="mine --labels",
            todo="name the rare ones: --rare LABEL,LABEL",
        )
    return GivenLabels(uri, labels, tuple(names[n] for n in few), counted=True)


def _rows(uri: str) -> list[tuple[int, str, str]]:
    """Return the line, image and label of each row."""
    try:
        reader = csv.reader(io.StringIO(decoded(storage.read_bytes(uri))), strict=True)
        heading = [cell.strip().lower() for cell in next(reader, [])]
        wanted = next((name for name in ("path", "id") if name in heading), None)
        if wanted is None or "label" not in heading:
            raise DataError(
                "E-DATA-791",
                f"the CSV needs the columns path or id, and label; it has {', '.join(heading)}",
                where=uri,
                todo="write a first line such as id,label",
            )
        doubled = [name for name in (wanted, "label") if heading.count(name) > 1]
        if doubled:
            raise ValueError(f"it has the column {doubled[0]} more than once")
        image, label = heading.index(wanted), heading.index("label")
        rows = []
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(heading):
                raise ValueError(
                    f"line {reader.line_num} has {len(cells)} cells, the heading {len(heading)}"
                )
            rows.append((reader.line_num, cells[image], cells[label].strip()))
        if not rows:
            raise ValueError("it has no row")
    except (ValueError, csv.Error) as error:
        raise DataError(
            "E-DATA-790",
            f"the CSV of labels cannot be read: {error!s:.300}",
            where=uri,
            todo="save it as UTF-8 with commas and a first line that names the columns",
        ) from error
    return rows


def refuse_loss(uri: str, lines: Sequence[tuple[str, str | None]], own: Own) -> None:
    """Refuse to write a CSV anew that holds labels of people which are not in its new lines.

    Args:
        uri: of annotate.csv.
        lines: image and label, as they will be written.
        own: returns the label that the data set itself has of an image, None without one.

    Raises:
        ConfigError: labels would be lost.
        DataError: the CSV that is there cannot be read, so what is lost is not known.
    """
    if not storage.exists(uri):
        return
    new = dict(lines)
    lost = [
        name
        for _, name, label in _rows(uri)
        if label and label != new.get(name) and label != own(name)
    ]
    if lost:
        raise ConfigError(
            "E-CONFIG-792",
            f"the CSV holds {len(lost)} labels that would be overwritten, first that of "
            f"{lost[0]:.200}",
            where=uri,
            todo="copy the file elsewhere and delete it here; --labels COPY counts its labels",
        )


def _repeated(uri: str, names: Sequence[str]) -> DataError:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    return DataError(
        "E-DATA-793",
        f"{len(repeated)} images have more than one line, first: {repeated[0]:.200}",
        where=uri,
        todo="leave one line for each image",
    )


def labelled_batch(given: GivenLabels, ids: Sequence[str], batch: Sequence[int]) -> LabelledBatch:
    """Return how many of the suggested images are rare by the labels.

    Args:
        given: what people said.
        ids: names of the samples of the set.
        batch: rows that were suggested, in their order.

    Raises:
        DataError: a name is of no image of the set, or no image was suggested.
    """
    known, labels = set(ids), given.labels
    unknown = [name for name in labels if name not in known]
    if unknown:
        raise DataError(
            "E-DATA-794",
            f"{len(unknown)} of {len(labels)} names are of no image of the set, first: "
            f"{', '.join(name[:100] for name in unknown[:_NUM_NAMED])}",
            where=given.uri,
            todo="give the ids of annotate.csv, and the same --data and --set",
        )
    found = [labels[ids[row]] for row in batch if ids[row] in labels]
    if not found:
        raise DataError(
            "E-DATA-795",
            f"none of the {len(batch)} suggested images has a label in the CSV",
            where=given.uri,
            todo="label images of annotate.csv, with the same mine.* keys",
        )
    hits = [label in given.rare for label in found]
    every = wilson(sum(hits) / len(hits), len(hits))
    return LabelledBatch(
        csv=given.uri,
        rare=given.rare,
        absent=tuple(sorted(set(given.rare) - set(labels.values()))),
        rare_by_count=given.counted,
        suggested=len(batch),
        labelled=len(found),
        others=len(labels) - len(found),
        hits=sum(hits),
        precision=every.value,
        low=every.low,
        high=every.high,
        first={str(k): sum(hits[:k]) / k for k in _KS if k < len(hits)},
        classes=dict(sorted(Counter(found).items(), key=lambda pair: (-pair[1], pair[0]))),
    )
