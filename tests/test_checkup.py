"""The probe set: fixed, harmless to the training, and able to tell good features from bad ones."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sdclr import Trainer, Twin, capture, health
from sdclr.augment import apply_view
from sdclr.checkup import MEASURES, Checkup, alarms, measure
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
    assert "not finite" in alarms([HEALTHY, found])[0]


HEALTHY: dict[str, float | None] = {
    "view_retrieval": 0.9, "rankme": 40.0, "alpha_req": 1.2, "alignment": 0.1, "uniformity": -2.0,
    "balance_few": 0.8, "balance_std": 0.05, "dead_frac": 0.0, "disagreement": 0.2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rankme": 19.9}, "features are collapsing: RankMe fell from 40.0 to 19.9"),
        ({"dead_frac": 0.6}, "60 % of the features are dead"),
        ({"disagreement": 0.004}, "the pruned branch no longer differs"),
        ({"disagreement": 0.95}, "lower sdclr.prune_ratio"),
        ({"view_retrieval": None}, "features are not finite"),
    ],
)
def test_alarms_say_what_is_wrong_and_what_to_change(
    change: dict[str, float | None], words: str
) -> None:
    found = alarms([HEALTHY, HEALTHY | change])
    assert len(found) == 1 and words in found[0]


def test_no_alarm_for_good_features_nor_before_training() -> None:
    nothing = HEALTHY | {"disagreement": 0.0, "dead_frac": 1.0}
    assert alarms([]) == alarms([nothing]) == alarms([nothing, HEALTHY]) == []
    assert alarms([HEALTHY | {"rankme": 22.0}, HEALTHY]) == []  # it rose
    assert alarms([HEALTHY, HEALTHY | {"disagreement": None}]) == []  # SimCLR
