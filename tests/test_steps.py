"""Results of an older checkpoint than the newest: offered again, and a warning on the pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli.next_steps import next_steps
from pipeline.config.file import load_config
from pipeline.export.card import model_card
from pipeline.record.embedding import EmbeddedBy, Embedding, PlainView, VectorShard
from pipeline.record.folder import RunFolder
from pipeline.record.run import DataRef
from pipeline.record.steps import Behind, behind, outdated
from pipeline.report.mining_page import write_mining_page
from pipeline.report.page import write_report
from tests import records
from tests.pages import Page, assert_inert
from tests.records import STEPS
from tests.test_export import FACTS
from tests.test_mining_page import edit

OLD, NEW = STEPS, STEPS + 100
DATA = DataRef(uri="d", manifest_hash="ab", name="d")


def checkpoint(run_uri: str, step: int, *, is_finished: bool = True) -> str:
    place = Path(run_uri) / "models" / "sdclr" / "checkpoints" / f"step-{step:08d}"
    place.mkdir(parents=True)
    (place / ("commit.json" if is_finished else "state.json")).write_text("{}")
    return str(place)


def embedded(run_uri: str, weights_uri: str | None, *, name: str = "sdclr") -> None:
    folder = Path(run_uri) / "embeddings" / f"pretrain-{name}-{Path(weights_uri or 'x').name}"
    shard = VectorShard(name="a.parquet", first_row=0, rows=1, dim=1, bytes=1, sha256="0")
    Embedding(
        data=DATA, set="pretrain", backbone="resnet8", dtype="float32", rows=1, shards=(shard,),
        weights=EmbeddedBy(name=name, uri=weights_uri, sha256="0"),
        view=PlainView(crop_px=8, resize_px=None),
    ).write(str(folder / "embedding.json"))  # fmt: skip


@pytest.fixture
def run_uri(tmp_path: Path) -> str:
    """A run whose ranking, export and vectors are of its one checkpoint."""
    uri = records.write_run(tmp_path / "my runs")
    embedded(uri, checkpoint(uri, OLD))
    embedded(uri, None, name="untrained")
    card = Path(uri) / "export" / "sdclr" / "README.md"
    card.parent.mkdir(parents=True)
    card.write_text(model_card(FACTS.model_copy(update={"step": OLD}), ()))
    return uri


def offered(run_uri: str) -> set[str]:
    config = load_config(None, ("train.methods=[sdclr]", "data.source=folder", "data.path=x"))
    folder = RunFolder(run_uri, "demo", config, is_new=False)
    return {words.split()[0] for _, words in next_steps(folder, is_labelled=True)}


def test_what_is_of_an_older_checkpoint_is_offered_again(run_uri: str) -> None:
    again = {"mine", "export", "embed"}
    assert not outdated(run_uri, ["sdclr"]) and not again & offered(run_uri)  # control
    newest = checkpoint(run_uri, NEW)
    late = Behind(OLD, NEW)
    assert outdated(run_uri, ["sdclr"]) == dict.fromkeys(("mine", "export", "embed"), late)
    assert again <= offered(run_uri) and str(late) == f"step {OLD} of {NEW}"
    edit(run_uri, "mining.json", lambda m: m.update(step=NEW))
    embedded(run_uri, newest)  # the older vectors stay
    assert again & offered(run_uri) == {"export"}


def test_one_of_two_exports_that_is_older_counts(run_uri: str) -> None:
    checkpoint(run_uri, NEW)
    cards = Path(run_uri) / "export"
    (cards / "simclr").mkdir()
    text = (cards / "sdclr" / "README.md").read_text()
    (cards / "simclr" / "README.md").write_text(text)  # it has no newer checkpoint
    assert "export" in outdated(run_uri, ["simclr", "sdclr"])
    assert "export" not in outdated(run_uri, ["simclr"])


def test_a_checkpoint_that_is_not_finished_makes_nothing_old(run_uri: str) -> None:
    checkpoint(run_uri, NEW, is_finished=False)
    assert behind(run_uri, "sdclr", OLD) is None
    assert behind(run_uri, "sdclr", OLD - 1) == Behind(OLD - 1, OLD)
    assert behind(run_uri, "sdclr", None) is None  # weights that were given


def test_a_record_that_is_broken_does_not_fail_the_end_of_a_run(run_uri: str) -> None:
    checkpoint(run_uri, NEW)
    (Path(run_uri) / "mining.json").write_text("{")
    assert set(outdated(run_uri, ["sdclr"])) == {"export", "embed"}


def test_pages_warn_of_a_ranking_by_an_older_checkpoint(run_uri: str) -> None:
    def pages() -> list[str]:
        place, _ = write_mining_page(run_uri)
        return [Path(uri).read_text() for uri in (write_report(run_uri), place)]

    assert not any("older checkpoint" in text for text in pages())  # control
    checkpoint(run_uri, NEW)
    for text in pages():
        page = Page(text)
        assert f"of an older checkpoint: step {OLD} of {NEW}" in page.text
        assert any("run.py mine --resume" in t and "--data" not in t for t in page.texts)
    edit(run_uri, "mining.json", lambda m: m.update(set="val"))
    edit(run_uri, "mining.json", lambda m: m["data"].update(manifest_hash="0", uri="<b>o"))
    for text in pages():
        page = Page(text)
        assert any(t.endswith("--set val --data '<b>o'") for t in page.texts)
        assert not page.all("b")
    assert_inert(Page(pages()[0]))
