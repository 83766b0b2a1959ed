"""Rank correlation of label-free measures with labelled probes, on CIFAR-10-LT.

    python -m benchmarks.health_correlation train --data FOLDER --pretrain-index FILE.npy --out FILE
    python -m benchmarks.health_correlation table --out FILE

`train` pre-trains small models (resnet8 on 16 px views, a seeded subset of the long-tailed list, a
few epochs) whose method, prune ratio, temperature, learning rate, weight decay and head depth are
drawn at random, and appends one JSON line for each: every label-free measure at the end of
training, and the accuracies of linear, few-shot and kNN probes on test images. It goes on where it
was stopped. `table` prints Spearman's rank correlation of each measure with each accuracy over the
models, with a percentile bootstrap interval over models.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from pipeline.ingest.sources.cifar_files import read_cifar
from pipeline.tune.objective import RANKME_FLOOR, with_rank_floor
from sdclr import (
    EpochPlan,
    ImageSet,
    PruneRule,
    Recipe,
    Trainer,
    build_network,
    centre_view,
    cifar_recipe,
)
from sdclr.accuracy import per_class_accuracy
from sdclr.checkup import Checkup
from sdclr.fewshot import fewshot_draws
from sdclr.groups import group_scores, groups_by_tercile
from sdclr.probe import knn_predict, linear_probe
from sdclr.seeds import numpy_generator

PX, BATCH = 16, 128
NUM_PRETRAIN, NUM_PROBE_PER_CLASS, NUM_TEST_PER_CLASS = 2000, 150, 100
SHOTS, DRAWS = 10, 5
UNTRAINED = -1  # number of the model that is scored as it was made
NUM_BOOTSTRAP, LEVEL = 2000, 95
SCORES = ("linear", "fewshot", "few_linear")


def drawn_recipe(number: int, epochs: int) -> tuple[Recipe, int]:
    """Draw the settings of one model by its number, and the depth of its head."""
    rng = numpy_generator(0, "health correlation", number)
    method = "simclr" if rng.random() < 0.25 else "sdclr"
    base = cifar_recipe("sdclr", epochs=epochs, seed=number)
    augment = {**base.augment.__dict__, "crop_px": PX}
    values: dict[str, Any] = {
        **base.__dict__,
        "method": method,
        "augment": type(base.augment)(**augment),
        "temperature": float(np.exp(rng.uniform(np.log(0.03), np.log(2.0)))),
        "lr": float(np.exp(rng.uniform(np.log(0.01), np.log(1.0)))),
        "weight_decay": float(np.exp(rng.uniform(np.log(1e-5), np.log(3e-3)))),
        "prune": PruneRule(prune_ratio=float(rng.uniform(0.2, 0.97))),
    }
    return Recipe(**values), int(rng.integers(2, 4))


class Data:
    """The long-tailed images to train on, and balanced ones to probe and to test with."""

    def __init__(self, folder: str, pretrain_index: str) -> None:
        images = read_cifar(folder, "cifar10")
        pixels_NCHW = np.ascontiguousarray(images.pixels.transpose(0, 3, 1, 2))
        listed = np.load(pretrain_index, allow_pickle=False)
        rng = numpy_generator(0, "health correlation subset")
        chosen = np.sort(rng.permutation(listed)[:NUM_PRETRAIN])
        counts = np.bincount(images.labels[chosen], minlength=10)
        self.groups = groups_by_tercile(counts.tolist())
        self.pretrain = ImageSet(torch.from_numpy(pixels_NCHW[chosen]))
        train, test = np.arange(images.num_train), np.arange(images.num_train, len(images.labels))
        probe = self._balanced(images.labels, np.setdiff1d(train, chosen), NUM_PROBE_PER_CLASS)
        test = self._balanced(images.labels, test, NUM_TEST_PER_CLASS)
        self.probe, self.test = (torch.from_numpy(pixels_NCHW[rows]) for rows in (probe, test))
        self.probe_labels = torch.from_numpy(images.labels[probe])
        self.test_labels = torch.from_numpy(images.labels[test])
        self.draws = fewshot_draws(
            images.labels[probe], shots_per_class=SHOTS, num_draws=DRAWS, seed=0
        )
        self.checkup = Checkup.of_images(self.pretrain, num_images=512, crop_px=PX)

    def _balanced(self, labels: Any, rows: Any, per_class: int) -> Any:
        rng = numpy_generator(0, "health correlation probe", per_class)
        picked = [rng.permutation(rows[labels[rows] == c])[:per_class] for c in range(10)]
        return np.concatenate(picked)


@torch.inference_mode()
def features(model: Any, images_NCHW: torch.Tensor) -> torch.Tensor:
    """Return features of the dense branch in evaluation mode."""
    model.eval()
    sizes_N2 = torch.tensor(images_NCHW.shape[2:]).expand(len(images_NCHW), 2)
    views = centre_view(images_NCHW, sizes_N2, crop_px=PX, resize_px=PX)
    return torch.cat([model.network.features(part) for part in views.split(500)])


def accuracies(model: Any, data: Data) -> dict[str, float]:
    """Return balanced accuracies on the test images, as fractions."""
    probe_ND, test_MD = features(model, data.probe), features(model, data.test)

    def of(predictions: torch.Tensor) -> Any:
        return per_class_accuracy(predictions, data.test_labels, 10)

    def probed(rows: Any) -> Any:
        found = linear_probe(
            probe_ND[rows], data.probe_labels[rows], test_MD, num_classes=10, num_folds=2, seed=0,
            l2_grid=(1e-3, 1e-2, 1e-1),
        )  # fmt: skip
        return of(found.predictions_M)

    linear = probed(np.arange(len(probe_ND)))
    shots = [group_scores(probed(rows), data.groups).all for rows in data.draws]
    scores = group_scores(linear, data.groups)
    neighbours = of(knn_predict(probe_ND, data.probe_labels, test_MD, num_classes=10))
    return {
        "linear": scores.all,
        "fewshot": float(np.mean(shots)),
        "few_linear": scores.few,
        "knn": float(neighbours.mean()),
        "balancedness": scores.std,
    }


def train(arguments: argparse.Namespace) -> None:
    """Train the models that the file does not have yet."""
    torch.set_num_threads(1)
    data = Data(arguments.data, arguments.pretrain_index)
    plan = EpochPlan(num_images=len(data.pretrain), global_batch=BATCH, drop_last=True)
    out = Path(arguments.out)
    done = {row["number"] for row in read(out)}
    for number in range(UNTRAINED, arguments.models):
        if number in done:
            continue
        start_s = time.process_time()
        recipe, depth = drawn_recipe(number, arguments.epochs)
        network = build_network("resnet8", stem="cifar", head_depth=depth, seed=number)
        trainer = Trainer(network, recipe, steps_per_epoch=plan.num_steps, device="cpu")
        row: dict[str, Any] = {
            "number": number,
            "method": recipe.method,
            "temperature": recipe.temperature,
            "lr": recipe.lr,
            "weight_decay": recipe.weight_decay,
            "prune_ratio": recipe.prune.prune_ratio if recipe.prune else None,
            "head_depth": depth,
            "epochs": recipe.epochs,
        }
        if number != UNTRAINED:
            losses = [report.loss for report in trainer.run(data.pretrain.feed(plan, seed=number))]
            row["train_loss"] = float(np.mean(losses[-plan.num_steps :]))
            row["measures"] = data.checkup(trainer.model)  # type: ignore[arg-type]
        row["accuracies"] = accuracies(trainer.model, data)
        row["cpu_s"] = time.process_time() - start_s
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(number, recipe.method, row["accuracies"], f"{row['cpu_s']:.0f} s", flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    """Return the models so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def correlation(x: Any, y: Any) -> tuple[float, float, float]:
    """Return Spearman's rho and its percentile bootstrap interval over models."""
    rng = numpy_generator(0, "bootstrap")
    rhos = []
    for _ in range(NUM_BOOTSTRAP):
        rows = rng.integers(0, len(x), len(x))
        if len(np.unique(x[rows])) > 1 and len(np.unique(y[rows])) > 1:
            rhos.append(spearmanr(x[rows], y[rows]).statistic)
    low, high = np.percentile(rhos, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(spearmanr(x, y).statistic), float(low), float(high)


def measured(row: dict[str, Any]) -> dict[str, float | None]:
    """Return what a model can be ranked by without labels, by name."""
    found = dict(row["measures"])
    floored = with_rank_floor(found["view_retrieval"], found["rankme"], RANKME_FLOOR)
    return {"tune.objective=view_retrieval": floored, **found, "train_loss": row["train_loss"]}


def table(arguments: argparse.Namespace) -> None:
    """Print the table as Markdown."""
    found = {row["number"]: row for row in read(Path(arguments.out))}
    untrained = found.pop(UNTRAINED)["accuracies"]
    rows = list(found.values())
    print(f"{len(rows)} models; {LEVEL} % bootstrap intervals over models\n")
    print("| measure | n | " + " | ".join(SCORES) + " |")
    print("|---|---|" + "---|" * len(SCORES))
    for name in measured(rows[0]):
        x = np.array([np.nan if (v := measured(row)[name]) is None else v for row in rows])
        known = np.isfinite(x)
        cells = []
        for score in SCORES:
            y = np.array([row["accuracies"][score] for row in rows])
            if len(np.unique(x[known])) == 1:
                cells.append("the same for all")
                continue
            rho, low, high = correlation(x[known], y[known])
            cells.append(f"{rho:+.2f} ({low:+.2f} to {high:+.2f})")
        print(f"| `{name}` | {known.sum()} | " + " | ".join(cells) + " |")
    for score in SCORES:
        values = np.array([row["accuracies"][score] for row in rows])
        print(
            f"\n{score}: {100 * values.min():.1f} to {100 * values.max():.1f} %, standard "
            f"deviation {100 * values.std(ddof=1):.1f}; untrained {100 * untrained[score]:.1f} %"
        )


def main() -> None:
    """Train or tabulate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("train", "table"))
    parser.add_argument("--data", help="folder of cifar-10-batches-bin")
    parser.add_argument("--pretrain-index", help="published long-tailed list, .npy")
    parser.add_argument("--out", required=True, help="JSON lines, one for each model")
    parser.add_argument("--models", type=int, default=36)
    parser.add_argument("--epochs", type=int, default=8)
    arguments = parser.parse_args()
    (train if arguments.what == "train" else table)(arguments)


if __name__ == "__main__":
    main()
