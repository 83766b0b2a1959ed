"""Several runs together: mean and spread over splits and seeds, and paired differences of methods.

A pair is what two methods scored on the same data set (so, split) with the same seed, in one run or
in two. All differences are taken pair by pair, see `pipeline.evaluate.comparison`.
"""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Sequence
from typing import Any

from pipeline import storage
from pipeline.config.file import changed_keys, parse_config
from pipeline.console import program
from pipeline.errors import ConfigError, DataError
from pipeline.evaluate.comparison import paired_difference
from pipeline.evaluate.score import FIELDS, fields_of, write_json
from pipeline.model.source import UNTRAINED
from pipeline.record.run import read_json
from sdclr.longtail import GroupScores, mean_scores

FILE = "aggregate.json"
SCHEMA_VERSION = 1
# A split and a seed: what two methods must share to be compared.
Key = tuple[str, int]
Table = dict[tuple[str, str], dict[Key, GroupScores]]


def aggregate(run_uris: Sequence[str]) -> dict[str, Any]:
    """Combine the evaluations of several runs.

    Returns:
        {"schema_version", "runs", "scored_on", "notes", "scores": [{"protocol", "model", "n",
        many..all, "spread"}], "differences": [{"protocol", "a", "b", "n", many..all, "spread",
        "half_width"}]}; spreads and half widths are None where n = 1.

    Raises:
        DataError: a run has no evaluation, or the runs' classes or scored sets differ.
        ConfigError: the same run twice, or two runs score one method on the same split and seed.
    """
    uris = [storage.absolute(uri) for uri in run_uris]
    twice = {uri for uri in uris if uris.count(uri) > 1}
    if twice:
        raise _same(f"the run {sorted(twice)[0]} is named twice", "name each run once")
    evaluations = {uri: _evaluation(uri) for uri in uris}
    _check_alike(evaluations)
    table = _table(evaluations)
    return {
        "schema_version": SCHEMA_VERSION,
        "runs": uris,
        "scored_on": evaluations[uris[0]]["scored_on"],
        "notes": [*_notes(uris), *_partial(table)],
        "scores": [_mean_entry(*name, list(scores.values())) for name, scores in table.items()],
        "differences": _differences(table),
    }


def write(run_uri: str, averaged: dict[str, Any]) -> None:
    """Publish what `aggregate` returned as aggregate.json."""
    write_json(storage.join(run_uri, FILE), averaged)


def _evaluation(uri: str) -> dict[str, Any]:
    file = storage.join(uri, "evaluation.json")
    if not storage.exists(file):
        raise DataError(
            "E-DATA-027",
            "the run has not been evaluated",
            where=uri,
            todo=f"{program()} evaluate --resume {shlex.quote(uri)}",
        )
    evaluation = read_json(file)
    data = read_json(storage.join(uri, "run.json")).get("data") or {}
    evaluation["split"] = str(data.get("manifest_hash", uri))
    return evaluation


def _check_alike(evaluations: dict[str, dict[str, Any]]) -> None:
    (first_uri, first), *others = evaluations.items()
    for key, name in (("class_names", "classes"), ("scored_on", "scored set")):
        for uri, evaluation in others:
            if evaluation.get(key) != first.get(key):
                a, b = (", ".join(map(str, [e.get(key)]))[:200] for e in (first, evaluation))
                raise DataError(
                    "E-DATA-028",
                    f"the runs cannot be averaged, their {name} differ: {a} and {b}",
                    where=f"{first_uri} and {uri}",
                    todo="name runs of one data source",
                )


def _table(evaluations: dict[str, dict[str, Any]]) -> Table:
    """Return the scores by split and seed of each (protocol, model)."""
    table: Table = {}
    for uri, evaluation in evaluations.items():
        key = evaluation["split"], int(evaluation["seed"])
        for model in evaluation["models"]:
            for score in model["scores"]:
                known = table.setdefault((score["protocol"], model["name"]), {})
                if key in known and model["name"] != UNTRAINED:
                    raise _same(
                        f"two runs score {model['name']} on the same split with seed {key[1]}",
                        f"leave one of them out; the second is {uri}",
                    )
                known[key] = GroupScores(
                    *(math.nan if score[f] is None else float(score[f]) for f in FIELDS)
                )
    return {name: table[name] for name in sorted(table, key=lambda name: _place(evaluations, name))}


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


def _place(evaluations: dict[str, dict[str, Any]], name: tuple[str, str]) -> tuple[int, int]:
    """Return the sort key of a row: protocols and models as they first occur."""
    protocols = [
        s["protocol"] for e in evaluations.values() for m in e["models"] for s in m["scores"]
    ]
    models = [
        m["name"] for e in evaluations.values() for m in e["models"] if m["name"] != UNTRAINED
    ]
    return protocols.index(name[0]), [*models, UNTRAINED].index(name[1])


def _mean_entry(protocol: str, model: str, scores: Sequence[GroupScores]) -> dict[str, Any]:
    summary = mean_scores(scores)
    return {
        "protocol": protocol,
        "model": model,
        "n": summary.n,
        **fields_of(summary.mean),
        "spread": None if summary.spread is None else fields_of(summary.spread),
    }


def _differences(table: Table) -> list[dict[str, Any]]:
    found = []
    for (one, a), (two, b) in itertools.combinations(table, 2):
        shared = [key for key in table[one, a] if key in table[two, b]]
        if one != two or not shared:
            continue
        difference = paired_difference(
            [table[one, a][key] for key in shared], [table[two, b][key] for key in shared]
        )
        spread, half_width = difference.spread, difference.half_width
        found.append(
            {
                "protocol": one,
                "a": a,
                "b": b,
                "n": difference.n,
                **fields_of(difference.mean),
                "spread": None if spread is None else fields_of(spread),
                "half_width": None if half_width is None else fields_of(half_width),
            }
        )
    return found


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
