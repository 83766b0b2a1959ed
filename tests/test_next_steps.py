"""What a run proposes at its end: steps that make sense for it, ready to paste."""

from __future__ import annotations

import io
import shlex
from pathlib import Path

import pytest

from pipeline.cli.command_line import parse
from pipeline.cli.next_steps import next_steps, show_results
from pipeline.config.file import load_config
from pipeline.console import Console
from pipeline.record.folder import RunFolder


def folder(tmp_path: Path, *files: str, words: tuple[str, ...] = ()) -> RunFolder:
    is_given = any(word.startswith("train.methods=") for word in words)
    methods = () if is_given else ("train.methods=[sdclr]",)
    root = tmp_path / "my runs"
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    return RunFolder(str(root), "run", load_config(None, (*methods, *words)), is_new=False)


PHOTOS = ("data.source=folder", "data.path=x")
MODEL = "models/sdclr/backbone.safetensors"
STATE = "models/sdclr/checkpoints/step-00000013/commit.json"


@pytest.mark.parametrize(
    ("files", "words", "labelled", "names"),
    [
        ([MODEL], PHOTOS, False,
         ["page", "rare images", "duplicates", "vectors", "weights", "more epochs", "compare"]),
        ([MODEL, "report.html"], PHOTOS, True,
         ["scores", "rare images", "duplicates", "vectors", "weights", "more epochs", "compare"]),
        ([MODEL, "report.html", "evaluation.json", "mining.json", "export/x"], PHOTOS, True,
         ["duplicates", "vectors", "more epochs", "compare"]),
        ([MODEL, "report.html", "evaluation.json"], (), True,
         ["rare images", "duplicates", "vectors", "weights", "more epochs", "compare",
          "your images"]),
        ([STATE], PHOTOS, False,
         ["finish it", "page", "rare images", "duplicates", "vectors", "weights", "compare"]),
        (["aggregate.json"], PHOTOS, True, []),
        (["embeddings/x"], PHOTOS, False, ["rare images", "duplicates"]),
        (["embeddings/x", "curation.json", "mining.json"], PHOTOS, False, []),
    ],
)  # fmt: skip
def test_steps_fit_the_run(
    files: list[str], words: tuple[str, ...], labelled: bool, names: list[str], tmp_path: Path
) -> None:
    steps = next_steps(folder(tmp_path, *files, words=words), is_labelled=labelled)
    assert [name for name, _ in steps] == names
    for _, text in steps:
        parse(shlex.split(text))  # quoted, and known words


def test_images_to_label_are_named_after_mining(tmp_path: Path) -> None:
    stream = io.StringIO()
    run = folder(tmp_path, MODEL, "mining.json", "mining/annotate.csv", words=PHOTOS)
    show_results(Console(stream), run, {"mine": 1.0}, again="run.seed=1", is_labelled=False)
    assert "annotate.csv" in stream.getvalue() and "your images" not in stream.getvalue()


@pytest.mark.parametrize(("files", "is_finished"), [([STATE], False), ([STATE, MODEL], True)])
def test_only_files_that_exist_are_listed(
    files: list[str], is_finished: bool, tmp_path: Path
) -> None:
    stream, run = io.StringIO(), folder(tmp_path, *files, words=PHOTOS)
    show_results(Console(stream), run, {"export": 1.0}, again="run.seed=1", is_labelled=False)
    text = stream.getvalue()
    assert (MODEL in text) == is_finished == ("--extend" in text)
    assert f"{run.uri}/models/sdclr/checkpoints" in text
    assert ("finish it" in text) != is_finished


def test_a_run_of_two_methods_is_unfinished_until_both_are(tmp_path: Path) -> None:
    words = (*PHOTOS, "train.methods=[sdclr,simclr]")
    steps = dict(next_steps(folder(tmp_path, MODEL, words=words), is_labelled=False))
    assert "finish it" in steps and "more epochs" not in steps
    other = "models/simclr/backbone.safetensors"
    steps = dict(next_steps(folder(tmp_path, other, words=words), is_labelled=False))
    assert "more epochs" in steps and "finish it" not in steps


@pytest.mark.parametrize(
    ("files", "is_offered"),
    [
        ([MODEL], True),
        ([MODEL, "embeddings/x", "curation.json", "mining.json"], True),
        (["embeddings/x", "weights.json"], False),
        (["embeddings/x", "weights.json", "curation.json", "mining.json"], False),
        (["aggregate.json"], False),
    ],
)
def test_another_seed_is_offered_where_something_was_trained(
    files: list[str], is_offered: bool, tmp_path: Path
) -> None:
    stream = io.StringIO()
    run = folder(tmp_path, *files)
    show_results(Console(stream), run, {"curate": 1.0}, again="run.seed=7", is_labelled=False)
    assert ("run.seed=7" in stream.getvalue()) == is_offered
