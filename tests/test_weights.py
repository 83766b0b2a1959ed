"""Weights of any origin: names, prefixes, formats; foreign, broken, hostile files are refused."""

from __future__ import annotations

import argparse
import io
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from pipeline.cli.command_line import Command
from pipeline.cli.resolve import resolve
from pipeline.config.file import load_config
from pipeline.errors import CheckpointError, StorageError
from pipeline.evaluate.candidates import find_candidates
from pipeline.model import build, checkpoint, weights
from pipeline.model.source import ModelSource, given_source, load_model
from pipeline.model.timm_names import to_timm
from sdclr import TrainState, Twin
from sdclr.backbone import build_backbone
from tests.refusals import raises

CONFIG = load_config(None, [])
RESNET18 = load_config(None, ["model.backbone=resnet18", "model.stem=imagenet"])


def resnet8(seed: int = 0) -> torch.nn.Module:
    return build_backbone("resnet8", stem="cifar", seed=seed)[0]


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


PREFIXES = [
    "", "module.", "backbone.", "encoder.", "encoder_q.", "_orig_mod.", "online_", "student.",
    "teacher_", "teacher_backbone.", "module.backbone.", "module.encoder_q.", "backbone.0.",
    "module._orig_mod.backbone.", "online_encoder.net.", "model.net.1.f.", "layer1.0.",
]  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("inside", [None, "state_dict", "model_ema"])
def test_prefixes_and_wrappings_are_seen_through(
    prefix: str, inside: str | None, tmp_path: Path
) -> None:
    source, target = resnet8(1).state_dict(), resnet8(2)
    tensors: dict[str, Any] = {f"{prefix}{n}": t for n, t in source.items()}
    tensors["head.0.weight"] = torch.ones(3)
    content = tensors if inside is None else {"epoch": 3, inside: tensors, "optimizer": OPTIMIZER}
    file = tmp_path / "w.pt"
    torch.save(content, file)
    weights.load_into(target, "resnet8", weights.read_weights(str(file)), uri=str(file))
    assert equal(target.state_dict(), source)


@pytest.mark.parametrize("prefix", ["", "encoder_q.", "module.backbone."])
@pytest.mark.parametrize("naming", ["torchvision", "numbers"])
def test_a_deeper_network_is_another_network(prefix: str, naming: str) -> None:
    """A ResNet-34 has every tensor that a ResNet-18 has, and blocks of its own beside them."""
    deep, _ = build_backbone("resnet34", stem="imagenet", seed=1)
    if naming == "numbers":
        deep = torch.nn.Sequential(*deep.children())
    tensors = {f"{prefix}{n}": t for n, t in deep.state_dict().items()}
    target, _ = build_backbone("resnet18", stem="imagenet", seed=0)
    with raises("E-CHECKPOINT-011", "have no place"):
        weights.load_into(target, "resnet18", tensors, uri="w.pt")
    own, _ = build_backbone("resnet34", stem="imagenet", seed=0)
    weights.load_into(own, "resnet34", tensors, uri="w.pt")
    assert equal(own.state_dict(), dict(zip(own.state_dict(), tensors.values(), strict=True)))


OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize(
    ("trained", "averaged"),
    [
        ("student.", "teacher."), ("module.encoder_q.", "module.encoder_k."),
        ("online_", "target_"), ("state_dict.", "state_dict_ema."), ("model.", "model_ema."),
        ("backbone.", "backbone_momentum."), ("module.net.", "ema.net."),
    ],
)  # fmt: skip
def test_of_two_copies_the_trained_one_is_taken(
    trained: str, averaged: str, tmp_path: Path
) -> None:
    source, other, target = resnet8(1).state_dict(), resnet8(3).state_dict(), resnet8(2)
    tensors = {f"{averaged}{n}": t for n, t in other.items()}
    tensors |= {f"{trained}{n}": t for n, t in source.items()}
    save_file(tensors, tmp_path / "w.safetensors")
    file = str(tmp_path / "w.safetensors")
    weights.load_into(target, "resnet8", weights.read_weights(file), uri=file)
    assert equal(target.state_dict(), source)


def test_children_by_number_half_precision_and_arguments_are_taken(tmp_path: Path) -> None:
    source, target = resnet8(1), resnet8(2)
    children = [name for name, _ in source.named_children()]
    tensors = {}
    for name, tensor in source.state_dict().items():
        child, _, rest = name.partition(".")
        half = tensor.half() if tensor.is_floating_point() else tensor
        tensors[f"backbone.{children.index(child)}.{rest}"] = half
    file = str(tmp_path / "w.pt")
    torch.save({"state_dict": tensors, "args": argparse.Namespace(lr=0.5, name="x")}, file)
    weights.load_into(target, "resnet8", weights.read_weights(file), uri=file)
    for name, tensor in source.state_dict().items():
        torch.testing.assert_close(
            target.state_dict()[name].float(), tensor.float(), atol=1e-3, rtol=0
        )


def test_another_naming_is_reported_by_the_names_of_the_file(tmp_path: Path) -> None:
    tensors = {
        f"module.backbone.{n.replace('bn1.', 'bn1.list.0.').replace('bn2.', 'bn2.list.0.')}": t
        for n, t in resnet8().state_dict().items()
        if "bn" in n
    }
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError) as caught:
        given_source(CONFIG, str(tmp_path / "w.safetensors"))
    assert caught.value.id == "E-CHECKPOINT-370"
    assert "'module.backbone." in caught.value.what and "bn1.list.0." in caught.value.what
    assert "expected are bn1.weight" in caught.value.what


def test_torchvisions_own_state_dict_is_scored_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(weights=None)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    source, facts = given_source(RESNET18, str(tmp_path / "w.pth"))
    model = load_model(RESNET18, source, init_from=None)
    theirs.fc = torch.nn.Identity()
    x = torch.rand(2, 3, 64, 64)
    network = model.network
    with torch.inference_mode():
        expected = theirs.eval()((x - network.mean) / network.std)
        torch.testing.assert_close(network.features(x), expected)
    assert facts == {} and source.name == "checkpoint"


def test_how_long_foreign_weights_were_trained_is_unknown_and_ours_say_it(tmp_path: Path) -> None:
    foreign, ours = (str(tmp_path / name) for name in ("w.pth", "w.safetensors"))
    torch.save(resnet8().state_dict(), foreign)
    build.export_backbone(ours, resnet8(), {"epochs": 7, "step": 21})
    for file, length, words in ((foreign, (None, None), "unknown"), (ours, (7, 21), "7")):
        found = find_candidates(load_config(None), "", "", given_uri=file)
        given, untrained = found.final
        assert (given.epochs, given.step) == length and untrained.epochs == 0
        assert found.notes == [f"checkpoint: {file}, epochs trained: {words}"]


def test_timms_names_are_understood(tmp_path: Path) -> None:
    source, _ = build_backbone("convnext_tiny", stem="imagenet", seed=1)
    target, _ = build_backbone("convnext_tiny", stem="imagenet", seed=2)
    file = tmp_path / "w.safetensors"
    tensors = to_timm("convnext_tiny", source.state_dict())
    save_file(tensors | {"head.fc.weight": torch.ones(10, 768)}, file)
    weights.load_into(target, "convnext_tiny", weights.read_weights(str(file)), uri=str(file))
    assert equal(target.state_dict(), source.state_dict())


def test_a_checkpoint_of_another_run_is_scored_by_its_backbone(tmp_path: Path) -> None:
    other = load_config(None, ["sdclr.head_depth=3", "run.seed=5"])
    twin = Twin(build.new_network(other, "sdclr"))
    tensors = {f"model.{n}": t for n, t in twin.state_dict().items()}
    numbers = {"step": 3, "num_steps": 4}
    uri = checkpoint.save(str(tmp_path), TrainState(tensors, numbers), config_hash="other")
    source, facts = given_source(CONFIG, uri)
    found = load_model(CONFIG, source, init_from=None).network.backbone.state_dict()
    assert equal(found, twin.network.backbone.state_dict()) and facts["step"] == 3
    untrained = load_model(CONFIG, ModelSource("untrained"), init_from=None)
    assert not equal(found, untrained.network.backbone.state_dict())


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"conv1.weight": torch.ones(2)}, r"tensors are missing, first bn1.weight; 1 have another"),
        (build_backbone("resnet8", stem="imagenet", seed=0)[0].state_dict(),
         "1 have another shape, first conv1.weight: 16x3x7x7 instead of 16x3x3x3"),
        (dict(resnet8().state_dict()) | {"layer1.0.conv3.weight": torch.ones(1)},
         "1 have no place, first layer1.0.conv3.weight"),
        ({"a": torch.ones(1)}, "expected are"),
    ],
)  # fmt: skip
def test_another_architecture_is_told_in_words(
    tensors: dict[str, Tensor], match: str, tmp_path: Path
) -> None:
    file = tmp_path / "w.safetensors"
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=match) as caught:
        given_source(CONFIG, str(file))
    assert "model.stem" in caught.value.todo


def test_the_file_says_what_it_is_when_it_does_not_fit(tmp_path: Path) -> None:
    file = str(tmp_path / "w.safetensors")
    backbone = build.new_network(RESNET18, "simclr").backbone
    build.export_backbone(file, backbone, {"architecture": "resnet18", "stem": "imagenet"})
    with pytest.raises(CheckpointError) as caught:
        given_source(CONFIG, file)
    assert "the file says resnet18 with the stem imagenet" in caught.value.todo


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_hostile_file_is_refused_and_its_payload_not_run(writer: str, tmp_path: Path) -> None:
    file, trace = tmp_path / "w.pt", tmp_path / "ran"
    if writer == "torch":
        torch.save({"state_dict": resnet8().state_dict(), "x": Payload(trace)}, file)
    else:
        file.write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(CheckpointError):
        given_source(CONFIG, str(file))
    assert not trace.exists()


def test_broken_missing_and_empty_files_are_refused(tmp_path: Path) -> None:
    for name, content in (("a.pt", b""), ("b.pt", b"PK\x03\x04junk"), ("c.safetensors", b"x" * 9)):
        (tmp_path / name).write_bytes(content)
        with raises(("E-CHECKPOINT-010", "E-CHECKPOINT-012")):
            given_source(CONFIG, str(tmp_path / name))
    torch.save({"epoch": 3}, tmp_path / "d.pt")
    with raises("E-CHECKPOINT-012"):
        given_source(CONFIG, str(tmp_path / "d.pt"))
    for name in ("none.pt", "."):
        with raises("E-CHECKPOINT-009"):
            given_source(CONFIG, str(tmp_path / name))


def test_a_torn_file_of_the_old_format_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    old, file = io.BytesIO(), tmp_path / "w.pt"
    state = {"a.weight": torch.ones(4), "b": torch.arange(5)}
    torch.save(state, old, _use_new_zipfile_serialization=False)
    weights.read_weights(str(write(file, old.getvalue())))
    for num_bytes in range(0, len(old.getvalue()), 7):
        with raises(("E-CHECKPOINT-010", "E-CHECKPOINT-012")):
            weights.read_weights(str(write(file, old.getvalue()[:num_bytes])))


def write(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    ("stage", "key"),
    [
        ("evaluate", ""),
        ("all", "train.init_from"),
        ("train", "train.init_from"),
        ("tune", "train.init_from"),
    ],
)
def test_weights_that_are_not_there_or_do_not_fit_are_told_before_anything_is_made(
    tmp_path: Path, stage: str, key: str
) -> None:
    def resolved(name: str) -> bool:
        given = str(tmp_path / name)
        words = (f"run.root={tmp_path / 'runs'}", *((f"{key}={given}",) if key else ()))
        checkpoint = None if key else given
        command = Command(stage, None, words, None, dry_run=False, checkpoint=checkpoint)
        return resolve(command).is_new

    save_file(resnet8().state_dict(), tmp_path / "fits.safetensors")
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "other.pt")
    for name, words in (
        ("absent.safetensors", "there is no checkpoint here|no such file"),
        ("folder", "there is no checkpoint here|no such file"),
        ("other.pt", "these weights do not fit"),
    ):
        with pytest.raises((CheckpointError, StorageError), match=words):
            resolved(name)
    assert not (tmp_path / "runs").exists()
    assert resolved("fits.safetensors")
