"""RUN/mining.html: the rarest and the most common images of a set, from mining.json alone.

The same record gives the section on rare images of report.html and the console's table.
"""

from __future__ import annotations

import csv
import io
from typing import Any

from markupsafe import Markup

from pipeline import storage
from pipeline.console import Console
from pipeline.record.json_file import read_json
from pipeline.record.keeper import read_run
from pipeline.record.scores import ABSENT
from pipeline.redact import redact, redact_tree
from pipeline.report.charts.scatter import Cloud, scatter
from pipeline.report.results import GROUPS, Record, image_entry, title
from pipeline.report.template import to_html

FINDINGS_HEADERS = ["Score", "Network", "AUROC", "95 % interval", "P@50", "P@100", "P@Few"]
_RANDOM = "chance"
_QUARTILES = (
    ("commonest quarter", "g0"), ("second quarter", "g1"), ("third quarter", "g2"),
    ("rarest quarter", "g3"),
)  # fmt: skip


def write_mining_page(run_uri: str) -> str:
    """Make mining.html, and mining/findings.csv where there are labels; returns the page's URI.

    Raises:
        DataError: mining.json or run.json is missing or broken.
    """
    record = redact_tree(read_json(storage.join(run_uri, "mining.json")))
    run = read_run(run_uri)
    if record["findings"] is not None:
        text = findings_csv(record["findings"])
        storage.write_bytes(storage.join(run_uri, "mining", "findings.csv"), text.encode())
    uri = storage.join(run_uri, "mining.html")
    storage.write_bytes(uri, render(record, redact(run.run)).encode())
    return uri


def show_mining(console: Console, run_uri: str, record: Record) -> None:
    """Make the page, and say what labels say about the ranking and where everything is."""
    found = record["findings"]
    if found is not None:
        console.line()
        console.table(FINDINGS_HEADERS, findings_rows(found))
        console.line(
            f"how well each score finds the {found['num_few']} images of the rare classes "
            f"({', '.join(found['few_classes'])}); labels were used for this table only"
        )
        console.line()
    folder = storage.join(run_uri, "mining")
    console.stage("mine", f"scores of all images: {folder}")
    console.stage("mine", f"to annotate first: {storage.join(folder, 'annotate.csv')}")
    console.stage("mine", f"contact sheet: {write_mining_page(run_uri)}")


def render(record: Record, run_name: str) -> str:
    """Return the page as HTML."""
    names = record["class_names"]
    lists = {
        key: (heading, [image_entry(item, names) for item in record[key]])
        for key, heading in (
            ("rarest", "Rarest first"),
            ("commonest", "Most common first"),
            ("annotate", "In the order of choice"),
        )
    }
    page = summary_section(record, "") | lists | {"findings": _findings(record["findings"])}
    data_name = f"{record['data']['name']}, {record['set']} set"
    return to_html("mining.html.j2", {"run": run_name, "data_name": data_name, "mining": page})


def summary_section(record: Record | None, command: str) -> Record:
    """Return the section that says what was scored by what, with the maps."""
    if record is None:
        text = "The images have not been ranked by how rare they are yet."
        return {"missing": text, "command": command}
    by = {
        "disagreement": "how much of their embedding pruning changes",
        "knn_distance": "how far they lie from their nearest neighbours",
        "training_loss": "their mean loss in training",
        "both": "how much pruning changes them and how far they lie from their nearest neighbours",
    }[record["score"]]
    ratios = ", ".join(f"{100 * ratio:g}" for ratio in record["prune_ratios"])
    intro = (
        f"{record['scored']} images, ranked without labels by {by}: {title(record['method'])} "
        f"after {record['step']} steps, prune ratios {ratios} %, {record['num_views']} views, "
        f"{record['knn_k']} neighbours among {record['num_reference']} images."
    )
    clouds, legend = _clouds(record)
    maps = [
        {
            "method": drawn["method"],
            "svg": Markup(
                scatter(
                    [
                        Cloud(name, css, *([drawn[axis][i] for i in rows] for axis in "xy"))
                        for name, css, rows in clouds
                    ],
                    label=f"Map of {len(drawn['x'])} images by {drawn['method']}",
                )
            ),
            "caption": f"{len(drawn['x'])} images, {drawn['note']}. Nearness is likeness to the "
            "network; the axes have no unit.",
        }
        for drawn in record["map"]["maps"]
    ]
    return {"intro": intro, "maps": maps, "legend": legend}


def findings_rows(found: Record) -> list[list[str]]:
    """Return rows below `FINDINGS_HEADERS`; the last one is chance."""
    few = str(found["num_few"])
    rows = []
    for entry in found["scores"]:
        cells = [_share(entry["precision"].get(k)) for k in ("50", "100", few)]
        interval = f"{entry['auroc_low']:.3f} to {entry['auroc_high']:.3f}"
        rows.append([entry["score"], entry["model"], f"{entry['auroc']:.3f}", interval, *cells])
    base = _share(found["base_rate"])
    return [*rows, [_RANDOM, ABSENT, "0.500", ABSENT, base, base, base]]


def findings_csv(found: Record) -> str:
    """Return the same at full precision, one row for each score and k."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["score", "network", "auroc", "low", "high", "k", "precision", "base_rate"])
    for entry in found["scores"]:
        for k, precision in entry["precision"].items():
            area = [entry["auroc"], entry["auroc_low"], entry["auroc_high"]]
            names = [entry["score"], entry["model"]]
            writer.writerow([*names, *area, k, precision, found["base_rate"]])
    return stream.getvalue()


def _findings(found: Record | None) -> Record | None:
    if found is None:
        return None
    batch = found["batch"]
    return {
        "text": f"The rare classes {', '.join(found['few_classes'])} have {found['num_few']} "
        f"of the images ({_share(found['base_rate'])}). Of the {batch['images']} suggested for "
        f"annotation {batch['few']} are theirs, "
        f"{batch['few_expected_by_chance']:.1f} would be by chance; "
        f"{batch['classes']} classes are among them.",
        "headers": FINDINGS_HEADERS,
        "rows": findings_rows(found),
        "class_headers": ["Class", "Images", "Mean rank"],
        "class_rows": [
            [entry["name"], str(entry["count"]), f"{entry['mean_rank_share']:.3f}"]
            for entry in sorted(found["classes"], key=lambda entry: -entry["count"])
        ],
    }


def _share(value: float | None) -> str:
    return ABSENT if value is None else f"{100 * value:.1f} %"


def _clouds(record: Record) -> tuple[list[tuple[str, str, list[int]]], list[Record]]:
    """Return (name, CSS class, rows of the map) for each colour: by group, else by rank."""
    drawn, groups = record["map"], record["groups"]
    num = len(drawn["label"])
    clouds: list[tuple[str, str, list[int]]] = []
    if groups is not None and all(label is not None for label in drawn["label"]):
        for key, name, css in GROUPS:
            members: set[Any] = set(groups[key])
            clouds.append((name, css, [i for i in range(num) if drawn["label"][i] in members]))
    else:
        quarter = [min(3, int(4 * share)) for share in drawn["rank_share"]]
        for q, (name, css) in enumerate(_QUARTILES):
            clouds.append((name, css, [i for i in range(num) if quarter[i] == q]))
    return clouds, [{"name": name, "style": css} for name, css, _ in clouds]
