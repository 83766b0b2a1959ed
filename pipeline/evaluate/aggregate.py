"""Several runs together: mean and spread over splits and seeds, and paired differences of methods.

A pair is what two methods scored on the same data set (so, split) with the same seed, in one run or
in two. All differences are taken pair by pair, see `pipeline.evaluate.comparison`.
"""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline import storage
from pipeline.config.file import changed_keys, parse_config
from pipeline.console import program
from pipeline.errors import ConfigError, DataError
from pipeline.evaluate.comparison import paired_difference
from pipeline.evaluate.score import FIELDS, fields_of, values_of
from pipeline.model.source import UNTRAINED
from pipeline.record.aggregate import Aggregate, MeanDifference, MeanScore
from pipeline.record.evaluation import Evaluation, Score
from pipeline.record.keeper import read_run
from sdclr.longtail import GroupScores, mean_scores

FILE = "aggregate.json"
# A split and a seed: what two methods must share to be compared.
Key = tuple[str, int]
Table = dict[tuple[str, str], dict[Key, GroupScores]]


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
        raise _same(f"the run {sorted(twice)[0]} is named twice", "name each run once")
    runs = [_evaluated(uri) for uri in uris]
    _check_alike(runs)
    table = _table(runs)
    return Aggregate(
        runs=tuple(uris),
        scored_on=runs[0].evaluation.scored_on,
        notes=(*_notes(uris), *_partial(table)),
        scores=tuple(_mean_entry(*name, list(scores.values())) for name, scores in table.items()),
        differences=_differences(table),
    )


def write(run_uri: str, averaged: Aggregate) -> None:
    """Publish what `aggregate` returned as aggregate.json."""
    averaged.write(storage.join(run_uri, FILE))


def group_scores_of(score: Score) -> GroupScores:
    """Return the five numbers of a score; nan where one was not measured."""
    values = (getattr(score, name) for name in FIELDS)
    return GroupScores(*(math.nan if value is None else value for value in values))


def _evaluated(uri: str) -> Evaluated:
    evaluation = Evaluation.find(storage.join(uri, "evaluation.json"))
    if evaluation is None:
        raise DataError(
            "E-DATA-027",
            "the run has not been evaluated",
            where=uri,
            todo=f"{program()} evaluate --resume {shlex.quote(uri)}",
        )
    data = read_run(uri).data
    return Evaluated(uri, data.manifest_hash if data else uri, evaluation)


def _check_alike(runs: Sequence[Evaluated]) -> None:
    first, *others = runs
    for name, key in (("classes", "class_names"), ("scored set", "scored_on")):
        for run in others:
            found = [getattr(one.evaluation, key) for one in (first, run)]
            if found[0] != found[1]:
                a, b = (v if isinstance(v, str) else ", ".join(v)[:200] for v in found)
                raise DataError(
                    "E-DATA-028",
                    f"the runs cannot be averaged, their {name} differ: {a} and {b}",
                    where=f"{first.uri} and {run.uri}",
                    todo="name runs of one data source",
                )


def _table(runs: Sequence[Evaluated]) -> Table:
    """Index scores by (protocol, model), then by split and seed."""
    table: Table = {}
    for run in runs:
        key = run.split, run.evaluation.seed
        for model in run.evaluation.models:
            for score in model.scores:
                known = table.setdefault((score.protocol, model.name), {})
                if key in known and model.name != UNTRAINED:
                    raise _same(
                        f"two runs score {model.name} on the same split with seed {key[1]}",
                        f"leave one of them out; the second is {run.uri}",
                    )
                known[key] = group_scores_of(score)
    return {name: table[name] for name in sorted(table, key=lambda name: _place(runs, name))}


def _partial(table: Table) -> list[str]:
    """Note the protocols that lack a split or seed; their n is smaller."""
    keys: dict[str, set[Key]] = {}
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


def _mean_entry(protocol: str, model: str, scores: Sequence[GroupScores]) -> MeanScore:
    summary = mean_scores(scores)
    return MeanScore(
        protocol=protocol,
        model=model,
        n=summary.n,
        **fields_of(summary.mean),
        spread=values_of(summary.spread),
    )


def _differences(table: Table) -> tuple[MeanDifference, ...]:
    found = []
    for (one, a), (two, b) in itertools.combinations(table, 2):
        shared = [key for key in table[one, a] if key in table[two, b]]
        if one != two or not shared:
            continue
        difference = paired_difference(
            [table[one, a][key] for key in shared], [table[two, b][key] for key in shared]
        )
        found.append(
            MeanDifference(
                protocol=one,
                a=a,
                b=b,
                n=difference.n,
                **fields_of(difference.mean),
                spread=values_of(difference.spread),
                half_width=values_of(difference.half_width),
            )
        )
    return tuple(found)


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


def _same(what: str, todo: str) -> ConfigError:
    return ConfigError("E-CONFIG-012", what, where="evaluate RUN RUN", todo=todo)
