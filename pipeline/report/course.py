"""The report's sections on the course of a run: data, training, pruning, facts.

Same conventions as pipeline.report.results.
"""

from __future__ import annotations

import math
from statistics import fmean, median
from typing import Any

from markupsafe import Markup

from pipeline.console import duration
from pipeline.record.scores import ABSENT
from pipeline.report.charts import plots
from pipeline.report.charts.plots import Bar, Curve
from pipeline.report.results import GROUPS, Record, frequency_order, group_of, style, title


def data_section(manifest: Record | None, evaluation: Record | None, command: str) -> Record:
    """Return the data set's sets and the class histogram of the pre-training set."""
    if manifest is None:
        return {"missing": "No manifest was found for the data set.", "command": command}
    group = group_of(evaluation)
    pretrain = manifest["sets"]["pretrain"]
    counts, names = pretrain.get("class_counts"), manifest.get("class_names")
    found: Record = {
        "name": manifest["name"],
        "source": manifest["source"].get("kind", ABSENT),
        "sets": [(name, str(part["rows"])) for name, part in manifest["sets"].items() if part],
        "image": _image_text(manifest["image"]),
        "rejects": _rejects(manifest.get("rejects") or {}),
        "svg": "",
    }
    if counts and names:
        order = frequency_order(counts)
        bars = [
            Bar(names[i], counts[i], group.get(i, ("", "g0"))[1], str(counts[i])) for i in order
        ]
        ratio = max(counts) / max(1, min(counts))
        text = f"{len(counts)} classes from {max(counts)} to {min(counts)} images"
        drawing = plots.bars(
            bars,
            label=f"Images per class in the pre-training set: {text}",
            x_label="classes, most frequent first",
            y_label="images",
        )
        found.update(
            svg=Markup(drawing),
            log=plots.uses_log(bars),
            span=f"{text}, a ratio of {ratio:.0f}:1",
            legend=[{"name": name, "style": css} for _, name, css in GROUPS] if group else [],
        )
    return found


def _image_text(image: Record) -> str:
    if image.get("encoding") == "raw":
        return f"{image['width_px']} x {image['height_px']} px, RGB, stored as pixels"
    return "stored as the original files"


def _rejects(rejects: Record) -> Record:
    reasons = sorted((rejects.get("by_reason") or {}).items(), key=lambda item: -item[1])
    return {
        "total": rejects.get("total", 0),
        "reasons": [(reason, str(count)) for reason, count in reasons],
        "examples": [(e["id"], e["reason"], e["detail"]) for e in rejects.get("examples") or []][
            :10
        ],
    }


def training_section(metrics: list[Record], command: str) -> Record:
    """Return the section of loss and learning rate, with a table of each method's end."""
    steps: dict[str, list[Record]] = {}
    for row in metrics:
        if row["kind"] == "step":
            steps.setdefault(row["method"], []).append(row)
    if not steps:
        return {"missing": "No training steps have been logged yet.", "command": command}
    drawn = []
    both = " The two losses differ by construction: compare shapes, not heights."
    for key, name, caption in (
        ("loss", "loss", "Look for a curve that falls and levels off."
         + (both if len(steps) > 1 else "")),
        ("lr", "learning rate", "Warm-up, then a cosine towards zero; a jump would be a "
         "resume gone wrong."),
    ):  # fmt: skip
        data = [
            Curve(title(method), style(method), [r["step"] for r in rows], [r[key] for r in rows])
            for method, rows in steps.items()
        ]
        drawing = plots.curves(
            data, label=f"{name} over steps: {_ends(data)}", x_label="step", y_label=name
        )
        drawn.append({"name": name, "svg": Markup(drawing), "caption": caption})
    longest = max(map(len, steps.values()))
    return {
        "plots": drawn,
        "legend": [{"name": title(m), "style": style(m)} for m in steps],
        "averaged": longest > plots.MAX_POINTS,
        "rows": [_training_row(method, rows) for method, rows in steps.items()],
        "only": title(next(iter(steps))) if len(steps) == 1 else None,
    }


def _ends(data: list[Curve]) -> str:
    return ", ".join(f"{c.name} ends at {_loss(c.y[-1])} (step {c.x[-1]:.0f})" for c in data)


def _loss(value: float | None) -> str:
    return "not finite" if value is None or not math.isfinite(value) else f"{value:.4g}"


def _training_row(method: str, rows: list[Record]) -> list[str]:
    last = rows[-1]
    return [
        title(method),
        f"{last['step']} of {last['num_steps']}",
        str(last["epoch"]),
        _loss(rows[0]["loss"]),
        _loss(last["loss"]),
        f"{last['temperature']:g}",
        f"{median(r['images_per_s'] for r in rows):.0f}",
        f"{100 * fmean(r['data_wait_frac'] for r in rows):.1f} %",
    ]


def pruning_section(metrics: list[Record]) -> Record:
    """Return the section of kept fractions: the last mask, and three layers over epochs."""
    masks = [row for row in metrics if row["kind"] == "mask" and row["kept_frac"]]
    if not masks:
        return {"missing": "No pruning mask has been logged. Only SDCLR prunes: it needs sdclr in "
                "train.methods and at least one epoch."}  # fmt: skip
    last = masks[-1]
    layers: dict[str, float] = last["kept_frac"]
    bars = [
        Bar(_layer(name), 100 * kept, "c1", _percent_text(kept)) for name, kept in layers.items()
    ]
    lowest = min(layers, key=lambda name: layers[name])
    drawing = plots.bars(
        bars,
        label=f"Weights kept in each of {len(layers)} layers at epoch {last['epoch']}; fewest in "
        f"{_layer(lowest)}: {_percent_text(layers[lowest])}",
        x_label="convolutions, input side first",
        y_label="weights kept, %",
    )
    return {
        "svg": Markup(drawing),
        "log": plots.uses_log(bars),
        "epoch": last["epoch"],
        "prune_percent": f"{100 * last['prune_ratio']:g}",
        "lowest": f"{_layer(lowest)} ({_percent_text(layers[lowest])})",
        "rows": [(bar.name, bar.text) for bar in bars],
        **_kept_over_epochs(masks, lowest),
    }


def _kept_over_epochs(masks: list[Record], lowest: str) -> Record:
    names = list(masks[-1]["kept_frac"])
    chosen = {names[0]: "first", lowest: "fewest kept", names[-1]: "last"}
    shown = [
        Curve(
            f"{_layer(name)} ({role})",
            css,
            [m["epoch"] for m in masks],
            [100 * m["kept_frac"][name] if name in m["kept_frac"] else None for m in masks],
        )
        for (name, role), css in zip(chosen.items(), ("c1", "c2", "c5"), strict=False)
    ]
    if len({m["epoch"] for m in masks}) < 2:
        return {"history": "", "history_legend": []}
    drawing = plots.curves(
        shown,
        label="Weights kept over the epochs in " + ", ".join(c.name for c in shown),
        x_label="epoch",
        y_label="weights kept, %",
    )
    legend = [{"name": c.name, "style": c.style} for c in shown]
    return {"history": Markup(drawing), "history_legend": legend}


def _layer(name: str) -> str:
    return name.removesuffix(".weight")


def _percent_text(fraction: float) -> str:
    """Format with two significant digits below 10 %, so that 0.84 % is not shown as 1 %."""
    value = 100 * fraction
    if 0 < value < 0.001:
        return "< 0.001 %"
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.2g} %"


def facts_section(run: Record, run_uri: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the rest of the record as titled lists of (name, value)."""
    git, hardware, data = run.get("git") or {}, run.get("hardware") or {}, run.get("data") or {}
    dirty = {True: ", with uncommitted changes", False: "", None: ""}[git.get("dirty")]
    memory = hardware.get("memory_bytes")
    resumes = run.get("resumes") or []
    timings = [(name, duration(value)) for name, value in (run.get("timings_s") or {}).items()]
    gpus = hardware.get("gpus") or ["none"]
    return [
        ("Run", [
            ("Folder", run_uri),
            ("Command", run["command"]),
            *(("Resumed", f"{note['utc']}: {note['command']}") for note in resumes),
            ("Seed", str(run["seed"])),
            ("Config hash", run["config_hash"]),
            ("Git commit", (git.get("commit") or "none recorded") + dirty),
        ]),
        ("Data", [
            ("Folder", _text(data.get("uri"))),
            ("Name", _text(data.get("name"))),
            ("Manifest hash", _text(data.get("manifest_hash"))),
        ]),
        ("Time", timings or [("Stages", "none has ended yet")]),
        ("Hardware", [
            ("Platform", _text(hardware.get("platform"))),
            ("CPUs", _text(hardware.get("cpu_count"))),
            ("Memory", f"{memory / 2**30:.1f} GiB" if memory else ABSENT),
            ("GPUs", ", ".join(gpus)),
        ]),
        ("Versions", [(name, _text(v)) for name, v in (run.get("versions") or {}).items()]),
    ]  # fmt: skip


def _text(value: Any) -> str:
    return ABSENT if value is None else str(value)
