"""Gradient caching (GradCache, Gao et al. 2021): large contrastive batches in little memory.

Every image of a contrastive batch is a negative of every other, so the batch cannot be cut into
independent parts. But the loss sees embeddings only, and those are small:

    1. embed all chunks without keeping activations;
    2. the loss of the whole batch, and its gradient with respect to the embeddings;
    3. embed each chunk again, and send the gradient of its embeddings back into the weights.

The sum over chunks is the gradient of the whole batch, exactly. The price is one more forward: 8
units of arithmetic instead of 6.

BatchNorm takes its statistics from each chunk, so a network that has it computes what it would on
batches of `micro_batch` images, with the negatives of the whole batch. Running statistics see each
chunk once, in step 3.

Shapes: B images on this rank, D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sdclr.batchnorm import running_statistics_kept

Embed = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
LEAST_MICRO_BATCH = 3  # equal chunks of at most this many images have two at least, as a norm needs


def chunked_backward(
    model: nn.Module,
    view1_BCHW: Tensor,
    view2_BCHW: Tensor,
    *,
    micro_batch: int,
    embed: Embed,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Add the gradient of loss(embed(model, view 1, view 2)) to `.grad`; returns the loss.

    Args:
        model: plain, or in DistributedDataParallel; then gradients are reduced once, with the last
            chunk, and all ranks must hold equally many images.
        view1_BCHW: first views of the whole batch of this rank.
        view2_BCHW: second views of the same images.
        micro_batch: most images of each view in one chunk; chunks are as equal as can be.
        embed: (model, view 1, view 2) -> embeddings of both, of some of the images.
        loss: of the embeddings (B, D) of the whole batch.

    Raises:
        ValueError: `micro_batch` is less than `LEAST_MICRO_BATCH`.
    """
    if micro_batch < LEAST_MICRO_BATCH:
        raise ValueError(f"micro_batch must be at least {LEAST_MICRO_BATCH}, got {micro_batch}")
    num_chunks = -(-len(view1_BCHW) // micro_batch)
    chunks = _cut(view1_BCHW, view2_BCHW, num_chunks)
    plain = model.module if isinstance(model, DistributedDataParallel) else model
    with torch.no_grad(), running_statistics_kept(plain):
        embedded = [embed(plain, *chunk) for chunk in chunks]
    f1_BD, f2_BD = (torch.cat(parts).requires_grad_() for parts in zip(*embedded, strict=True))
    value = loss(f1_BD, f2_BD)
    grad1_BD, grad2_BD = torch.autograd.grad(value, (f1_BD, f2_BD))
    grads = _cut(grad1_BD, grad2_BD, num_chunks)
    for number, (chunk, grad) in enumerate(zip(chunks, grads, strict=True), start=1):
        with _reduced(model, now=number == num_chunks):
            torch.autograd.backward(embed(model, *chunk), grad)
    return value.detach()


def _cut(first: Tensor, second: Tensor, num_chunks: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(first.tensor_split(num_chunks), second.tensor_split(num_chunks), strict=True))


def _reduced(model: nn.Module, *, now: bool) -> AbstractContextManager[None]:
    """Return a context in which gradients are reduced over the ranks only if `now`."""
    if now or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()
