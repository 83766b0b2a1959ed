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
        if weight.ndim > 1:
            length = torch.linalg.vector_norm(weight)
            slope = torch.linalg.vector_norm(grad) + decay * length
            # On the device: a decision on the CPU would wait for a GPU.
            ratio = torch.where((length > 0) & (slope > 0), TRUST * length / slope, 1.0)
            change = change * ratio
        change = change * group["lr"]
        if momentum:
            state = self.state[weight]
            if "momentum_buffer" in state:
                change = state["momentum_buffer"].mul_(momentum).add_(change)
            else:
                state["momentum_buffer"] = change
        weight.sub_(change)


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """Return the recipe's optimizer of all parameters.

    Raises:
        ValueError: there is no optimizer of that name.
    """
    groups = parameter_groups(model, recipe.weight_decay, decay_all=recipe.decay_all)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)
    if recipe.optimizer == "adamw":
        betas = (recipe.momentum, SECOND_BETA)
        return torch.optim.AdamW(groups, lr=recipe.lr, betas=betas)
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
            optimizer.state[parameter]["step"] = torch.tensor(float(step))
