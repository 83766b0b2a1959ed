"""The evaluate stage: how good are the features of each model, for frequent and for rare classes?

Every model is scored by its dense branch, and so is the network before training. Groups follow the
*pre-training* counts. The images that pruning forgets most are found without labels.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

from pipeline import storage
from pipeline.cluster.connect import Cluster, refreshed
from pipeline.cluster.retry import retry_lost_work
from pipeline.config import Config
from pipeline.console import Console
from pipeline.dataset.manifest import Manifest
from pipeline.evaluate import cached, leaks, trained
from pipeline.evaluate.cached import CachedProbes
from pipeline.evaluate.candidates import Candidate, Candidates, find_candidates
from pipeline.evaluate.features import SetFeatures, extract, placement
from pipeline.evaluate.forgotten import forgotten_images
from pipeline.evaluate.labelled import check_labels, check_sets, fewshot_rows
from pipeline.evaluate.score import score_entry, write_json
from pipeline.evaluate.trained import TrainedProbes
from pipeline.record.context import RunContext
from sdclr.longtail import Groups, groups_by_tercile, groups_by_threshold

SCHEMA_VERSION = 1
FILE = "evaluation.json"

Scores = dict[str, list[dict[str, Any]]]


def evaluate(
    run: RunContext, *, cluster: Cluster, console: Console, given_uri: str | None = None
) -> dict[str, Any] | None:
    """Score the run's models, or the given weights; writes evaluation.json and forgotten.json.

    Returns:
        The content of evaluation.json; None when the data set has no labels to score with.

    Raises:
        CheckpointError: a method of the run has no finished checkpoint, or the given one is unfit.
        ConfigError: the data set has labels, but not the sets that the protocols need.
        DataError: labels are missing, unknown or few, or scored images are also trained on.
    """
    config, manifest, run_uri, data_uri = run.config, run.manifest, run.run_uri, run.data_uri
    candidates = find_candidates(config, run_uri, run.config_hash, given_uri=given_uri)
    is_labelled = manifest.class_names is not None
    found_leaks: list[dict[str, Any]] = []
    clock = Clock()
    if is_labelled:
        check_sets(config, manifest)
        with clock("leaks"):
            found_leaks = leaks.find_leaks(
                data_uri, manifest, data_resource=config.placement.data_resource
            )
        leaks.refuse(found_leaks, manifest, max_frac=config.evaluate.max_leak_frac)
    has_twin = any(model.source.method == "sdclr" for model in candidates.models)
    set_names = (*_sets(config, manifest), *(("pretrain",) if has_twin else ()))
    if not set_names:
        return None
    with clock("features"):
        features = retry_lost_work(
            lambda: extract(
                config,
                run.config_json,
                sources=[model.source for model in candidates.models],
                data_uri=data_uri,
                manifest=manifest,
                set_names=set_names,
                cluster=refreshed(cluster),
                progress=lambda done, total: console.progress("features", done, total),
            ),
            say=lambda text: console.stage("evaluate", text),
        )
    counts = manifest.sets["pretrain"].class_counts
    groups = _groups(config, counts) if counts is not None else None
    if has_twin:
        forgotten = forgotten_images(config, data_uri, manifest, features["pretrain"], groups)
        write_json(storage.join(run_uri, "forgotten.json"), forgotten)
    if not is_labelled or groups is None or counts is None:
        return None
    scores = _scores(
        config, run.config_json, data_uri, manifest, features, groups, candidates, cluster, console,
        clock,
    )  # fmt: skip
    evaluation = {
        "schema_version": SCHEMA_VERSION,
        "class_names": list(manifest.class_names or ()),
        "pretrain_counts": list(counts),
        "groups": {name: list(getattr(groups, name)) for name in ("many", "medium", "few")},
        "sets": {name: info.rows for name, info in manifest.sets.items()},
        "scored_on": config.evaluate.split,
        "seed": config.run.seed,
        "notes": [*candidates.notes, *leaks.sentences(found_leaks)],
        "leaks": found_leaks,
        "models": [_entry(model, scores) for model in candidates.final],
        "curve": _curve(candidates, scores),
        "timings_s": clock.seconds,
    }
    write_json(storage.join(run_uri, FILE), evaluation)
    return evaluation


class Clock:
    """Seconds by name, in the order of first use; `with clock(name):` adds to them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, *names: str) -> Any:
        """Time a block that makes all of `names` together."""
        start_s = time.monotonic()
        yield
        for name in names:
            spent_s = self.seconds.get(name, 0.0) + time.monotonic() - start_s
            self.seconds[name] = round(spent_s, 3)


def _sets(config: Config, manifest: Manifest) -> tuple[str, ...]:
    """Return the sets that need cached features; the paper's protocols make their own."""
    if manifest.class_names is None:
        return ()
    protocols = config.evaluate.protocols
    names: set[str] = {config.evaluate.split, "probe"}
    if any(protocol in trained.PROTOCOLS for protocol in protocols):
        names |= {"val"} & manifest.sets.keys()
    return tuple(name for name in ("probe", "val", "test") if name in names)


def _scores(
    config: Config,
    config_json: str,
    data_uri: str,
    manifest: Manifest,
    features: dict[str, SetFeatures],
    groups: Groups,
    candidates: Candidates,
    cluster: Cluster,
    console: Console,
    clock: Clock,
) -> Scores:
    """Score each model by the configured protocols, in their order."""
    for name in ("probe", "val", config.evaluate.split):
        if name in features:
            check_labels(manifest, name, features[name])
    probe, test = features["probe"], features[config.evaluate.split]
    draws = fewshot_rows(config, manifest, probe.ids, probe.labels_N)
    wanted = config.evaluate.protocols
    by_protocol: dict[str, dict[str, dict[str, Any]]] = {}
    probes = CachedProbes(
        config, probe, test, draws, groups=groups, num_classes=len(manifest.class_names or ())
    )
    num_cached = len([p for p in wanted if p in cached.PROTOCOLS]) * len(candidates.models)
    for protocol in (p for p in wanted if p in cached.PROTOCOLS):
        with clock(protocol):
            by_protocol[protocol] = {}
            for model in candidates.models:
                by_protocol[protocol][model.name] = probes.score(protocol, model.name)
                done = sum(map(len, by_protocol.values()))
                console.progress("probes", done, num_cached, unit="probes", extra=protocol)
    published = [p for p in wanted if p in trained.PROTOCOLS]
    if published:
        with clock("decoding"):
            trained_probes = TrainedProbes(
                config, config_json, data_uri=data_uri, manifest=manifest, labels_N=probe.labels_N,
                draws=draws, placement=placement(config, cluster), console=console,
            )  # fmt: skip
        for group in ("linear", "fewshot"):
            mine = [p for p in published if p.startswith(f"paper-{group}")]
            if not mine:
                continue
            with clock(*mine):
                sources = [model.source for model in candidates.models]
                results = trained_probes.score(sources, group, features.get("val"), test)
            for protocol in mine:
                which = "last" if protocol.endswith("-last") else "best"
                by_protocol[protocol] = {
                    name: score_entry(
                        protocol, [r[which] for r in runs], groups,
                        trained_probes.note(protocol, runs),
                    )
                    for name, runs in results.items()
                }  # fmt: skip
    return {
        model.name: [by_protocol[protocol][model.name] for protocol in wanted]
        for model in candidates.models
    }


def _groups(config: Config, counts: Sequence[int]) -> Groups:
    if config.evaluate.groups == "threshold":
        return groups_by_threshold(list(counts))
    return groups_by_tercile(list(counts))


def _entry(model: Candidate, scores: Scores, name: str | None = None) -> dict[str, Any]:
    return {
        "name": name or model.name,
        "step": model.step,
        "epochs": model.epochs,
        "scores": scores[model.name],
    }


def _curve(candidates: Candidates, scores: Scores) -> list[dict[str, Any]]:
    """List the scored checkpoints of each method by step; empty without earlier ones."""
    methods = dict.fromkeys(m.older_than for m in candidates.models if m.older_than)
    points = [
        (method, model)
        for method in methods
        for model in candidates.models
        if method in (model.name, model.older_than)
    ]
    ordered = sorted(points, key=lambda point: (list(methods).index(point[0]), point[1].step or 0))
    return [_entry(model, scores, method) for method, model in ordered]
