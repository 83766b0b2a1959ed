"""The list of methods: every one trains, resumes and is known to all that names methods."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import Config
from pipeline.config.file import config_hash, load_config
from pipeline.export import stage
from pipeline.model import build, checkpoint
from pipeline.record.context import RunContext
from sdclr import Trainer, TrainState, capture, collective, load_backbone, restore
from sdclr.methods import METHODS, method_class
from tests.ranks import run_on_ranks
from tests.recipes import some_images, some_plan, some_trainer
from tests.test_models import manifest

ROOT = Path(__file__).resolve().parent.parent
PLAN = some_plan()

TOY = '''
from sdclr.methods.method import Method

class Toy(Method):
    """SimCLR at twice the temperature."""

    def temperature(self, epoch):
        return 2 * self.recipe.temperature
'''
LINE = '    "toy": Entry("Toy", "toy:Toy", "simclr", "A toy (this test)"),\n'
USE = """
from pipeline.config.file import load_config
from pipeline.model import build
from pipeline.report.names import style, title
from pipeline.tune.space import parameters
from tests.recipes import some_images, some_plan, some_trainer

config = load_config(None, ["train.methods=[toy, sdclr]", "simclr.temperature=0.3"])
assert config.train.methods == ("toy", "sdclr")
assert title("toy") == "Toy" and style("toy") != style("sdclr")
assert [p.key for p in parameters(config, "toy")] == ["simclr.temperature"]
assert build.architecture(config, "toy")["head_depth"] == config.simclr.head_depth
reports = list(some_trainer(some_plan(), method="toy").run(some_images().feed(some_plan(), seed=0)))
assert reports[0].temperature == 0.4
first = next(some_trainer(some_plan(), method="simclr", temperature=0.4).run(
    some_images().feed(some_plan(), seed=0)))
assert reports[0].loss == first.loss
"""


def test_a_method_is_added_by_one_file_and_one_line(tmp_path: Path) -> None:
    for package in ("sdclr", "pipeline", "tests"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("*.pyc"))
    listed = tmp_path / "sdclr" / "methods" / "__init__.py"
    start = "METHODS = {\n"
    assert start in listed.read_text()
    command = [sys.executable, "-c", USE]
    without = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert without.returncode and "train.methods" in without.stderr
    listed.write_text(listed.read_text().replace(start, start + LINE))
    (tmp_path / "sdclr" / "methods" / "toy.py").write_text(TOY)
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_the_list_is_read_without_torch() -> None:
    code = "import sys, sdclr.methods, pipeline.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_one_short_file(name: str) -> None:
    file = ROOT / "sdclr" / "methods" / f"{METHODS[name].home.partition(':')[0]}.py"
    assert len(file.read_text().splitlines()) <= 150
    assert method_class(name).__doc__ and METHODS[name].source and METHODS[name].title


def test_an_unknown_method_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"no method 'moco'.*simclr"):
        some_trainer(PLAN, method="moco")


def feed() -> Any:
    return some_images().feed(PLAN, seed=0)


@cache
def unbroken(name: str) -> tuple[list[float], list[TrainState]]:
    """Losses of a run that nothing interrupts, and its state after each step."""
    trainer = some_trainer(PLAN, method=name, epochs=2)
    losses, states = zip(*((r.loss, capture(trainer)) for r in trainer.run(feed())), strict=True)
    return list(losses), list(states)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("stop", [5, 8])
def test_every_method_resumes_bit_for_bit(name: str, stop: int) -> None:
    losses, states = unbroken(name)
    resumed = some_trainer(PLAN, method=name, epochs=2)
    restore(resumed, states[stop - 1])
    assert [r.loss for r in resumed.run(feed())] == losses[stop:] and len(losses) == 10
    end = capture(resumed).tensors
    assert all(torch.equal(t, end[n]) for n, t in states[-1].tensors.items())


def test_no_two_methods_are_the_same() -> None:
    assert len({tuple(unbroken(name)[0]) for name in METHODS}) == len(METHODS)


def of_every_method() -> dict[str, Any]:
    plan = some_plan(num_ranks=collective.world_size())
    found = {}
    for name in METHODS:
        trainer = some_trainer(plan, method=name, epochs=2, dtype=torch.float64)
        images = some_images().feed(plan, seed=0, rank=collective.rank())
        losses = [r.loss for r in trainer.run(images)]
        weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        found[name] = {"losses": torch.tensor(losses, dtype=torch.float64), "weights": weights}
    return found


def test_two_ranks_train_every_method_as_one_does() -> None:
    first, second = run_on_ranks(of_every_method)
    one = of_every_method()
    for name in METHODS:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
        torch.testing.assert_close(first[name], one[name], rtol=1e-5, atol=1e-5)


SIDE_PX = {"resnet18": 16, "convnext_tiny": 32, "vit_b_16": 32}
ADAMW = ("model.stem=imagenet", "train.optimizer=adamw", "train.lr_per_256=0.0005",
         "train.decay_all=false")  # fmt: skip


def trainer_of(config: Config, name: str) -> Trainer:
    side_px = SIDE_PX[config.model.backbone]
    return Trainer(
        build.new_network(config, name),
        build.training_recipe(config, manifest(side_px, side_px), name),
        steps_per_epoch=1,
        memory=build.loss_memory(config, name, 8),
    )


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "backbone",
    ["resnet18", *(pytest.param(b, marks=pytest.mark.slow) for b in ("convnext_tiny", "vit_b_16"))],
)
def test_every_method_trains_resumes_and_exports(name: str, backbone: str, tmp_path: Path) -> None:
    side_px = SIDE_PX[backbone]
    words = [f"model.backbone={backbone}", f"augment.crop_px={side_px}", "train.epochs=2"]
    words += ["export.formats=[safetensors]", *(() if backbone == "resnet18" else ADAMW)]
    config = load_config(None, [f"train.methods=[{name}]", *words])
    images = some_images(8, side_px).feed(some_plan(8), seed=0)
    whole, resumed = trainer_of(config, name), trainer_of(config, name)
    first, second = ((r.loss, capture(whole)) for r in whole.run(images))
    restore(resumed, first[1])
    assert [r.loss for r in resumed.run(images)] == [second[0]]
    found = capture(resumed)
    assert all(torch.equal(t, found.tensors[n]) for n, t in second[1].tensors.items())
    folder = checkpoint.checkpoints_uri(str(tmp_path), name)
    checkpoint.save(folder, found, config_hash=config_hash(config))
    stage.export(RunContext(config, str(tmp_path), "", manifest(side_px, side_px)))
    encoder = load_backbone(tmp_path / "export" / name / "backbone.safetensors")
    exported = encoder.network.backbone.state_dict()
    trained = whole.network.backbone.state_dict()
    assert all(torch.equal(exported[n], t) for n, t in trained.items())
    assert METHODS[name].source in (tmp_path / "export" / name / "README.md").read_text()
    shutil.rmtree(tmp_path)  # a state of a transformer takes a gigabyte
