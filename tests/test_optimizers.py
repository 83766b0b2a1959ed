"""Optimizers against slow loops from their papers, weight decay by group, exact resume, ranks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.config.file import load_config
from pipeline.model import build
from pipeline.tune.space import parameters
from sdclr import StateError, capture, collective, restore
from sdclr.optimizers import LARS, TRUST, parameter_groups
from tests.ranks import run_on_ranks
from tests.recipes import some_images, some_plan, some_trainer
from tests.refusals import raises
from tests.test_models import manifest

PLAN = some_plan()  # 5 steps per epoch, 3 epochs
KEPT = {"sgd": {"momentum"}, "adamw": {"mean", "square"}, "lars": {"lars_momentum"}}
RATES = {"sgd": 0.1, "adamw": 1e-3, "lars": 10.0}


def feed() -> Any:
    return some_images().feed(PLAN, seed=0)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
    nn.init.zeros_(layers[3].weight)  # a layer whose norm is 0
    return layers.double()


def slow_lars(steps: int, *, lr: float, momentum: float, decay: float) -> dict[str, list[float]]:
    """Algorithm 1 of You et al. 2017 in plain numbers."""
    model = network()
    values = {n: p.detach().flatten().tolist() for n, p in model.named_parameters()}
    speed = {n: [0.0] * len(v) for n, v in values.items()}
    for step in range(steps):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(torch.tensor(values[name], dtype=torch.float64).view_as(parameter))
        model.zero_grad()
        loss_of(model, step).backward()  # type: ignore[no-untyped-call]
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            slope = parameter.grad.flatten().tolist()
            rate = lr
            if parameter.ndim > 1:
                w = math.sqrt(sum(x * x for x in values[name]))
                g = math.sqrt(sum(x * x for x in slope))
                if w > 0 and g + decay * w > 0:
                    rate = lr * TRUST * w / (g + decay * w)
            for i, (x, d) in enumerate(zip(values[name], slope, strict=True)):
                speed[name][i] = momentum * speed[name][i] + rate * (d + decay * x)
                values[name][i] = x - speed[name][i]
    return values


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    out: torch.Tensor = model(x)
    return (out.square() + 0.1 * out).sum()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_lars_equals_the_slow_loop(momentum: float) -> None:
    model = network()
    groups = parameter_groups(model, 0.01, decay_all=True)
    optimizer = LARS(groups, lr=0.05, momentum=momentum)
    for step in range(5):
        optimizer.zero_grad()
        loss_of(model, step).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    slow = slow_lars(5, lr=0.05, momentum=momentum, decay=0.01)
    for name, parameter in model.named_parameters():
        assert parameter.detach().flatten().tolist() == pytest.approx(
            slow[name], rel=1e-9, abs=1e-12
        )
    other = slow_lars(5, lr=0.05, momentum=momentum, decay=0.0)
    changed = model.get_parameter("0.weight").detach().flatten().tolist()
    assert changed != pytest.approx(other["0.weight"], rel=1e-9)  # control


def test_a_first_step_of_lars_moves_a_layer_by_its_own_norm() -> None:
    # Closed form: without decay and momentum a layer moves by lr * trust * |w|, whatever its slope.
    for scale in (1.0, 1000.0):
        model = network()
        before = model.get_parameter("0.weight").detach().clone()
        optimizer = LARS(parameter_groups(model, 0.0, decay_all=True), lr=3.0, momentum=0.0)
        (scale * loss_of(model, 0)).backward()  # type: ignore[no-untyped-call]
        nn.init.ones_(model.get_parameter("0.weight").grad)  # type: ignore[arg-type]
        model.get_parameter("0.weight").grad.mul_(scale)  # type: ignore[union-attr]
        optimizer.step()
        moved = (model.get_parameter("0.weight").detach() - before).norm()
        assert float(moved) == pytest.approx(3.0 * TRUST * float(before.norm()), rel=1e-9)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
def test_norms_and_biases_decay_only_where_asked(optimizer: str) -> None:
    ends = {}
    for decay_all, decay in ((True, 0.5), (False, 0.5), (True, 0.0)):
        changes = {"optimizer": optimizer, "lr": RATES[optimizer], "epochs": 1}
        trainer = some_trainer(PLAN, decay_all=decay_all, weight_decay=decay, **changes)
        groups = trainer.optimizer.param_groups
        assert len(groups) == (1 if decay_all else 2)
        next(trainer.run(feed()))  # one step: after it, other weights would change the gradient
        norm, weight = trainer.network.head[1], trainer.network.head[0]
        ends[decay_all, decay] = norm.weight.detach().clone(), weight.weight.detach().clone()
    both, apart, none = ends[True, 0.5], ends[False, 0.5], ends[True, 0.0]
    assert torch.equal(apart[0], none[0]) and not torch.equal(both[0], none[0])
    assert torch.equal(apart[1], both[1]) and not torch.equal(both[1], none[1])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
@pytest.mark.parametrize("changes", [{}, {"decay_all": False}, {"momentum": 0.0}])
def test_a_resume_is_bit_equal_with_each_optimizer(optimizer: str, changes: dict[str, Any]) -> None:
    given = {"optimizer": optimizer, "lr": RATES[optimizer], "epochs": 2, **changes}
    whole = [r.loss for r in some_trainer(PLAN, **given).run(feed())]
    assert all(math.isfinite(x) for x in whole)
    for stop in (0, 1, 7):
        stopped, resumed = some_trainer(PLAN, **given), some_trainer(PLAN, **given)
        head = [r.loss for r in itertools.islice(stopped.run(feed()), stop)]
        state = capture(stopped)
        restore(resumed, state)
        assert head + [r.loss for r in resumed.run(feed())] == whole
    kept = {n.partition(".")[0] for n in state.tensors} - {"model"}
    expected = KEPT[optimizer]
    assert kept == (set() if changes == {"momentum": 0.0} and optimizer != "adamw" else expected)
    # Control: without what the optimizer keeps of one weight it is refused; with zeros it differs.
    for prefix in kept - ({"mean"} if changes == {"momentum": 0.0} else set()):
        name = f"{prefix}.network.head.0.weight"
        with pytest.raises(StateError, match="missing"):
            without = {n: t for n, t in state.tensors.items() if n != name}
            restore(resumed, type(state)(without, state.numbers))
        zero = state.tensors | {name: torch.zeros_like(state.tensors[name])}
        restore(resumed, type(state)(zero, state.numbers))
        assert [r.loss for r in resumed.run(feed())] != whole[7:]


def test_a_state_of_another_optimizer_is_refused() -> None:
    trainer = some_trainer(PLAN, optimizer="lars")
    next(trainer.run(feed()))
    with pytest.raises(StateError, match="is unknown"):
        restore(some_trainer(PLAN), capture(trainer))
    with pytest.raises(ValueError, match="no optimizer 'adam'"):
        some_trainer(PLAN, optimizer="adam")


def of_ranks() -> dict[str, Any]:
    plan = some_plan(num_ranks=collective.world_size())
    found = {}
    for name, lr in RATES.items():
        changes = {"optimizer": name, "lr": lr, "epochs": 1, "dtype": torch.float64}
        trainer = some_trainer(plan, **changes)
        images = some_images().feed(plan, seed=0, rank=collective.rank())
        losses = [r.loss for r in trainer.run(images)]
        found[name] = torch.tensor(losses, dtype=torch.float64)
    return found


def test_two_ranks_equal_one_with_each_optimizer() -> None:
    first, second = run_on_ranks(of_ranks)
    one = of_ranks()
    for name in RATES:
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], one[name], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(one["sgd"], one["adamw"])


def test_configured_optimizers_reach_the_trainer() -> None:
    words = ["train.optimizer=adamw", "train.lr_per_256=0.0004", "train.decay_all=false"]
    config = load_config(None, words)
    recipe = build.training_recipe(config, manifest(16, 16), "sdclr")
    assert (recipe.optimizer, recipe.decay_all) == ("adamw", False)
    assert recipe.lr == pytest.approx(0.0004 * config.train.global_batch / 256)
    weights, state = build.state_bytes(config, "sdclr")
    assert state == build.state_bytes(load_config(None), "sdclr")[1] + weights
    (low,) = parameters(load_config(None, [*words, "tune.search={lr}"]), "sdclr")
    (high,) = parameters(load_config(None, ["tune.search={lr}"]), "sdclr")
    assert low.high < high.low
    with raises("E-CONFIG-011"):
        load_config(None, ["train.optimizer=adamw"])  # at SGD's default rate
