"""Cached protocols on features whose answer is known, few-shot lists, and labels that are unfit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config import Config
from pipeline.config.file import load_config
from pipeline.dataset.checks import check_scored_sets, shots_per_class
from pipeline.dataset.manifest import ImageInfo, Manifest, Rejects, SetInfo
from pipeline.embed.features import SetFeatures
from pipeline.errors import ConfigError, DataError
from pipeline.evaluate.cached import CachedProbes
from pipeline.evaluate.fits import Fit, fit_here
from pipeline.evaluate.labelled import check_labels, fewshot_rows, labelled_images
from pipeline.record.evaluation import Score
from sdclr import crossval
from sdclr.groups import Groups
from tests.refusals import raises

NUM_CLASSES = 6
GROUPS = Groups(many=(0, 1), medium=(2, 3), few=(4, 5))
CONFIG = load_config(None, ["evaluate.fewshot_draws=3", "evaluate.shots_per_class=4"])


def features(num_images: int, seed: int, *, noise: float) -> SetFeatures:
    generator = np.random.default_rng(seed)
    labels_N = np.arange(num_images) % NUM_CLASSES
    centres = np.random.default_rng(99).normal(size=(NUM_CLASSES, 10)) * 3
    clear = centres[labels_N] + generator.normal(size=(num_images, 10)) * noise
    blind = generator.normal(size=(num_images, 10))
    by_model: dict[str, NDArray[np.float32]] = {
        "sdclr": clear.astype(np.float32),
        "untrained": blind.astype(np.float32),
    }
    return SetFeatures([f"i{n}" for n in range(num_images)], labels_N, by_model)


def some_manifest(fewshot: tuple[tuple[str, ...], ...] = ()) -> Manifest:
    return Manifest(
        name="some",
        source={},
        image=ImageInfo("raw", 8, 8),
        class_names=tuple("abcdef"),
        sets={"pretrain": SetInfo(0, None, ())},
        fewshot=fewshot,
        rejects=Rejects(0, {}, ()),
        config={},
        hash="",
    )


def scorer(
    manifest: Manifest | None = None,
    *,
    noise: float = 0.1,
    groups: Groups = GROUPS,
    config: Config = CONFIG,
    num_labelled: int = 120,
) -> CachedProbes:
    probe, test = features(num_labelled, 1, noise=noise), features(60, 2, noise=noise)
    draws = fewshot_rows(config, manifest or some_manifest(), probe.ids, probe.labels_N)
    return CachedProbes(config, probe, test, draws, groups=groups, num_classes=NUM_CLASSES)


def one_score(probes: CachedProbes, protocol: str, model: str) -> Score:
    return probes.score(protocol, [model])[model]


@pytest.mark.parametrize("protocol", ["cached-linear", "cached-fewshot", "knn"])
def test_separable_features_score_one_and_noise_scores_chance(protocol: str) -> None:
    good, bad = (one_score(scorer(), protocol, model) for model in ("sdclr", "untrained"))
    assert (good.all, good.many, good.few, good.std) == (1, 1, 1, 0)
    assert bad.all < 0.45
    assert good.per_class == (1.0,) * NUM_CLASSES
    assert good.group_confusion == tuple(map(tuple, np.eye(3).tolist()))
    assert np.trace(bad.group_confusion) < 2
    assert good.protocol == {"knn": "knn-k20"}.get(protocol, protocol)


def test_fewshot_says_mean_spread_and_n_over_its_draws() -> None:
    score = one_score(scorer(noise=3.0), "cached-fewshot", "sdclr")
    assert score.n == 3 and score.spread.all > 0 and score.note == "24 labels per draw"
    linear = one_score(scorer(noise=3.0), "cached-linear", "sdclr")
    assert linear.n == 1 and linear.spread is None and linear.note == "120 labels"
    assert linear.all > score.all


def test_published_lists_are_the_draws() -> None:
    lists = (tuple(f"i{n}" for n in range(12)), tuple(f"i{n}" for n in range(12, 24)))
    found = scorer(some_manifest(lists))
    assert [draw.tolist() for draw in found.draws] == [list(range(12)), list(range(12, 24))]
    assert one_score(found, "cached-fewshot", "sdclr").n == 2
    with pytest.raises(DataError) as caught:
        scorer(some_manifest((("i0", "elsewhere"),)))
    assert caught.value.id == "E-DATA-034" and "elsewhere" in caught.value.where


def test_shots_default_to_one_percent_of_the_labels() -> None:
    config = load_config(None, ["evaluate.fewshot_draws=2"])
    found = scorer(config=config, num_labelled=1200)
    assert [len(draw) for draw in found.draws] == [2 * NUM_CLASSES] * 2


def test_the_default_shots_fit_the_smallest_class() -> None:
    counts = [500, 500, 500, 500, 500, 3]
    default = load_config(None, [])
    assert shots_per_class(default, some_manifest(), counts) == 3
    assert shots_per_class(default, some_manifest(), [*counts[:5], 0]) == 4
    given = load_config(None, ["evaluate.shots_per_class=4"])
    with raises("E-DATA-036", "f (3)"):
        shots_per_class(given, some_manifest(), counts)


def test_too_many_shots_are_refused_with_the_key() -> None:
    config = load_config(None, ["evaluate.shots_per_class=21"])
    with raises("E-DATA-036") as error:
        scorer(config=config)
    assert "evaluate.shots_per_class" in error.value.todo


def test_groups_decide_the_columns() -> None:
    swapped = replace(GROUPS, many=GROUPS.few, few=GROUPS.many)
    one = one_score(scorer(noise=4.0), "knn", "sdclr")
    two = one_score(scorer(noise=4.0, groups=swapped), "knn", "sdclr")
    assert (one.many, one.few) == (two.few, two.many)
    assert one.many != one.few and one.all == two.all


SMALLEST = {20: 20, 7: 7, 3: 3, 1: 1, 100: 20}


@pytest.mark.parametrize("num_few", SMALLEST)
def test_neighbours_vote_so_that_the_smallest_class_can_win(num_few: int) -> None:
    found = scorer(num_labelled=NUM_CLASSES * 100)
    keep = np.flatnonzero(found.labelled.labels_N < NUM_CLASSES - 1)
    few = np.flatnonzero(found.labelled.labels_N == NUM_CLASSES - 1)[:num_few]
    rows = np.concatenate([keep, few])
    labelled = found.labelled
    found.labelled = SetFeatures(
        [labelled.ids[row] for row in rows],
        labelled.labels_N[rows],
        {model: values[rows] for model, values in labelled.by_model.items()},
    )
    found.all_rows = np.arange(len(rows))
    k, score = SMALLEST[num_few], one_score(found, "knn", "sdclr")
    assert score.protocol == f"knn-k{k}" and score.per_class == (1.0,) * NUM_CLASSES
    assert ("votes" in score.note) == (k < 20)
    # Control: 20 votes leave out a class of up to 9 images, however near they are.
    fit = Fit(
        found.labelled.by_model["sdclr"], found.labelled.labels_N, found.test.by_model["sdclr"],
        NUM_CLASSES, k=20,
    )  # fmt: skip
    truth = found.test.labels_N == NUM_CLASSES - 1
    (predictions_M,) = fit_here([fit])
    assert (predictions_M[truth] == NUM_CLASSES - 1).any() == (num_few > 9)


def test_fewshot_images_may_be_outside_the_labelled_set() -> None:
    probe, others, test = (features(n, seed, noise=0.1) for seed, n in enumerate((60, 12, 60)))
    others.ids = [f"other{n}" for n in range(12)]
    joined, num_probe = labelled_images({"probe": probe, "fewshot": others, "test": test})
    assert num_probe == 60 and len(joined.ids) == 72
    lists = (tuple(others.ids), tuple(probe.ids[:6] + others.ids[:6]))
    manifest = some_manifest(lists)
    draws = fewshot_rows(CONFIG, manifest, joined.ids, joined.labels_N, num_probe)
    assert draws[0].tolist() == list(range(60, 72)) and draws[1].tolist()[6:] == [*range(60, 66)]
    found = CachedProbes(
        CONFIG, joined, test, draws, groups=GROUPS, num_classes=NUM_CLASSES, num_probe=num_probe
    )
    assert one_score(found, "cached-fewshot", "sdclr").all == 1
    # The others are for their draws alone.
    assert one_score(found, "cached-linear", "sdclr").note == "60 labels"
    own = fewshot_rows(CONFIG, some_manifest(), joined.ids, joined.labels_N, num_probe)
    assert max(int(draw.max()) for draw in own) < num_probe
    assert labelled_images({"probe": probe, "test": test}) == (probe, 60)


def test_fits_of_any_mixture_predict_what_each_predicts_alone() -> None:
    """Draws of one shape are fitted together; others, neighbours and large fits between them."""
    train, test = features(60, 1, noise=3), features(60, 2, noise=3)
    rows = [np.arange(24), np.arange(24, 48), np.arange(18), np.arange(36, 60), np.arange(60)]
    fits = [
        Fit(x_ND[n], train.labels_N[n], test.by_model[name], NUM_CLASSES, k=k)
        for name, x_ND in train.by_model.items()
        for n, k in [*((n, None) for n in rows), (rows[0], 3), (rows[1], None)]
    ]
    alone = [fit_here([fit])[0] for fit in fits]
    assert all(map(np.array_equal, fit_here(fits), alone))
    assert not any(map(np.array_equal, alone[:7], alone[7:]))


@pytest.mark.parametrize(("together", "parts"), [(crossval.MOST_TOGETHER, 1), (0, 6)])
def test_progress_counts_folds_and_ends_at_all_of_them(
    together: int, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crossval, "MOST_TOGETHER", together)
    seen: list[tuple[int, int]] = []
    train = features(60, 1, noise=0.1)
    fit = Fit(train.by_model["sdclr"], train.labels_N, train.by_model["sdclr"], NUM_CLASSES)
    fit_here([fit, fit], lambda done, total: seen.append((done, total)))
    assert seen == [(done, 2 * parts) for done in range(1, 2 * parts + 1)]


def sets_of(**counts: tuple[int, ...]) -> Manifest:
    sets = {name: SetInfo(sum(c), c, ()) for name, c in counts.items()}
    return replace(some_manifest(), sets=sets)  # type: ignore[arg-type]


EVEN = (5,) * NUM_CLASSES


def test_published_lists_without_a_class_are_refused_by_name() -> None:
    lacking = tuple(f"i{n}" for n in range(30) if n % NUM_CLASSES not in (2, 4))
    with raises("E-DATA-035", "2", "c", "e"):
        scorer(some_manifest((tuple(f"i{n}" for n in range(12)), lacking)))


def test_sets_that_fit_are_accepted() -> None:
    check_scored_sets(CONFIG, sets_of(pretrain=EVEN, probe=EVEN, test=EVEN))
    for protocol in ("paper-fewshot-last", "finetune-fewshot", "finetune-10pct"):
        config = load_config(None, [f"evaluate.protocols=[{protocol}]"])
        check_scored_sets(config, sets_of(pretrain=EVEN, probe=EVEN, test=EVEN))


def test_classes_that_nothing_teaches_are_refused_by_name() -> None:
    without = (5, 0, 5, 5, 0, 5)
    with raises("E-DATA-031", "test", "b", "e"):
        check_scored_sets(CONFIG, sets_of(pretrain=EVEN, probe=without, test=EVEN))
    check_scored_sets(CONFIG, sets_of(pretrain=EVEN, probe=EVEN, test=without))


def test_missing_sets_are_refused_by_name() -> None:
    for split in ("test", "val"):
        with raises("E-CONFIG-013", split):
            config = load_config(None, [f"evaluate.split={split}"])
            check_scored_sets(config, sets_of(pretrain=EVEN, probe=EVEN))
    with raises("E-CONFIG-561"):
        check_scored_sets(CONFIG, sets_of(pretrain=EVEN, test=EVEN))
    for protocol in ("paper-linear", "paper-fewshot"):
        config = load_config(None, [f"evaluate.protocols=[{protocol}, knn]"])
        with pytest.raises(ConfigError, match=f"{protocol} choose the epoch on a val set"):
            check_scored_sets(config, sets_of(pretrain=EVEN, probe=EVEN, test=EVEN))
        check_scored_sets(config, sets_of(pretrain=EVEN, probe=EVEN, test=EVEN, val=EVEN))


def test_labels_that_are_not_the_manifests_are_refused() -> None:
    found, manifest = features(30, 0, noise=1), sets_of(pretrain=EVEN, probe=EVEN)
    check_labels(manifest, "probe", found)
    for label, id, *facts in (
        (-1, "E-DATA-032", "1", "30", "i7"),
        (6, "E-DATA-032", "1", "30", "6", "i7"),
        (2, "E-DATA-033", "b", "4", "5"),
    ):
        labels_N = found.labels_N.copy()
        labels_N[7] = label
        with raises(id, *facts):
            check_labels(manifest, "probe", SetFeatures(found.ids, labels_N))
