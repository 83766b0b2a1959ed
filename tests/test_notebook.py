"""The method in a notebook: a folder of photographs, one call, no Ray."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import sdclr
from sdclr import photographs
from sdclr.checkup import Measures
from sdclr.photographs import find_photographs, read_photographs
from sdclr.weights_file import WeightsFileError, read_weights, save_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 drawn pictures of two kinds, with names and formats as people have them."""
    root = tmp_path_factory.mktemp("my photos")
    (root / "été").mkdir()
    for number in range(16):
        generator = torch.Generator().manual_seed(number)
        noise = torch.randint(0, 60, (20 + number, 30, 3), generator=generator, dtype=torch.uint8)
        noise[:, :, number % 2] += 150
        ending = (".jpg", ".png", ".webp", ".bmp")[number % 4]
        place = root / ("été" if number < 8 else ".") / f"picture {number:02d}{ending}"
        Image.fromarray(noise.numpy()).save(place)
    return root


@pytest.fixture(scope="module")
def result(folder: Path) -> sdclr.Pretrained:
    return sdclr.pretrain(folder, backbone="resnet8", crop_px=16, epochs=2, batch=8, device="cpu")


def test_a_folder_is_read_in_the_order_of_names_and_nothing_is_enlarged(folder: Path) -> None:
    found = read_photographs(folder, canvas_px=32)
    assert list(found.paths) == find_photographs(folder) and found.rejects == ()
    sizes = found.images.sizes_N2.tolist()
    by_name = {path.name: tuple(size) for path, size in zip(found.paths, sizes, strict=True)}
    assert by_name["picture 00.jpg"] == (20, 30)  # smaller than the canvas: kept as it is
    assert by_name["picture 15.bmp"] == (32, round(30 * 32 / 35))


def test_what_cannot_be_read_is_named_with_its_reason(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 no picture")
    whole = find_photographs(folder)[0]
    found = read_photographs([whole, broken], canvas_px=16)
    assert found.paths == (whole,)
    assert [path for path, _ in found.rejects] == [broken] and found.rejects[0][1]
    with pytest.raises(ValueError, match="no photograph can be read"):
        read_photographs([broken], canvas_px=16)


def test_photographs_of_a_phone_bring_the_package_that_reads_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photographs, "reads_heif", lambda: False)
    files = {"a.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "b.heic": b"text"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    whole = find_photographs(folder)[0]
    found = read_photographs([whole, *(tmp_path / name for name in files)], canvas_px=16)
    assert ["pip install pillow-heif" in why for _, why in found.rejects] == [True, False]
    with pytest.raises(ValueError, match="pip install pillow-heif"):
        sdclr.pretrain([tmp_path / "a.heic"])


def test_a_photograph_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    picture = Image.new("RGB", (30, 20), "red")
    exif = picture.getexif()
    exif[0x0112] = 6  # quarter turn
    picture.save(tmp_path / "turned.jpg", exif=exif)
    found = read_photographs([tmp_path / "turned.jpg"], canvas_px=32)
    assert found.images.sizes_N2.tolist() == [[30, 20]]


@pytest.mark.parametrize("where", ["absent", "empty"])
def test_a_folder_without_photographs_is_refused(tmp_path: Path, where: str) -> None:
    if where == "empty":
        (tmp_path / where).mkdir()
    with pytest.raises(FileNotFoundError):
        sdclr.pretrain(tmp_path / where)


def test_pretraining_measures_itself_and_moves_the_weights(result: sdclr.Pretrained) -> None:
    assert len(result.losses) == 4 and all(map(math.isfinite, result.losses))
    measures: Measures = result.after
    assert 0 <= measures["view_retrieval"] <= 1 and result.before != result.after
    assert len(result.photographs.paths) == 16


def test_equal_seeds_give_equal_encoders_and_others_do_not(
    folder: Path, result: sdclr.Pretrained
) -> None:
    def weights(seed: int) -> torch.Tensor:
        again = sdclr.pretrain(
            folder, backbone="resnet8", crop_px=16, epochs=2, batch=8, device="cpu", seed=seed
        )
        return torch.cat([p.flatten() for p in again.encoder.parameters()])

    first = torch.cat([p.flatten() for p in result.encoder.parameters()])
    assert torch.equal(weights(0), first)
    assert not torch.equal(weights(1), first)


def test_a_saved_encoder_gives_the_same_features(
    folder: Path, result: sdclr.Pretrained, tmp_path: Path
) -> None:
    file = tmp_path / "backbone.safetensors"
    result.encoder.save(file, note="mine")
    expected = sdclr.embed(folder, result.encoder)
    found = sdclr.embed(folder, sdclr.load_backbone(file))
    assert found.paths == expected.paths
    assert torch.equal(found.features_NF, expected.features_NF)
    other = sdclr.embed(folder, sdclr.load_backbone(file, crop_px=24))
    assert not torch.equal(other.features_NF, expected.features_NF)


def test_the_files_are_those_of_the_safetensors_library(tmp_path: Path) -> None:
    tensors = {
        "a.weight": torch.randn(3, 4), "b": torch.arange(5), "c": torch.zeros(0, 2),
        "d": torch.randn(2, 2).to(torch.bfloat16), "e": torch.tensor(True), "f": torch.tensor(1.5),
    }  # fmt: skip
    save_weights(tmp_path / "ours.safetensors", tensors, {"x": 1})
    theirs = load_file(tmp_path / "ours.safetensors")
    save_file(tensors, tmp_path / "theirs.safetensors", {"sdclr": json.dumps({"x": 1})})
    ours, facts = read_weights(tmp_path / "theirs.safetensors")
    assert facts == {"x": 1} and set(ours) == set(theirs) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(ours[name], tensor) and torch.equal(theirs[name], tensor)
        assert ours[name].dtype == tensor.dtype and ours[name].shape == tensor.shape


@pytest.mark.promise("S1")
def test_torn_and_hostile_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_weights(file, {"a": torch.ones(4)}, {})
    whole = file.read_bytes()
    hostile = [b"", b"\x80\x04evil", whole[:20], whole[:-4], b"\xff" * 8 + whole[8:]]
    head = b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,99]}}'
    hostile.append(len(head).to_bytes(8, "little") + head + bytes(16))
    head = b'{"a":{"dtype":"F32","shape":[-4,-1],"data_offsets":[0,16]}}'
    hostile.append(len(head).to_bytes(8, "little") + head + bytes(16))
    for content in hostile:
        file.write_bytes(content)
        with pytest.raises(WeightsFileError):
            sdclr.load_backbone(file, crop_px=16)


def test_the_notebook_of_the_docs_runs_from_the_first_cell_to_the_last(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    notebook = Path(__file__).resolve().parent.parent / "docs" / "rare_photographs.ipynb"
    cells = json.loads(notebook.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code")
    for name, value in {"PHOTOGRAPHS": str(folder), "EPOCHS": "1", "BACKBONE": "resnet8"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for cell in code:
        exec(compile(cell, str(notebook), "exec"), names)
    printed = capsys.readouterr().out
    assert "16 photographs, 0 rejects" in printed and "view_retrieval" in printed
    assert sum(str(folder) in line for line in printed.splitlines()) == 5  # the rarest, by path
    assert (tmp_path / "backbone.safetensors").exists()
