"""Both branches at once: the same gradient and statistics as one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sdclr import EpochPlan, ImageSet, Trainer, build_network, cifar_recipe
from sdclr.logistic import kept_threads
from sdclr.recipe import Recipe
from sdclr.side_by_side import SideBySide
from sdclr.twin import Network

CPU = torch.device("cpu")
NUM_IMAGES, BATCH = 24, 12


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    with kept_threads():
        torch.set_num_threads(2)
        yield


def recipe(method: str = "sdclr", **more: object) -> Recipe:
    made = replace(cifar_recipe(method, epochs=2), lr=0.05, **more)  # type: ignore[arg-type]
    return replace(made, augment=replace(made.augment, crop_px=8))


def network() -> Network:
    return build_network("resnet8", stem="cifar", head_depth=2, seed=0).double()


def trainer(made: Recipe | None = None) -> Trainer:
    return Trainer(network(), made or recipe(), steps_per_epoch=NUM_IMAGES // BATCH)


def trained(*, parted: bool, made: Recipe | None = None) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of all steps, and the state at the end."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (NUM_IMAGES, 3, 8, 8), dtype=torch.uint8, generator=generator)
    plan = EpochPlan(num_images=NUM_IMAGES, global_batch=BATCH, drop_last=True)
    one = trainer(made)
    assert one._parted is not None and one._parted.pays
    if not parted:
        one._parted = None
    losses = [report.loss for report in one.run(ImageSet(images).feed(plan, seed=0))]
    return losses, one.model.state_dict()


def test_training_is_the_same_as_one_branch_after_the_other() -> None:
    losses, state = trained(parted=True)
    expected, expected_state = trained(parted=False)
    assert losses == pytest.approx(expected, rel=1e-9)
    for name, tensor in expected_state.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-7, atol=1e-9)
    # The control: a branch that is pruned less has other losses.
    assert recipe().prune is not None
    less = recipe(prune=replace(recipe().prune, prune_ratio=0.5))  # type: ignore[type-var]
    assert trained(parted=True, made=less)[0] != pytest.approx(expected, rel=1e-4)


def test_it_repeats_bit_for_bit() -> None:
    losses, state = trained(parted=True)
    again, again_state = trained(parted=True)
    assert losses == again
    assert all(torch.equal(again_state[name], tensor) for name, tensor in state.items())


def test_each_branch_moves_its_own_statistics() -> None:
    made = trainer()
    before = {name: b.clone() for name, b in made.model.named_buffers() if "running" in name}
    assert made._parted is not None
    view_BCHW = torch.rand(BATCH, 3, 8, 8)
    made._parted.backward(
        view_BCHW, view_BCHW, loss=lambda f1, f2: (f1 * f2).sum(), context=made._autocast
    )
    moved = {
        name
        for name, b in made.model.named_buffers()
        if "running" in name and (b != before[name]).any()
    }
    assert moved == set(before)


def test_threads_are_as_before_and_the_gradient_is_whole() -> None:
    made = trainer()
    view_BCHW = torch.rand(BATCH, 3, 8, 8)
    made._backward(view_BCHW, view_BCHW)
    assert torch.get_num_threads() == 2
    assert all(p.grad is not None for p in made.model.parameters())


def test_an_error_of_either_branch_comes_out() -> None:
    made = trainer()
    good, bad = torch.rand(BATCH, 3, 8, 8), torch.rand(BATCH, 4, 8, 8)
    for views in ((good, bad), (bad, good)):
        with pytest.raises(RuntimeError):
            made._backward(*views)
        assert torch.get_num_threads() == 2
    made._backward(good, good)


class Counting(nn.Module):
    """A layer that keeps what it has seen, as modules of other libraries may."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return x


@pytest.mark.parametrize(
    "made", [recipe("simclr"), recipe(dual_norm=False), recipe(compile=True)],
    ids=["simclr", "one set of norms", "compiled"],
)  # fmt: skip
def test_others_run_as_one_piece(made: Recipe) -> None:
    assert trainer(made)._parted is None


def test_a_module_with_memory_of_its_own_is_not_parted() -> None:
    holder = network()
    assert SideBySide.of(Trainer(holder, recipe(), steps_per_epoch=1).model, recipe(), CPU)
    holder.backbone.maxpool = Counting()
    assert not SideBySide.of(Trainer(holder, recipe(), steps_per_epoch=1).model, recipe(), CPU)


def test_one_thread_takes_one_branch_after_the_other() -> None:
    made = trainer()
    assert made._parted is not None
    torch.set_num_threads(1)
    assert not made._parted.pays


def test_what_is_done_to_a_gradient_is_done_to_those_of_both_branches() -> None:
    """A hook, such as that of idle taps, sees the gradient of each branch."""
    made = trainer()
    weight = made.network.get_parameter("head.0.weight")
    seen: list[Tensor] = []

    def hook(gradient: Tensor) -> Tensor:
        seen.append(gradient)
        return torch.zeros_like(gradient)

    weight.register_hook(hook)
    view_BCHW = torch.rand(BATCH, 3, 8, 8)
    made._backward(view_BCHW, view_BCHW)
    assert len(seen) == 2 and weight.grad is not None and not weight.grad.any()
