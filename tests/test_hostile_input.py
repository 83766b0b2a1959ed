"""Every hostile input has its documented outcome, and the page says the same."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.hostile_input import (
    CONTAINERS,
    EXECUTED,
    IMAGES,
    PAGE,
    Payload,
    outcomes,
    page,
)
from tests.refusals import raises
from tests.running import memory_rise_bytes
from tests.sources import ingested, write_files, write_table


@pytest.fixture(scope="module")
def found() -> tuple[dict[str, str], dict[str, str]]:
    EXECUTED.clear()
    return outcomes()


@pytest.mark.promise("R26", "S3")
@pytest.mark.parametrize("name", IMAGES)
def test_images(found: tuple[dict[str, str], dict[str, str]], name: str) -> None:
    assert found[0][name].startswith(IMAGES[name].outcome)


@pytest.mark.promise("S2", "S3")
@pytest.mark.parametrize("name", CONTAINERS)
def test_archives_and_tables(found: tuple[dict[str, str], dict[str, str]], name: str) -> None:
    assert found[1][name].startswith(CONTAINERS[name].outcome)


@pytest.mark.promise("S2")
def test_no_payload_ran(found: tuple[dict[str, str], dict[str, str]]) -> None:
    assert EXECUTED == []


@pytest.mark.promise("S2", control=True)
def test_control_the_payload_runs_when_it_is_loaded() -> None:
    pickle.loads(pickle.dumps(Payload()))
    assert EXECUTED.pop() == "payload ran"


@pytest.mark.promise("R26", control=True)
@pytest.mark.parametrize("name", ["truncated.jpg", "truncated.png", "flipped.png"])
def test_control_a_look_at_the_header_would_let_it_pass(name: str) -> None:
    assert Image.open(io.BytesIO(IMAGES[name].make())).size == (300, 200)


@pytest.mark.promise("S3", control=True)
@pytest.mark.parametrize("name", ["parent.tar", "absolute.tar"])
def test_control_a_plain_reader_follows_the_name_to_the_outside(name: str, tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(CONTAINERS[name].make())) as archive:
        outside = tmp_path / "a" / "b" / archive.getnames()[1]
    assert not outside.resolve().is_relative_to(tmp_path / "a" / "b")


@pytest.mark.promise("S3", control=True)
def test_control_the_bomb_would_take_half_a_gigabyte() -> None:
    bomb = IMAGES["bomb.png"].make()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        image = Image.open(io.BytesIO(bomb))
    assert len(bomb) == 68 and 3 * image.width * image.height > 500_000_000


def test_the_page_is_what_the_tests_found(found: tuple[dict[str, str], dict[str, str]]) -> None:
    assert PAGE.read_text() == page(*found), "run python -m tests.hostile_input"


@pytest.mark.promise("R26")
def test_above_the_allowed_share_the_stage_fails_with_the_names(tmp_path: Path) -> None:
    write_files(tmp_path / "in", {name: case.make() for name, case in IMAGES.items()})
    with raises("E-DATA-079") as caught:
        ingested("folder", tmp_path / "in", tmp_path / "out")
    assert "bomb.png" in caught.value.what and caught.value.exit_code == 3


# A first read loads Arrow's Parquet.
SET_UP = """
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pipeline.ingest.sources import parquet

folder = Path(sys.argv[1])
pq.write_table(pa.table({"image": [b"x"]}), folder / "small.parquet")
assert list(parquet.read_rows(str(folder / "small.parquet"), "image", np.array([0])))
"""
READ_ROW = """
((position, data),) = parquet.read_rows(str(folder / "t.parquet"), "image", np.array([399]))
assert (position, data) == (0, (folder / "expected").read_bytes())
"""
READ_WHOLE = 'whole = pq.read_table(folder / "t.parquet")'  # the image 400 times, which is avoided


@pytest.mark.promise("S3")
def test_a_dictionary_that_repeats_an_image_is_read_in_bounded_memory(tmp_path: Path) -> None:
    image = np.random.default_rng(0).bytes(1_000_000)
    write_table(tmp_path / "t.parquet", [image] * 400)  # 400 MB, were it written out
    assert (tmp_path / "t.parquet").stat().st_size < 2_000_000
    (tmp_path / "expected").write_bytes(image)
    assert memory_rise_bytes(SET_UP, READ_ROW, str(tmp_path)) < 60_000_000
    assert memory_rise_bytes(SET_UP, READ_WHOLE, str(tmp_path)) > 400_000_000
