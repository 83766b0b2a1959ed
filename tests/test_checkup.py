"""The probe set: fixed, harmless to the training, and able to tell good features from bad ones."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sdclr import Trainer, Twin, capture, health
from sdclr.augment import apply_view
from sdclr.checkup import MEASURES, Checkup, alarms, loss_alarm, measure
from sdclr.loss import nt_xent
from tests.recipes import some_images, some_plan, some_trainer

IMAGES, PLAN = some_images(), some_plan()


def checkup(num_images: int = 24) -> Checkup:
    return Checkup.of_images(IMAGES, num_images=num_images, crop_px=16)


def twin_of(trainer: Trainer) -> Twin:
    assert isinstance(trainer.model, Twin)
    return trainer.model


def test_all_measures_of_both_methods() -> None:
    for method in ("sdclr", "simclr"):
        trainer = some_trainer(PLAN, method=method)
        found = checkup()(trainer.model)
        assert list(found) == list(MEASURES)
        known = {name for name, value in found.items() if math.isfinite(value)}
        assert known == set(MEASURES) - ({"disagreement"} if method == "simclr" else set())


def test_measures_equal_the_slow_way_one_image_at_a_time() -> None:
    trainer = some_trainer(PLAN)
    for _ in trainer.run(IMAGES.feed(PLAN, seed=0)):
        pass
    probe, twin = checkup(), twin_of(trainer)
    found = replace(probe, batch=7)(twin)
    twin.eval()
    features: list[list[Tensor]] = [[], []]
    changes = []
    with torch.no_grad():
        for i in range(24):
            for which in (0, 1):
                params = probe.views[which].rows(i, i + 1)
                view = apply_view(probe.images.images_NCHW[i : i + 1], params, probe.recipe)
                features[which].append(twin.network.features(view))
                if which == 0:
                    changes.append(health.disagreement(twin.network(view), twin.pruned(view)))
    slow = measure(torch.cat(features[0]), torch.cat(features[1]))
    slow["disagreement"] = float(torch.cat(changes).mean())
    assert found == pytest.approx(slow, rel=1e-4, abs=1e-5)
    assert found["disagreement"] > 1e-3
    swapped = replace(probe, views=probe.views[::-1])(twin)
    assert swapped != pytest.approx(slow, rel=1e-4, abs=1e-5)


def states(look: bool) -> tuple[dict[str, Tensor], list[float]]:
    trainer = some_trainer(PLAN)
    torch.manual_seed(5)
    losses = []
    for report in trainer.run(IMAGES.feed(PLAN, seed=0)):
        losses.append(report.loss)
        if look:
            checkup()(trainer.model)
    assert all(module.training for module in trainer.model.modules())
    return capture(trainer).tensors, losses


def test_training_goes_on_as_if_nobody_had_looked() -> None:
    (seen, losses_seen), (unseen, losses_unseen) = states(look=True), states(look=False)
    assert losses_seen == losses_unseen
    assert all(torch.equal(seen[name], unseen[name]) for name in unseen)


def test_modes_of_single_modules_and_the_process_generator_are_kept() -> None:
    twin = twin_of(some_trainer(PLAN))
    twin.network.backbone.eval()
    modes = [module.training for module in twin.modules()]
    before = torch.random.get_rng_state()
    checkup()(twin)
    assert [module.training for module in twin.modules()] == modes and len(set(modes)) == 2
    assert torch.equal(torch.random.get_rng_state(), before)


def test_images_and_views_do_not_depend_on_the_run() -> None:
    first, again = checkup(), checkup()
    assert torch.equal(first.images.images_NCHW, again.images.images_NCHW)
    assert torch.equal(first.views[0].top, again.views[0].top)
    assert not torch.equal(first.views[0].top, first.views[1].top)
    assert len(checkup(1000).images) == len(IMAGES)
    for images, num_images in ((some_images(1), 5), (IMAGES, 1)):
        with pytest.raises(ValueError, match="2 images or more"):
            Checkup.of_images(images, num_images=num_images, crop_px=16)


def test_other_models_are_refused() -> None:
    with pytest.raises(TypeError, match="Twin or a SimCLR"):
        checkup()(torch.nn.Linear(2, 2))


def features(num_images: int = 90, width: int = 16, *, noise: float) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    base = torch.randn(num_images, width, generator=g)
    return base, base + noise * torch.randn(num_images, width, generator=g)


def test_good_features_score_better_than_noise_and_than_collapsed_ones() -> None:
    good, noise = measure(*features(noise=0.01)), measure(*features(noise=1e3))
    assert good["view_retrieval"] == 1 and noise["view_retrieval"] < 0.1
    assert good["balance_few"] == 1 and good["balance_std"] == 0
    assert noise["balance_few"] < 0.3
    collapsed = measure(torch.ones(90, 16), torch.ones(90, 16))
    assert collapsed["view_retrieval"] == pytest.approx(1 / 90)
    assert collapsed["rankme"] == pytest.approx(1, rel=1e-3) and collapsed["dead_frac"] == 1


def test_features_that_are_not_finite_give_nan_and_an_alarm() -> None:
    view1, view2 = features(noise=0.1)
    view1[3, 3] = math.inf
    found = measure(view1, view2) | {"disagreement": math.nan}
    assert all(math.isnan(value) for value in found.values())
    assert [alarm.name for alarm in alarms([HEALTHY, found])] == ["not finite"]


HEALTHY: dict[str, float | None] = {
    "view_retrieval": 0.9, "rankme": 40.0, "alpha_req": 1.2, "alignment": 0.1, "uniformity": -2.0,
    "balance_few": 0.8, "balance_std": 0.05, "dead_frac": 0.0, "disagreement": 0.2,
}  # fmt: skip


UNTRAINED = HEALTHY | {"view_retrieval": 0.1}


@pytest.mark.parametrize(
    ("change", "name", "level"),
    [
        ({"rankme": 19.9}, "falling rank", "warning"),
        ({"rankme": 7.9}, "collapse", "alarm"),
        ({"dead_frac": 0.6}, "dead", "alarm"),
        ({"view_retrieval": 0.1}, "not learned", "alarm"),
        ({"view_retrieval": 0.05}, "not learned", "alarm"),
        ({"disagreement": 0.0004}, "branches agree", "warning"),
        ({"disagreement": 0.95}, "branches unrelated", "warning"),
        ({"view_retrieval": None}, "not finite", "alarm"),
    ],
)
def test_alarms_say_what_is_wrong_how_badly_and_what_to_change(
    change: dict[str, float | None], name: str, level: str
) -> None:
    (found,) = alarms([UNTRAINED, HEALTHY | change])
    assert (found.name, found.level) == (name, level) and found.change and found.text in str(found)


def test_a_short_run_that_learned_nothing_is_warned_of_only() -> None:
    worse = HEALTHY | {"view_retrieval": 0.05}
    for num_steps, level in ((18, "warning"), (100, "alarm")):
        (found,) = alarms([UNTRAINED, worse], num_steps=num_steps)
        assert (found.name, found.level) == ("not learned", level)


@pytest.mark.parametrize("disagreement", [0.009, 0.011])
def test_the_prune_ratio_of_photographs_is_no_alarm(disagreement: float) -> None:
    assert alarms([UNTRAINED, HEALTHY | {"disagreement": disagreement}]) == []


def test_no_alarm_for_good_features_nor_before_training() -> None:
    nothing = UNTRAINED | {"disagreement": 0.0, "dead_frac": 1.0}
    assert alarms([]) == alarms([nothing]) == alarms([nothing, HEALTHY]) == []
    assert alarms([UNTRAINED | {"rankme": 22.0}, HEALTHY]) == []  # it rose
    assert alarms([UNTRAINED, HEALTHY | {"disagreement": None}]) == []  # SimCLR
    perfect = HEALTHY | {"view_retrieval": 1.0}
    assert alarms([perfect, perfect]) == []  # there was nothing to learn


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("num_images", [8, 256])
def test_a_loss_is_stuck_near_that_of_equal_embeddings(temperature: float, num_images: int) -> None:
    same = torch.ones(num_images, 4)
    chance = float(nt_xent(same, same, temperature=temperature))
    apart = torch.eye(num_images)
    good = float(nt_xent(apart, apart, temperature=temperature))

    def found(loss: float, num_steps: int = 100) -> bool:
        alarm = loss_alarm(
            [loss], temperature=temperature, num_images=num_images, num_steps=num_steps
        )
        return alarm is not None and alarm.level == "alarm"

    assert found(chance) and found(chance + 1) and found(chance - 0.04 * (chance - good))
    assert not found(chance - 0.06 * (chance - good)) and not found(good)
    assert not found(chance, num_steps=18)
