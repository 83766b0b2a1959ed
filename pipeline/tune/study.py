"""The Optuna study of a sweep, made from its records: for optuna-dashboard and optuna.load_study.

    optuna-dashboard RUN/study.journal
    optuna.load_study(study_name="sdclr", storage=JournalStorage(JournalFileBackend(".../study.journal")))

A journal is JSON, one line for each change. It is written anew and never read by this program.
"""  # noqa: E501

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection

from pipeline import storage
from pipeline.config import Config
from pipeline.tune.objective import objectives
from pipeline.tune.search import frozen
from pipeline.tune.space import parameters
from pipeline.tune.trials import Trials

JOURNAL = "study.journal"


def directions(names: dict[str, str]) -> list[StudyDirection]:
    """Return the directions in Optuna's terms."""
    known = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}
    return [known[mode] for mode in names.values()]


def make(
    config: Config, trials: Trials, method: str, backend: JournalStorage | None = None
) -> optuna.Study:
    """Return the study of one method; in memory without a backend."""
    names = objectives(config)
    study = optuna.create_study(
        study_name=method,
        storage=backend,
        directions=directions(names),
    )
    study.set_metric_names(list(names))
    searched = parameters(config, method)
    for record in trials.all(method=method):
        study.add_trial(frozen(record, searched, list(names)))
    return study


def publish(run_uri: str, trials: Trials, config: Config) -> None:
    """Write RUN/study.journal with a study for each method, replacing an older one."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        file = Path(folder) / JOURNAL
        backend = JournalStorage(JournalFileBackend(str(file)))
        for method in config.train.methods:
            make(config, trials, method, backend)
        storage.write_bytes(storage.join(run_uri, JOURNAL), file.read_bytes())


def importances(config: Config, trials: Trials, method: str) -> dict[str, float] | None:
    """Return each parameter's share in the variation of good trials (PED-ANOVA).

    Of the first objective, over the trials that ran to their end. None when they are too few or all
    equally good.
    """
    searched = parameters(config, method)
    whole = [r for r in trials.all(method=method) if r.status == "complete"]
    ((name, mode), *_) = objectives(config).items()
    sign = -1.0 if mode == "max" else 1.0  # the evaluator takes low values for good ones
    values = [r.last(name) for r in whole]
    if len(searched) < 2 or len({v for v in values if v is not None}) < 4:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message="PedAnovaImportanceEvaluator computes")
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found = optuna.importance.get_param_importances(
            make(config, trials, method),
            evaluator=evaluator,
            target=lambda trial: sign * trial.values[0],
        )
    return {key: float(value) for key, value in found.items()}
