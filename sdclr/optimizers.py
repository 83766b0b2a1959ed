"""Optimizers by name: SGD as published, AdamW, and LARS.

What an optimizer keeps of each weight is captured and restored by name, see `sdclr.state`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from sdclr.recipe import Recipe

TRUST = 1e-3
"""LARS: how far a layer may move in one step at learning rate 1, relative to its own norm."""
SECOND_BETA = 0.999
"""AdamW: momentum of the squared gradient."""


class LARS(torch.optim.Optimizer):
    """SGD with a learning rate for each layer (You et al. 2017, eq. 6 and algorithm 1).

        rate = lr * trust * |w| / (|g| + decay |w|)
        v = momentum v + rate (g + decay w);  w = w - v

    Vectors, which are norms and biases, and layers with a norm of 0 move at `lr` itself, as in
    SimCLR's runs.

    Args:
        groups: of parameters, each with its own `weight_decay`.
        lr: >= 0.
        momentum: in [0, 1).
    """

    found_inf: Tensor | None = None
    """A flag on the device, as of torch's fused optimizers: while it is not 0 nothing moves."""

    def __init__(self, groups: Iterable[dict[str, object]], *, lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient; there is no closure."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, weight.grad, group)

    def _move(self, weight: Tensor, grad: Tensor, group: Mapping[str, float]) -> None:
        decay, momentum = group["weight_decay"], group["momentum"]
        change = grad + decay * weight
        stays = None if self.found_inf is None else self.found_inf != 0
        if weight.ndim > 1:
            length = torch.linalg.vector_norm(weight)
            slope = torch.linalg.vector_norm(grad) + decay * length
            # On the device: a decision on the CPU would wait for a GPU.
            ratio = torch.where((length > 0) & (slope > 0), TRUST * length / slope, 1.0)
            change = change * ratio
        change = change * group["lr"]
        if momentum:
            state = self.state[weight]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(weight)
            kept = state["momentum_buffer"]
            change = kept * momentum + change
            kept.copy_(change if stays is None else torch.where(stays, kept, change))
        weight.sub_(change if stays is None else torch.where(stays, 0.0, change))


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """Return the recipe's optimizer of all parameters.

    On a GPU it keeps everything as it is while its attribute `found_inf`, a flag on the device, is
    not 0: there torch's own optimizers have one kernel for all weights, which reads the flag. All
    of them take a learning rate that is a tensor there, and can be captured in a CUDA graph.

    Raises:
        ValueError: there is no optimizer of that name.
    """
    groups = parameter_groups(model, recipe.weight_decay, decay_all=recipe.decay_all)
    fused = next(model.parameters()).is_cuda or None
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, fused=fused)
    if recipe.optimizer == "adamw":
        betas = (recipe.momentum, SECOND_BETA)
        return torch.optim.AdamW(
            groups, lr=recipe.lr, betas=betas, fused=fused, capturable=bool(fused)
        )
    if recipe.optimizer == "lars":
        return LARS(groups, lr=recipe.lr, momentum=recipe.momentum)
    raise ValueError(f"there is no optimizer {recipe.optimizer!r}; use sgd, adamw or lars")


def parameter_groups(
    model: nn.Module, weight_decay: float, *, decay_all: bool
) -> list[dict[str, object]]:
    """Return the parameters with their weight decay: one group, or vectors apart without any."""
    parameters = list(model.parameters())
    if decay_all:
        return [{"params": parameters, "weight_decay": weight_decay}]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def align_gradients(model: nn.Module) -> None:
    """Give gradients the strides of their weights, which the fused kernels of a GPU ask for.

    They differ only along sides of length 1, as those of 1 x 1 convolutions with channels last.
    """
    for parameter in model.parameters():
        grad = parameter.grad
        if grad is not None and grad.stride() != parameter.stride():
            parameter.grad = grad.as_strided(parameter.shape, parameter.stride())


def kept_of_each_weight(recipe: Recipe) -> dict[str, str]:
    """Map what the optimizer keeps of each weight after a step to its prefix in a state.

    Optimizers differ in a prefix, so that none restores the state of another.
    """
    if recipe.optimizer == "adamw":
        return {"exp_avg": "mean.", "exp_avg_sq": "square."}
    prefix = "momentum." if recipe.optimizer == "sgd" else "lars_momentum."
    return {"momentum_buffer": prefix} if recipe.momentum else {}


def give_back(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    kept: Mapping[str, Mapping[str, Tensor]],
    step: int,
) -> None:
    """Give an optimizer what it kept of each weight.

    Args:
        optimizer: of the model's parameters.
        model: names them.
        kept: parameter's name -> key -> value, on any device; empty before the first step.
        step: steps done so far.
    """
    optimizer.state.clear()
    for name, parameter in model.named_parameters():
        for key, value in kept[name].items():
            own = torch.empty_like(parameter).copy_(value)  # in the parameter's own layout
            optimizer.state[parameter][key] = own.detach()
        if kept[name] and isinstance(optimizer, torch.optim.AdamW):
            device = parameter.device if optimizer.defaults["fused"] else None
            optimizer.state[parameter]["step"] = torch.full((), float(step), device=device)
