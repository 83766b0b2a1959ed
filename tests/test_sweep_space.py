"""What a sweep searches, where its trials go and what they cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.config.file import config_hash, load_config
from pipeline.errors import TrainingError
from pipeline.ingest.plan import DryRun, PlannedSet
from pipeline.run import main
from pipeline.tune.estimate import expected_epochs, of_seconds, probe_s
from pipeline.tune.placement import Placement, place
from pipeline.tune.space import (
    Params,
    best_config,
    configured_value,
    known_points,
    parameters,
    trial_config,
)
from pipeline.tune.stage import grace_epochs
from tests.refusals import raises
from tests.trial_records import EPOCHS, config


def test_the_space_depends_on_the_method_and_the_stem() -> None:
    both = ("prune_ratio", "temperature", "lr", "weight_decay", "head_depth")
    c = config(f"tune.search={{{', '.join(both)}}}")
    sdclr = [p.key for p in parameters(c, "sdclr")]
    simclr = [p.key for p in parameters(c, "simclr")]
    assert sdclr == ["sdclr.prune_ratio", "sdclr.temperature", "train.lr_per_256",
                     "train.weight_decay", "sdclr.head_depth"]  # fmt: skip
    assert simclr == [
        "simclr.temperature",
        "train.lr_per_256",
        "train.weight_decay",
        "simclr.head_depth",
    ]
    cifar, imagenet = (
        parameters(config(f"model.stem={stem}"), "sdclr")[0] for stem in ("cifar", "imagenet")
    )
    assert (cifar.low, cifar.high) == (0.3, 0.98) and (imagenet.low, imagenet.high) == (0.1, 0.7)
    given = parameters(config("tune.search={prune_ratio: [0.5, 0.97], lr}"), "sdclr")
    assert (given[0].low, given[0].high, given[0].log, given[1].log) == (0.5, 0.97, False, True)


def test_known_points_are_the_configured_and_the_published_ones() -> None:
    assert known_points(config("sdclr.prune_ratio=0.5"), "sdclr") == [
        {"sdclr.prune_ratio": 0.5, "sdclr.temperature": 0.2},
        {"sdclr.prune_ratio": 0.9, "sdclr.temperature": 0.2},
    ]
    assert len(known_points(config(), "sdclr")) == 1  # both are the same
    assert known_points(config(), "simclr") == [{"simclr.temperature": 0.2}]
    outside = config("tune.search={prune_ratio: [0.3, 0.6], temperature}", "sdclr.prune_ratio=0.5")
    assert known_points(outside, "sdclr") == [{"sdclr.prune_ratio": 0.5, "sdclr.temperature": 0.2}]


def test_a_trial_trains_one_method_with_its_values_and_the_best_config_is_complete() -> None:
    c = config("sdclr.random_ratio=0.5", "tune.trial_workers=1", "train.workers=2")
    params: Params = {"sdclr.prune_ratio": 0.4, "sdclr.temperature": 0.07}
    trial = trial_config(c, "sdclr", params, seed=7)
    assert trial.train.methods == ("sdclr",) and trial.train.workers == 1 and trial.run.seed == 7
    assert trial.sdclr.prune_ratio == 0.4 and trial.sdclr.random_ratio == 0.4
    best = best_config(c, "sdclr", params)
    assert best.train.workers == 2 and best.sdclr.temperature == 0.07 and best.run.seed == 0
    assert all(configured_value(best, key) == value for key, value in params.items())
    with raises("E-CONFIG-040"):
        trial_config(config("tune.trial_workers=3"), "sdclr", params, seed=0)


@pytest.mark.parametrize("search", ["{temperature}", "{prune_ratio, lr}"])
def test_the_training_loss_is_refused_across_temperatures_and_ratios(search: str) -> None:
    with raises("E-CONFIG-011"):
        config(f"tune.search={search}", "tune.objective=train_loss")
    allowed = config("tune.search={lr, weight_decay}", "tune.objective=train_loss")
    assert allowed.tune.objective == "train_loss"  # the same loss for all trials


def test_the_hash_of_a_sweep_allows_more_trials_and_nothing_else() -> None:
    first, longer, other = config(), config("tune.trials=99"), config("tune.sampler=random")
    assert config_hash(first, sweep=True) == config_hash(longer, sweep=True)
    assert config_hash(first, sweep=True) != config_hash(other, sweep=True)
    assert config_hash(first) == config_hash(other)  # a training does not depend on the section


def test_grace_is_longer_than_the_warm_up() -> None:
    assert grace_epochs(load_config(None, ["train.epochs=200"])) == 66
    assert grace_epochs(load_config(None, ["train.epochs=20"])) == 6
    assert grace_epochs(config("tune.grace_epochs=1", "train.warmup_epochs=0")) == 1
    with raises("E-CONFIG-041", "2"):
        grace_epochs(load_config(None, ["train.epochs=20", "tune.grace_epochs=2"]))


def test_placement_follows_the_resources() -> None:
    assert place(config(), num_cpus=2, num_gpus=0).concurrent == 2
    assert place(config("tune.trial_workers=2"), num_cpus=5, num_gpus=0).concurrent == 2
    with raises("E-CONFIG-038"):
        place(config("tune.gpus_per_worker=0.5", "tune.trial_workers=2"), num_cpus=16, num_gpus=2)
    assert place(config("tune.trial_workers=2"), num_cpus=16, num_gpus=2).concurrent == 1
    half = place(config("tune.gpus_per_worker=0.5"), num_cpus=16, num_gpus=2)
    assert half.concurrent == 4 and half.resources == {"CPU": 1.0, "GPU": 0.5}
    nested = place(config("tune.trial_workers=2"), num_cpus=16, num_gpus=4)
    assert nested.concurrent == 2 and nested.gpus == 2 and nested.resources["CPU"] < 0.1
    assert place(config("train.device=cpu"), num_cpus=4, num_gpus=4).gpus == 0
    labelled = place(config("placement.train_nodes=zone=a"), num_cpus=2, num_gpus=0)
    assert (labelled.resources, labelled.labels) == ({"CPU": 1.0}, {"zone": "a"})
    marked = place(config("placement.train_nodes=train"), num_cpus=2, num_gpus=0)
    assert marked.resources["CPU"] == 1 and 0 < marked.resources["train"] < 0.01


@pytest.mark.parametrize("override", ["tune.trial_workers=8", "train.device=cuda"])
def test_a_trial_that_does_not_fit_is_refused(override: str) -> None:
    with raises("E-CLUSTER-015"):
        place(config(override), num_cpus=4, num_gpus=0)
    with raises("E-CLUSTER-015", "0.5"):
        place(config(), num_cpus=8, num_gpus=0, node_cpus=0.5)


def test_expected_epochs_of_early_stopping() -> None:
    assert expected_epochs(27, 27, 3) == 27  # never judged
    assert expected_epochs(9, 1, 3) == pytest.approx(1 + 2 / 3 + 6 / 9)
    rng, reached = np.random.default_rng(0), []
    for _ in range(20_000):  # the same by chance: one in three passes each rung
        epoch = 2
        while epoch < 30 and rng.random() < 1 / 3:
            epoch = min(30, 3 * epoch)
        reached.append(epoch)
    assert expected_epochs(30, 2, 3) == pytest.approx(np.mean(reached), rel=0.03)


def test_the_estimate_adds_up() -> None:
    c = config("tune.trials=10", "tune.retrain_seeds=2", "tune.objective=view_retrieval",
               "cost.price_per_gpu_hour_usd=2.0", "tune.grace_epochs=1",
               "train.warmup_epochs=0")  # fmt: skip
    sets, nothing = {"pretrain": PlannedSet(391, None, 1, 1)}, None
    plan = DryRun("", True, None, sets, 391, nothing, nothing)  # type: ignore[arg-type]
    on_gpu = Placement({}, {}, cpus=1, gpus=1, gpus_per_worker=1, concurrent=4)
    found = of_seconds(c, plan, on_gpu, 0.5, 0.01)
    epoch_s = 3 * 0.5 + 782 * 0.01  # three steps of 128, and two views of all images
    assert found.most_h == pytest.approx((20 + 6) * EPOCHS * epoch_s / 4 / 3600)
    likely = (20 * expected_epochs(EPOCHS, 1, 3) + 6 * EPOCHS) * epoch_s / 4 / 3600
    assert found.likely_h == pytest.approx(likely) and likely < found.most_h
    assert found.price_usd == pytest.approx(2 * found.most_h * 4)
    assert probe_s(config("train.global_batch=4"), 16, False)[0] > 0


SWEEP = ["tune", "--config", "tune_configs/sweep_demo.yaml"]


@pytest.mark.parametrize("stage", [["all"], SWEEP])
@pytest.mark.parametrize(
    ("word", "code"),
    [
        ("train.lr_per_256=1e30", 0),  # what is timed does not learn
        ("sdclr.prune_ratio=0.9999", TrainingError.exit_code),  # the first mask starves layers
        ("simclr.temperature=1e-38", TrainingError.exit_code),  # the first loss is infinite
    ],
)
def test_what_the_timed_steps_find_is_never_a_bug(
    stage: list[str], word: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [f"{key}.root={tmp_path}" for key in ("data", "run")]
    assert main([*stage, "--dry-run", word, *places]) == code
    assert ("E-TRAIN-000" in capsys.readouterr().err) == (code != 0)
