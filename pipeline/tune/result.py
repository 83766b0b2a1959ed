"""Result of a sweep: sweep.json, a function of the trials' records.

The best trial is the best of those that ran to their end. Its own score is too good, since it was
chosen for it; so the comparison with the configured setting and with the other methods is made of
trainings with fresh seeds, the same seeds for each.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict

from pipeline.config import Config
from pipeline.errors import TrainingError
from pipeline.record.sweep import (
    Confirmed,
    MethodSearch,
    Searched,
    SearchedTrial,
    Spread,
    SweepResult,
)
from pipeline.tune.objective import objectives
from pipeline.tune.point import Point
from pipeline.tune.space import (
    Params,
    configured_point,
    configured_value,
    parameters,
    published_point,
)
from pipeline.tune.study import importances
from pipeline.tune.trials import TrialRecord, Trials

CONFIGURED, PUBLISHED = "configured", "published"


def best_of(config: Config, records: Sequence[TrialRecord]) -> TrialRecord | None:
    """Return the complete trial with the best first objective, the earliest of equal ones."""
    ((name, mode), *_) = objectives(config).items()
    sign = 1.0 if mode == "max" else -1.0
    whole = [r for r in records if r.status == "complete" and r.last(name) is not None]
    return max(whole, key=lambda r: (sign * (r.last(name) or 0.0), -r.number), default=None)


def pareto_front(config: Config, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return complete trials that no other one beats in both objectives, best first.

    Empty with one objective. Of trials with equal values all are kept.
    """
    names = objectives(config)
    if len(names) < 2:
        return []
    signs = [1.0 if mode == "max" else -1.0 for mode in names.values()]
    scored = []
    for record in records:
        values = [record.last(name) for name in names]
        if record.status == "complete" and None not in values:
            scored.append(
                (record, [s * float(v or 0.0) for s, v in zip(signs, values, strict=True)])
            )
    front = [
        (record, mine)
        for record, mine in scored
        if not any(
            all(o >= m for o, m in zip(other, mine, strict=True)) and other != mine
            for _, other in scored
        )
    ]
    return [record for record, _ in sorted(front, key=lambda item: -item[1][0])]


def confirmations(config: Config, trials: Trials) -> list[Point]:
    """Return what is trained at the end: settings x fresh seeds; see `Plan.of`.

    Settings: the best of each method, and the configured and the published one of the winning
    method when they are others. A setting and seed that have a record keep its number, so more
    seeds extend fewer, and a winner that a longer sweep replaces stays what it is.
    """
    numbers = {_key(r.method, r.params, r.seed): r.number for r in trials.all("confirm")}
    points = []
    for k in range(config.tune.retrain_seeds):
        for label, method, params in _settings(config, trials):
            seed = config.run.seed + 1 + k
            free = max(numbers.values(), default=-1) + 1
            number = numbers.setdefault(_key(method, params, seed), free)
            points.append(Point(method, number, params, seed=seed, label=label))
    return points


def _key(method: str, params: Params, seed: int) -> tuple[object, ...]:
    return (method, seed, *sorted(params.items()))


def _settings(config: Config, trials: Trials) -> list[tuple[str, str, Params]]:
    winners = {}
    for method in config.train.methods:
        winner = best_of(config, trials.all(method=method))
        if winner is not None:
            winners[method] = winner
    if not winners:
        raise TrainingError(
            "E-TRAIN-007",
            "no trial came to its end",
            where=trials.run_uri,
            todo="raise tune.trials: the same command goes on",
        )
    first = best_of(config, list(winners.values()))
    assert first is not None
    settings: list[tuple[str, str, Params]] = [(f"best {first.method}", first.method, first.params)]
    for word, params in (
        (CONFIGURED, configured_point(config, first.method)),
        (PUBLISHED, published_point(config, first.method)),
    ):
        if params not in [known for _, _, known in settings]:
            settings.append((f"{word} {first.method}", first.method, params))
    for method, winner in winners.items():
        if method != first.method:
            settings.append((f"best {method}", method, winner.params))
    return settings


def common_epoch(records: Sequence[TrialRecord]) -> int | None:
    """Return the last epoch that all trials with a measure have reached; None without any.

    Trials are compared there: one that ASHA stopped early has had less training than the others at
    its own end.
    """
    return min((r.epochs for r in records if r.rows), default=None)


def summary(config: Config, trials: Trials, num_scored: int) -> SweepResult:
    """Return the result of a sweep.

    Args:
        config: of the sweep.
        trials: its records.
        num_scored: images of the set that the trials are judged on.

    Raises:
        TrainingError: no trial came to its end.
    """
    names = objectives(config)
    settings = _settings(config, trials)
    found = trials.all()
    best = best_of(config, found)
    assert best is not None
    epoch = common_epoch(found)
    return SweepResult(
        objectives=names,
        scored_on="val" if config.tune.objective == "fewshot" else "pretrain",
        num_scored=num_scored,
        common_epoch=epoch,
        max_epochs=config.train.epochs,
        seed=config.run.seed,
        sampler=config.tune.sampler,
        best=best.name,
        pareto=tuple(r.name for r in pareto_front(config, found)),
        methods=tuple(_method(config, trials, method) for method in config.train.methods),
        trials=tuple(_trial(record, names, epoch) for record in found),
        confirmed=tuple(_confirmed(trials, *setting, names) for setting in settings),
    )


def _method(config: Config, trials: Trials, method: str) -> MethodSearch:
    records = trials.all(method=method)
    best = best_of(config, records)
    return MethodSearch(
        method=method,
        parameters=tuple(
            Searched(**asdict(p), configured=configured_value(config, p.key))
            for p in parameters(config, method)
        ),
        counts={
            status: sum(r.status == status for r in records)
            for status in ("complete", "pruned", "failed")
        },
        epochs=sum(r.epochs for r in records),
        epochs_without_stopping=len(records) * config.train.epochs,
        seconds=round(sum(r.seconds for r in records), 3),
        best=None if best is None else best.name,
        importance=importances(config, trials, method),
    )


def _trial(record: TrialRecord, names: dict[str, str], epoch: int | None) -> SearchedTrial:
    points = tuple((int(r["epoch"] or 0), r.get(next(iter(names)))) for r in record.rows)
    return SearchedTrial(
        name=record.name,
        method=record.method,
        status=record.status,
        params=record.params,
        epochs=record.epochs,
        seconds=round(record.seconds, 3),
        values={name: record.last(name) for name in names},
        at_common_epoch=next((value for at, value in points if at == epoch), None),
        course=points,
        error=None if record.error is None else record.error.what,
    )


def _confirmed(
    trials: Trials, label: str, method: str, params: Params, names: dict[str, str]
) -> Confirmed:
    """Return mean and sample standard deviation over the seeds, by objective."""
    records = [
        r
        for r in trials.all("confirm")
        if r.method == method and r.params == params and r.status == "complete"
    ]
    by_name = {}
    for name in names:
        values = tuple(v for r in records if (v := r.last(name)) is not None)
        by_name[name] = Spread(
            n=len(values),
            mean=statistics.fmean(values) if values else None,
            std=statistics.stdev(values) if len(values) > 1 else None,
            by_seed=values,
        )
    return Confirmed(label=label, method=method, params=params, values=by_name)
