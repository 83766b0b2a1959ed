"""Exported forms give the network's features without this project, and say what they are."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from pipeline.config import Config
from pipeline.config.file import config_hash, load_config
from pipeline.errors import CheckpointError
from pipeline.export import stage as stage
from pipeline.export.card import model_card
from pipeline.export.facts import Facts
from pipeline.export.loading import classifier_of, loading_code
from pipeline.export.stage import check_formats, export_network
from pipeline.model import checkpoint
from pipeline.model.build import new_network
from pipeline.record.context import RunContext
from pipeline.record.evaluation import Score
from pipeline.train.method_run import MethodRun
from sdclr import Network, TrainState, load_backbone
from sdclr.backbone import build_backbone
from sdclr.export import FeatureModel, check_images, exported_program, largest_difference
from tests import records
from tests.conftest import REPO
from tests.refusals import raises
from tests.test_docs import blocks
from tests.test_models import manifest

timm_only = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="timm is not installed"
)
SCORE = {
    "protocol": "knn-k20", "n": 1, "many": 0.9, "medium": 0.8, "few": 0.7, "std": 0.08, "all": 0.8,
    "spread": None, "note": "20 labels, cosine",
}  # fmt: skip
FACTS = Facts(
    architecture="resnet8", stem="cifar", method="sdclr", crop_px=16, resize_px=None, seed=0,
    config_hash="c0", data_name="digits-lt", data_hash="d0", pretrain_images=9, step=3, epochs=2,
    versions={"torch": "2"}, scores=(Score.model_validate(SCORE | {"per_class": ()}),),
    scored_on="test",
)  # fmt: skip


def facts_of(architecture: str, stem: str) -> Facts:
    return FACTS.model_copy(update={"architecture": architecture, "stem": stem, "crop_px": 32})


def trained_network(*overrides: str) -> Network:
    """A network whose normalisation layers have statistics of their own, as after training."""
    network = new_network(load_config(None, overrides), "simclr").train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network(images)
    return network.eval()


def expected_of(network: Network, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        features = network.features(images)
    assert features.std() > 0.05  # dead features would agree whatever the weights
    return features


def test_the_program_is_the_network_with_its_normalisation_for_any_batch(tmp_path: Path) -> None:
    network = trained_network()
    names = export_network(network, FACTS, str(tmp_path), formats=("safetensors", "torch-export"))
    assert names == ["backbone.safetensors", "features.pt2", "README.md"]
    program = torch.export.load(tmp_path / "features.pt2").module()
    for num_images in (1, 2, 7):
        images = torch.rand(num_images, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        expected = expected_of(network, images)
        assert largest_difference(program(images), expected) < 1e-5
        # Controls: other images, and images that are normalised already, give other features.
        assert largest_difference(program(1 - images), expected) > 1e-3
        normal = (images - network.mean) / network.std
        assert largest_difference(program(normal), expected) > 1e-3


def test_the_three_lines_of_the_page_run_in_a_process_without_this_project(tmp_path: Path) -> None:
    page = (REPO / "docs" / "export.md").read_text()
    (lines,) = (code for kind, code in blocks(page) if kind == "python" and "export.load" in code)
    assert sum(bool(line) for line in lines.splitlines()) == 3
    assert "sdclr" not in lines and "pipeline" not in lines
    network, images = trained_network(), check_images(16)
    export_network(network, FACTS, str(tmp_path), formats=("torch-export",))
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import sys, torch\n"
        "images = torch.load('images.pt', weights_only=True)\n"
        f"{lines}"
        "torch.save(features.detach(), 'features.pt')\n"
        "sys.exit('sdclr' in sys.modules or 'pipeline' in sys.modules)"
    )
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True)
    found = torch.load(tmp_path / "features.pt", weights_only=True)
    assert largest_difference(found, expected_of(network, images)) < 1e-5


def test_onnx_gives_the_same_features_for_any_batch(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = trained_network()
    export_network(network, FACTS, str(tmp_path), formats=("onnx",))
    session = onnxruntime.InferenceSession(
        str(tmp_path / "features.onnx"), providers=["CPUExecutionProvider"]
    )
    for num_images, width_px in ((1, 16), (5, 16), (2, 37)):
        images = check_images(16, num_images, width_px=width_px)
        (found,) = session.run(["features"], {"images": images.numpy()})
        assert largest_difference(torch.from_numpy(found), expected_of(network, images)) < 1e-5
    (other,) = session.run(["features"], {"images": (1 - images).numpy()})
    assert largest_difference(torch.from_numpy(other), expected_of(network, images)) > 1e-3


@pytest.mark.parametrize(
    ("backbone", "stem"),
    [("resnet18", "cifar"), ("resnet18", "imagenet"), ("convnext_tiny", "imagenet"),
     ("mnasnet0_5", "imagenet"),
     pytest.param("densenet121", "cifar", marks=pytest.mark.slow),
     pytest.param("mobilenet_v3_small", "imagenet", marks=pytest.mark.slow),
     pytest.param("vit_b_32", "imagenet", marks=pytest.mark.slow),
     pytest.param("googlenet", "imagenet", marks=pytest.mark.slow),
     pytest.param("swin_t", "imagenet", marks=pytest.mark.slow),
     pytest.param("timm/vit_tiny_patch16_224", "imagenet", marks=timm_only)],
)  # fmt: skip
def test_the_cards_lines_load_the_weights_into_plain_torchvision(
    backbone: str, stem: str, tmp_path: Path
) -> None:
    network = trained_network(
        f"model.backbone={backbone}", f"model.stem={stem}", "augment.crop_px=32"
    )
    facts = facts_of(backbone, stem)
    names = export_network(network, facts, str(tmp_path), formats=("safetensors",))
    assert ("backbone.timm.safetensors" in names) == (backbone == "convnext_tiny")
    card = (tmp_path / "README.md").read_text()
    assert loading_code(facts) in card
    torch.save(check_images(32), tmp_path / "images.pt")
    code = loading_code(facts) + (
        "mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in "
        "((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))\n"
        "images = torch.load('images.pt', weights_only=True)\n"
        "torch.save(model((images - mean) / std).detach(), 'features.pt')\n"
    )
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True)
    found = torch.load(tmp_path / "features.pt", weights_only=True)
    assert largest_difference(found, expected_of(network, check_images(32))) < 1e-5


@pytest.mark.parametrize(
    "name", ["alexnet", "squeezenet1_1", "efficientnet_b0", "shufflenet_v2_x0_5", "regnet_y_400mf"]
)
def test_the_classifier_has_its_name(name: str) -> None:
    backbone, _ = build_backbone(name, stem="imagenet", seed=0)
    path = classifier_of(name).replace("[", ".").replace("]", "")
    assert isinstance(backbone.get_submodule(path), nn.Identity)


@pytest.mark.parametrize(
    ("name", "side_px"),
    [
        pytest.param("mobilenet_v3_small", 64, marks=pytest.mark.slow),
        ("resnet18", 64),
        ("resnet18", 32),
    ],
)
def test_programs_of_other_families_give_the_networks_features(
    name: str, side_px: int, tmp_path: Path
) -> None:
    network = trained_network(f"model.backbone={name}", "model.stem=imagenet", "augment.crop_px=32")
    facts = facts_of(name, "imagenet").model_copy(update={"crop_px": side_px})
    export_network(network, facts, str(tmp_path), formats=("torch-export",))
    program = torch.export.load(tmp_path / "features.pt2").module()
    images = check_images(side_px, 5)
    assert largest_difference(program(images), expected_of(network, images)) < 1e-5
    card, wide = (tmp_path / "README.md").read_text(), check_images(side_px, 1, width_px=70)
    # At 32 px the last map of these networks has one pixel: a program of its own.
    if side_px == 32:
        assert "(B, 3, 32, 32)" in card and ", images of 32 x 32 px only" in card
        with pytest.raises(AssertionError, match="Guard"):
            program(wide)
    else:
        assert f"(B, 3, H, W), H and W from {side_px} px on" in card and "px only" not in card
        for images in (wide, check_images(97, 2, width_px=130)):
            assert largest_difference(program(images), expected_of(network, images)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side_px"),
    [("convnext_tiny", 64), ("vit_b_32", 32), ("swin_t", 32), ("efficientnet_b0", 64),
     ("densenet121", 64), ("shufflenet_v2_x0_5", 64)],
)  # fmt: skip
def test_programs_of_large_families_as_well(name: str, side_px: int, tmp_path: Path) -> None:
    test_programs_of_other_families_give_the_networks_features(name, side_px, tmp_path)


def test_timms_own_network_loads_the_renamed_file(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    from safetensors.torch import load_file

    network = trained_network("model.backbone=convnext_tiny", "model.stem=imagenet")
    facts = facts_of("convnext_tiny", "imagenet")
    export_network(network, facts, str(tmp_path), formats=("safetensors",))
    theirs = timm.create_model("convnext_tiny", num_classes=0).eval()
    theirs.load_state_dict(load_file(tmp_path / "backbone.timm.safetensors"), strict=True)
    images = check_images(32)
    with torch.inference_mode():
        found = theirs((images - network.mean) / network.std)
    assert largest_difference(found, expected_of(network, images)) < 1e-5


def test_the_card_says_which_program_takes_one_size_only() -> None:
    card = model_card(FACTS, ("features.pt2", "features.onnx"), any_size=("features.pt2",))
    assert "(B, 3, H, W), H and W from 16 px on" in card and "(B, 3, 16, 16)" in card
    assert [line for line in card.splitlines() if "px only" in line] == [
        "- `features.onnx`: the same as ONNX, images of 16 x 16 px only"
    ]


def test_metadata_holds_the_facts_and_the_card_the_numbers(tmp_path: Path) -> None:
    export_network(trained_network(), FACTS, str(tmp_path), formats=("safetensors",))
    with safe_open(tmp_path / "backbone.safetensors", "pt") as opened:
        facts = json.loads(opened.metadata()["sdclr"])
    assert facts.pop("key_names") == "torchvision"
    assert facts["scores"] == [SCORE]  # without the values by class
    facts["scores"] = [SCORE | {"per_class": []}]
    assert Facts.model_validate_json(json.dumps(facts)) == FACTS
    card = (tmp_path / "README.md").read_text()
    assert "| knn-k20 | 90.0 | 80.0 | 70.0 | 8.0 | 80.0 | 1 |" in card
    assert "- `knn-k20`: 20 labels, cosine" in card and "features.pt2" not in card
    sick = model_card(FACTS.model_copy(update={"alarms": ("features have collapsed",)}), ())
    assert "Alarm of the training:** features have collapsed" in sick and "Alarm" not in card
    assert "has not been evaluated" in model_card(FACTS.model_copy(update={"scores": ()}), ())


def test_a_form_that_gives_other_features_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(model: FeatureModel, *, side_px: int) -> bytes:
        changed = FeatureModel(trained_network("run.seed=1"))
        return exported_program(changed, side_px=side_px)

    monkeypatch.setattr(stage, "exported_program", other)
    with raises("E-BUG-560", "features.pt2"):
        export_network(trained_network(), FACTS, str(tmp_path), formats=("torch-export",))
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_told_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_formats(("onnx",))  # control: it is installed here
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    check_formats(("safetensors", "torch-export"))
    with raises("E-CONFIG-016") as caught:
        export_network(trained_network(), FACTS, str(tmp_path), formats=("safetensors", "onnx"))
    assert "onnxscript" in caught.value.what and "pip install onnx==" in caught.value.todo
    assert not list(tmp_path.iterdir())


def test_the_installation_that_is_told_is_the_tested_one() -> None:
    pins = (REPO / "requirements-dev.txt").read_text()
    for pin in stage._ONNX_INSTALL.split()[4:]:
        assert pin in pins


def test_the_documents_lines_are_those_that_are_tested() -> None:
    text = (REPO / "docs" / "export.md").read_text()
    blocks = text.split("```python\n")[1:]
    program, module = (
        [line.partition("  #")[0] for line in block.split("```")[0].splitlines() if line]
        for block in blocks
    )
    card = model_card(FACTS, ("features.pt2",))
    assert len(program) == 3 and all(line in card for line in program)
    code = loading_code(facts_of("resnet50", "imagenet"))
    assert code.startswith("\n".join(module))


def test_the_stage_exports_the_newest_checkpoint_of_each_method_with_its_scores(
    tmp_path: Path,
) -> None:
    config = load_config(None, ["train.methods=[simclr]", "export.formats=[safetensors]"])
    network = new_network(config, "simclr")
    tensors = {f"model.network.{n}": t for n, t in network.state_dict().items()}
    folder = checkpoint.checkpoints_uri(str(tmp_path), "simclr")
    for step in (2, 4):
        state = TrainState(tensors, {"step": step, "num_steps": 4})
        checkpoint.save(folder, state, config_hash=config_hash(config))
    models = [
        {
            "name": "simclr",
            "step": n,
            "epochs": 1,
            "scores": [SCORE | {"per_class": [], "all": mean}],
        }
        for n, mean in ((2, 0.2), (4, 0.4))
    ]
    evaluation = records.evaluation(["a", "b", "c"], [3, 2, 1]) | {"models": models, "curve": []}
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    written = stage.export(RunContext(config, str(tmp_path), "", manifest(16, 16)))
    target = tmp_path / "export" / "simclr"
    assert written == {str(target): ["backbone.safetensors", "README.md"]}
    with safe_open(target / "backbone.safetensors", "pt") as opened:
        facts = json.loads(opened.metadata()["sdclr"])
    assert (facts["step"], facts["epochs"], facts["crop_px"]) == (4, config.train.epochs, 16)
    assert [score["all"] for score in facts["scores"]] == [0.4]
    assert (
        facts["config_hash"] == config_hash(config) and "data_hash" in facts and facts["input_mean"]
    )
    other = load_config(None, ["train.methods=[simclr]", "run.seed=7"])
    with pytest.raises(CheckpointError) as caught:
        stage.export(RunContext(other, str(tmp_path), "", manifest(16, 16)))
    assert caught.value.id == "E-CHECKPOINT-001"


def test_equal_networks_give_equal_weight_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        export_network(trained_network(), FACTS, str(tmp_path / name), formats=("safetensors",))
    files = [(tmp_path / n / "backbone.safetensors").read_bytes() for n in ("a", "b")]
    assert files[0] == files[1] and io.BytesIO(files[0]).read(1)
    assert Config().export.formats == ("safetensors", "torch-export")


def test_the_weights_that_training_writes_load_without_a_word_about_their_size(
    tmp_path: Path,
) -> None:
    config = load_config(None, ["augment.crop_px=24"])
    network = new_network(config, "sdclr")
    run: Any = SimpleNamespace(
        config=config, manifest=manifest(16, 16), method="sdclr",
        trainer=SimpleNamespace(step=3, network=network),
        job=SimpleNamespace(config_hash="c0", run_uri=str(tmp_path)),
    )  # fmt: skip
    MethodRun._export(run)
    file = tmp_path / "models" / "sdclr" / "backbone.safetensors"
    encoder = load_backbone(file)
    assert encoder.crop_px == 24
    found = encoder.network.backbone.state_dict()
    assert all(torch.equal(found[n], t) for n, t in network.backbone.state_dict().items())
