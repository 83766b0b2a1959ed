"""The table of metrics, the dashboard and the alerts name the same numbers, and no others."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.record.gauges import METRICS, TABLE, Held, Monitor, by_group, run_name
from sdclr import build_network
from tests.conftest import REPO

RULES = REPO / "infra" / "prometheus" / "rules.yaml"
DASHBOARD = json.loads((REPO / "infra" / "grafana" / "sdclr.json").read_text())
EXPORTED = {metric.exported_name: metric for metric in TABLE}
# What Ray exports of each node by itself, with the labels that are used here.
RAYS_OWN = {
    "ray_node_cpu_utilization": {"instance"},
    "ray_node_gpus_utilization": {"instance", "GpuIndex"},
    "ray_node_gram_used": {"instance", "GpuIndex"},
    "ray_node_gram_available": {"instance", "GpuIndex"},
    "ray_object_store_memory": {"instance", "Location"},
    "ray_node_disk_io_read_speed": {"instance"},
    "ray_node_network_receive_speed": {"instance"},
}


def panels(dashboard: dict[str, Any]) -> dict[str, list[str]]:
    return {p["title"]: [t["expr"] for t in p["targets"]] for p in dashboard["panels"]}


def alerts() -> dict[str, str]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule["expr"] for rule in group["rules"]}


def expressions(dashboard: dict[str, Any]) -> list[str]:
    return [expr for exprs in panels(dashboard).values() for expr in exprs]


def names(expressions: list[str]) -> set[str]:
    return {name for expr in expressions for name in re.findall(r"\bray_\w+", expr)}


def foreign_labels(expression: str) -> set[str]:
    """Labels that an expression uses of a metric which does not have them."""
    used = set(re.findall(r"(\w+)=~?\"", expression))
    for group in re.findall(r"\bby \(([^)]*)\)", expression):
        used |= {label.strip() for label in group.split(",")}
    found = names([expression])
    own = [set(EXPORTED[name].tags) for name in found - RAYS_OWN.keys()]
    rays = set[str]().union(*(RAYS_OWN[name] for name in found & RAYS_OWN.keys()))
    return {label for label in used - rays if not own or not all(label in tags for tags in own)}


def test_the_dashboard_shows_every_metric_and_knows_no_other() -> None:
    assert names(expressions(DASHBOARD)) == EXPORTED.keys() | RAYS_OWN.keys()


def test_alerts_know_no_other_metric() -> None:
    assert names(list(alerts().values())) <= EXPORTED.keys() | RAYS_OWN.keys()


def test_ray_exports_what_is_said_to_be_its_own() -> None:
    from ray.dashboard.modules.metrics.dashboards import (
        default_dashboard_panels,
        train_dashboard_panels,
    )

    files = (default_dashboard_panels.__file__, train_dashboard_panels.__file__)
    text = "".join(Path(file).read_text() for file in files)
    for name, labels in RAYS_OWN.items():
        uses = re.findall(rf"{name}\{{+([^}}]*)", text)
        assert uses, name
        known = {label for use in uses for label in re.findall(r"(\w+)=", use)}
        assert labels <= known, (name, known)


@pytest.mark.parametrize("expression", [*expressions(DASHBOARD), *alerts().values()])
def test_expressions_use_labels_that_the_metric_has(expression: str) -> None:
    assert foreign_labels(expression) == set()


def test_a_misspelt_metric_or_label_is_found() -> None:
    broken = json.loads(json.dumps(DASHBOARD).replace("ray_sdclr_loss", "ray_sdclr_lost"))
    assert names(expressions(broken)) != EXPORTED.keys()
    assert foreign_labels('sum by (rank) (ray_sdclr_loss{trial="1"})') == {"rank", "trial"}


def test_the_dashboard_asks_for_its_data_source_and_does_not_overlap() -> None:
    sources = [p["datasource"]["uid"] for p in DASHBOARD["panels"]]
    assert set(sources) == {"${datasource}"}
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in DASHBOARD["panels"]]
    ids = [p["id"] for p in DASHBOARD["panels"]]
    assert len(set(places)) == len(places) and len(set(ids)) == len(ids)


def test_every_alert_says_what_to_do() -> None:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]:
        assert rule["annotations"]["summary"] and rule["annotations"]["todo"], rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_alerts_are_about_the_failures_that_must_not_pass_unseen() -> None:
    wanted = {"SdclrStalled", "SdclrDataStarved", "SdclrCollapse", "SdclrNonFinite"}
    assert wanted | {"SdclrCheckpointFailed"} <= alerts().keys()


promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is absent")


def rules_test(folder: Path) -> int:
    command = ["promtool", "test", "rules", str(folder / "rules_test.yaml")]
    return subprocess.run(command, capture_output=True).returncode


@promtool
def test_alerts_fire_when_they_should_and_only_then() -> None:
    assert rules_test(RULES.parent) == 0


@promtool
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("changes(ray_sdclr_step[15m]) == 0 and", "changes(ray_sdclr_step[15m]) == 1 and"),
        ("and ray_sdclr_step < ray_sdclr_num_steps\n        for: 5m", "\n        for: 5m"),
        ("> 0.1\n        for: 10m\n        labels: {severity: ticket}", "> 0.2\n        for: 10m\n"
         "        labels: {severity: ticket}"),
        ('measure="rankme"} < 0.5', 'measure="rankme"} < 0.4'),
        ('or ray_sdclr_health{measure="dead_frac"} > 0.5', ""),
        ("< 0.001", "< 0.0001"),
        (' unless ray_sdclr_stops_total{reason="NonFiniteError"} offset 1h', ""),
        ('reason!="NonFiniteError"', 'reason="DataError"'),
        (" unless ray_sdclr_checkpoint_failures_total offset 1h", " offset 1h"),
        ("> 21600", "> 216000"),
        ('{Location="SPILLED"}', ""),
        ("(max_over_time(ray_sdclr_restarts_total[1h])) > 3", "(ray_sdclr_restarts_total) > 3"),
        ("< 20 and on ()", "< 10 and on ()"),
        (" and on () sum(changes(ray_sdclr_step[15m])) > 0", ""),
        ("(ray_sdclr_goodput) < 0.9 and", "(ray_sdclr_goodput) < 0.95 and"),
        (" and max by (run) (ray_sdclr_goodput offset 15m) >= 0", ""),
        (") > 1.2", ") > 1.05"),
        ("quantile by (run, method) (0.5,", "quantile by (run, method) (1,"),
    ],
)  # fmt: skip
def test_a_changed_alert_fails_its_own_test(old: str, new: str, tmp_path: Path) -> None:
    shutil.copytree(RULES.parent, tmp_path, dirs_exist_ok=True)
    text = RULES.read_text()
    assert old in text
    (tmp_path / "rules.yaml").write_text(text.replace(old, new))
    assert rules_test(tmp_path) != 0


@promtool
def test_prometheus_accepts_its_configuration_and_every_expression(tmp_path: Path) -> None:
    config = RULES.parent / "prometheus.yaml"
    assert (
        subprocess.run(["promtool", "check", "config", config], capture_output=True).returncode == 0
    )
    plain = [
        e.replace("$__rate_interval", "1m").replace("$run", ".*") for e in expressions(DASHBOARD)
    ]
    rules = [{"record": f"test:panel{i}", "expr": expr} for i, expr in enumerate(plain)]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    result = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_names_carry_units_and_every_metric_belongs_to_a_run_or_a_data_set() -> None:
    for metric in TABLE:
        assert metric.name.startswith("sdclr_") and not metric.name.endswith("_total")
        assert metric.tags[0] in ("run", "data") and metric.help
    assert len(METRICS) == len(TABLE)


def test_layers_are_told_by_group_whatever_the_depth() -> None:
    network = build_network("resnet50", stem="imagenet", head_depth=2, seed=0)
    weights = [name for name, p in network.named_parameters() if p.ndim > 1]
    groups = by_group(dict.fromkeys(weights, 0.5))
    assert list(groups) == ["conv1", "layer1", "layer2", "layer3", "layer4", "head"]
    assert len(weights) > 50 and set(groups.values()) == {0.5}


def test_the_kept_fraction_of_a_group_is_the_mean_of_its_layers() -> None:
    kept = {"backbone.layer1.0.conv1.weight": 0.2, "backbone.layer1.1.conv1.weight": 0.4}
    assert by_group(kept) == {"layer1": pytest.approx(0.3)}


def test_a_model_of_many_modules_makes_no_more_series_than_the_limit() -> None:
    groups = by_group({f"block{i}.weight": float(i < 23) for i in range(1000)})
    assert len(groups) == 24 and groups["other"] == 0.0


def test_the_run_is_named_by_the_end_of_its_uri() -> None:
    assert run_name("s3://bucket/runs/demo-1a2b3c4d/") == "demo-1a2b3c4d"


def test_without_ray_nothing_happens() -> None:
    import ray

    if ray.is_initialized():
        pytest.skip("Ray is running in this process")
    monitor = Monitor(run="r", method="sdclr")
    monitor.set("sdclr_loss", 1.0)
    monitor.add("sdclr_images", 3)
    monitor.checkpoint(1.0)


class Shown:
    """A gauge that keeps what it was told."""

    def __init__(self) -> None:
        self.values: list[tuple[float, str]] = []

    def set(self, value: float, tags: dict[str, str]) -> None:
        self.values.append((value, tags["run"]))


def test_the_last_value_of_each_series_is_exported_again() -> None:
    held, gauge = Held(), Shown()
    held._thread = threading.Thread()  # none of its own
    for value, run in ((1.0, "a"), (2.0, "a"), (3.0, "b")):
        held.set(gauge, "sdclr_step", value, {"run": run})
    del gauge.values[:]
    held.refresh()
    held.refresh()
    assert gauge.values == [(2.0, "a"), (3.0, "b")] * 2
