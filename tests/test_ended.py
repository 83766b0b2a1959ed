"""What an interrupted evaluation finished stays finished, for the same weights, images and keys."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.file import load_config
from pipeline.embed.features import Placement, SetFeatures
from pipeline.evaluate import fits, forgotten, stage
from pipeline.evaluate.candidates import Candidate, Candidates
from pipeline.evaluate.finished import EndedProtocols
from pipeline.evaluate.fits import Fit, fit_anywhere, fit_here
from pipeline.model.source import UNTRAINED, ModelSource
from pipeline.record.context import RunContext
from pipeline.record.evaluation import EndedProtocol, Evaluation
from sdclr import crossval
from tests.test_evaluate import EVEN, NUM_CLASSES, features, sets_of

CPU = Placement("cpu", 1, 1, 0, 1)


class Screen:
    """Remembers what was shown."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def stage(self, name: str, text: str = "") -> None:
        self.lines.append(text)

    def progress(self, *told: object, **more: object) -> None:
        pass


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunContext:
    """A run of one method on features that are given, so that nothing needs Ray."""
    manifest = sets_of(pretrain=EVEN, probe=(20,) * NUM_CLASSES, test=(10,) * NUM_CLASSES)
    config = load_config(None, ["evaluate.fewshot_draws=2", "evaluate.shots_per_class=2"])
    monkeypatch.setattr(stage.leaks, "find_leaks", lambda *_, **__: [])
    monkeypatch.setattr(stage, "find_candidates", lambda *_, **__: candidates(tmp_path))
    monkeypatch.setattr(stage, "placement", lambda *_: CPU)
    (tmp_path / "w.safetensors").write_bytes(b"one")
    context = RunContext(config, str(tmp_path), "", manifest)
    monkeypatch.setattr(stage, "vectors_of", given_features)
    return context


def candidates(folder: Path) -> Candidates:
    own = ModelSource("sdclr", str(folder / "w.safetensors"))
    return Candidates([Candidate(own, 5, 1), Candidate(ModelSource(UNTRAINED))])


def given_features(*_: object) -> dict[str, SetFeatures]:
    return {
        "probe": features(20 * NUM_CLASSES, 1, noise=2.0),
        "test": features(10 * NUM_CLASSES, 2, noise=2.0),
    }


def no_cluster() -> None:
    """Nothing here needs one."""


def evaluated(run: RunContext, screen: Screen | None = None) -> Evaluation:
    found = stage.evaluate(run, cluster=no_cluster, console=screen or Screen())  # type: ignore[arg-type]
    assert found is not None
    return found


def without_times(evaluation: Evaluation) -> dict[str, object]:
    return evaluation.content() | {"timings_s": None}


@pytest.mark.promise("R35")
def test_protocols_that_ended_before_an_interruption_are_not_repeated(
    run: RunContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = evaluated(replace(run, run_uri=str(tmp_path / "unbroken")))
    assert any("only their order keeps them out" in note for note in whole.notes)  # all are even
    scored: list[str] = []
    original = stage.CachedProbes.score

    def score(self: object, protocol: str, *rest: object) -> object:
        if protocol == "knn" and "knn" not in scored:
            scored.append(protocol)
            raise KeyboardInterrupt  # the process is told to stop in the last protocol
        scored.append(protocol)
        return original(self, protocol, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(stage.CachedProbes, "score", score)
    with pytest.raises(KeyboardInterrupt):
        evaluated(run)
    assert not (tmp_path / "evaluation.json").exists()
    screen = Screen()
    resumed = evaluated(run, screen)
    assert scored == ["cached-linear", "cached-fewshot", "knn", "knn"]
    assert "cached-linear, cached-fewshot" in screen.lines[0]
    assert without_times(resumed) == without_times(whole)
    assert Evaluation.read(str(tmp_path / "evaluation.json")) == resumed
    # A third time nothing is fitted at all, and no feature is needed.
    monkeypatch.setattr(stage, "vectors_of", None)
    assert without_times(evaluated(run)) == without_times(whole) and len(scored) == 4


def test_without_labels_a_cluster_is_asked_for_only_where_something_is_left(
    run: RunContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It takes most of a minute to start, and there are no scores."""
    unlabelled = replace(run, manifest=replace(run.manifest, class_names=None))
    scored = features(20 * NUM_CLASSES, 1, noise=2.0)
    scored.disagreement_N = np.linspace(0, 1, len(scored.ids))
    own = ModelSource("sdclr", str(tmp_path / "w.safetensors"), method="sdclr")
    found = Candidates([Candidate(own, 5, 1)])
    monkeypatch.setattr(stage, "find_candidates", lambda *_, **__: found)
    monkeypatch.setattr(stage, "vectors_of", lambda *_: {"pretrain": scored})
    monkeypatch.setattr(forgotten, "pictures", lambda *_, **__: dict.fromkeys(range(999), ""))
    asked: list[str] = []
    for _ in range(2):
        cluster = lambda: asked.append("cluster")  # noqa: E731
        assert stage.evaluate(unlabelled, cluster=cluster, console=Screen()) is None  # type: ignore[arg-type]
        assert asked == ["cluster"] and (tmp_path / "forgotten.json").exists()


def changed(run: RunContext, what: str) -> RunContext:
    if what == "weights":
        Path(run.run_uri, "w.safetensors").write_bytes(b"two")
    if what == "images":
        return replace(run, manifest=replace(run.manifest, hash="other"))
    words = {"key": "evaluate.cv_folds=3", "seed": "run.seed=9"}
    if what in words:
        return replace(run, config=load_config(None, [words[what]]))
    return run


@pytest.mark.parametrize("what", ["weights", "images", "key", "seed", "torn", "nothing"])
@pytest.mark.promise("R35", control=True)
def test_scores_are_taken_again_only_with_the_same_inputs(run: RunContext, what: str) -> None:
    folder = Path(run.run_uri)
    EndedProtocols(run, candidates(folder)).write("knn", {}, 1.5)
    if what == "torn":
        (folder / "evaluation" / "knn.json").write_text("{")
    other = changed(run, what)
    found = EndedProtocols(other, candidates(folder)).find("knn")
    assert (found is not None) == (what == "nothing")


def test_fewer_models_take_the_scores_of_more(run: RunContext) -> None:
    both, one = candidates(Path(run.run_uri)), Candidates([Candidate(ModelSource(UNTRAINED))])
    EndedProtocols(run, both).write("knn", {}, 1.5)
    found = EndedProtocols(run, one).find("knn")
    assert isinstance(found, EndedProtocol) and found.seconds == 1.5
    EndedProtocols(run, one).write("knn", {}, 1.5)
    assert EndedProtocols(run, both).find("knn") is None


@pytest.mark.ray
@pytest.mark.parametrize("apart", [False, True])
def test_fits_in_tasks_equal_those_here(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    if apart:
        monkeypatch.setattr(crossval, "MOST_TOGETHER", 0)
    train, test = features(120, 1, noise=3.0), features(60, 2, noise=3.0)
    given = [
        Fit(train.by_model[model], train.labels_N, test.by_model[model], NUM_CLASSES, k=k)
        for model in ("sdclr", "untrained")
        for k in (None, 5)
    ]
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(fits, "_WORTH_TASKS", 0)
    monkeypatch.setattr(fits, "fit_here", None)
    found = fit_anywhere(given, CPU, mark=None, progress=lambda *n: seen.append(n))
    total = 14 if apart else 4  # five folds of two linear probes
    assert seen[0] == (0, total) and seen[-1] == (total, total)
    digests = [hashlib.sha256(predictions.tobytes()).hexdigest() for predictions in found]
    assert len(set(digests)) == 4
    for one, other in zip(found, fit_here(given), strict=True):
        assert np.array_equal(one, other)
