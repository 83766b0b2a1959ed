"""Public weights by name: found in the caches of their libraries, or refused in one sentence."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision.models as zoo
from safetensors.torch import save_file
from torch import nn

from pipeline.config import Config
from pipeline.config.file import load_config
from pipeline.config.public_weights import PublicName, is_public, parse_public
from pipeline.evaluate.candidates import find_candidates
from pipeline.model import build, public
from pipeline.model.source import UNTRAINED, given_source, load_model, weights_hash
from pipeline.storage.place import FormError
from tests.conftest import REPO
from tests.refusals import lines, raises

URI = "torchvision:resnet18:IMAGENET1K_V1"
KEYS = ["model.backbone=resnet18", "model.stem=imagenet"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Torch's cache, empty, on a machine without a network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)

    def no_network(*_: object, **__: object) -> None:
        raise URLError("no network here")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    return folder


def place(cache: Path, seed: int = 3) -> nn.Module:
    """Put the weights of a network with a classifier where torch would have downloaded them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = zoo.resnet18(weights=None)
    url = zoo.ResNet18_Weights.IMAGENET1K_V1.url
    torch.save(network.state_dict(), cache / url.rpartition("/")[2])
    return network.eval()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (URI, PublicName("torchvision", "resnet18", "IMAGENET1K_V1")),
        ("timm:vit_tiny_patch16_224.augreg_in21k",
         PublicName("timm", "vit_tiny_patch16_224.augreg_in21k")),
    ],
)  # fmt: skip
def test_names_have_two_forms(text: str, expected: PublicName) -> None:
    assert is_public(text) and parse_public(text) == expected
    config = load_config(None, [f"train.init_from={text}", f"evaluate.public=[{text}]"])
    assert config.train.init_from == text and config.evaluate.public == (text,)
    assert build.init_uri(config) == text


@pytest.mark.parametrize(
    "text", ["torchvision:resnet18", "torchvision:a:b:c", "timm:", "timm:a/b", "torchvision:"]
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(FormError):
        parse_public(text)
    (line,) = lines(None, f"train.init_from='{text}'")
    assert "train.init_from" in line and "torchvision:NAME:WEIGHTS" in line
    (line,) = lines(None, f"evaluate.public=['{text}']")
    assert "evaluate.public" in line


def test_a_place_is_no_public_model() -> None:
    assert not is_public("runs/x/backbone.safetensors") and not is_public("s3://b/x.pt")
    (line,) = lines(None, "evaluate.public=[runs/x/backbone.safetensors]")
    assert "evaluate.public" in line


def test_a_run_starts_from_public_weights(cache: Path) -> None:
    theirs = place(cache).state_dict()
    config = load_config(None, [*KEYS, f"train.init_from={URI}"])
    ours = build.new_network(config, "sdclr", init_from=build.init_uri(config)).backbone
    assert all(torch.equal(t, theirs[n]) for n, t in ours.state_dict().items())
    fresh = build.new_network(config, "sdclr").backbone
    assert not torch.equal(fresh.get_parameter("conv1.weight"), theirs["conv1.weight"])


@pytest.mark.parametrize("keys", [["model.stem=imagenet"], ["model.backbone=resnet18"]])
def test_weights_of_another_network_or_stem_are_refused(cache: Path, keys: list[str]) -> None:
    place(cache)
    with raises("E-CHECKPOINT-011", URI):
        build.new_network(load_config(None, keys), "sdclr", init_from=URI)


def test_without_a_network_the_error_says_which_file_is_missing(cache: Path) -> None:
    with raises("E-CHECKPOINT-761", URI, f"{cache}/resnet18-f37072fd.pth"):
        public.read_public(URI, image_px=None)


def test_a_damaged_download_is_refused(cache: Path) -> None:
    place(cache)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    with raises("E-CHECKPOINT-762", str(file)):
        public.read_public(URI, image_px=None)


@pytest.mark.parametrize(
    "uri", ["torchvision:resnet18:IMAGENET1K_V9", "torchvision:resnet8:X", "torchvision:nothing:X"]
)
def test_weights_that_there_are_not_are_refused(cache: Path, uri: str) -> None:
    with raises("E-CHECKPOINT-760", uri):
        public.read_public(uri, image_px=None)


def test_weights_for_other_inputs_are_no_start() -> None:
    public.refuse_other_input(URI)
    with raises("E-CHECKPOINT-763", "0.5"):
        public.refuse_other_input("torchvision:efficientnet_v2_l:IMAGENET1K_V1")


def test_a_public_model_is_a_row_beside_the_runs_own(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = place(cache)
    config = load_config(None, [f"evaluate.public=[{URI}]"])
    uri = str(tmp_path / "w.safetensors")
    save_file(build.new_network(config, "sdclr").backbone.state_dict(), uri)
    found = find_candidates(config, "", "", given_uri=uri)
    assert [m.name for m in found.models] == ["checkpoint", URI, UNTRAINED]
    model = load_model(config, found.models[1].source, init_from=None)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    theirs.fc = nn.Identity()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in public.normalisation(URI))
    torch.testing.assert_close(model.network.features(x), theirs((x - mean) / std))
    other = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    monkeypatch.setattr("pipeline.model.source.normalisation", lambda _: other)
    model = load_model(config, found.models[1].source, init_from=None)
    torch.testing.assert_close(model.network.features(x), theirs((x - 0.5) / 0.25))


def test_public_weights_can_be_scored_instead_of_a_run(cache: Path) -> None:
    place(cache)
    config = load_config(None, KEYS)
    source, facts = given_source(config, URI)
    assert source.uri == URI and facts == {}
    first = weights_hash(source, "")
    place(cache, seed=4)
    assert weights_hash(source, "") != first
    with raises("E-CHECKPOINT-011"):
        given_source(Config(), URI)


def test_position_embeddings_follow_the_side_of_the_images() -> None:
    name = PublicName("torchvision", "vit_b_32", "IMAGENET1K_V1")
    tensors = {"encoder.pos_embedding": torch.rand(1, 1 + 7 * 7, 8), "other": torch.ones(2)}
    same = public._resized(name, tensors, 224)
    assert same is tensors
    small = public._resized(name, tensors, 64)
    assert small["encoder.pos_embedding"].shape == (1, 1 + 2 * 2, 8)
    assert torch.equal(small["encoder.pos_embedding"][:, 0], tensors["encoder.pos_embedding"][:, 0])


_OF_TIMM = """
import torch
from pipeline.config.file import load_config
from pipeline.errors import CheckpointError
from pipeline.model import build
config = load_config(None, ["model.backbone=timm/resnet18", "model.stem=imagenet"])
try:
    network = build.new_network(config, "simclr", init_from="timm:resnet18.a1_in1k")
    print(float(network.backbone.conv1.weight.sum()))
except CheckpointError as error:
    print(error.id)
"""


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
def test_weights_of_timm_come_from_its_cache_or_are_refused(tmp_path: Path) -> None:
    def found() -> str:
        environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", _OF_TIMM], capture_output=True, text=True, env=environment,
            cwd=REPO, check=True,
        )  # fmt: skip
        return done.stdout.split()[-1]

    assert found() == "E-CHECKPOINT-761"
    import timm

    folder = tmp_path / "hub" / "models--timm--resnet18.a1_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    network = timm.create_model("resnet18", pretrained=False)
    weight = network.conv1.weight.detach()
    save_file(network.state_dict(), snapshot / "model.safetensors")
    assert float(found()) == pytest.approx(weight.sum().item(), abs=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
def test_weights_that_timm_has_not_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with raises("E-CHECKPOINT-760", "timm:resnet18.nothing"):
        public.read_public("timm:resnet18.nothing", image_px=None)
    assert public.normalisation("timm:vit_tiny_patch16_224")[0] == (0.5, 0.5, 0.5)
    monkeypatch.setitem(sys.modules, "timm", None)
    with raises("E-CHECKPOINT-764"):
        public.read_public("timm:resnet18", image_px=None)
