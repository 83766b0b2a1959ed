"""Training on a balanced part of CIFAR-10-LT against a random part of the same size, made small.

    python -m benchmarks.curated run SPLIT --out FOLDER --data CIFAR --lists LISTS
    python -m benchmarks.curated table --out FOLDER

LISTS holds the published split1_D_i.npy to split5_D_i.npy. `run` trains three networks on a split
by SimCLR, for as many steps each and from the same weights: on all images, on the quarter that
`curate` keeps by the vectors of that first network, and on a random quarter. Each is scored on the
test images by the project's linear probe on the labels of the published validation images. A
network that has its file is not trained again. `table` prints means over the splits with their 95 %
interval by Student's t, and the paired differences.

The figures are in docs/embeddings.md; view, batch and learning rate are those of
`benchmarks.rare_images`. The number of steps was chosen by the time of a step alone, before any
network was scored.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t
from torch import Tensor

from pipeline.cluster.jobs import ThreadTasks
from pipeline.curate import selection
from pipeline.curate.levels import Levels
from pipeline.curate.words import SIMILARITY
from pipeline.ingest.sources.cifar_files import read_cifar
from sdclr import EpochPlan, ImageSet, Trainer, build_network, centre_view, cifar_recipe
from sdclr.accuracy import per_class_accuracy
from sdclr.groups import group_scores, groups_by_tercile
from sdclr.probe import linear_probe
from sdclr.seeds import numpy_generator
from sdclr.twin import Network

BATCH, CROP_PX, NUM_CLASSES = 128, 16, 10
SHARE = 4
"""A part is one in so many images."""
NUM_STEPS = 609
"""7 epochs of 11,165 images, 29 of a quarter."""
ARMS = ("all", "balanced", "random")


@dataclass(frozen=True)
class Arm:
    """One network: what it was trained on, and its scores in percent.

    Args:
        split: number of the published list.
        arm: one of `ARMS`.
        counts: training images of each class.
        num_duplicates: near-duplicates that the selection left out.
        num_steps: of training.
        all, few: accuracy on the test images, mean over all classes and over the split's Few ones.
        converged: whether the fit of the probe ended by itself.
        cpu_s: time of the process for this network.
    """

    split: int
    arm: str
    counts: tuple[int, ...]
    num_duplicates: int
    num_steps: int
    all: float
    few: float
    converged: bool
    cpu_s: float

    @property
    def ratio(self) -> float:
        """Largest over smallest class."""
        return max(self.counts) / max(1, min(self.counts))


@dataclass(frozen=True)
class Cifar:
    """Images of 32 px: the long-tailed split, labels for the probe, and the test set."""

    split: ImageSet
    split_labels_N: NDArray[np.int64]
    probe: ImageSet
    probe_labels_n: NDArray[np.int64]
    test: ImageSet
    test_labels_M: NDArray[np.int64]


def read(split: int, data: str, lists: str) -> Cifar:
    """Read the published files and lists."""
    found = read_cifar(data, "cifar10")
    rows = [
        np.load(Path(lists) / f"split{split}_D_i.npy", allow_pickle=False),
        np.load(Path(lists) / "valIdxList.npy", allow_pickle=False),
        np.arange(found.num_train, len(found.pixels)),
    ]
    sets = [
        ImageSet(torch.from_numpy(found.pixels[part]).permute(0, 3, 1, 2).contiguous())
        for part in rows
    ]
    labels = [found.labels[part] for part in rows]
    return Cifar(sets[0], labels[0], sets[1], labels[1], sets[2], labels[2])


def trained(images: ImageSet, seed: int) -> tuple[Network, int]:
    """Train one network for `NUM_STEPS` steps, and return it with its number of steps."""
    plan = EpochPlan(num_images=len(images), global_batch=BATCH, drop_last=True)
    recipe = cifar_recipe("simclr", epochs=max(1, NUM_STEPS // plan.num_steps), seed=seed)
    recipe = replace(recipe, augment=replace(recipe.augment, crop_px=CROP_PX), lr=0.5)
    network = build_network("resnet8", stem="cifar", head_depth=2, seed=seed)
    trainer = Trainer(network, recipe, steps_per_epoch=plan.num_steps)
    for _ in trainer.run(images.feed(plan, seed=seed)):
        pass
    return network, trainer.num_steps


@torch.inference_mode()
def features(network: Network, images: ImageSet) -> Tensor:
    """Return the features of the plain view of every image (N, F)."""
    network.eval()
    parts = []
    for rows in torch.arange(len(images)).split(256):
        shown = centre_view(*images.take(rows), crop_px=CROP_PX, resize_px=CROP_PX)
        parts.append(network.features(shown))
    return torch.cat(parts)


def scores(network: Network, cifar: Cifar) -> tuple[float, float, bool]:
    """Return the accuracy on All and Few in percent, and whether the probe converged."""
    probe = linear_probe(
        features(network, cifar.probe),
        torch.from_numpy(cifar.probe_labels_n),
        features(network, cifar.test),
        num_classes=NUM_CLASSES,
        seed=0,
    )
    accuracy_C = 100 * per_class_accuracy(
        probe.predictions_M, torch.from_numpy(cifar.test_labels_M), NUM_CLASSES
    )
    counts = np.bincount(cifar.split_labels_N, minlength=NUM_CLASSES).tolist()
    found = group_scores(accuracy_C, groups_by_tercile(counts))
    return found.all, found.few, probe.converged


def part_of(
    arm: str, vectors_NF: NDArray[np.float32], folder: Path, split: int
) -> tuple[NDArray[np.int64], int]:
    """Return the sorted rows of one arm, and the near-duplicates that were left out."""
    num = len(vectors_NF)
    if arm == "all":
        return np.arange(num), 0
    if arm == "random":
        return np.sort(numpy_generator(split, "random part").permutation(num)[: num // SHARE]), 0
    unit_NF = selection.unit_vectors(vectors_NF, vectors_NF.mean(axis=0))
    tree = Levels(str(folder / f"{split}-levels"), ThreadTasks()).tree(unit_NF, lambda *_: None)
    found = selection.select(
        unit_NF, tree.cells, tree.levels, keep=num // SHARE, similarity=SIMILARITY
    )
    return found.kept_n, len(found.duplicates)


def run(split: int, out: Path, data: str, lists: str) -> None:
    """Train and score the networks of one split that have no file yet."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    cifar = read(split, data, lists)
    vectors = out / f"{split}-vectors.npy"
    for arm in ARMS:
        file = out / f"{split}-{arm}.json"
        if file.exists():
            continue
        start_s = time.process_time()
        known = np.zeros((len(cifar.split), 1), np.float32) if arm == "all" else np.load(vectors)
        rows, num_duplicates = part_of(arm, known, out, split)
        network, num_steps = trained(ImageSet(cifar.split.images_NCHW[rows]), seed=split)
        if arm == "all":
            np.save(vectors, features(network, cifar.split).numpy())
        every, few, converged = scores(network, cifar)
        made = Arm(
            split=split,
            arm=arm,
            counts=tuple(np.bincount(cifar.split_labels_N[rows], minlength=NUM_CLASSES).tolist()),
            num_duplicates=num_duplicates,
            num_steps=num_steps,
            all=every,
            few=few,
            converged=converged,
            cpu_s=round(time.process_time() - start_s, 1),
        )
        file.write_text(json.dumps(asdict(made), indent=1) + "\n")
        print(f"split {split}, {arm}: {made.cpu_s} s of CPU", flush=True)


def table(arms: list[Arm]) -> list[str]:
    """Return a line for each arm, then for each paired difference over the splits.

    Raises:
        ValueError: a split lacks an arm.
    """
    by_arm = {arm: {one.split: one for one in arms if one.arm == arm} for arm in ARMS}
    splits = sorted({one.split for one in arms})
    if any(sorted(of_arm) != splits for of_arm in by_arm.values()):
        raise ValueError(f"some arms are missing: each of {', '.join(ARMS)} has to be there")
    numbers = {
        arm: np.array([[one.ratio, one.all, one.few] for one in map(of_arm.__getitem__, splits)])
        for arm, of_arm in by_arm.items()
    }
    for other in ("random", "all"):
        numbers[f"balanced - {other}"] = numbers["balanced"] - numbers[other]
    return [
        f"{name:17s} n={len(splits)}  "
        + "  ".join(f"{what} {_interval(values_S)}" for what, values_S in
                    zip(("ratio", "All", "Few"), columns.T, strict=True))
        for name, columns in numbers.items()
    ]  # fmt: skip


def _interval(values_n: NDArray[np.floating]) -> str:
    shown = " ".join(f"{value:.2f}" for value in values_n)
    if len(values_n) < 2:
        return f"{values_n.mean():.2f}"
    half = t.ppf(0.975, len(values_n) - 1) * values_n.std(ddof=1) / len(values_n) ** 0.5
    return f"{values_n.mean():.2f} +-{half:.2f} ({shown})"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curated")
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("split", nargs="?", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", default="datasets/cifar10")
    parser.add_argument("--lists", default="lists")
    args = parser.parse_args()
    if args.what == "run":
        run(args.split, args.out, args.data, args.lists)
        return
    files = sorted(args.out.glob("*.json"))
    print("\n".join(table([Arm(**json.loads(file.read_text())) for file in files])))


if __name__ == "__main__":
    main()
