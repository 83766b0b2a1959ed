"""Record files of a small finished run, as the stages write them. Used by the report's tests."""

from __future__ import annotations

import base64
import io
import json
import math
import random
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.record.gallery import Gallery, Shown, gallery_uri
from pipeline.record.keeper import RunRecord
from pipeline.storage import LineLog

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
LAYERS = ["conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight"] + [
    f"layer{i}.0.{name}.weight" for i in (2, 3) for name in ("conv1", "conv2", "downsample.0")
]
STEPS, EPOCHS = 1200, 60


def write_run(
    folder: Path,
    *,
    names: list[str] | None = None,
    layers: list[str] | None = None,
    argv: tuple[str, ...] = ("pipeline/run.py",),
) -> str:
    """Write RUN and DATA below `folder`; returns the run's URI."""
    names = DIGITS if names is None else names
    layers = LAYERS if layers is None else layers
    run, data = folder / "runs" / "demo", folder / "data" / "digits-lt"
    record = RunRecord.create(
        str(run), name="demo", config_hash="c0ffee" * 8, seed=7, argv=list(argv)
    )
    record.set_data(uri=str(data), manifest_hash="ab12" * 16, name="digits-lt")
    (run / "config.yaml").write_text("run:\n  name: demo\nsdclr:\n  prune_ratio: 0.9\n")
    counts = counts_of(len(names))
    data.mkdir(parents=True)
    (data / "manifest.json").write_text(json.dumps(manifest(names, counts)))
    with record.stage("train"):
        write_metrics(run, layers)
    (run / "evaluation.json").write_text(json.dumps(evaluation(names, counts)))
    (run / "forgotten.json").write_text(json.dumps(forgotten(len(names))))
    (run / "mining.json").write_text(json.dumps(mining(names, counts)))
    gallery(names).write(gallery_uri(str(run)))
    record.finish()
    fixed = json.loads((run / "run.json").read_text())
    fixed["git"] = {"commit": "0" * 40, "dirty": False}  # whatever the state of this checkout
    (run / "run.json").write_text(json.dumps(fixed))
    return str(run)


def counts_of(num_classes: int) -> list[int]:
    return [int(150 * 50 ** (-c / max(1, num_classes - 1))) for c in range(num_classes)]


def manifest(names: list[str], counts: list[int]) -> dict[str, Any]:
    part = {"rows": sum(counts), "class_counts": counts, "shards": []}
    even = {"rows": 20 * len(names), "class_counts": [20] * len(names), "shards": []}
    return {
        "schema_version": 1,
        "name": "digits-lt",
        "source": {"kind": "digits"},
        "image": {"encoding": "raw", "height_px": 8, "width_px": 8, "channels": 3},
        "class_names": names,
        "sets": {"pretrain": part, "probe": even, "val": even, "test": even},
        "fewshot": [],
        "rejects": {
            "total": 3,
            "by_reason": {"truncated": 2, "not an image": 1},
            "examples": [{"id": "a/b.png", "reason": "truncated", "detail": "12 of 90 bytes"}],
        },
        "config": {},
        "hash": "ab12" * 16,
    }


def write_metrics(run: Path, layers: list[str]) -> None:
    rng = random.Random(0)
    with LineLog(str(run / "metrics.jsonl")) as log:
        for method, level in (("sdclr", 4.2), ("simclr", 3.6)):
            for step in range(0, STEPS, 2):
                epoch = step * EPOCHS // STEPS
                if method == "sdclr" and step % (STEPS // EPOCHS) == 0:
                    log.append(mask_row(epoch, step, layers))
                if step % (STEPS // 6) == 0:
                    log.append(health_row(method, epoch, step))
                log.append(step_row(method, step, level + 2.5 * math.exp(-step / 200), rng))


def health_row(method: str, epoch: int, step: int) -> dict[str, Any]:
    rise = 1 - math.exp(-step / 200)
    measures = {
        "view_retrieval": 0.01 + 0.9 * rise, "rankme": 8 + 30 * rise, "alpha_req": 1.5,
        "alignment": 0.2, "uniformity": -2.0, "balance_few": 0.7 * rise, "balance_std": 0.05,
        "dead_frac": 0.0, "disagreement": 0.3 * rise if method == "sdclr" else None,
    }  # fmt: skip
    return {
        "kind": "health", "stage": "train", "method": method, "seed": 7, "epoch": epoch,
        "step": step, "num_images": 391, "measures": measures, "alarms": [], "wall_s": 0.2,
        "time_s": 1.7e9 + step,
    }  # fmt: skip


def step_row(method: str, step: int, loss: float, rng: random.Random) -> dict[str, Any]:
    warm = min(1.0, step / 120)
    return {
        "kind": "step", "stage": "train", "method": method, "seed": 7,
        "epoch": step * EPOCHS // STEPS, "step": step, "num_steps": STEPS,
        "loss": loss + rng.gauss(0, 0.05),
        "lr": 0.5 * warm * (1 + math.cos(math.pi * step / STEPS)) / 2, "temperature": 0.2,
        "grad_norm": 1.0, "images_per_s": 900.0 + rng.random(), "data_wait_frac": 0.02,
        "time_s": 1.7e9 + step,
    }  # fmt: skip


def mask_row(epoch: int, step: int, layers: list[str]) -> dict[str, Any]:
    fade = math.exp(-epoch / 80)
    kept = {name: (0.55 * fade) * 0.75**i for i, name in enumerate(layers)}
    return {
        "kind": "mask", "stage": "train", "method": "sdclr", "epoch": epoch, "step": step,
        "prune_ratio": 0.9, "kept_frac": kept, "time_s": 1.7e9 + step,
    }  # fmt: skip


def evaluation(names: list[str], counts: list[int]) -> dict[str, Any]:
    num, third = len(names), len(names) // 3
    order = list(range(num))
    groups = {"many": order[: num - 2 * third], "few": order[num - third :]}
    groups["medium"] = order[num - 2 * third : num - third]
    models = []
    for name, level in (("sdclr", 0.93), ("simclr", 0.91), ("untrained", 0.72)):
        scores = [
            score(protocol, level - drop, name, groups, num, draws)
            for protocol, drop, draws in (
                ("cached-linear", 0.0, 1), ("cached-fewshot", 0.2, 5), ("knn-k20", 0.05, 1)
            )
        ]  # fmt: skip
        models.append({"name": name, "step": STEPS, "epochs": EPOCHS, "scores": scores})
    return {
        "schema_version": 1,
        "class_names": names,
        "pretrain_counts": counts,
        "groups": groups,
        "sets": {"probe": 20 * num, "val": 20 * num, "test": 20 * num},
        "scored_on": "test",
        "seed": 7,
        "notes": [],
        "leaks": [],
        "timings_s": {"features": 2.0, "cached-linear": 1.0},
        "models": models,
        "curve": [
            {**model, "epochs": EPOCHS // 3 * k, "step": STEPS // 3 * k}
            for model in models[:2]
            for k in (1, 2, 3)
        ],
    }


def score(
    protocol: str, level: float, model: str, groups: dict[str, list[int]], num: int, draws: int
) -> dict[str, Any]:
    rng = random.Random(f"{protocol}{model}")
    slope = 0.08 if model == "sdclr" else 0.2
    per_class = [
        min(1.0, max(0.0, level - slope * i / num + rng.gauss(0, 0.03))) for i in range(num)
    ]
    mean = {k: sum(per_class[i] for i in v) / max(1, len(v)) for k, v in groups.items()}
    centre = sum(mean.values()) / 3
    values = {
        **mean,
        "std": math.sqrt(sum((v - centre) ** 2 for v in mean.values()) / 3),
        "all": sum(per_class) / num,
    }
    spread = {key: 0.0123 for key in values} if draws > 1 else None
    note = "regularisation chosen inside the training labels" if draws == 1 else ""
    return {
        "protocol": protocol, "n": draws, **values, "spread": spread, "per_class": per_class,
        "note": note,
        "group_confusion": [[0.9, 0.06, 0.04], [0.15, 0.8, 0.05], [0.31, 0.09, 0.6]],
    }  # fmt: skip


def forgotten(num_classes: int) -> dict[str, Any]:
    rng = random.Random(1)

    def items(low: float, high: float) -> list[dict[str, Any]]:
        return [
            {
                "id": f"pretrain/{rng.randrange(9999):04d}",
                "label": rng.randrange(num_classes),
                "score": high - (high - low) * i / 16,
                "png_base64": png(rng),
            }
            for i in range(16)
        ]

    return {
        "schema_version": 2,
        "method": "sdclr",
        "prune_ratio": 0.9,
        "scored": 500,
        "most": items(0.6, 0.9),
        "least": items(0.02, 0.08),
        "group_mean": {
            "many": {"images": 400, "mean": 0.213, "half": 0.01},
            "medium": {"images": 80, "mean": 0.287, "half": 0.02},
            "few": {"images": 20, "mean": 0.371, "half": 0.05},
        },
    }


def mining(names: list[str], counts: list[int]) -> dict[str, Any]:
    rng = random.Random(2)
    num, third = len(names), len(names) // 3
    order = list(range(num))
    groups = {"many": order[: num - 2 * third], "few": order[num - third :]}
    groups["medium"] = order[num - 2 * third : num - third]
    few = sum(counts[i] for i in groups["few"])
    labels = [rng.randrange(num) for _ in range(200)]

    def entry(model: str, score: str, area: float) -> dict[str, Any]:
        return {
            "model": model, "score": score, "auroc": area, "auroc_low": area - 0.05,
            "auroc_high": area + 0.05, "precision": {"50": 0.32, "100": 0.26, str(few): 0.4},
        }  # fmt: skip

    return {
        "schema_version": 1, "set": "pretrain", "method": "sdclr", "step": STEPS, "score": "both",
        "data": {"uri": "data/digits-lt", "name": "digits-lt", "manifest_hash": "ab12" * 16},
        "prune_ratios": [0.5, 0.9], "num_views": 4, "knn_k": 10, "num_reference": 500,
        "scored": sum(counts), "class_names": names, "groups": groups,
        "findings": {
            "few_classes": [names[i] for i in groups["few"]], "num_few": few, "base_rate": 0.05,
            "scores": [entry("trained", "both", 0.812), entry("untrained", "both", 0.577)],
            "classes": [
                {"name": name, "count": count, "mean_rank_share": 0.3 + 0.5 * i / num}
                for i, (name, count) in enumerate(zip(names, counts, strict=True))
            ],
            "batch": {"images": 100, "few": 31, "few_expected_by_chance": 5.0, "classes": 9},
        },
        "map": {
            "maps": [{
                "method": "PCA", "note": "61 % of the variance",
                "x": [rng.gauss(label, 1) for label in labels],
                "y": [rng.gauss(0, 1) for _ in labels],
            }],
            "label": labels, "rank_share": [rng.random() for _ in labels],
        },
    }  # fmt: skip


def gallery(names: list[str]) -> Gallery:
    """Twenty images on the page, and four that are neighbours only."""
    rng = random.Random(3)
    images = tuple(
        Shown(
            id=f"pretrain/{i:04d}.png",
            label=i % len(names),
            rank=i + 1,
            score=1 - i / 24,
            cluster=i % 3 if i < 20 else None,
            near=tuple((i + k) % 24 for k in (1, 2, 20)) if i < 20 else (),
            thumb=png(rng),
            large=png(rng) if i < 8 else None,
        )
        for i in range(24)
    )
    return Gallery(
        folder="/photos/my digits", images=images, rarest=tuple(range(12)),
        commonest=(19, 18, 17, 16), annotate=(0, 3, 6, 12, 13, 14, 15), cluster_sizes=(40, 30, 2),
    )  # fmt: skip


def png(rng: random.Random) -> str:
    image = Image.new("L", (8, 8))
    x, y = rng.uniform(2, 6), rng.uniform(2, 6)
    image.putdata(
        [int(255 * math.exp(-((i % 8 - x) ** 2 + (i // 8 - y) ** 2) / 5)) for i in range(64)]
    )
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()
