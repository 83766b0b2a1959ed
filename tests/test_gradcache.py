"""Gradient caching: the gradient of the whole batch from chunks, in one process and in two."""

from __future__ import annotations

from functools import partialmethod
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from sdclr import collective
from sdclr.gradcache import chunked_backward
from sdclr.loss import nt_xent
from sdclr.prune import PruneRule
from sdclr.twin import SimCLR, Twin, build_network
from tests.ranks import run_on_ranks
from tests.recipes import some_images, some_plan, some_trainer

Model = Twin | SimCLR


def make_model(method: str, norms: str) -> Model:
    """A small network in float64; its norms are frozen, or take statistics of what they see."""
    network = build_network("resnet8", stem="cifar", head_depth=2, embedding_dim=16, seed=0)
    model: Model = Twin(network) if method == "sdclr" else SimCLR(network)
    model = model.double().train()
    if isinstance(model, Twin):
        model.refresh_masks(PruneRule(prune_ratio=0.5))
    if norms == "frozen":
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
    return model


def two_views(num_images: int = 10) -> Tensor:
    g = torch.Generator().manual_seed(2)
    return torch.rand(2, num_images, 3, 12, 12, generator=g, dtype=torch.float64)


def embed(model: nn.Module, view1: Tensor, view2: Tensor) -> tuple[Tensor, Tensor]:
    u, v = model(view1, view2)
    return u, v


def loss_of(u: Tensor, v: Tensor) -> Tensor:
    return nt_xent(u, v, temperature=0.2)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def at_once(model: nn.Module, views: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    loss = loss_of(*embed(model, views[0], views[1]))
    loss.backward()
    return loss.detach(), gradients(model)


def in_chunks(model: nn.Module, views: Tensor, micro: int) -> tuple[Tensor, dict[str, Tensor]]:
    loss = chunked_backward(model, *views, micro_batch=micro, embed=embed, loss=loss_of)
    return loss, gradients(model)


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("method", ["sdclr", "simclr"])
@pytest.mark.parametrize("micro", [3, 4, 5, 10, 99])
def test_without_batch_statistics_the_gradient_is_that_of_the_whole_batch(
    method: str, micro: int
) -> None:
    close(
        in_chunks(make_model(method, "frozen"), two_views(), micro),
        at_once(make_model(method, "frozen"), two_views()),
    )


def test_independent_small_batches_would_be_noticed() -> None:
    model = make_model("sdclr", "frozen")
    for part in two_views().split(5, dim=1):
        (loss_of(*embed(model, part[0], part[1])) / 2).backward()
    _, expected = at_once(make_model("sdclr", "frozen"), two_views())
    error = sum((gradients(model)[n] - g).norm() for n, g in expected.items())
    assert error > 0.05 * sum(g.norm() for g in expected.values())


def test_batch_norms_take_statistics_of_each_chunk_and_count_it_once() -> None:
    views, model, reference = two_views(), *(make_model("sdclr", "batch") for _ in range(2))
    found = in_chunks(model, views, 5)
    # The definition: embed the chunks one after the other, one loss of all embeddings.
    parts = [embed(reference, part[0], part[1]) for part in views.split(5, dim=1)]
    loss = loss_of(*(torch.cat(side) for side in zip(*parts, strict=True)))
    loss.backward()
    close(found, (loss.detach(), gradients(reference)))
    close(dict(model.named_buffers()), dict(reference.named_buffers()))
    _, whole = at_once(make_model("sdclr", "batch"), views)
    assert any(not torch.allclose(found[1][n], g) for n, g in whole.items())


def test_chunks_of_one_or_two_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 3, got 2"):
        in_chunks(make_model("sdclr", "frozen"), two_views(), 2)


def on_a_rank() -> dict[str, Any]:
    """Loss and gradient of this rank's half, in chunks and at once."""
    share = 10 // collective.world_size()
    views = two_views().narrow(1, collective.rank() * share, share)
    model = DistributedDataParallel(make_model("sdclr", "frozen"), gradient_as_bucket_view=True)
    plain = DistributedDataParallel(make_model("sdclr", "frozen"), gradient_as_bucket_view=True)
    _, expected = at_once(plain, views)
    loss, grads = in_chunks(model, views, 3)
    return {
        "loss": collective.mean_over_ranks(loss),
        "grads": {n.removeprefix("module."): g for n, g in grads.items()},
        "expected": {n.removeprefix("module."): g for n, g in expected.items()},
    }


def test_two_ranks_in_chunks_equal_one_rank_at_once() -> None:
    loss, grads = at_once(make_model("sdclr", "frozen"), two_views())
    for rank in run_on_ranks(on_a_rank):
        close(rank["loss"], loss)
        close(rank["grads"], grads)
        close(rank["grads"], rank["expected"])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_trainer_trains_in_chunks(precision: str) -> None:
    plan = some_plan()
    feed = some_images().feed(plan, seed=0)
    runs = {
        micro: [
            r.loss for r in some_trainer(plan, micro_batch=micro, precision=precision).run(feed)
        ]
        for micro in (None, 8, 4)
    }
    assert runs[8] == runs[None]  # a chunk that holds the whole batch is no chunk
    assert runs[4] != runs[None] and all(map(torch.isfinite, torch.tensor(runs[4])))


def test_a_compiled_trainer_gives_the_same_losses() -> None:
    plan = some_plan(16)
    feed = some_images(16).feed(plan, seed=0)
    expected = [r.loss for r in some_trainer(plan, epochs=1).run(feed)]
    # The graph is captured and differentiated as for GPUs; only code generation is left out.
    compiler = partialmethod(nn.Module.compile, backend="aot_eager")
    with mock.patch.object(nn.Module, "compile", compiler):
        trainer = some_trainer(plan, epochs=1, compile=True)
    found = [r.loss for r in trainer.run(feed)]
    assert found == pytest.approx(expected, rel=1e-4)
    assert trainer.model._compiled_call_impl is not None
