"""The paper's ablations as settings: one set of norms, another interval of masks, TS."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch

from pipeline.config.file import load_config
from pipeline.model import build
from sdclr import PruneRule, Trainer, Twin, build_network, capture, nt_xent, restore
from tests.recipes import some_images, some_plan, some_trainer
from tests.test_models import manifest

PLAN = some_plan()  # 5 steps per epoch, 3 epochs


def feed() -> Any:
    return some_images().feed(PLAN, seed=0)


def twin_and_views(*, dual_norm: bool) -> tuple[Twin, torch.Tensor]:
    network = build_network("resnet8", stem="cifar", head_depth=2, embedding_dim=16, seed=3)
    twin = Twin(network.double(), dual_norm=dual_norm).train()
    twin.refresh_masks(PruneRule(prune_ratio=0.6))
    generator = torch.Generator().manual_seed(1)
    return twin, torch.rand(2, 6, 3, 16, 16, generator=generator, dtype=torch.float64)


def one_network_twice(twin: Twin, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Slow reference: the same network, then with its weights set to zero, in that order."""
    network = copy.deepcopy(twin.network)
    f1 = network(views[0])
    with torch.no_grad():
        for name, mask in twin.mask_by_weight().items():
            network.get_parameter(name).mul_(mask)
    return f1, network(views[1])


def norms_of(twin: Twin) -> dict[str, torch.Tensor]:
    return {n: b.clone() for n, b in twin.network.named_buffers() if "running" in n}


@pytest.mark.parametrize("dual_norm", [False, True])
def test_shared_norms_equal_one_network_that_is_called_twice(dual_norm: bool) -> None:
    twin, views = twin_and_views(dual_norm=dual_norm)
    reference = copy.deepcopy(twin)
    f1, f2 = one_network_twice(reference, views)
    found = twin(*views)
    torch.testing.assert_close(found, (f1, f2))
    # What differs is whose statistics saw the pruned branch, and which parameters learn from it.
    own = [n for n, _ in twin.named_parameters() if n.startswith("pruned_norms")]
    assert bool(own) == dual_norm
    with torch.no_grad():
        once = copy.deepcopy(reference.network)
        once(views[0])
    seen_once = {n: b for n, b in once.named_buffers() if "running" in n}
    equal = all(torch.equal(b, seen_once[n]) for n, b in norms_of(twin).items())
    assert equal == dual_norm


def test_gradients_of_shared_norms_are_the_sum_of_both_branches() -> None:
    twin, views = twin_and_views(dual_norm=False)
    nt_xent(*twin(*views), temperature=0.2).backward()  # type: ignore[no-untyped-call]
    shared = twin.network.head[1].weight.grad
    both, _ = twin_and_views(dual_norm=True)
    nt_xent(*both(*views), temperature=0.2).backward()  # type: ignore[no-untyped-call]
    dense, pruned = both.network.head[1].weight.grad, both.pruned_norms["head/1"].weight.grad
    torch.testing.assert_close(shared, dense + pruned)
    assert not torch.allclose(shared, dense)


@pytest.mark.parametrize(
    ("epochs", "steps"),
    [
        (1.0, [1, 6, 11]),
        (0.4, [1, 3, 5, 7, 9, 11, 13, 15]),
        (2.0, [1, 11]),
        (0.01, [*range(1, 16)]),
    ],
)
def test_masks_are_refreshed_as_often_as_asked(epochs: float, steps: list[int]) -> None:
    trainer = some_trainer(PLAN, refresh_epochs=epochs)
    assert [r.step for r in trainer.run(feed()) if r.kept_frac is not None] == steps


@pytest.mark.parametrize(
    "changes",
    [
        {"refresh_epochs": 0.4, "prune": PruneRule(prune_ratio=0.5, random_ratio=0.3)},
        {"refresh_epochs": 2.0},
        {"dual_norm": False},
    ],
)
def test_an_ablation_resumes_bit_for_bit_and_differs_from_the_method(
    changes: dict[str, Any],
) -> None:
    whole = [r.loss for r in some_trainer(PLAN, **changes).run(feed())]
    stopped, resumed = some_trainer(PLAN, **changes), some_trainer(PLAN, **changes)
    head = [r.loss for r in itertools.islice(stopped.run(feed()), 8)]
    restore(resumed, capture(stopped))
    assert head + [r.loss for r in resumed.run(feed())] == whole
    plain = {k: v for k, v in changes.items() if k == "prune"}
    assert [r.loss for r in some_trainer(PLAN, **plain).run(feed())] != whole


@pytest.mark.parametrize("method", ["sdclr-ts", "simclr-ts"])
def test_the_temperature_of_a_step_is_the_schedules(method: str) -> None:
    reports = list(some_trainer(PLAN, method=method).run(feed()))
    # A period of 4 epochs from 1 to 0.1: half way down, then the bottom.
    by_epoch = {r.epoch: r.temperature for r in reports}
    assert by_epoch == pytest.approx({0: 1.0, 1: 0.55, 2: 0.1})
    constant = some_trainer(PLAN, method=method.removesuffix("-ts"), temperature=1.0)
    same = [r.loss for r in constant.run(feed())]
    assert same[:5] == [r.loss for r in reports[:5]] and same[5] != reports[5].loss


def test_configured_ablations_reach_the_trainer() -> None:
    words = ["sdclr.dual_norm=false", "sdclr.refresh_epochs=0.5", "ts.temperature=[0.2, 0.8]",
             "train.epochs=50", "train.methods=[sdclr-ts]"]  # fmt: skip
    config = load_config(None, words)
    recipe = build.training_recipe(config, manifest(16, 16), "sdclr-ts")
    assert (recipe.dual_norm, recipe.refresh_epochs) == (False, 0.5)
    assert recipe.schedule is not None
    assert (recipe.schedule.low, recipe.schedule.high, recipe.schedule.period_epochs) == (
        0.2, 0.8, 10.0
    )  # fmt: skip
    network = build.new_network(config, "sdclr-ts")
    model = Trainer(network, recipe, steps_per_epoch=2).model
    other = build.new_model(config, "sdclr-ts", network)
    assert isinstance(other, Twin) and model.state_dict().keys() == other.state_dict().keys()
    default = load_config(None, ["train.epochs=2000"])
    published = build.training_recipe(default, manifest(16, 16), "simclr-ts").schedule
    assert published is not None and published.period_epochs == 400
