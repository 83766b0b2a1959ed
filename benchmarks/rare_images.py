"""Label-free signals for the images of rare classes: digits and CIFAR-10-LT, made small.

    python -m benchmarks.rare_images features digits 0 --out FOLDER
    python -m benchmarks.rare_images features cifar10 1 --out FOLDER --data CIFAR --lists LISTS
    python -m benchmarks.rare_images table --out FOLDER
    python -m benchmarks.rare_images batches --out FOLDER
    python -m benchmarks.rare_images balance --out FOLDER

`features` trains one network on one long-tailed split (SDCLR, resnet8, one to two minutes of one
thread) and keeps its features, those of the untrained network, the pixels and two other signals.
LISTS holds the published split1_D_i.npy to split5_D_i.npy. `table` ranks the images of every kept
split by every signal: AUROC and the share of rare images among the first ones, as multiples of
chance, mean over splits with its 95 % interval by Student's t. `batches` compares the images
suggested for annotation with the plain order: rare images and distinct classes among the first.
`balance` compares the quarter that the stage curate keeps with a random one: largest over smallest
class, also as paired difference.

`distance` is the default of the stage mine, `both` the default before. The rule `distance+pixels`
was shortlisted on the first split of each, among nine; how its pixels are centred was settled with
the other splits in view. So its row is a hint only.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t
from torch import Tensor
from torch.nn import functional as F

from benchmarks.curated import ARMS, part_of
from pipeline.config.data import Data
from pipeline.embed.features import thumbnails
from pipeline.evaluate.ranking import auroc, precision_at
from pipeline.ingest.sources.arrays import digits_index
from pipeline.ingest.sources.cifar_files import read_cifar
from sdclr import (
    EpochPlan,
    ImageSet,
    LossMemory,
    PruneRule,
    Trainer,
    Twin,
    apply_view,
    build_network,
    centre_view,
    cifar_recipe,
    sample_view,
)
from sdclr.checkup import probe_views
from sdclr.groups import groups_by_tercile
from sdclr.health import disagreement
from sdclr.rarity import knn_distance, rank_share, stratified_batch
from sdclr.seeds import numpy_generator

BATCH, NUM_VIEWS, RATIOS, NEIGHBOURS = 128, 4, (0.5, 0.7, 0.9), 10
SIDE_PX = {"digits": 8, "cifar10": 16}
BATCHES = (25, 100)
EPOCHS = {"digits": 200, "cifar10": 4}


def images(name: str, split: int, data: str, lists: str) -> tuple[ImageSet, NDArray[np.int64]]:
    """Return the long-tailed images of one split, and their classes."""
    if name == "digits":
        index = digits_index(Data(split_seed=split, imbalance_ratio=50))
        rows = index.sets["pretrain"]
        assert index.pixels is not None
        pixels_NHWC, labels_N = index.pixels[rows], index.labels_N[rows].astype(np.int64)
    else:
        found = read_cifar(data, "cifar10")
        rows = np.load(Path(lists) / f"split{split}_D_i.npy", allow_pickle=False)
        pixels_NHWC, labels_N = found.pixels[rows], found.labels[rows]
    return ImageSet(torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2).contiguous()), labels_N


@torch.inference_mode()
def measured(twin: Twin, shown: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return features of the plain view, their mean over views, and disagreements (N, R)."""
    twin.eval()
    features, changes = [], []
    for view_NCHW in shown:
        parts = [twin.network.features(part) for part in view_NCHW.split(256)]
        features.append(F.normalize(torch.cat(parts), dim=1))
    for ratio in RATIOS:
        twin.refresh_masks(PruneRule(prune_ratio=ratio))
        of_views = [
            torch.cat([disagreement(twin.network(p), twin.pruned(p)) for p in v.split(256)])
            for v in shown
        ]
        changes.append(torch.stack(of_views).mean(0))
    return features[0], torch.stack(features).mean(0), torch.stack(changes, dim=1)


def make(name: str, split: int, seed: int, out: Path, data: str, lists: str) -> None:
    """Train on one split and keep what signals are made of."""
    torch.set_num_threads(1)
    start_s = time.monotonic()
    crop_px = SIDE_PX[name]
    found, labels_N = images(name, split, data, lists)
    recipe = cifar_recipe("sdclr", epochs=EPOCHS[name], seed=seed)
    augment = replace(recipe.augment, crop_px=crop_px)
    if name == "digits":  # as in the demo
        augment = replace(augment, crop_scale_min=0.4, hflip_prob=0, saturation=0, hue=0,
                          gray_prob=0)  # fmt: skip
    recipe = replace(recipe, augment=augment, lr=0.5)
    plan = EpochPlan(num_images=len(found), global_batch=BATCH, drop_last=True)
    memory = LossMemory(len(found), momentum=0.97)
    views = probe_views(crop_px)
    shown = [centre_view(*found.take(torch.arange(len(found))), crop_px=crop_px, resize_px=crop_px)]
    for view in range(1, NUM_VIEWS):
        params = sample_view(views, found.sizes_N2, numpy_generator(0, "mine", 0, view))
        shown.append(apply_view(found.images_NCHW, params, views))
    network = build_network("resnet8", stem="cifar", head_depth=2, seed=seed)
    first_NF, untrained_NF, untrained_NR = measured(Twin(network), shown)
    network = build_network("resnet8", stem="cifar", head_depth=2, seed=seed)
    trainer = Trainer(network, recipe, steps_per_epoch=plan.num_steps, memory=memory)
    for _ in trainer.run(found.feed(plan, seed=seed)):
        pass
    assert isinstance(trainer.model, Twin)
    plain_NF, trained_NF, trained_NR = measured(trainer.model, shown)
    small = centre_view(
        found.images_NCHW, found.sizes_N2, crop_px=crop_px, resize_px=crop_px
    ).flatten(1)
    out.mkdir(parents=True, exist_ok=True)
    np.savez(
        out / f"{name}-{split}-{seed}.npz",
        labels=labels_N,
        plain=plain_NF.numpy(),
        untrained_plain=first_NF.numpy(),
        trained=trained_NF.numpy(),
        untrained=untrained_NF.numpy(),
        pixels=small.numpy().astype(np.float32),
        trained_disagreement=trained_NR.numpy(),
        untrained_disagreement=untrained_NR.numpy(),
        loss=memory.means().numpy(),
    )
    print(f"{name} split {split}: {time.monotonic() - start_s:.0f} s, {trainer.num_steps} steps")


def distance_of(features_NF: NDArray[np.float32]) -> NDArray[np.floating]:
    """Return the mean cosine distance to the nearest others, as the stage mine has it."""
    given_NF = torch.from_numpy(features_NF)
    own_N = torch.arange(len(given_NF))
    found: NDArray[np.floating] = knn_distance(
        given_NF, given_NF, k=NEIGHBOURS, own_N=own_N
    ).numpy()
    return found


def signals(kept: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.floating]]:
    """Return every ranking of the images of one split."""

    def distance(name: str) -> NDArray[np.floating]:
        return distance_of(kept[name])

    side_px = round((kept["pixels"].shape[1] / 3) ** 0.5)
    pixels_NCHW = torch.from_numpy(kept["pixels"]).unflatten(1, (3, side_px, side_px))
    pixels_NF = thumbnails(pixels_NCHW).numpy()
    plain_N, pixels_N = distance("plain"), distance_of(pixels_NF)
    change_N = kept["trained_disagreement"].mean(axis=1)
    return {
        "distance": plain_N,
        "distance+pixels": rank_share(plain_N) + rank_share(pixels_N),
        "both": rank_share(change_N) + rank_share(distance("trained")),
        "disagreement": change_N,
        "loss in training": kept["loss"],
        "untrained, distance": distance("untrained_plain"),
        "pixels, distance": pixels_N,
    }


def show_table(out: Path) -> None:
    """Print a line for each set of images and signal: mean over splits and 95 % interval."""
    for name in SIDE_PX:
        values: dict[str, list[tuple[float, float]]] = {}
        for file in sorted(out.glob(f"{name}-*.npz")):
            kept = dict(np.load(file))
            counts = np.bincount(kept["labels"], minlength=10)
            few_N = np.isin(kept["labels"], groups_by_tercile(counts.tolist()).few)
            for signal, score_N in signals(kept).items():
                lift = precision_at(score_N, few_N, int(few_N.sum())) / float(few_N.mean())
                values.setdefault(signal, []).append((auroc(score_N, few_N), lift))
        for signal, pairs in values.items():
            cells = [_with_interval(np.array(column)) for column in zip(*pairs, strict=True)]
            print(
                f"{name:8s} {signal:20s} n={len(pairs)}  AUROC {cells[0]}  times chance {cells[1]}"
            )


def show_batches(out: Path) -> None:
    """Print rare images and distinct classes in batches: plain order against `stratified_batch`."""
    for name in SIDE_PX:
        values: dict[str, list[tuple[float, float]]] = {}
        for file in sorted(out.glob(f"{name}-*.npz")):
            kept = dict(np.load(file))
            counts = np.bincount(kept["labels"], minlength=10)
            few = groups_by_tercile(counts.tolist()).few
            order_N = np.argsort(-distance_of(kept["plain"]), kind="stable")
            for num in BATCHES:
                turns = stratified_batch(torch.from_numpy(kept["plain"][order_N]), num)
                for rule, rows in (("plain", order_N[:num]), ("stratified", order_N[turns])):
                    found_n = kept["labels"][rows]
                    pair = float(np.isin(found_n, few).mean()), float(len(np.unique(found_n)))
                    values.setdefault(f"first {num:3d}, {rule}", []).append(pair)
        for what, pairs in values.items():
            cells = [_with_interval(np.array(column)) for column in zip(*pairs, strict=True)]
            print(f"{name:8s} {what:22s} n={len(pairs)}  Few {cells[0]}  classes {cells[1]}")


def show_balance(out: Path) -> None:
    """Print the imbalance ratio of each set, of its balanced quarter and of a random one."""
    for name in SIDE_PX:
        values: dict[str, list[float]] = {}
        for number, file in enumerate(sorted(out.glob(f"{name}-*.npz"))):
            kept = dict(np.load(file))
            for part in ARMS:
                rows = part_of(part, kept["plain"], out / f"{file.stem}-levels", number)[0]
                counts = np.bincount(kept["labels"][rows], minlength=10)
                values.setdefault(part, []).append(counts.max() / max(1, counts.min()))
        if values:
            pairs = zip(values["balanced"], values["random"], strict=True)
            values["balanced - random"] = [balanced - chance for balanced, chance in pairs]
        for part, ratios in values.items():
            print(f"{name:8s} {part:18s} n={len(ratios)}  ratio {_with_interval(np.array(ratios))}")


def _with_interval(values_n: NDArray[np.floating]) -> str:
    if len(values_n) < 2:
        return f"{values_n.mean():.3f}"
    half = t.ppf(0.975, len(values_n) - 1) * values_n.std(ddof=1) / len(values_n) ** 0.5
    shown = " ".join(f"{value:.3f}" for value in values_n)
    return f"{values_n.mean():.3f} +-{half:.3f} ({shown})"


SHOWN = {"table": show_table, "batches": show_batches, "balance": show_balance}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rare_images")
    parser.add_argument("what", choices=["features", *SHOWN])
    parser.add_argument("name", nargs="?", choices=list(SIDE_PX))
    parser.add_argument("split", nargs="?", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", default="datasets/cifar10")
    parser.add_argument("--lists", default="lists")
    args = parser.parse_args()
    if args.what == "features":
        make(args.name, args.split, args.seed, args.out, args.data, args.lists)
    else:
        SHOWN[args.what](args.out)


if __name__ == "__main__":
    main()
