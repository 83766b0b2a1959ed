"""Stages on a simulated GPU: what they compute is the CPU's, and every tensor is where it must be.

The control of each is the same work with one thing left on the CPU, which a GPU refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.config.file import load_config
from pipeline.embed.features import Extractor
from pipeline.evaluate import fits
from pipeline.evaluate.probe_task import Labelled, ProbeEnd, ProbeJob, train_job
from pipeline.mine.extractor import DisagreementExtractor
from pipeline.model import build, weights
from pipeline.model.source import PIXELS, UNTRAINED, ModelSource
from sdclr import Encoder, ImageSet, Network
from sdclr.checkup import Checkup
from sdclr.crossval import CrossValidation
from sdclr.export import FeatureModel
from sdclr.probe import linear_probe
from sdclr.trained_probe import ProbeRecipe, ProbeView
from tests.recipes import some_images, some_plan, some_trainer
from tests.simulated_gpu import DEVICE, PlacementError, SimulatedGPU

WORDS = ["train.methods=[sdclr]", "mine.num_views=2", "mine.prune_ratios=[0.5, 0.9]"]
CONFIG = load_config(None, WORDS)
THERE = "cuda:0"
GENERATOR = np.random.default_rng(0)
BATCH: dict[str, Any] = {
    "set": np.array(["probe"] * 5), "row": np.arange(5), "id": np.array(list("abcde")),
    "label": np.arange(5), "size": np.full((5, 2), 16),
    "pixels": GENERATOR.integers(0, 255, (5, 3, 16, 16)).astype(np.uint8),
}  # fmt: skip
FEATURES = GENERATOR.normal(size=(90, 12)).astype(np.float32)
LABELS = np.arange(90) % 3
FEATURES[np.arange(90), LABELS] += 2


def features(device: str) -> dict[str, Any]:
    sources = [ModelSource(UNTRAINED), ModelSource(PIXELS)]
    return Extractor(CONFIG.model_dump_json(), sources, 16, None, None, device, 1)(BATCH)


def mining(device: str) -> dict[str, Any]:
    arguments = (ModelSource(UNTRAINED), None, 16, None, True, device, 1)
    return DisagreementExtractor(CONFIG.model_dump_json(), *arguments)(BATCH)


def health(device: str) -> dict[str, Any]:
    model = some_trainer(some_plan()).model
    model.to(device)
    return dict(Checkup.of_images(some_images(), num_images=30, crop_px=16)(model))


def classifier(device: str) -> dict[str, Any]:
    job = ProbeJob(
        config_json=CONFIG.model_dump_json(), source=ModelSource(UNTRAINED), init_from=None,
        rows_n=np.arange(20), recipe=ProbeRecipe(epochs=2, batch=8, lr=0.1),
        view=ProbeView(kind="padded-crop", crop_px=16), num_features=64,
        num_classes=3, device=device, num_threads=1,
    )  # fmt: skip
    held = Labelled(GENERATOR.normal(size=(9, 64)).astype(np.float32) * 0, np.arange(9) % 3)
    images, sizes = some_images().images_NCHW.numpy(), np.full((40, 2), 16)
    *steps, end = train_job(job, images, sizes, np.arange(40) % 3, held, held)
    assert isinstance(end, ProbeEnd) and len(steps) == 2
    return {"last": end.last}


def encoding(device: str) -> dict[str, Any]:
    network = some_trainer(some_plan()).network
    encoder = Encoder(network.backbone, architecture="resnet8", stem="cifar", crop_px=16)
    return {"features": encoder.to(device).encode(some_images(5)).numpy()}


MODELS = {
    "features": features, "mine": mining, "health": health, "paper-linear": classifier,
    "encoder": encoding,
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_networks_give_what_they_give_on_the_cpu(name: str) -> None:
    expected = MODELS[name]("cpu")
    with SimulatedGPU() as gpu:
        found = MODELS[name](THERE)
        assert gpu.num_launches > 20
    assert expected.keys() == found.keys()
    for key, values in expected.items():
        if isinstance(values, float) or np.asarray(values).dtype.kind == "f":
            np.testing.assert_allclose(found[key], values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_network_that_stays_on_the_cpu_is_refused(name: str) -> None:
    stays: Callable[..., nn.Module] = lambda self, *_, **__: self  # noqa: E731
    with SimulatedGPU():
        if name in ("health", "encoder"):  # their images follow the network's normalisation
            apart = mock.patch.object(Network, "features", on_the_cpu)
        else:
            apart = mock.patch.object(nn.Module, "to", stays)
        with apart, pytest.raises(PlacementError):
            MODELS[name](THERE)


def on_the_cpu(self: Network, images_BCHW: Tensor) -> Tensor:
    found: Tensor = self.backbone((images_BCHW - self.mean.cpu()) / self.std.cpu())
    return found


def probe_parts(device: str) -> list[Any]:
    validation = CrossValidation.of(
        torch.from_numpy(LABELS), num_classes=3, l2_grid=(1e-3, 1e-1), num_folds=3, seed=0
    )
    train, test = fits._axes(FEATURES, FEATURES[:30], device)
    folds = [fits._fold(train, LABELS, validation, number, device) for number in range(3)]
    return [
        *folds,
        fits._final(train, LABELS, test, validation, device, *folds),
        fits._neighbours(FEATURES, LABELS, FEATURES[:30], 3, 5, device),
    ]


def test_probes_predict_what_they_predict_on_the_cpu() -> None:
    expected = probe_parts("cpu")
    with SimulatedGPU() as gpu:
        found = probe_parts(THERE)
        assert gpu.num_launches > 100
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (expected[-1] == LABELS[:30]).mean() > 0.6


def test_a_probe_of_features_in_two_places_is_refused() -> None:
    train, labels = torch.from_numpy(FEATURES), torch.from_numpy(LABELS)
    with SimulatedGPU(), pytest.raises(PlacementError):
        linear_probe(train.to(DEVICE), labels, train[:30], num_classes=3, seed=0)


def test_weights_of_the_device_are_exported_as_those_of_the_cpu(tmp_path: Path) -> None:
    trainer = some_trainer(some_plan())
    here, facts = tmp_path / "here.safetensors", {"method": "sdclr"}
    build.export_backbone(str(here), trainer.network.backbone, facts)
    with SimulatedGPU():
        there = some_trainer(some_plan(), device=THERE)
        assert {p.device for p in there.network.parameters()} == {DEVICE}
        build.export_backbone(str(tmp_path / "there.safetensors"), there.network.backbone, facts)
        program = FeatureModel(there.network)
        with pytest.raises(PlacementError):  # the program is made of a network on the CPU
            program(torch.rand(2, 3, 16, 16))
    assert (tmp_path / "there.safetensors").read_bytes() == here.read_bytes()
    assert len(weights.read_weights(str(here), image_px=16)) > 20


def test_a_set_that_is_kept_on_the_device_gives_its_batches_there() -> None:
    with SimulatedGPU():
        images = ImageSet(some_images().images_NCHW.to(DEVICE))
        batch = next(iter(images.feed(some_plan(), seed=0).batches(0)))
        assert batch.images_BCHW.device == DEVICE and batch.rows_B.device.type == "cpu"
