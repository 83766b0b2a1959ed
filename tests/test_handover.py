"""Files for other tools: their content, and each opened by its tool where that is installed."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from pipeline.dataset.manifest import Manifest, Place
from pipeline.dataset.pictures import stored_images
from pipeline.mine import handover
from pipeline.mine.handover import Ranked
from pipeline.record.curation import Curation, Selection, find_selection
from pipeline.record.embedding import EmbeddedBy
from pipeline.record.run import DataRef
from pipeline.storage import to_csv
from tests.refusals import raises
from tests.test_mine import data_set

NAMES = ('cat "&" <dog>', "eel\n=1", "ant,é")
ODD = 'a b/"c" & <d>,é #%41.png'


def ranked(labelled: bool = True) -> Ranked:
    """Twelve images, of which three are suggested."""
    rarity = np.random.default_rng(0).permutation(12).astype(np.float64)
    return Ranked(
        ids=[ODD, *(f"image-{row:02d}" for row in range(1, 12))],
        labels_N=np.arange(12) % 3 if labelled else np.full(12, -1),
        class_names=NAMES if labelled else None,
        rarity_N=rarity,
        order_N=np.argsort(-rarity),
        batch=[4, 0, 7],
        by="sdclr knn_distance",
    )


def written(folder: Path, given: Ranked, root: str | None = "/photos/all of them") -> Path:
    manifest = data_set(folder)
    if root is not None:
        place = Place(root, "here", 12, 12, "", "")
        fields = {"source": {"kind": "folder"}, "origin": {"path": place}}
        manifest = Manifest(**{**manifest.__dict__, **fields})
    run_uri = str(folder / "run")
    given = replace(given, selection=find_selection(run_uri, manifest.hash, "pretrain"))
    handover.write(run_uri, given, data_uri=str(folder), manifest=manifest, set_name="pretrain")
    return folder / "run" / "mining"


def test_the_csv_names_the_batch_in_its_order(tmp_path: Path) -> None:
    given = ranked()
    with (written(tmp_path, given) / "annotate.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["image-04", ODD, "image-07"]
    assert [row["label"] for row in rows] == [NAMES[1], NAMES[0], NAMES[1]]
    places = [given.order_N.tolist().index(row) + 1 for row in given.batch]
    assert [int(row["rank"]) for row in rows] == places
    with (written(tmp_path / "b", ranked(False)) / "annotate.csv").open(newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["", "", ""]


@pytest.mark.parametrize("labelled", [True, False])
def test_labels_of_people_are_not_overwritten(tmp_path: Path, labelled: bool) -> None:
    given, run_uri = ranked(labelled), str(tmp_path / "run")
    handover.refuse_loss(run_uri, given)
    file = written(tmp_path, given) / "annotate.csv"
    handover.refuse_loss(run_uri, given)
    handover.refuse_loss(run_uri, replace(given, batch=[1, 2]))  # no label of a person is lost
    with file.open(newline="") as opened:
        rows = list(csv.reader(opened))
    rows[1][3] = "a person's"
    file.write_bytes(to_csv(rows[0], rows[1:]))
    with raises("E-CONFIG-792") as caught:
        handover.refuse_loss(run_uri, given)
    assert "1 labels" in caught.value.what and "image-04" in caught.value.what
    known = replace(given, given={"image-04": "a person's"})
    handover.refuse_loss(run_uri, known)
    with raises("E-CONFIG-792"):
        handover.refuse_loss(run_uri, replace(known, batch=[1, 2]))
    assert written(tmp_path, known) == file.parent
    with file.open(newline="") as opened:
        assert next(csv.DictReader(opened))["label"] == "a person's"
    file.write_text("torn\n")
    with raises("E-DATA-791"):
        handover.refuse_loss(run_uri, known)


def test_an_older_ranking_is_removed_and_what_people_put_beside_it_stays(tmp_path: Path) -> None:
    theirs = ["annotate.csv", "my labels.csv", "notes/scores-00000.parquet", "scores-old.parquet",
              "label_studio/export.csv", "images/mine.png"]  # fmt: skip
    older = ["scores-00000.parquet", "scores-00012.parquet", "findings.csv", "images/000001.png"]
    for name in [*theirs, *older]:
        file = tmp_path / "run" / "mining" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    handover.remove_older(str(tmp_path / "run"))
    handover.remove_older(str(tmp_path / "no run"))
    folder = tmp_path / "run" / "mining"
    left = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert left == set(theirs)


@pytest.mark.parametrize("labelled", [True, False])
def test_label_studio_takes_the_tasks(tmp_path: Path, labelled: bool) -> None:
    folder = written(tmp_path, ranked(labelled)) / "label_studio"
    tasks = json.loads((folder / "tasks.json").read_text())
    page = (folder / "config.xml").read_text()
    control = ElementTree.fromstring(page)[1]
    assert [task["data"]["path"] for task in tasks] == ["image-04", ODD, "image-07"]
    assert tasks[1]["data"]["image"] == (
        "/data/local-files/?d=photos/all%20of%20them/a%20b/%22c%22%20%26%20%3Cd%3E%2C%C3%A9"
        "%20%23%2541.png"
    )
    for task in tasks:
        (prediction,) = task["predictions"]
        assert 0 <= prediction["score"] <= 1 and len(prediction["result"]) == labelled
    if labelled:
        assert [choice.get("value") for choice in control] == list(NAMES)
        assert tasks[1]["predictions"][0]["result"][0]["value"] == {"choices": [NAMES[0]]}
    else:
        assert control.tag == "TextArea"
    interface = pytest.importorskip(
        "label_studio_sdk.label_interface", reason="label-studio-sdk is not installed"
    ).LabelInterface(page)
    interface.validate()
    for task in tasks:
        assert interface.validate_task({"data": task["data"]})
        assert interface.validate_prediction(task["predictions"][0], return_errors=True) == []
    if labelled:  # negative control: the package refuses what does not fit the page
        tasks[1]["predictions"][0]["result"][0]["value"] = {"choices": ["none of them"]}
        assert interface.validate_prediction(tasks[1]["predictions"][0], return_errors=True)


def test_fiftyone_has_every_image_with_its_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ranked()
    folder = written(tmp_path, given) / "fiftyone"
    content = json.loads((folder / "labels.json").read_text())
    assert content["classes"] == list(NAMES) and len(content["labels"]) == 12
    data = json.loads((folder / "data.json").read_text())
    assert list(data) == list(content["labels"])
    rank = given.order_N.tolist().index(0) + 1
    (uuid,) = (uuid for uuid, place in data.items() if place == f"/photos/all of them/{ODD}")
    assert content["labels"][uuid] == {
        "label": NAMES[0],
        "attributes": {"path": ODD, "rank": rank, "rarity": (12 - rank) / 11, "suggested": 2},
    }
    suggested = [entry["attributes"]["suggested"] for entry in content["labels"].values()]
    assert sorted(place for place in suggested if place) == [1, 2, 3]
    monkeypatch.setattr(handover, "MAX_FIFTYONE_IMAGES", 2)
    content = json.loads((written(tmp_path / "b", given) / "fiftyone" / "labels.json").read_text())
    ranks = {entry["attributes"]["rank"] for entry in content["labels"].values()}
    assert ranks == {1, 2, *(given.order_N.tolist().index(row) + 1 for row in given.batch)}


def test_what_was_selected_from_the_same_set_goes_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "curation"
    folder.mkdir(parents=True)
    (folder / "selected.csv").write_text(
        f'path,label\nimage-01,a\n"{ODD.replace(chr(34), chr(34) * 2)}",b\n'
    )
    (folder / "duplicates.csv").write_text("id,near,similarity\nimage-02,image-01,0.99\n")

    def attributes(given_set: str, manifest_hash: str) -> dict[str, dict[str, object]]:
        ref = DataRef(uri="d", manifest_hash=manifest_hash, name="d")
        Curation(
            data=ref, set=given_set, weights=EmbeddedBy(name="w", uri=None, sha256="0"),
            similarity=0.9, images=12, duplicates=1, examples=(), across_sets=(),
            levels=(1,), kept=2, leaf_images=(12,), leaf_kept=(2,),
        ).write(str(tmp_path / "run" / "curation.json"))  # fmt: skip
        file = written(tmp_path, ranked()) / "fiftyone" / "labels.json"
        found = [entry["attributes"] for entry in json.loads(file.read_text())["labels"].values()]
        return {entry["path"]: entry for entry in found}

    own_hash = data_set(tmp_path).hash
    found = attributes("pretrain", own_hash)
    assert {path for path, entry in found.items() if entry["selected"]} == {"image-01", ODD}
    assert found["image-02"]["near_duplicate_of"] == "image-01"
    assert found["image-01"]["near_duplicate_of"] is None
    for other in (("test", own_hash), ("pretrain", "0" * 64)):
        assert not any("selected" in entry for entry in attributes(*other).values())


@pytest.mark.parametrize(
    ("name", "content", "is_read"),
    [
        ("selected", "path\na\n\nb\n", True),
        ("selected", "path,label\na,cat\n", True),
        ("selected", 'path\n"a\rb"\n', True),
        ("duplicates", "id,near,similarity\na,b,0.99\n", True),
        ("selected", "", False),
        ("selected", "a.png\nb.png\n", False),
        ("selected", "path,label\na\n", False),
        ("selected", b"path\ncaf\xe9\n", False),
        ("selected", 'path\n"' + "a" * 200_000 + '"\n', False),
        ("duplicates", "id\na\n", False),
        ("duplicates", "id,near,similarity\na\n", False),
    ],
)
def test_lists_of_a_curation_that_people_changed_are_read_or_refused(
    tmp_path: Path, name: str, content: str | bytes, is_read: bool
) -> None:
    test_what_was_selected_from_the_same_set_goes_with_it(tmp_path)
    curation = Curation.read(str(tmp_path / "run" / "curation.json"))
    file = tmp_path / "run" / "curation" / f"{name}.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())

    def found() -> Selection | None:
        run_uri = str(tmp_path / "run")
        return find_selection(run_uri, curation.data.manifest_hash, curation.set)

    if is_read:
        assert found() is not None
    else:
        with raises("E-DATA-851"):
            found()


def test_fiftyones_own_importer_reads_it(tmp_path: Path) -> None:
    given = ranked()
    folder = written(tmp_path, given) / "fiftyone"
    importers = pytest.importorskip(
        "fiftyone.utils.data.importers", reason="fiftyone is not installed"
    )
    importer = importers.FiftyOneImageClassificationDatasetImporter(
        dataset_dir=str(folder), data_path="data.json"
    )
    importer.setup()
    found = {path: label for path, _, label in importer}
    assert len(found) == 12 and importer.get_dataset_info()["classes"] == list(NAMES)
    label = found[f"/photos/all of them/{ODD}"]
    assert label.label == NAMES[0] and label.suggested == 2 and label.path == ODD


def test_images_of_a_source_without_files_are_written(tmp_path: Path) -> None:
    folder = written(tmp_path, ranked(), root=None)
    names = sorted(file.name for file in (folder / "images").iterdir())
    assert names == ["000001.png", "000002.png", "000003.png"]
    stored = stored_images(str(tmp_path), data_set(tmp_path), "pretrain", [4, 0, 7])
    assert (folder / "images" / "000001.png").read_bytes() == stored[4] != stored[0]
    tasks = json.loads((folder / "label_studio" / "tasks.json").read_text())
    assert tasks[0]["data"]["image"].endswith("run/mining/images/000001.png")
    data = json.loads((folder / "fiftyone" / "data.json").read_text())
    assert sorted(data.values()) == [str(folder / "images" / name) for name in names]
