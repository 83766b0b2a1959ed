"""BCL: scores by the paper's equation, views by the scores, exact resume and replay."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.file import load_config
from pipeline.embed.wanted import preferred_method
from pipeline.model import build
from sdclr import (
    LossMemory,
    OperationRule,
    StateError,
    Trainer,
    TrainState,
    apply_view,
    capture,
    restore,
    sample_view,
)
from sdclr.augment import VIEW_NUMBERS
from sdclr.imageset import Batch
from sdclr.methods.bcl import memorisation
from sdclr.operations import OperationParams, apply_operations
from sdclr.replay import capture_step, read_capture, replay
from sdclr.seeds import place_generator
from tests.recipes import some_images, some_plan, some_trainer
from tests.test_models import manifest

PLAN = some_plan(44)  # 5 steps of 8 images: 4 images of an epoch are left out


def feed() -> Any:
    return some_images(44).feed(PLAN, seed=0)


def trained(num_steps: int | None, method: str = "bcl-d", **changes: Any) -> tuple[Trainer, Any]:
    trainer = some_trainer(PLAN, method=method, **changes)
    return trainer, list(itertools.islice(trainer.run(feed()), num_steps))


def test_the_score_equals_the_slow_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    losses = (3 * torch.rand(9, generator=generator)).tolist()
    mean = sum(losses) / 9
    widest = max(abs(x - mean) for x in losses)
    slow = [0.5 * ((x - mean) / widest + 1) for x in losses]
    found = memorisation(torch.tensor([*losses, math.nan])).tolist()
    assert found == pytest.approx([*slow, 0.0], abs=1e-6)
    assert min(found[:9]) >= 0 and max(found) <= 1 and (0.0 in found[:9] or 1.0 in found)
    # Closed form: one image apart from two equal ones. Control: another mean moves the scores.
    assert memorisation(torch.tensor([1.0, 1.0, 4.0])).tolist() == [0.25, 0.25, 1.0]
    assert memorisation(torch.tensor([1.0, 3.0, 4.0])).tolist() != [0.25, 0.25, 1.0]
    assert memorisation(torch.full((3,), 2.0)).tolist() == [0.5] * 3
    assert memorisation(torch.full((3,), math.nan)).tolist() == [0.0] * 3


def slow_views(trainer: Trainer, batch: Batch, scores: list[float]) -> list[torch.Tensor]:
    """Both views image by image: the usual one, then each operation that its score lets happen."""
    found, rule = [], trainer.recipe.boost
    assert rule is not None
    for which in (1, 2):
        path = trainer.recipe.seed, "view", which, trainer.step
        generator = place_generator(*path, place=0, num_each=VIEW_NUMBERS)
        usual = sample_view(trainer.recipe.augment, batch.sizes_B2, generator)
        view = apply_view(batch.images_BCHW, usual, trainer.recipe.augment)
        path = trainer.recipe.seed, "boost", which, trainer.step
        numbers = place_generator(*path, place=0, num_each=8).random((8, 2, 4)).tolist()
        images = []
        for row, image in enumerate(view):
            score = scores[int(batch.rows_B[row])]
            for k in range(2):
                chance, number, part, side = numbers[row][k]
                if chance < score:
                    sign = -1.0 if side < 0.5 else 1.0
                    amount = torch.tensor([[rule.strength * score * part * sign]])
                    one = OperationParams(torch.tensor([[math.floor(11 * number)]]), amount)
                    image = apply_operations(image[None], one)[0]
            images.append(image)
        found.append(torch.stack(images))
    return found


@pytest.mark.parametrize("method", ["bcl-i", "bcl-d"])
def test_views_of_a_step_equal_the_slow_reference(method: str) -> None:
    trainer, reports = trained(7, method)
    # Half way through the second epoch: the scores are those of the first epoch's losses.
    start, _ = trained(5, method)
    assert start.memory is not None
    scores = memorisation(start.memory.means()).tolist()
    batch = next(iter(feed().batches(1, start_step=2)))
    found = trainer.views(batch)
    expected = slow_views(trainer, batch, scores)
    for mine, slow in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, slow, rtol=1e-4, atol=1e-5)
    usual = slow_views(trainer, batch, [0.0] * 44)
    assert not torch.allclose(found[0], usual[0])
    live = memorisation(trainer.memory.means()).tolist()  # type: ignore[union-attr]
    assert live != scores and len(reports) == 7  # control: the epoch moves, its scores do not


@pytest.mark.parametrize(("method", "base"), [("bcl-i", "simclr"), ("bcl-d", "sdclr")])
def test_it_is_its_base_in_the_first_epoch_and_at_strength_0(method: str, base: str) -> None:
    _, expected = trained(None, base)
    _, boosted = trained(None, method)
    assert [r.loss for r in boosted][:5] == [r.loss for r in expected][:5]
    assert boosted[5].loss != expected[5].loss
    _, still = trained(None, method, boost=OperationRule(num_operations=0))
    assert [r.loss for r in still] == [r.loss for r in expected]


@pytest.mark.parametrize("dropped", ["method.scores", "loss_memory"])
def test_a_resume_needs_the_scores_and_the_losses(dropped: str) -> None:
    _, whole = trained(None)
    stopped, head = trained(7)
    state = capture(stopped)
    resumed = some_trainer(PLAN, method="bcl-d")
    restore(resumed, state)
    assert [r.loss for r in [*head, *resumed.run(feed())]] == [r.loss for r in whole]
    # Control: without either it ends elsewhere.
    zero = torch.zeros_like(state.tensors[dropped])
    restore(resumed, TrainState(state.tensors | {dropped: zero}, state.numbers))
    assert [r.loss for r in resumed.run(feed())] != [r.loss for r in whole[7:]]
    without = {n: t for n, t in state.tensors.items() if n != dropped}
    with pytest.raises(StateError, match="missing"):
        restore(resumed, TrainState(without, state.numbers))


def test_a_captured_step_is_repeated_with_its_scores(tmp_path: Path) -> None:
    network = {
        "backbone": "resnet8", "stem": "cifar", "head_depth": 2, "embedding_dim": 16, "seed": 0,
    }  # fmt: skip
    trainer, _ = trained(7)
    batch = next(iter(feed().batches(1, start_step=2)))
    content = capture_step(trainer, batch, loss=0.0, grad_norm=0.0, network=network)
    (tmp_path / "step.pt").write_bytes(content)
    kept = read_capture(tmp_path / "step.pt")
    expected = trainer.update(batch)
    assert replay(kept).loss == expected.loss
    kept["method"]["scores"].zero_()
    assert replay(kept).loss != expected.loss


def test_what_a_boosted_method_needs_is_refused_when_it_lacks() -> None:
    plain = some_trainer(PLAN)
    recipe = replace(plain.recipe, method="bcl-i")
    with pytest.raises(ValueError, match="needs a memory"):
        Trainer(plain.network, recipe, steps_per_epoch=5)
    with pytest.raises(ValueError, match="needs a rule"):
        memory = LossMemory(44, momentum=0.5)
        Trainer(plain.network, replace(recipe, boost=None), steps_per_epoch=5, memory=memory)


def test_images_are_ranked_by_the_method_that_keeps_losses() -> None:
    words = ["train.methods=[simclr, bcl-d, sdclr]", "mine.score=training_loss"]
    assert preferred_method(load_config(None, words)) == "bcl-d"
    assert preferred_method(load_config(None, [*words, "train.loss_memory=0.9"])) == "sdclr"
    assert preferred_method(load_config(None, words[:1])) == "sdclr"
    assert preferred_method(load_config(None, ["train.methods=[simclr-ts, simclr]"])) == "simclr-ts"


def test_the_configuration_gives_it_a_memory() -> None:
    config = load_config(None, ["train.methods=[bcl-d, sdclr]", "bcl.strength=0.5"])
    recipe = build.training_recipe(config, manifest(16, 16), "bcl-d")
    assert recipe.boost == OperationRule(num_operations=1, strength=0.5)
    assert recipe.temperature == config.sdclr.temperature
    memory = build.loss_memory(config, "bcl-d", 9)
    assert memory is not None and memory.momentum == 0.97
    assert build.loss_memory(config, "sdclr", 9) is None
    given = build.loss_memory(load_config(None, ["train.loss_memory=0.9"]), "bcl-d", 9)
    assert given is not None and given.momentum == 0.9
