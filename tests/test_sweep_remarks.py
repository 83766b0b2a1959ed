"""What a sweep's page says before its numbers are believed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.report.inputs import load
from pipeline.report.sweep import remarks
from pipeline.tune import result
from tests import records
from tests.trial_records import config, sweep_of


@pytest.mark.parametrize(
    ("peak", "last", "is_said"),
    [
        (0.29, 0.2851, False),  # less than one of 200 images
        (0.290, 0.285, False),  # one image
        (0.29, 0.27, True),  # four images
    ],
)
def test_a_loss_of_less_than_one_image_is_no_loss(
    tmp_path: Path, peak: float, last: float, is_said: bool
) -> None:
    """The page says that one image is 0.5 points, and contradicts itself nowhere."""
    inputs = load(records.write_run(tmp_path))
    c = config()
    sweep = result.summary(c, sweep_of(tmp_path, c), 200)
    best = next(trial for trial in sweep.trials if trial.name == sweep.best)
    course = ((1, peak), (2, 0.2), (4, last))
    found = remarks(inputs, sweep, best.model_copy(update={"course": course}))
    assert "200 val images: one image is 0.5 points" in found[0]
    said = [text for text in found if "made the best trial worse" in text]
    assert bool(said) is is_said
    assert all(f"{peak} after 1 epoch, {last} after 4." in text for text in said)
