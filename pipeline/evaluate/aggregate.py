"""Several runs together: mean and spread over splits and seeds, and paired differences of methods.

A pair is what two methods scored on the same data set (so, split) with the same seed, in one run or
in two. All differences are taken pair by pair, see `pipeline.evaluate.comparison`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from pipeline import storage
from pipeline.config.file import changed_keys, parse_config
from pipeline.errors import ConfigError, DataError
from pipeline.evaluate.comparison import (
    check_same_classes,
    group_scores_of,
    method_differences,
    not_evaluated,
)
from pipeline.evaluate.score import fields_of, values_of
from pipeline.model.source import UNTRAINED
from pipeline.record.aggregate import Aggregate, MeanScore
from pipeline.record.evaluation import Evaluation
from pipeline.record.keeper import read_run
from sdclr.groups import GroupScores, mean_scores

FILE = "aggregate.json"
_WHERE = "evaluate RUN RUN"
# A split and a seed: what two methods must share to be compared.
Key = tuple[str, int]
Scores = dict[tuple[str, str], dict[Hashable, GroupScores]]


@dataclass(frozen=True)
class Evaluated:
    """The evaluation of one run, and the data set that it was made on."""

    uri: str
    split: str
    evaluation: Evaluation


def aggregate(run_uris: Sequence[str]) -> Aggregate:
    """Combine the evaluations of several runs.

    Raises:
        DataError: a run has no evaluation, or the runs' classes or scored sets differ.
        ConfigError: the same run twice, or two runs score one method on the same split and seed.
    """
    uris = [storage.absolute(uri) for uri in run_uris]
    twice = {uri for uri in uris if uris.count(uri) > 1}
    if twice:
        raise ConfigError(
            "E-CONFIG-012",
            f"the run {sorted(twice)[0]} is named twice",
            where=_WHERE,
            todo="name each run once",
        )
    runs = [_evaluated(uri) for uri in uris]
    _check_alike(runs)
    table = _table(runs)
    return Aggregate(
        runs=tuple(uris),
        scored_on=runs[0].evaluation.scored_on,
        notes=(*_notes(uris), *_partial(table)),
        scores=tuple(mean_entry(*name, list(scores.values())) for name, scores in table.items()),
        differences=method_differences(table),
    )


def write(run_uri: str, averaged: Aggregate) -> None:
    """Publish what `aggregate` returned as aggregate.json."""
    averaged.write(storage.join(run_uri, FILE))


def _evaluated(uri: str) -> Evaluated:
    evaluation = Evaluation.find(storage.join(uri, "evaluation.json"))
    if evaluation is None:
        raise not_evaluated(uri)
    data = read_run(uri).data
    return Evaluated(uri, data.manifest_hash if data else uri, evaluation)


def _check_alike(runs: Sequence[Evaluated]) -> None:
    check_same_classes([(run.uri, run.evaluation) for run in runs])
    first, *others = runs
    for run in others:
        found = [one.evaluation.scored_on for one in (first, run)]
        if found[0] != found[1]:
            raise DataError(
                "E-DATA-028",
                f"the runs are scored on different sets: {found[0]} and {found[1]}",
                where=f"{first.uri} and {run.uri}",
                todo="evaluate the runs with one evaluate.split",
            )


def _table(runs: Sequence[Evaluated]) -> Scores:
    """Index scores by (protocol, model), then by split and seed."""
    table: Scores = {}
    for run in runs:
        key = run.split, run.evaluation.seed
        for model in run.evaluation.models:
            for score in model.scores:
                known = table.setdefault((score.protocol, model.name), {})
                if key in known and model.name != UNTRAINED:
                    raise ConfigError(
                        "E-CONFIG-560",
                        f"two runs score {model.name} on the same split with seed {key[1]}",
                        where=_WHERE,
                        todo=f"leave one of them out; the second is {run.uri}",
                    )
                known[key] = group_scores_of(score)
    return {name: table[name] for name in sorted(table, key=lambda name: _place(runs, name))}


def _partial(table: Scores) -> list[str]:
    """Note the protocols that lack a split or seed; their n is smaller."""
    keys: dict[str, set[Hashable]] = {}
    for (protocol, _), scores in table.items():
        keys.setdefault(protocol, set()).update(scores)
    num = len(set().union(*keys.values())) if keys else 0
    partial = [
        f"{name} ({len(found)} of {num})" for name, found in keys.items() if len(found) < num
    ]
    return [f"not all pairs of split and seed have {', '.join(partial)}"] if partial else []


def _place(runs: Sequence[Evaluated], name: tuple[str, str]) -> tuple[int, int]:
    """Place of a row: protocols as first met, then models as first met."""
    protocols = [p for run in runs for p in run.evaluation.protocols]
    models = [m.name for run in runs for m in run.evaluation.models if m.name != UNTRAINED]
    return protocols.index(name[0]), [*models, UNTRAINED].index(name[1])


def mean_entry(protocol: str, model: str, scores: Sequence[GroupScores]) -> MeanScore:
    """Return the mean and spread of one model by one protocol."""
    summary = mean_scores(scores)
    return MeanScore(
        protocol=protocol,
        model=model,
        n=summary.n,
        **fields_of(summary.mean),
        spread=values_of(summary.spread),
    )


def _notes(uris: Sequence[str]) -> list[str]:
    """Return keys, besides split and seed, in which the runs' configurations differ."""
    try:
        configs = [
            parse_config(storage.read_bytes(storage.join(uri, "config.yaml")).decode(), origin=uri)
            for uri in uris
        ]
    except ConfigError as error:
        return [f"the configurations could not be compared: {error.what.splitlines()[0]}"]
    expected = {"run.seed", "data.split_seed", "train.methods"}
    changes = [
        change
        for config in configs[1:]
        for change in changed_keys(configs[0], config)
        if change.split(":")[0] not in expected and not change.split(":")[0].endswith("_index")
    ]
    return [f"the runs differ in {change}" for change in dict.fromkeys(changes)]
