"""Labels that come back as CSV: hostile files, and precision against them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli.command_line import parse
from pipeline.mine.given_labels import labelled_batch, read_labels
from pipeline.record.intervals import wilson
from pipeline.report.mining import labelled_text
from tests.refusals import raises

IDS = [f"image-{row:02d}" for row in range(12)]
ROOT = "/photos"


def file_of(folder: Path, content: str | bytes) -> str:
    file = folder / "labels.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(file)


HOSTILE: dict[str, tuple[str | bytes, str]] = {
    "empty": (b"", "E-DATA-791"),
    "no label column": ("id,class\nimage-01,cat\n", "E-DATA-791"),
    "no image column": ("image,label\nimage-01,cat\n", "E-DATA-791"),
    "no heading": ("image-01,cat\nimage-02,dog\n", "E-DATA-791"),
    "heading alone": ("id,label\n", "E-DATA-790"),
    "a column twice": ("id,label,label\nimage-01,cat,dog\n", "E-DATA-790"),
    "a cell too few": ("id,label\nimage-01,cat\nimage-02\n", "E-DATA-790"),
    "a cell too many": ("id,label\nimage-01,cat,dog\n", "E-DATA-790"),
    "an open quote": ('id,label\nimage-01,"cat\n', "E-DATA-790"),
    "no text": (b"id,label\nimage-01,\xff\xfe\n", "E-DATA-790"),
    "zeros": (b"id,label\nimage-01,c\0t\n", "E-DATA-790"),
    "an empty label": ("id,label\nimage-01,cat\nimage-02, \n", "E-DATA-792"),
    "an empty name": ("id,label\n,cat\n", "E-DATA-792"),
    "an image twice": ("id,label\nimage-01,cat\nimage-01,dog\n", "E-DATA-793"),
    "the same line twice": ("id,label\nimage-01,cat\nimage-01,cat\n", "E-DATA-793"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_csv_is_refused(tmp_path: Path, name: str) -> None:
    content, error_id = HOSTILE[name]
    with raises(error_id):
        read_labels(file_of(tmp_path, content), ["cat"])


def test_what_is_wrong_is_counted_and_the_first_is_named(tmp_path: Path) -> None:
    lines = "id,label\nimage-01,\nimage-02,cat\nimage-03,\n"
    with raises("E-DATA-792") as caught:
        read_labels(file_of(tmp_path, lines))
    assert "2 of 3" in caught.value.what and "line 2" in caught.value.what
    given = read_labels(file_of(tmp_path, "id,label\nimage-01,cat\nx,cat\ny,dog\n"), ["dog"])
    with raises("E-DATA-794") as caught:
        labelled_batch(given, IDS, [1])
    assert "2 of 3" in caught.value.what and "x, y" in caught.value.what


def test_precision_equals_the_count_by_hand(tmp_path: Path) -> None:
    batch = [4, 0, 7, 9, 2, 1, 3, 5, 6, 8, 10]
    rare = {4, 7, 9, 1, 10}
    lines = [f"{IDS[row]},{'eel' if row in rare else 'cat'},x" for row in [*range(11), 11]]
    uri = file_of(tmp_path, "id,label,note\n" + "\n".join(lines) + "\n\n")
    found = labelled_batch(read_labels(uri, ["eel"]), IDS, batch)
    assert (found.suggested, found.labelled, found.others, found.hits) == (11, 11, 1, 5)
    assert found.precision == 5 / 11 and found.first == {"10": 0.4}
    assert (found.low, found.high) == (wilson(5 / 11, 11).low, wilson(5 / 11, 11).high)
    assert found.classes == {"cat": 6, "eel": 5} and not found.rare_by_count
    assert "5 of 11" in labelled_text(found)
    none = labelled_batch(read_labels(uri, ["cat"]), IDS, batch)
    assert none.hits == 6


def test_rare_labels_are_counted_where_nobody_names_them(tmp_path: Path) -> None:
    labels = ["cat"] * 5 + ["dog"] * 4 + ["eel"] * 3
    lines = "id,label\n" + "\n".join(f"{i},{c}" for i, c in zip(IDS, labels, strict=True))
    given = read_labels(file_of(tmp_path, lines))
    assert given.rare == ("eel",) and given.counted
    assert "fewest" in labelled_text(labelled_batch(given, IDS, [0, 11]))
    named = read_labels(file_of(tmp_path, lines), ["eel", "ele"])
    found = labelled_batch(named, IDS, [0, 11])
    assert (found.hits, found.absent) == (1, ("ele",)) and "label ele" in labelled_text(found)
    none = labelled_batch(read_labels(file_of(tmp_path, lines), ["ele"]), IDS, [0, 11])
    assert (none.hits, none.precision, none.low) == (0, 0, 0) and none.high > 0.5
    with raises("E-CONFIG-791"):
        read_labels(file_of(tmp_path, "id,label\nimage-01,cat\nimage-02,dog\n"))


def test_paths_are_names_below_the_root_and_come_before_ids(tmp_path: Path) -> None:
    lines = "id,path,label\n3,/photos/image-01,cat\n4,image-02,eel\n"
    given = read_labels(file_of(tmp_path, lines), ["eel"])
    found = labelled_batch(given.below(ROOT), IDS, [2, 1])
    assert found.classes == {"cat": 1, "eel": 1} and found.hits == 1
    with raises("E-DATA-794"):
        labelled_batch(given, IDS, [2, 1])
    twice = "path,label\nimage-01,cat\n/photos/image-01,eel\n"
    with raises("E-DATA-793"):
        read_labels(file_of(tmp_path, twice), ["eel"]).below(ROOT)
    with raises("E-DATA-795"):
        labelled_batch(given.below(ROOT), IDS, [5])


def test_words_of_the_command_line() -> None:
    command = parse(["mine", "--resume", "r", "--labels", "l.csv", "--rare", "a b,c"])
    assert (command.labels, command.rare) == ("l.csv", ("a b", "c"))
    for words in (["mine", "--rare", "a"], ["mine", "--labels", "l.csv", "--rare", "a,,b"]):
        with raises("E-CONFIG-790"):
            parse(words)
    with raises("E-CONFIG-222"):
        parse(["train", "--labels", "l.csv"])
