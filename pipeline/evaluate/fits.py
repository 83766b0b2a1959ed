"""Classifiers on cached features: here one after the other, or as Ray tasks where that pays.

A fit is cut at its cross-validation folds, unless it is small. Every part takes one thread of a
CPU, or a GPU where there is one and the problem is large: threads of small fits wait for each other
by spinning, and on a busy machine that takes 20 times as long as one thread.

Shapes: N training images, M test images, D features, R principal axes, C classes, L penalties.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.cluster.marked_nodes import on_nodes
from pipeline.embed.features import Placement
from sdclr.crossval import MOST_TOGETHER, CrossValidation, predict_together
from sdclr.logistic import is_large, one_thread
from sdclr.probe import final_probe, knn_predict, on_axes

Floats: TypeAlias = NDArray[np.float32]
Ints: TypeAlias = NDArray[np.int64]
Progress: TypeAlias = Callable[[int, int], None]
# Products of rows, features, classes and folds, summed over fits, above which Ray tasks pay: their
# processes import torch first, which takes some seconds of a busy core. About 10 s of one thread.
_WORTH_TASKS = 2**25
_WAIT_S = 5.0


@dataclass(frozen=True)
class Fit:
    """One classifier; its result is the classes (M,) that it predicts.

    Args:
        train_ND, labels_N: features and classes to fit on.
        test_MD: features to predict.
        num_classes: C.
        num_folds: of the cross-validation of a linear probe; ignored for kNN.
        seed: of the folds.
        k: neighbours of kNN; None = a linear probe.
    """

    train_ND: Floats
    labels_N: Ints
    test_MD: Floats
    num_classes: int
    num_folds: int = 5
    seed: int = 0
    k: int | None = None

    @property
    def validation(self) -> CrossValidation:
        """The folds of the labels."""
        return CrossValidation.of(
            torch.from_numpy(self.labels_N.copy()),
            num_classes=self.num_classes,
            num_folds=self.num_folds,
            seed=self.seed,
        )

    @property
    def folds(self) -> range:
        """The folds that are fitted apart; none where all are fitted together, at the end."""
        if self.k is not None or self.validation.is_small:
            return range(0)
        return range(self.validation.num_folds)

    @property
    def kind(self) -> tuple[int, ...] | None:
        """What fits have in common whose folds are fitted together; None for one that is alone."""
        validation = self.validation
        if self.k is not None or not validation.num_folds or not validation.is_small:
            return None
        parts = (validation.num_folds, len(validation.path), len(validation.rows_n))
        return (*self.train_ND.shape, self.num_classes, *parts)

    @property
    def work(self) -> int:
        """Products of rows, features, classes and folds: what the time grows with."""
        if self.k is not None:
            return int(self.train_ND.size) * len(self.test_MD) >> 12  # once, not in iterations
        num_axes = int(min(self.train_ND.shape))
        return len(self.train_ND) * num_axes * self.num_classes * (1 + len(self.folds))


def fit_here(fits: Sequence[Fit], progress: Progress | None = None) -> list[Ints]:
    """Return the predictions of all fits, made in this process one after the other.

    Args:
        fits: what to fit.
        progress: called with the parts that are done, and all.
    """
    total, done = sum(1 + len(fit.folds) for fit in fits), 0
    found: list[Ints] = []

    def one_more() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    for batch in _batches(fits):
        apart = _folds_together(batch) if len(batch) > 1 else []
        for number, fit in enumerate(batch):
            if fit.k is not None:
                arguments = (fit.train_ND, fit.labels_N, fit.test_MD, fit.num_classes, fit.k)
                found.append(_neighbours(*arguments, "cpu"))
            else:
                train_NR, test_MR = _axes(fit.train_ND, fit.test_MD, "cpu")
                parts = apart[number] if apart else []
                for held_out in fit.folds:
                    parts.append(_fold(train_NR, fit.labels_N, fit.validation, held_out, "cpu"))
                    one_more()
                found.append(_final(train_NR, fit.labels_N, test_MR, fit.validation, "cpu", *parts))
            one_more()
    return found


def _batches(fits: Sequence[Fit]) -> list[list[Fit]]:
    """Return the fits in their order, cut into those whose folds are fitted together."""
    batches: list[list[Fit]] = []
    last, work = None, 0
    for fit in fits:
        kind = fit.kind
        work += fit.validation.work if kind is not None else 0
        if kind is None or kind != last or work > MOST_TOGETHER:
            batches.append([])
            work = fit.validation.work if kind is not None else 0
        batches[-1].append(fit)
        last = kind
    return batches


def _folds_together(batch: Sequence[Fit]) -> list[list[Ints]]:
    """Return what the penalties predict for every fold, for each fit of the batch."""
    with one_thread():
        parts = predict_together(
            [fit.validation for fit in batch],
            [_tensor(_axes(fit.train_ND, fit.test_MD, "cpu")[0], "cpu") for fit in batch],
            [_tensor(fit.labels_N, "cpu") for fit in batch],
        )
    return [[part.numpy() for part in of_fit] for of_fit in parts]


def fit_anywhere(
    fits: Sequence[Fit], place: Placement, *, mark: str | None, progress: Progress
) -> list[Ints]:
    """Return the predictions of all fits: of small ones from here, of others from Ray tasks.

    Args:
        fits: what to fit, one for each model and draw.
        place: whether there are GPUs.
        mark: of the nodes that may be used; None = any.
        progress: called with the parts that are done, and all, every few seconds or more often.
    """
    progress(0, sum(1 + len(fit.folds) for fit in fits))
    if sum(fit.work for fit in fits) < _WORTH_TASKS:
        return fit_here(fits, progress)
    return _fit_in_tasks(fits, place, mark, progress)


def _fit_in_tasks(
    fits: Sequence[Fit], place: Placement, mark: str | None, progress: Progress
) -> list[Ints]:
    """Start one task for each fold and one for the end of each fit; Ray passes the parts on."""
    import ray

    found: list[Any] = []
    parts: list[Any] = []
    held: dict[int, Any] = {}

    def stored(array: Floats) -> Any:
        """Return the reference to an array; those that fits share are stored once."""
        if id(array) not in held:
            held[id(array)] = ray.put(array)
        return held[id(array)]

    for fit in fits:
        large = is_large(fit.train_ND.size, fit.num_classes)
        device = "cuda" if place.device == "cuda" and large else "cpu"
        options: dict[str, Any] = {
            "num_cpus": 1,
            "num_gpus": 1 if device == "cuda" else 0,
            **on_nodes(mark),
        }
        train, test, labels_N = stored(fit.train_ND), stored(fit.test_MD), fit.labels_N
        if fit.k is not None:
            end = _task(_neighbours, options).remote(
                train, labels_N, test, fit.num_classes, fit.k, device
            )
        else:
            axes = _task(_axes, {**options, "num_returns": 2}).remote(train, test, device)
            folds = [
                _task(_fold, options).remote(axes[0], labels_N, fit.validation, held_out, device)
                for held_out in fit.folds
            ]
            parts += folds
            end = _task(_final, options).remote(
                axes[0], labels_N, axes[1], fit.validation, device, *folds
            )
        found.append(end)
    waiting = [*parts, *found]
    total = len(waiting)
    while waiting:
        _, waiting = ray.wait(waiting, num_returns=1, timeout=_WAIT_S, fetch_local=False)
        progress(total - len(waiting), total)
    return list(ray.get(found))


def _task(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    import ray

    # Given here, not as options, GPUs make Ray end the process with its task: one that went on
    # would keep the GPU that it saw first, whichever it is given next.
    return ray.remote(**{key: value for key, value in options.items() if value})(function)


def _axes(train_ND: Floats, test_MD: Floats, device: str) -> tuple[Floats, Floats]:
    with one_thread():
        train_NR, test_MR = on_axes(_tensor(train_ND, device), _tensor(test_MD, device))
    return train_NR.cpu().numpy(), test_MR.cpu().numpy()


def _fold(
    train_NR: Floats, labels_N: Ints, validation: CrossValidation, held_out: int, device: str
) -> Ints:
    features, labels = _tensor(train_NR, device), _tensor(labels_N, device)
    with one_thread():
        found: Ints = validation.predict(features, labels, held_out).cpu().numpy()
    return found


def _final(
    train_NR: Floats,
    labels_N: Ints,
    test_MR: Floats,
    validation: CrossValidation,
    device: str,
    *folds: Ints,
) -> Ints:
    train, labels, test = (_tensor(array, device) for array in (train_NR, labels_N, test_MR))
    with one_thread():
        apart = [_tensor(part, "cpu") for part in folds]
        result = final_probe(
            train, labels, test, validation, apart or validation.predict_all(train, labels)
        )
    found: Ints = result.predictions_M.cpu().numpy()
    return found


def _neighbours(
    train_ND: Floats, labels_N: Ints, test_MD: Floats, num_classes: int, k: int, device: str
) -> Ints:
    tensors = [_tensor(array, device) for array in (train_ND, labels_N, test_MD)]
    with one_thread():
        predictions_M = knn_predict(*tensors, num_classes=num_classes, k=k)
    found: Ints = predictions_M.cpu().numpy()
    return found


def _tensor(array: NDArray[Any], device: str) -> torch.Tensor:
    # A copy: arrays from the object store are read-only, which torch warns about.
    return torch.from_numpy(array.copy()).to(device)
