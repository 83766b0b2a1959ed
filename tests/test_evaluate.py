"""Protocols on features whose answer is known, few-shot lists, and unfit ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config.file import load_config
from pipeline.dataset.manifest import ImageInfo, Manifest, Rejects, SetInfo
from pipeline.errors import DataError
from pipeline.evaluate import Scorer
from pipeline.features import SetFeatures
from sdclr.longtail import Groups

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


def scorer(manifest: Manifest | None = None, *, noise: float = 0.1) -> Scorer:
    probe, test = features(120, 1, noise=noise), features(60, 2, noise=noise)
    return Scorer(CONFIG, manifest or some_manifest(), probe, test, GROUPS)


@pytest.mark.parametrize("protocol", ["cached-linear", "cached-fewshot", "knn-k20"])
def test_separable_features_score_one_and_noise_scores_chance(protocol: str) -> None:
    good, bad = (scorer().score(protocol, model) for model in ("sdclr", "untrained"))
    assert (good["all"], good["many"], good["few"], good["std"]) == (1, 1, 1, 0)
    assert bad["all"] < 0.45
    assert good["per_class"] == [1.0] * NUM_CLASSES
    assert good["protocol"] == protocol


def test_fewshot_says_mean_spread_and_n_over_its_draws() -> None:
    score = scorer(noise=3.0).score("cached-fewshot", "sdclr")
    assert score["n"] == 3 and score["spread"]["all"] > 0 and score["note"] == "24 labels per draw"
    linear = scorer(noise=3.0).score("cached-linear", "sdclr")
    assert linear["n"] == 1 and linear["spread"] is None and linear["note"] == "120 labels"
    assert linear["all"] > score["all"]


def test_published_lists_are_the_draws() -> None:
    lists = (tuple(f"i{n}" for n in range(12)), tuple(f"i{n}" for n in range(12, 24)))
    found = scorer(some_manifest(lists))
    assert [draw.tolist() for draw in found.draws] == [list(range(12)), list(range(12, 24))]
    assert found.score("cached-fewshot", "sdclr")["n"] == 2
    with pytest.raises(DataError, match="1 few-shot images are not in the labelled set"):
        scorer(some_manifest((("i0", "elsewhere"),)))


def test_shots_default_to_one_percent_of_the_labels() -> None:
    config = load_config(None, ["evaluate.fewshot_draws=2"])
    probe = features(1200, 1, noise=0.1)
    found = Scorer(config, some_manifest(), probe, features(60, 2, noise=0.1), GROUPS)
    assert [len(draw) for draw in found.draws] == [2 * NUM_CLASSES] * 2


def test_too_many_shots_are_refused_with_the_key() -> None:
    config = load_config(None, ["evaluate.shots_per_class=21"])
    with pytest.raises(DataError, match="few-shot sets cannot be drawn") as error:
        Scorer(config, some_manifest(), features(120, 1, noise=1), features(60, 2, noise=1), GROUPS)
    assert "evaluate.shots_per_class" in error.value.todo


def test_groups_decide_the_columns() -> None:
    swapped = replace(GROUPS, many=GROUPS.few, few=GROUPS.many)
    probe, test = features(120, 1, noise=4.0), features(60, 2, noise=4.0)
    one = Scorer(CONFIG, some_manifest(), probe, test, GROUPS).score("knn-k20", "sdclr")
    two = Scorer(CONFIG, some_manifest(), probe, test, swapped).score("knn-k20", "sdclr")
    assert (one["many"], one["few"]) == (two["few"], two["many"])
    assert one["many"] != one["few"] and one["all"] == two["all"]
