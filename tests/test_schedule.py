"""Schedules: end points, shape, and the warm-up clamp that a short run needs."""

from __future__ import annotations

import math

import pytest

from sdclr.schedule import TemperatureSchedule, learning_rate, warmup_steps


def lr(step: int, *, num_steps: int = 100, num_warmup: int = 10) -> float:
    return learning_rate(step, num_steps=num_steps, num_warmup=num_warmup, peak=0.5, final=1e-6)


def test_end_points() -> None:
    assert lr(0) == 0
    assert lr(10) == 0.5
    assert lr(100) == pytest.approx(1e-6)
    assert lr(55) == pytest.approx((0.5 + 1e-6) / 2)


def test_equals_the_formula_written_out() -> None:
    for step in range(101):
        if step < 10:
            expected = 0.05 * step
        else:
            expected = 1e-6 + 0.5 * (0.5 - 1e-6) * (1 + math.cos(math.pi * (step - 10) / 90))
        assert lr(step) == pytest.approx(expected, rel=1e-12)
    assert lr(50) != pytest.approx(lr(51))


def test_no_warmup_starts_at_the_peak() -> None:
    assert lr(0, num_warmup=0) == 0.5


@pytest.mark.parametrize(
    ("epochs", "expected"), [(2000, 10 * 21), (100, 10 * 21), (10, 21), (1, 2), (200, 10 * 21)]
)
def test_warmup_is_at_most_a_tenth_of_the_run(epochs: int, expected: int) -> None:
    assert warmup_steps(warmup_epochs=10, epochs=epochs, steps_per_epoch=21) == expected


@pytest.mark.parametrize(
    ("warmup_epochs", "epochs", "expected"),
    [(10, 1000, 30), (10, 200, 20), (40, 1000, 40), (0, 1000, 0)],
)
def test_warmup_has_a_floor_in_steps(warmup_epochs: int, epochs: int, expected: int) -> None:
    assert warmup_steps(warmup_epochs=warmup_epochs, epochs=epochs, steps_per_epoch=1) == expected


def test_a_ten_epoch_run_of_the_official_recipe_has_a_finite_schedule() -> None:
    num_warmup = warmup_steps(warmup_epochs=10, epochs=10, steps_per_epoch=3)
    rates = [lr(step, num_steps=30, num_warmup=num_warmup) for step in range(31)]
    assert all(map(math.isfinite, rates)) and max(rates) == 0.5
    # Without the clamp the warm-up would be the whole run, and the cosine 0 / 0.
    with pytest.raises(ValueError, match="num_warmup"):
        lr(0, num_steps=30, num_warmup=30)


def test_steps_outside_the_run_are_refused() -> None:
    with pytest.raises(ValueError, match="step must be"):
        lr(101)
    with pytest.raises(ValueError, match="step must be"):
        lr(-1)


def test_the_temperature_follows_the_equation_of_the_paper() -> None:
    schedule = TemperatureSchedule(low=0.1, high=1.0, period_epochs=400)
    for epoch in range(0, 2000, 7):
        expected = 0.1 + 0.5 * (1.0 - 0.1) * (1 + math.cos(2 * math.pi * epoch / 400))
        assert schedule.at(epoch) == pytest.approx(expected, rel=1e-12)
    assert schedule.at(0) == schedule.at(400) == 1.0
    assert schedule.at(200) == pytest.approx(0.1) and schedule.at(100) == pytest.approx(0.55)
    assert schedule.at(50) != pytest.approx(1 - 0.9 * 50 / 200)  # control: it is no straight line


@pytest.mark.parametrize(
    "changes", [{"low": 0.0}, {"low": 2.0}, {"period_epochs": 0}, {"high": math.inf}]
)
def test_impossible_schedules_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected 0 < low <= high"):
        TemperatureSchedule(**{"low": 0.1, "high": 1.0, "period_epochs": 4.0, **changes})
