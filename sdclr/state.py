"""All that a resume needs, as tensors and plain numbers: no pickled objects, no generator states.

Weights, both BatchNorm sets, masks, momentum, what the method keeps, the memory of losses where
there is one, and the step. Order, views, learning rate and random masks are functions of
(seed, step) and need no place here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdclr.optimizers import give_back, kept_of_each_weight
from sdclr.trainer import Trainer
from sdclr.transfer import host_copies

FORMAT_VERSION = 2  # 2: views are drawn by a counter
LOSS_MEMORY = "loss_memory"
_MODEL, _METHOD = "model.", "method."


class StateError(ValueError):
    """The state does not belong to this trainer, or is not whole."""


@dataclass(frozen=True)
class TrainState:
    """A trainer between two steps.

    Args:
        tensors: on the CPU: `model.<name>`, what the optimizer keeps of each parameter
            (`sdclr.optimizers`), `method.<name>`, and `loss_memory` where the trainer has one.
        numbers: format_version, method, seed, step, num_steps.
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, int | str]


def capture(trainer: Trainer) -> TrainState:
    """Copy the trainer's state; later steps do not change the copy.

    Raises:
        NonFiniteError: as `Trainer.run`: the last step of a GPU was not finite.
        StarvedLayerError: as `Trainer.run`.
    """
    trainer.settle()
    tensors = {_MODEL + name: value for name, value in trainer.model.state_dict().items()}
    for key, prefix in kept_of_each_weight(trainer.recipe).items():
        for name, parameter in trainer.model.named_parameters():
            value = trainer.optimizer.state[parameter].get(key)
            if value is not None:
                tensors[prefix + name] = value
    tensors |= {_METHOD + name: value for name, value in trainer.method.state().items()}
    if trainer.memory is not None:
        tensors[LOSS_MEMORY] = trainer.memory.sums_2N
    return TrainState(host_copies(tensors), _identity(trainer) | {"step": trainer.step})


def restore(trainer: Trainer, state: TrainState) -> None:
    """Continue `trainer` from `state`, exactly.

    Raises:
        StateError: another format, method, seed or length of run, or a tensor that is missing,
            unknown or of another shape or type. The trainer is unchanged then.
    """
    for key, expected in _identity(trainer).items():
        if state.numbers.get(key) != expected:
            found = state.numbers.get(key)
            raise StateError(f"{key}: this run has {expected!r}, the state {found!r}")
    step = state.numbers.get("step")
    if not isinstance(step, int) or not 0 <= step <= trainer.num_steps:
        raise StateError(f"step: {step!r} is not in 0..{trainer.num_steps}")
    expected_tensors = {_MODEL + n: t for n, t in trainer.model.state_dict().items()}
    kept_keys = kept_of_each_weight(trainer.recipe)
    for prefix in kept_keys.values() if step > 0 else ():
        expected_tensors |= {prefix + n: p.data for n, p in trainer.model.named_parameters()}
    expected_tensors |= {_METHOD + n: t for n, t in trainer.method.state().items()}
    if trainer.memory is not None:
        expected_tensors[LOSS_MEMORY] = trainer.memory.sums_2N
    _check_tensors(state.tensors, expected_tensors)

    start = len(_MODEL)
    model = {n[start:]: t for n, t in state.tensors.items() if n.startswith(_MODEL)}
    trainer.model.load_state_dict(model, strict=True)
    kept = {
        name: {key: state.tensors[prefix + name] for key, prefix in kept_keys.items() if step > 0}
        for name, _ in trainer.model.named_parameters()
    }
    give_back(trainer.optimizer, trainer.model, kept, step)
    for name, tensor in trainer.method.state().items():
        tensor.copy_(state.tensors[_METHOD + name])
    if trainer.memory is not None:
        trainer.memory.sums_2N.copy_(state.tensors[LOSS_MEMORY])
    trainer.begin_at(step)


def _identity(trainer: Trainer) -> dict[str, int | str]:
    return {
        "format_version": FORMAT_VERSION,
        "method": trainer.recipe.method,
        "seed": trainer.recipe.seed,
        "num_steps": trainer.num_steps,
    }


def _check_tensors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is unknown" for name in found if name not in expected]
    for name in expected.keys() & found.keys():
        have, want = found[name], expected[name]
        if have.shape != want.shape or have.dtype != want.dtype:
            problems.append(
                f"{name} is {have.dtype} {tuple(have.shape)}, not {want.dtype} {tuple(want.shape)}"
            )
        elif have.is_floating_point() and not torch.isfinite(have).all():
            problems.append(f"{name} is not finite")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise StateError("; ".join(sorted(problems)[:3]) + more)
