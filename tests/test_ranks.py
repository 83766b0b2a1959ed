"""Two gloo ranks with B images each against one rank with 2B."""

from __future__ import annotations

import hashlib
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sdclr import collective
from sdclr.batchnorm import synchronise
from sdclr.loss import nt_xent
from sdclr.prune import PruneRule
from tests.ranks import run_on_ranks
from tests.recipes import some_images, some_plan, some_trainer


def embeddings() -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(2, 8, 5, generator=g, dtype=torch.float64)


def normed_layers() -> nn.Module:
    g = torch.Generator().manual_seed(1)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    layers = nn.Sequential(*layers, nn.Linear(64, 6), nn.BatchNorm1d(6)).double().train()
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g, dtype=torch.float64))
    return layers


def pixels() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    x = torch.randn(8, 3, 6, 6, generator=g, dtype=torch.float64)
    return x, torch.randn(8, 6, generator=g, dtype=torch.float64)


def my_rows(x: Tensor, dim: int = 0) -> Tensor:
    share = x.shape[dim] // collective.world_size()
    return x.narrow(dim, collective.rank() * share, share)


def loss_and_gradient() -> dict[str, Any]:
    z = my_rows(embeddings(), 1).clone().requires_grad_()
    loss = nt_xent(z[0], z[1], temperature=0.2)
    loss.backward()
    return {"loss": collective.mean_over_ranks(loss), "grad": z.grad}


def layers_and_gradients() -> dict[str, Any]:
    layers = normed_layers()
    if collective.is_distributed():
        layers = synchronise(layers)
    x, direction = (my_rows(t) for t in pixels())
    x = x.clone().requires_grad_()
    y = layers(x)
    (y * direction).sum().backward()
    grads = {n: p.grad.clone() for n, p in layers.named_parameters() if p.grad is not None}
    if collective.is_distributed():
        for grad in grads.values():
            dist.all_reduce(grad)
    return {
        "y": y.detach(),
        "x_grad": x.grad,
        "grads": grads,
        "buffers": dict(layers.named_buffers()),
    }


def training(method: str, **changes: Any) -> dict[str, Any]:
    plan = some_plan(num_ranks=collective.world_size())
    # float64: in float32 a tiny network amplifies a difference of 1e-7 to 1 within ten steps.
    trainer = some_trainer(plan, **{"dtype": torch.float64, "method": method, **changes})
    feed = some_images().feed(plan, seed=0, rank=collective.rank())
    losses = [report.loss for report in trainer.run(feed)]
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    masks = b"".join(
        t.numpy().tobytes() for n, t in trainer.model.state_dict().items() if n.startswith("masks.")
    )
    digest = hashlib.sha256(masks).hexdigest()
    return {
        "losses": torch.tensor(losses, dtype=torch.float64),
        "weights": weights,
        "masks": digest,
    }


def everything() -> dict[str, Any]:
    detached = mock.patch.object(
        collective,
        "gather_rows",
        lambda rows: gather(rows.detach()),
    )
    gather = collective.gather_rows
    results = {
        "loss": loss_and_gradient(),
        "layers": layers_and_gradients(),
        "sdclr": training("sdclr"),
        "simclr": training("simclr"),
        "random_masks": training(
            "sdclr", epochs=1, prune=PruneRule(prune_ratio=0.5, random_ratio=0.3)
        ),
        "bfloat16": training("sdclr", dtype=torch.float32, precision="bfloat16"),
        "local_norms": training("sdclr", sync_batchnorm=False),
    }
    with detached:
        results["gather_without_gradient"] = loss_and_gradient()
    return results


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    return run_on_ranks(everything)


@pytest.mark.promise("R4")
def test_loss_and_gradients_equal_those_of_one_rank(two: list[dict[str, Any]]) -> None:
    one = loss_and_gradient()
    both = torch.cat([r["loss"]["grad"] for r in two], dim=1) / 2  # DDP takes the mean
    torch.testing.assert_close(two[0]["loss"]["loss"], one["loss"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(both, one["grad"], rtol=1e-12, atol=1e-12)


@pytest.mark.promise("R4", control=True)
def test_a_gather_without_gradient_would_be_noticed(two: list[dict[str, Any]]) -> None:
    one = loss_and_gradient()
    wrong = torch.cat([r["gather_without_gradient"]["grad"] for r in two], dim=1) / 2
    torch.testing.assert_close(two[0]["gather_without_gradient"]["loss"], one["loss"])
    assert (wrong - one["grad"]).norm() > 0.05 * one["grad"].norm()


def test_global_batchnorm_equals_batchnorm_over_all_images(two: list[dict[str, Any]]) -> None:
    one = layers_and_gradients()
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(torch.cat([r["layers"]["y"] for r in two]), one["y"], **close)
    both = torch.cat([r["layers"]["x_grad"] for r in two])
    torch.testing.assert_close(both, one["x_grad"], **close)
    for rank in two:
        torch.testing.assert_close(rank["layers"]["grads"], one["grads"], **close)
        torch.testing.assert_close(rank["layers"]["buffers"], one["buffers"], **close)


@pytest.mark.parametrize("method", ["sdclr", "simclr"])
@pytest.mark.promise("R4", "R6")
def test_training_on_two_ranks_equals_training_on_one(
    two: list[dict[str, Any]], method: str
) -> None:
    one = training(method)
    assert torch.equal(two[0][method]["losses"], two[1][method]["losses"])
    assert torch.equal(two[0][method]["weights"], two[1][method]["weights"])
    torch.testing.assert_close(two[0][method]["losses"], one["losses"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(two[0][method]["weights"], one["weights"], rtol=1e-5, atol=1e-5)


def test_norms_over_one_rank_only_would_be_noticed(two: list[dict[str, Any]]) -> None:
    one = training("sdclr")
    difference = (two[0]["local_norms"]["losses"] - one["losses"]).abs().max()
    assert difference > 0.05


def test_bfloat16_trains_alike_on_all_ranks_and_near_float64(two: list[dict[str, Any]]) -> None:
    low, high = two[0]["bfloat16"], two[0]["sdclr"]
    assert torch.equal(low["weights"], two[1]["bfloat16"]["weights"])
    torch.testing.assert_close(low["losses"][:2], high["losses"][:2], rtol=0.02, atol=0.02)
    assert torch.isfinite(low["losses"]).all()


@pytest.mark.parametrize("run", ["sdclr", "random_masks"])
@pytest.mark.promise("R5")
def test_masks_are_equal_on_all_ranks(two: list[dict[str, Any]], run: str) -> None:
    assert two[0][run]["masks"] == two[1][run]["masks"]
    assert two[0]["sdclr"]["masks"] != two[0]["random_masks"]["masks"]
