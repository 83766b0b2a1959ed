"""Epochs that TPE and ASHA save against random search and a grid, on the demo's digits.

    python -m benchmarks.sweep_efficiency train --out FILE
    python -m benchmarks.sweep_efficiency table --out FILE

`train` fills a table: for every cell of a grid over prune ratio and temperature, few-shot accuracy
on the validation part in the course of a short SDCLR training; one such table for each training
seed. `table` then replays searches on it over many seeds of the search: a sampler's point is moved
to the nearest cell, and a trial costs the epochs that it reads. Nothing is trained again, so a
search sees no noise between repeats of a cell; real workers would run trials side by side, where
this replay runs one after the other; and no search gets the published setting, which a sweep
tries first.

Measured: epochs spent until the search has a complete trial within one point of the best cell, as
a fraction of the epochs of the whole grid. A search has as many trials as the grid has cells; one
that never gets there counts as the whole grid, and how many got there is shown. A training that
prunes a whole layer away fails, and counts as an accuracy of 0.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import torch
from optuna.trial import TrialState

from pipeline.cluster.jobs import ThreadTasks
from pipeline.config import Config
from pipeline.config.file import load_config
from pipeline.ingest.sources.open import index_source
from pipeline.model.build import FINAL_LR, new_network, peak_lr
from pipeline.tune.search import NumberedSampler, asha
from pipeline.tune.space import Parameter, trial_config
from sdclr import (
    EpochPlan,
    ImageSet,
    PruneRule,
    Recipe,
    StarvedLayerError,
    Trainer,
    centre_view,
)
from sdclr.accuracy import per_class_accuracy
from sdclr.augment import AugmentRecipe
from sdclr.fewshot import fewshot_draws
from sdclr.probe import linear_probe
from sdclr.seeds import numpy_generator

SIDE, PX, BATCH = 5, 16, 64
EPOCHS, RUNGS = 18, (2, 6, 18)  # accuracy is measured where ASHA looks
REDUCTION = 3
SHOTS, DRAWS = 5, 8
NUM_SEEDS, WITHIN = 20, 0.01
SPACE = (
    Parameter("sdclr.prune_ratio", 0.3, 0.98),
    Parameter("sdclr.temperature", 0.05, 1.0, log=True),
)
# Name, sampler, and the first epoch at which ASHA may stop a trial.
SEARCHES = (
    ("grid in random order", "grid", None),
    ("random", "random", None),
    ("random + ASHA from a ninth, epoch 2", "random", 2),
    ("random + ASHA from a third, epoch 6", "random", 6),
    ("TPE", "tpe", None),
    ("TPE + ASHA from a ninth, epoch 2", "tpe", 2),
    ("TPE + ASHA from a third, epoch 6", "tpe", 6),
)
Cell = tuple[int, int]
Curves = dict[Cell, list[float]]  # accuracy at the RUNGS


def cell_values(cell: Cell) -> dict[str, float]:
    """Return the parameters at a cell: SIDE values for each, evenly spaced (by logarithm)."""
    ratio, temperature = SPACE
    share_x, share_y = (place / (SIDE - 1) for place in cell)
    return {
        ratio.key: ratio.low + share_x * (ratio.high - ratio.low),
        temperature.key: temperature.low * (temperature.high / temperature.low) ** share_y,
    }


def nearest_cell(params: dict[str, float]) -> Cell:
    """Return the cell that stands for a point."""
    x, y = (round(p.fraction(params[p.key]) * (SIDE - 1)) for p in SPACE)
    return x, y


class Digits:
    """Images, labels and few-shot draws; the test part is not read."""

    def __init__(self, config: Config) -> None:
        index = index_source(config.data, ThreadTasks())
        assert index.pixels is not None
        pixels_NHWC, labels_N = index.pixels, index.labels_N

        def of(name: str) -> tuple[torch.Tensor, torch.Tensor]:
            rows = index.sets[name]
            pixels_NCHW = np.ascontiguousarray(pixels_NHWC[rows].transpose(0, 3, 1, 2))
            return torch.from_numpy(pixels_NCHW), torch.from_numpy(labels_N[rows].astype(np.int64))

        self.pretrain = ImageSet(of("pretrain")[0])
        (self.probe, self.probe_labels), (self.val, self.val_labels) = of("probe"), of("val")
        self.draws = fewshot_draws(
            self.probe_labels.numpy(), shots_per_class=SHOTS, num_draws=DRAWS, seed=0
        )

    @torch.inference_mode()
    def score(self, model: Any) -> float:
        """Score balanced accuracy on val, mean over draws; the network returns to training mode."""
        model.eval()
        rows = np.unique(np.concatenate(self.draws))
        some, val = (
            model.network.features(centre_view(images, _sizes(images), crop_px=PX, resize_px=None))
            for images in (self.probe[rows], self.val)
        )
        features = torch.zeros(len(self.probe), some.shape[1])
        features[rows] = some
        model.train()
        found = []
        for draw in self.draws:
            result = linear_probe(
                features[draw], self.probe_labels[draw], val, num_classes=10, num_folds=2, seed=0,
                l2_grid=(1e-2,),
            )  # fmt: skip
            found.append(per_class_accuracy(result.predictions_M, self.val_labels, 10).mean())
        return float(np.mean(found))


def _sizes(images: torch.Tensor) -> torch.Tensor:
    return torch.tensor(images.shape[2:]).expand(len(images), 2)


def recipe_of(config: Config) -> Recipe:
    """Build the recipe as `pipeline.model.build.training_recipe` does, for images of 16 px."""
    values = config.augment.model_dump() | {"crop_px": PX}
    s, t = config.sdclr, config.train
    return Recipe(
        method="sdclr", epochs=t.epochs, lr=peak_lr(config), momentum=t.momentum,
        seed=config.run.seed,
        weight_decay=t.weight_decay, warmup_epochs=t.warmup_epochs, final_lr=FINAL_LR,
        temperature=s.temperature, augment=AugmentRecipe(**values),
        prune=PruneRule(prune_ratio=s.prune_ratio),
    )  # fmt: skip


def train(arguments: argparse.Namespace) -> None:
    """Train the cells that the file does not have yet; one JSON line for each."""
    torch.set_num_threads(1)
    base = load_config(None, ["data.num_val_per_class=30", f"train.epochs={EPOCHS}"])
    data = Digits(base)
    plan = EpochPlan(num_images=len(data.pretrain), global_batch=BATCH, drop_last=True)
    out = Path(arguments.out)
    done = read(out)
    cells = [(x, y) for x in range(SIDE) for y in range(SIDE)]
    for seed, cell in itertools.product(range(arguments.seeds), cells):
        if cell in done.get(seed, {}):
            continue
        start_s = time.process_time()
        config = trial_config(base, "sdclr", cell_values(cell), seed=seed)
        trainer = Trainer(
            new_network(config, "sdclr"), recipe_of(config), steps_per_epoch=plan.num_steps
        )
        curve = []
        try:
            for report in trainer.run(data.pretrain.feed(plan, seed=seed)):
                if report.step in [rung * plan.num_steps for rung in RUNGS]:
                    curve.append(round(data.score(trainer.model), 4))
        except StarvedLayerError as error:  # the trial fails
            print(seed, cell, error)
            curve += [0.0] * (len(RUNGS) - len(curve))
        spent_s = time.process_time() - start_s
        row = {"seed": seed, "cell": cell, "curve": curve, "cpu_s": round(spent_s, 1)}
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(seed, cell, curve[-1], f"{spent_s:.0f} s", flush=True)


def read(path: Path) -> dict[int, Curves]:
    """Read the accuracies by training seed and cell."""
    found: dict[int, Curves] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        row = json.loads(line)
        found.setdefault(row["seed"], {})[(row["cell"][0], row["cell"][1])] = row["curve"]
    return found


def search(
    table: Curves, sampler: str, seed: int, *, grace_epochs: int | None
) -> tuple[int | None, int]:
    """Count epochs until a complete trial is near the best cell (None: never), and in all.

    As many trials as the grid has cells, so that no search has the smaller budget of trials.
    """
    goal = max(curve[-1] for curve in table.values()) - WITHIN
    if sampler == "grid":
        order = [sorted(table)[i] for i in numpy_generator(seed, "grid").permutation(len(table))]
        return _visit(table, order, goal)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=NumberedSampler(sampler, seed))
    scheduler = asha([], metric="value", mode="max", max_epochs=EPOCHS,
                     grace_epochs=grace_epochs or EPOCHS, reduction_factor=REDUCTION)  # fmt: skip
    (bracket,) = scheduler._brackets
    spent = 0
    for number in range(len(table)):
        trial = study.ask()
        params = {
            p.key: trial.suggest_float(p.key, p.low, p.high, log=p.log) for p in SPACE
        }  # fmt: skip
        curve, stopped = table[nearest_cell(params)], False
        for epoch, before, value in zip(RUNGS, (0, *RUNGS[:-1]), curve, strict=True):
            spent += epoch - before
            trial.report(value, epoch)
            stub: Any = SimpleNamespace(trial_id=str(number))
            if epoch < EPOCHS and bracket.on_result(stub, epoch, value) == "STOP":
                stopped = True
                break
        if stopped:
            study.tell(trial, state=TrialState.PRUNED)
            continue
        study.tell(trial, curve[-1])
        if curve[-1] >= goal:
            return spent, spent
    return None, spent


def _visit(table: Curves, order: list[Cell], goal: float) -> tuple[int, int]:
    for number, cell in enumerate(order, 1):
        if table[cell][-1] >= goal:
            return number * EPOCHS, number * EPOCHS
    raise AssertionError("the best cell is in the grid")


def table(arguments: argparse.Namespace) -> None:
    """Replay every search over the seeds and print a table for each training seed, as Markdown."""
    for seed, curves in read(Path(arguments.out)).items():
        if len(curves) < SIDE**2:
            continue  # still in training
        last = sorted((curve[-1] for curve in curves.values()), reverse=True)
        near = sum(value >= last[0] - WITHIN for value in last)
        print(
            f"\nTraining seed {seed}: {len(curves)} cells of {EPOCHS} epochs; best "
            f"{100 * last[0]:.1f} %, median {100 * float(np.median(last)):.1f} %, worst "
            f"{100 * last[-1]:.1f} %; {near} cells within a point of the best\n"
        )
        print("| search | reached | epochs, % of the grid: median (quartiles) | mean (95 %) |")
        print("|---|---|---|---|")
        for label, sampler, grace in SEARCHES:
            found = [search(curves, sampler, n, grace_epochs=grace) for n in range(NUM_SEEDS)]
            print(_line(label, found, len(curves) * EPOCHS))


def _line(label: str, found: list[tuple[int | None, int]], whole: int) -> str:
    shares = np.array([100 * (e if e is not None else whole) / whole for e, _ in found])
    low, high = np.percentile(shares, [25, 75])
    rng = numpy_generator(0, "bootstrap", label)
    means = [rng.choice(shares, len(shares)).mean() for _ in range(2000)]
    least, most = np.percentile(means, [2.5, 97.5])
    return (
        f"| {label} | {sum(e is not None for e, _ in found)}/{len(found)} | "
        f"{np.median(shares):.0f} ({low:.0f} to {high:.0f}) | {shares.mean():.0f} "
        f"({least:.0f} to {most:.0f}) |"
    )


def main() -> None:
    """Fill the table of curves, or replay searches on it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("train", "table"))
    parser.add_argument("--out", required=True, help="JSON lines, one for each training")
    parser.add_argument("--seeds", type=int, default=1, help="of training")
    arguments = parser.parse_args()
    (train if arguments.what == "train" else table)(arguments)


if __name__ == "__main__":
    main()
