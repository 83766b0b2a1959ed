"""Evidence on two cores: methods on real CIFAR-10-LT pixels, five published splits.

    python -m benchmarks.evidence train --data CIFAR --lists LISTS
    python -m benchmarks.evidence train 2 bcl-d --data CIFAR --lists LISTS
    python -m benchmarks.evidence table

`train` does the next training that has no result yet, or the one that is named. It takes some
minutes of one thread. Call it as often as there is time, on any day; `--times 5` does five. CIFAR
holds cifar-10-batches-bin or cifar-10-batches-py, LISTS the published splitK_D_i.npy,
splitK_D_b.npy, splitK_S_b.npy and trainIdxList.npy. A result is
benchmarks/results/evidence/splitK-ARM.json.

`table` writes evidence.json and evidence.md beside them: means over splits, differences split by
split with the 95 % interval of Student's paired t, and the part of the gap to the balanced twin
that each method closes.

It computes in bfloat16, which takes 0.63 of the time of float32 on a CPU that has AVX512-BF16, and
many times more on one that has neither that nor AMX.

The settings were fixed before the first training and are in every result. Within a split all arms
have equal first weights, order and views. The seed is the number of the split.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Hashable
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config.file import load_config
from pipeline.embed.features import SetFeatures
from pipeline.evaluate.aggregate import mean_entry
from pipeline.evaluate.cached import CachedProbes
from pipeline.evaluate.comparison import gaps_closed, group_scores_of, method_differences
from pipeline.evaluate.ranking import auroc
from pipeline.ingest.sources.cifar_files import CifarImages, read_cifar
from pipeline.record.evaluation import Score
from pipeline.record.schema import Measured, Record
from pipeline.record.study import StudyRecord, StudyRun
from pipeline.record.study_text import markdown
from sdclr import (
    EpochPlan,
    ImageSet,
    LossMemory,
    PruneRule,
    Trainer,
    Twin,
    build_network,
    centre_view,
    cifar_recipe,
)
from sdclr.backbone import add_library
from sdclr.groups import Groups, GroupScores, groups_by_tercile
from sdclr.health import disagreement
from sdclr.loss_memory import PUBLISHED_MOMENTUM
from sdclr.resnet8 import ResNet8
from sdclr.twin import Network

RESULTS = Path(__file__).parent / "results" / "evidence"
SPLITS, NUM_CLASSES = (1, 2, 3, 4, 5), 10
TWIN = "simclr, balanced twin"
ARMS = {"simclr": "D_i", "sdclr": "D_i", "simclr-ts": "D_i", "bcl-d": "D_i", "balanced-twin": "D_b"}
PROTOCOLS = ("cached-linear", "cached-fewshot")
UNTRAINED = "untrained"


@dataclass(frozen=True)
class Settings:
    """Settings fixed beforehand: the published recipe, less of everything that takes time."""

    width: int = 32
    crop_px: int = 16
    batch: int = 128
    lr: float = 0.5
    epochs: int = 20
    precision: Literal["float32", "bfloat16"] = "bfloat16"


SETTINGS = Settings()
SETTINGS_TEXT = (
    "ResNet-8 of width {}, {} px, batch {}, learning rate {}, {} epochs, {}; the rest is the "
    "published recipe with two-layer heads".format(*astuple(SETTINGS))
)


class Evidence(Record):
    """One training: split and arm, and what was measured of it.

    Args:
        settings: in words; results of other settings are never averaged.
        scores: by model; the arm `simclr` has the untrained network too.
        loss_ratio: mean running loss of the images of Few over that of Many.
        disagreement_auroc: how well what pruning changes ranks the images of Few; null without a
            pruned branch.
        train_s, score_s: seconds of one thread, on `machine`.
    """

    schema_version: Literal[1] = 1
    split: int
    arm: str
    settings: str
    scores: dict[str, tuple[Score, ...]]
    loss_ratio: Measured
    disagreement_auroc: Measured
    train_s: float
    score_s: float
    machine: str


def image_set(found: CifarImages, rows_N: NDArray[np.int64]) -> ImageSet:
    """Return some of the images, as a training takes them."""
    return ImageSet(torch.from_numpy(found.pixels[rows_N]).permute(0, 3, 1, 2).contiguous())


@torch.inference_mode()
def of_views(measure: Callable[[Tensor], Tensor], images: ImageSet) -> NDArray[np.float32]:
    """Return what is measured of the centre view of each image, one row an image."""
    parts, side_px = [], SETTINGS.crop_px
    for rows_B in torch.arange(len(images)).split(256):
        view_BCHW = centre_view(*images.take(rows_B), crop_px=side_px, resize_px=side_px)
        parts.append(measure(view_BCHW))
    return torch.cat(parts).numpy()


def change_by_pruning(twin: Twin, images: ImageSet) -> NDArray[np.float32]:
    """Return 1 - cosine between the branches (N,), under the mask of the last weights."""
    twin.refresh_masks(PruneRule(prune_ratio=0.9))
    return of_views(lambda view: disagreement(twin.network(view), twin.pruned(view)), images)


class Data:
    """The images of one split: to train on, to label, and to score on."""

    def __init__(self, split: int, cifar: str, lists: Path) -> None:
        def rows(name: str) -> NDArray[np.int64]:
            return np.load(lists / name, allow_pickle=False).astype(np.int64)

        self.found = read_cifar(cifar, "cifar10")
        self.of_list = {name: rows(f"split{split}_{name}.npy") for name in ("D_i", "D_b")}
        self.labelled_N = rows("trainIdxList.npy")
        place = {row: n for n, row in enumerate(self.labelled_N.tolist())}
        shots = [rows(f"split{number}_S_b.npy") for number in SPLITS]
        self.draws = [np.array([place[row] for row in one.tolist()]) for one in shots]
        self.test_N = np.arange(self.found.num_train, len(self.found.labels))
        counts = np.bincount(self.found.labels[self.of_list["D_i"]], minlength=NUM_CLASSES)
        self.groups: Groups = groups_by_tercile(counts.tolist())

    def scores(self, networks: dict[str, Network], seed: int) -> dict[str, tuple[Score, ...]]:
        """Return what each protocol measures of each network."""
        sets = []
        for rows_N in (self.labelled_N, self.test_N):
            images, labels_N = image_set(self.found, rows_N), self.found.labels[rows_N]
            found = {name: of_views(network.features, images) for name, network in networks.items()}
            sets.append(SetFeatures([str(row) for row in rows_N], labels_N, found))
        config = load_config(None, [f"run.seed={seed}"])
        probes = CachedProbes(
            config, *sets, self.draws, groups=self.groups, num_classes=NUM_CLASSES
        )
        by_protocol = [probes.score(protocol, list(networks)) for protocol in PROTOCOLS]
        return {name: tuple(scores[name] for scores in by_protocol) for name in networks}


def new_network(seed: int) -> Network:
    """Return the network before training."""
    add_library("wide", _wide)
    return build_network(f"wide/{SETTINGS.width}", stem="cifar", head_depth=2, seed=seed)


def _wide(width: str, _: int | None) -> nn.Module:
    network = ResNet8(int(width))
    network.fc = nn.Identity()
    return network


def train(split: int, arm: str, data: Data) -> Evidence:
    """Train one arm on one split, and measure it."""
    torch.set_num_threads(1)
    method = "simclr" if arm == "balanced-twin" else arm
    rows_N = data.of_list[ARMS[arm]]
    images = image_set(data.found, rows_N)
    recipe = cifar_recipe(method, epochs=SETTINGS.epochs, seed=split)
    augment = replace(recipe.augment, crop_px=SETTINGS.crop_px)
    recipe = replace(recipe, augment=augment, lr=SETTINGS.lr, precision=SETTINGS.precision)
    plan = EpochPlan(num_images=len(images), global_batch=SETTINGS.batch, drop_last=True)
    memory = LossMemory(len(images), momentum=PUBLISHED_MOMENTUM)
    trainer = Trainer(new_network(split), recipe, steps_per_epoch=plan.num_steps, memory=memory)
    start_s = time.monotonic()
    for report in trainer.run(images.feed(plan, seed=split)):
        if report.step % plan.num_steps == 0:
            spent_s = time.monotonic() - start_s
            print(f"epoch {report.epoch + 1}: loss {report.loss:.3f}, {spent_s:.0f} s", flush=True)
    train_s, start_s = time.monotonic() - start_s, time.monotonic()
    trainer.model.eval()
    networks = {TWIN if arm == "balanced-twin" else arm: trainer.network}
    if arm == "simclr":
        networks[UNTRAINED] = new_network(split).eval()
    labels_N, loss_N = data.found.labels[rows_N], memory.means().numpy()
    of_few_N = np.isin(labels_N, data.groups.few)
    ratio = np.nanmean(loss_N[of_few_N]) / np.nanmean(loss_N[np.isin(labels_N, data.groups.many)])
    twin = trainer.model if isinstance(trainer.model, Twin) else None
    return Evidence(
        split=split,
        arm=arm,
        settings=SETTINGS_TEXT,
        scores=data.scores(networks, split),
        loss_ratio=float(ratio),
        disagreement_auroc=auroc(change_by_pruning(twin, images), of_few_N) if twin else None,
        train_s=round(train_s, 1),
        score_s=round(time.monotonic() - start_s, 1),
        machine=f"{platform.machine()}, torch {torch.__version__}",
    )


def file_of(split: int, arm: str) -> Path:
    """Return where the result of a training is stored."""
    return RESULTS / f"split{split}-{arm}.json"


def results() -> list[Evidence]:
    """Return what has been trained with these settings, split by split."""
    found = [Evidence.find(str(file_of(split, arm))) for split in SPLITS for arm in ARMS]
    return [one for one in found if one is not None and one.settings == SETTINGS_TEXT]


def todo(split: int | None = None, arm: str | None = None) -> list[tuple[int, str]]:
    """Return what has no result yet, split by split, of one split or arm if it is named."""
    done = {(one.split, one.arm) for one in results()}
    splits, arms = SPLITS if split is None else (split,), ARMS if arm is None else (arm,)
    return [(number, name) for number in splits for name in arms if (number, name) not in done]


def study(found: list[Evidence]) -> StudyRecord:
    """Return all results as the record of a study; a split counts where an arm has a result."""
    order = ["bcl-d", "simclr-ts", "sdclr", TWIN, "simclr", UNTRAINED]
    table: dict[tuple[str, str], dict[Hashable, GroupScores]] = {
        (protocol, model): {} for protocol in PROTOCOLS for model in order
    }
    for one in found:
        for model, scores in one.scores.items():
            for score in scores:
                table[score.protocol, model][one.split] = group_scores_of(score)
    table = {name: scores for name, scores in table.items() if scores}
    return StudyRecord(
        name="evidence",
        title="CIFAR-10-LT on two cores",
        command="python -m benchmarks.evidence table",
        runs=tuple(
            StudyRun(arm=one.arm, seed=one.split, uri=file_of(one.split, one.arm).name)
            for one in found
        ),
        scored_on="test",
        scores=tuple(mean_entry(*name, list(scores.values())) for name, scores in table.items()),
        differences=tuple(
            d
            for d in method_differences(table)
            if d.b == "simclr" or (d.a, d.b) in (("simclr", UNTRAINED), ("bcl-d", "sdclr"))
        ),
        gaps=gaps_closed(
            {key: scores for key, scores in table.items() if key[1] != UNTRAINED},
            base="simclr",
            twin=TWIN,
        ),
        rare=(),
        wall_s=sum(one.train_s + one.score_s for one in found),
    )


def show() -> None:
    """Write the record and the text of the study, and print the text."""
    found = results()
    if not found:
        raise SystemExit("no results yet: python -m benchmarks.evidence train")
    record = study(found)
    record.write(str(RESULTS / "evidence.json"))
    heads = [
        "arm",
        "n",
        "loss of Few over Many",
        "AUROC of the disagreement",
        "train, s",
        "score, s",
    ]
    lines = [
        markdown(record),
        f"{SETTINGS_TEXT}.",
        "",
        f"| {' | '.join(heads)} |",
        "|---" * 6 + "|",
    ]
    for arm in ARMS:
        of_arm = [one for one in found if one.arm == arm]
        if of_arm:
            cells = [
                _mean_std([value for one in of_arm if (value := getattr(one, name)) is not None], n)
                for name, n in (("loss_ratio", 3), ("disagreement_auroc", 3), ("train_s", 0),
                                ("score_s", 0))
            ]  # fmt: skip
            lines.append(f"| {arm} | {len(of_arm)} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    (RESULTS / "evidence.md").write_text(text)
    print(text)


def _mean_std(values: list[float], digits: int) -> str:
    if not values:
        return "–"
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence")
    parser.add_argument("what", choices=["train", "table"])
    parser.add_argument("split", nargs="?", type=int, choices=SPLITS)
    parser.add_argument("arm", nargs="?", choices=list(ARMS))
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--data", default="datasets/cifar10")
    parser.add_argument("--lists", type=Path, default=Path("lists"))
    args = parser.parse_args()
    if args.what == "table":
        show()
        return
    wanted = todo(args.split, args.arm)
    for split, arm in wanted[: args.times]:
        print(f"split {split}, {arm}; {len(wanted)} to do", flush=True)
        train(split, arm, Data(split, args.data, args.lists)).write(str(file_of(split, arm)))


if __name__ == "__main__":
    main()
