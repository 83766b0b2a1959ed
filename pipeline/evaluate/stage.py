"""The evaluate stage: how good are the features of each model, for frequent and for rare classes?

Every model is scored by its dense branch, and so is the network before training. Groups follow the
*pre-training* counts. The images that pruning forgets most are found without labels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from pipeline import storage
from pipeline.cluster.connect import Cluster
from pipeline.console import Console, duration
from pipeline.dataset.checks import check_scored_sets
from pipeline.embed.features import SetFeatures, placement
from pipeline.evaluate import cached, leaks, trained
from pipeline.evaluate.cached import CachedProbes
from pipeline.evaluate.candidates import Candidate, Candidates, find_candidates
from pipeline.evaluate.finished import EndedProtocols
from pipeline.evaluate.fits import fit_anywhere
from pipeline.evaluate.forgotten import forgotten_images
from pipeline.evaluate.labelled import (
    check_labels,
    class_groups,
    fewshot_rows,
    labelled_images,
    ties,
)
from pipeline.evaluate.probe_task import ProbeEnd
from pipeline.evaluate.score import score_of
from pipeline.evaluate.trained import TrainedProbes
from pipeline.evaluate.vectors import vectors_of
from pipeline.model.backbone import check_view
from pipeline.model.public import own_config
from pipeline.record.context import RunContext
from pipeline.record.evaluation import (
    ClassGroups,
    EndedProtocol,
    Evaluation,
    Leak,
    ModelScores,
    Score,
)
from sdclr.groups import Groups
from sdclr.methods import METHODS

FILE = "evaluation.json"
_FORGOTTEN = "forgotten"

# Model -> its score by one protocol.
Scores = dict[str, Score]


def evaluate(
    run: RunContext,
    *,
    cluster: Callable[[], Cluster],
    console: Console,
    given_uri: str | None = None,
) -> Evaluation | None:
    """Score the run's models, or the given weights; writes evaluation.json and forgotten.json.

    A protocol that ended in an earlier, interrupted stage is not repeated. Without labels a cluster
    is asked for only if the images that pruning forgets are not found yet.

    Returns:
        The record; None when the data set has no labels to score with.

    Raises:
        CheckpointError: a method of the run has no finished checkpoint, or the given one is unfit.
        ConfigError: the data set has labels, but not the sets that the protocols need.
        DataError: labels are missing, unknown or few, or scored images are also trained on.
    """
    config, manifest = run.config, run.manifest
    candidates = find_candidates(config, run.run_uri, run.config_hash, given_uri=given_uri)
    for uri in config.evaluate.public:
        check_view(own_config(config, uri), manifest)
    groups = class_groups(config, manifest)
    found_leaks: list[Leak] = []
    clock = Clock()
    if groups is not None:
        check_scored_sets(config, manifest)
        cluster()  # the search for leaks runs on it
        with clock("leaks"):
            found_leaks = leaks.find_leaks(run.data_uri, manifest, mark=config.placement.data_nodes)
        leaks.refuse(found_leaks, manifest, max_frac=config.evaluate.max_leak_frac)
    ended = EndedProtocols(run, candidates)
    wanted = config.evaluate.protocols if groups is not None else ()
    kept = {str(p): found for p in wanted if (found := ended.find(p)) is not None}
    if kept:
        protocols = ", ".join(kept)
        console.stage("evaluate", f"scores of the same weights and images are there: {protocols}")
    forgotten_uri = storage.join(run.run_uri, "forgotten.json")
    methods = [model.source.method for model in candidates.models if model.source.method]
    twin = next((method for method in methods if METHODS[method].has_twin), None)
    if ended.find(_FORGOTTEN) is not None and storage.exists(forgotten_uri):
        twin = None
    set_names = _sets(run, [p for p in wanted if p not in kept])
    set_names += ("pretrain",) if twin else ()
    features: dict[str, SetFeatures] = {}
    sources = [model.source for model in candidates.models]
    if set_names:
        with clock("features"):
            features = vectors_of(run, sources, set_names, cluster(), console)
    if twin:
        forgotten_images(run, twin, features["pretrain"], groups).write(forgotten_uri)
        ended.write(_FORGOTTEN, {}, clock.seconds["features"])
    if groups is None:
        return None
    scoring = Scoring(run, features, groups, candidates, cluster(), console, ended, kept)
    scores = scoring.all()
    evaluation = Evaluation(
        class_names=tuple(manifest.class_names or ()),
        pretrain_counts=tuple(manifest.sets["pretrain"].class_counts or ()),
        groups=ClassGroups(many=groups.many, medium=groups.medium, few=groups.few),
        sets={name: info.rows for name, info in manifest.sets.items()},
        scored_on=config.evaluate.split,
        seed=config.run.seed,
        notes=(*candidates.notes, *ties(manifest, groups), *leaks.sentences(found_leaks)),
        leaks=tuple(found_leaks),
        models=tuple(_entry(model, scores) for model in candidates.final),
        curve=_curve(candidates, scores),
        timings_s=clock.seconds | scoring.clock.seconds,
    )
    evaluation.write(storage.join(run.run_uri, FILE))
    return evaluation


class Clock:
    """Seconds by name, in the order of first use; `with clock(name):` adds to them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, *names: str) -> Iterator[None]:
        """Time a block that makes all of `names` together."""
        start_s = time.monotonic()
        yield
        for name in names:
            spent_s = self.seconds.get(name, 0.0) + time.monotonic() - start_s
            self.seconds[name] = round(spent_s, 3)


def _sets(run: RunContext, protocols: Sequence[str]) -> tuple[str, ...]:
    """Return the sets that need cached features; the paper's protocols make their own."""
    if not protocols:
        return ()
    names: set[str] = {run.config.evaluate.split, "probe", "fewshot"}
    if any(protocol.startswith("paper") for protocol in protocols):
        names.add("val")
    have = [str(name) for name in run.manifest.sets]
    return tuple(n for n in ("probe", "fewshot", "val", "test") if n in names and n in have)


class Scoring:
    """All configured protocols on extracted features; what ends is published at once.

    Args:
        run: what is evaluated.
        features: of the sets that the protocols still to be done need.
        groups: of the classes.
        candidates: the models.
        cluster: where fits may run.
        console: shows progress.
        ended: where protocols are kept.
        kept: those that ended earlier.
    """

    def __init__(
        self,
        run: RunContext,
        features: dict[str, SetFeatures],
        groups: Groups,
        candidates: Candidates,
        cluster: Cluster,
        console: Console,
        ended: EndedProtocols,
        kept: dict[str, EndedProtocol],
    ) -> None:
        self._run, self._features, self._groups = run, features, groups
        self._candidates, self._cluster, self._console = candidates, cluster, console
        self._ended, self._done = ended, dict(kept)
        self.clock = Clock()

    def all(self) -> dict[str, tuple[Score, ...]]:
        """Return the scores of each model in the order of the configured protocols."""
        wanted = self._run.config.evaluate.protocols
        todo = [protocol for protocol in wanted if protocol not in self._done]
        if todo:
            self._score(todo)
        order = [p for p in wanted if p not in self.clock.seconds]
        self.clock.seconds |= {protocol: self._done[protocol].seconds for protocol in order}
        return {
            model.name: tuple(self._done[protocol].scores[model.name] for protocol in wanted)
            for model in self._candidates.models
        }

    def _score(self, todo: Sequence[str]) -> None:
        config, manifest = self._run.config, self._run.manifest
        for name, found in self._features.items():
            if name != "pretrain":
                check_labels(manifest, name, found)
        labelled, num_probe = labelled_images(self._features)
        test = self._features[config.evaluate.split]
        draws = fewshot_rows(config, manifest, labelled.ids, labelled.labels_N, num_probe)
        place = placement(config, self._cluster)
        probes = CachedProbes(
            config, labelled, test, draws, groups=self._groups,
            num_classes=len(manifest.class_names or ()), num_probe=num_probe,
        )  # fmt: skip
        models = [model.name for model in self._candidates.models]
        for protocol in (p for p in todo if p in cached.PROTOCOLS):
            fit = partial(
                fit_anywhere,
                place=place,
                mark=config.placement.train_nodes,
                progress=partial(self._console.progress, protocol, unit="fits"),
            )
            with self.clock(protocol):
                scores = probes.score(protocol, models, fit)
            self._end({protocol: scores})
        published = [p for p in todo if p in trained.PROTOCOLS]
        if not published:
            return
        with self.clock("decoding"):
            by_sgd = TrainedProbes(
                self._run, labels_N=labelled.labels_N, num_probe=num_probe, draws=draws,
                test_labels_M=test.labels_N, placement=place, console=self._console,
            )  # fmt: skip
        sources = [model.source for model in self._candidates.models]
        for training, protocols in trained.TRAININGS.items():
            names = [p for p in published if p in protocols]
            if not names:
                continue
            with self.clock(*names):
                results = by_sgd.score(sources, training, self._features.get("val"), test)
            self._end(
                {name: self._of_ends(name, results, by_sgd) for name in names},
            )

    def _of_ends(
        self, protocol: str, results: dict[str, list[ProbeEnd]], probes: TrainedProbes
    ) -> Scores:
        is_last = protocol.endswith("-last")
        return {
            model: score_of(
                protocol,
                [end.last if is_last else end.best for end in ends],
                self._groups,
                probes.note(protocol, ends),
            )
            for model, ends in results.items()
        }

    def _end(self, found: dict[str, Scores]) -> None:
        """Publish the scores of protocols that were made together, and say what they took."""
        for protocol, scores in found.items():
            seconds = self.clock.seconds[protocol]
            self._done[protocol] = self._ended.write(protocol, scores, seconds)
        num_models = len(self._candidates.models)
        self._console.stage(
            "evaluate",
            f"{' and '.join(found)}: {duration(seconds)}, {duration(seconds / num_models)} a model",
        )


def _entry(
    model: Candidate, scores: dict[str, tuple[Score, ...]], name: str | None = None
) -> ModelScores:
    return ModelScores(
        name=name or model.name, step=model.step, epochs=model.epochs, scores=scores[model.name]
    )


def _curve(candidates: Candidates, scores: dict[str, tuple[Score, ...]]) -> tuple[ModelScores, ...]:
    """Return every scored checkpoint by method and step; empty when there are no earlier ones."""
    methods = dict.fromkeys(m.older_than for m in candidates.models if m.older_than)
    points = [
        (method, model)
        for method in methods
        for model in candidates.models
        if method in (model.name, model.older_than)
    ]
    ordered = sorted(points, key=lambda point: (list(methods).index(point[0]), point[1].step or 0))
    return tuple(_entry(model, scores, method) for method, model in ordered)
