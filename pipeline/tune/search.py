"""Ray Tune's search, made to continue from trial records.

Tune restores a sweep by unpickling files from its storage, and then forgets ASHA's rungs, suggests
points again and counts epochs from 1. So `Tuner.restore` is never called. Every invocation makes a
new Tuner, and two things are rebuilt from the trials' JSON records: the Optuna study that
`OptunaSearch` asks, and the rungs of ASHA in `tune.asha`. Its own files go to a scratch folder.

Trial n of a study is the same in every invocation: records become trials in the order of their
numbers, a trial that did not finish is asked again with its parameters, and the sampler's random
numbers are a function of (seed, n), so that a restart does not repeat the first points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import optuna
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray.tune.search.optuna import OptunaSearch

from pipeline.tune import upstream
from pipeline.tune.space import Parameter, Params
from pipeline.tune.trials import TrialRecord
from sdclr.seeds import derived_seed

Space = dict[str, BaseDistribution]

_STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "running": TrialState.RUNNING,
}
_NUM_RANDOM_FIRST = 6


class NumberedSampler(BaseSampler):
    """A sampler that draws trial n from (seed, n) and the results alone.

    Args:
        kind: `tpe` (multivariate), `random` or `nsga2`.
        seed: of all draws.
    """

    def __init__(self, kind: str, seed: int) -> None:
        self.kind, self.seed = kind, seed
        self._made: tuple[int, BaseSampler] | None = None

    def _of(self, trial: FrozenTrial) -> BaseSampler:
        if self._made is None or self._made[0] != trial.number:
            seed = derived_seed(self.seed, "sampler", trial.number) % 2**31
            self._made = trial.number, _sampler(self.kind, seed)
        return self._made[1]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Space:
        """Delegate to Optuna's sampler, as the methods below do."""
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(  # noqa: D102
        self, study: Study, trial: FrozenTrial, search_space: Space
    ) -> dict[str, object]:
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(  # noqa: D102
        self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> object:
        return self._of(trial).sample_independent(study, trial, name, distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:  # noqa: D102
        self._of(trial).before_trial(study, trial)

    def after_trial(  # noqa: D102
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._of(trial).after_trial(study, trial, state, values)


def _sampler(kind: str, seed: int) -> BaseSampler:
    if kind == "random":
        return RandomSampler(seed=seed)
    if kind == "nsga2":
        return NSGAIISampler(seed=seed, population_size=12)
    return TPESampler(
        seed=seed, multivariate=True, constant_liar=True, n_startup_trials=_NUM_RANDOM_FIRST
    )


def frozen(
    record: TrialRecord, searched: Sequence[Parameter], objectives: Sequence[str]
) -> FrozenTrial:
    """Return a record as Optuna's trial, with its history, PRUNED when ASHA stopped it.

    A complete trial whose last measure is not finite is a failed one.
    """
    values = [value for name in objectives if (value := record.last(name)) is not None]
    state = _STATES[record.status]
    if state is TrialState.COMPLETE and len(values) < len(objectives):
        state = TrialState.FAIL
    by_epoch = {}
    if len(objectives) == 1:
        measured = [(row["epoch"], row.get(objectives[0])) for row in record.rows]
        by_epoch = {int(epoch or 0): float(v) for epoch, v in measured if v is not None}
    return create_trial(
        state=state,
        params=dict(record.params),
        distributions={p.key: p.distribution() for p in searched},
        values=values if state is TrialState.COMPLETE else None,
        intermediate_values=by_epoch,
        user_attrs={"trial": record.name, "seconds": round(record.seconds, 3)},
    )


def rebuild(
    study: optuna.Study,
    records: Sequence[TrialRecord],
    known: Sequence[Params],
    searched: Sequence[Parameter],
    objectives: Sequence[str],
) -> None:
    """Fill an empty study so that its trial n is record n, and trials still to run wait in it."""
    by_number = {record.number: record for record in records}
    for number in range(max([len(known) - 1, *by_number]) + 1):
        record = by_number.get(number)
        if record is not None and record.status != "running":
            study.add_trial(frozen(record, searched, objectives))
        elif record is not None:
            study.enqueue_trial(dict(record.params))
        else:
            study.enqueue_trial(dict(known[number]) if number < len(known) else {})


class RecordedSearch(OptunaSearch):
    """OptunaSearch that steps by epoch, and knows stopped and failed trials from complete ones.

    As it comes, it reports to Optuna a trial that ASHA stopped as complete, with its last value:
    TPE then takes half-trained values for final ones.

    Args:
        study: rebuilt from the records.
        searched: the space.
        metric, mode: one name each, or a list of two.
        max_epochs: of a trial that is complete.
    """

    def __init__(
        self,
        study: optuna.Study,
        searched: Sequence[Parameter],
        *,
        metric: str | list[str],
        mode: str | list[str],
        max_epochs: int,
    ) -> None:
        self._study = study
        self._searched, self._max_epochs = tuple(searched), max_epochs
        self._told: dict[str, int] = {}
        super().__init__(
            space=self._suggest_all,
            metric=metric,
            mode=mode,
            sampler=study.sampler,
            study_name=study.study_name,
            storage=upstream.storage_of(study),
        )

    def _suggest_all(self, trial: optuna.Trial) -> dict[str, object]:
        for p in self._searched:
            if p.choices:
                trial.suggest_categorical(p.key, p.choices)
            else:
                trial.suggest_float(p.key, p.low, p.high, log=p.log)
        return {"method": self._study.study_name, "number": trial.number}

    def on_trial_result(self, trial_id: str, result: dict[str, object]) -> None:
        """Tell Optuna the value of an epoch; failures and repeated epochs are skipped."""
        if not isinstance(self.metric, str) or self.metric not in result:
            return  # Optuna takes no intermediate values of two objectives
        epoch = int(number_of(result, "epoch"))
        if epoch > self._told.get(trial_id, 0):
            self._told[trial_id] = epoch
            upstream.asked_trials(self)[trial_id].report(number_of(result, self.metric), epoch)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, object] | None = None, error: bool = False
    ) -> None:
        """End the trial in Optuna as what it was."""
        asked, ended = upstream.asked_trials(self), upstream.ended_trials(self)
        if trial_id in ended or trial_id not in asked:
            return
        names = [self.metric] if isinstance(self.metric, str) else list(self.metric or ())
        result = result or {}
        values = [number_of(result, name) for name in names]
        trial, study = asked[trial_id], self._study
        if error or result.get("error") or any(math.isnan(v) for v in values):
            study.tell(trial, state=TrialState.FAIL)
        elif number_of(result, "epoch") < self._max_epochs:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, values, state=TrialState.COMPLETE)
        ended.add(trial_id)


def number_of(result: Mapping[str, object], name: str) -> float:
    """Return a number that a trial reported; NaN where there is none."""
    value = result.get(name)
    return float(value) if isinstance(value, int | float) else math.nan
