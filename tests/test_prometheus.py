"""A real Prometheus scrapes a live run: every query of every panel returns data, ours and Ray's.

Ray's own panels are those that the head wrote. A stub stands for Grafana, with its health call.
Needs the program `prometheus` (a package of that name in Debian); skipped where it is absent.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pipeline.record.gauges import TABLE
from tests.browser import Browser, find_chromium
from tests.conftest import REPO
from tests.grafana_stub import GrafanaStub
from tests.loopback_ray import LoopbackRay, free_ports
from tests.loopback_s3 import ACCESS_KEY, SECRET_KEY, LoopbackS3
from tests.running import wait_for

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is absent"),
]
SCRAPE_S = 2
# Events that a healthy run of a minute does not have; a task raises them.
RARE = """
import os
import sys
import ray
from pipeline.record.gauges import Monitor

SEEN = sys.argv[1]

@ray.remote
def raise_them():
    import time
    monitor = Monitor(run="rare", method="sdclr")
    for name in ("sdclr_checkpoint_failures", "sdclr_checkpoints_refused"):
        monitor.add(name)
    monitor.add("sdclr_restarts", cause="node")
    while not os.path.exists(SEEN):  # what a worker counts ends with it
        time.sleep(0.2)

path = {"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}}
ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, runtime_env=path)
ray.get(raise_them.remote())
"""


class Prometheus:
    """A server that scrapes these ports of 127.0.0.1 and listens on one of its own."""

    def __init__(self, targets: list[int], folder: Path, port: int) -> None:
        shipped = yaml.safe_load((REPO / "infra" / "prometheus" / "prometheus.yaml").read_text())
        (scrape,) = shipped["scrape_configs"]
        scrape["static_configs"] = [{"targets": [f"127.0.0.1:{port}" for port in targets]}]
        rules = str(REPO / "infra" / "prometheus" / "rules.yaml")
        config = {
            "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"},
            "rule_files": [rules],
            "scrape_configs": [scrape],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        self.url = f"http://127.0.0.1:{port}"
        command = [
            "prometheus", f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'series'}", f"--web.listen-address=127.0.0.1:{port}",
        ]  # fmt: skip
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._log.close()

    def ask(self, path: str, **parameters: Any) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as answer:
            return json.load(answer)["data"]

    def scraped_s(self) -> float:
        """The time of the oldest of the last scrapes of all targets; 0 before the first."""
        found = self.ask("query", query="min(timestamp(up))")["result"]
        return float(found[0]["value"][1]) if found else 0.0

    def series(self, expression: str, start_s: float) -> list[Any]:
        found: list[Any] = self.ask(
            "query_range", query=expression, start=start_s, end=time.time(), step=2
        )["result"]
        return found


@dataclass
class Live:
    """What ran: where its numbers are, when it began, how its runs ended."""

    prometheus: Prometheus
    start_s: float
    ends: dict[str, subprocess.CompletedProcess[str]]
    dashboard_url: str
    grafana: GrafanaStub
    ray_dashboards: Path

    def series(self, expression: str) -> list[Any]:
        return self.prometheus.series(expression, self.start_s)

    def ask(self, path: str) -> Any:
        with urllib.request.urlopen(self.dashboard_url + path, timeout=30) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("live")
    photos = folder / "photos"
    rng = np.random.default_rng(0)
    for name in ("common", "rare"):
        (photos / name).mkdir(parents=True)
        for i in range(64 if name == "common" else 16):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(photos / name / f"{i}.png")
    (photos / "rare" / "broken.png").write_bytes(b"no image")
    port, autoscaler_port, dashboard_port = free_ports(3)
    with LoopbackS3() as s3, GrafanaStub() as grafana:
        s3.buckets["bucket"] = {}
        nodes = {
            "RAY_PROMETHEUS_HOST": f"http://127.0.0.1:{port}",
            "RAY_GRAFANA_HOST": grafana.url,
            "RAY_GRAFANA_IFRAME_HOST": grafana.url.replace("127.0.0.1", "localhost"),
            "RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR": str(folder / "dashboards"),
            "AUTOSCALER_METRIC_PORT": str(autoscaler_port),
            "DASHBOARD_METRIC_PORT": str(dashboard_port),
            "RAY_metrics_report_interval_ms": "1000",
            "AWS_ENDPOINT_URL": s3.url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        with LoopbackRay(num_cpus=4, environment=nodes) as cluster:
            start_s = time.time()
            environment = {**cluster.environment(), **nodes, "RAY_ADDRESS": cluster.address}
            environment["PYTHONPATH"] = str(REPO)
            pages = [*cluster.metrics_ports, autoscaler_port, dashboard_port]
            prometheus = Prometheus(pages, folder, port)
            try:
                ends = do_everything(folder, environment, s3, prometheus)
                ended_s = time.time()
                wait_for(lambda: prometheus.scraped_s() > ended_s + 2 * SCRAPE_S, every_s=0.5)
                yield Live(
                    prometheus, start_s, ends, cluster.dashboard_url, grafana, folder / "dashboards"
                )
            finally:
                prometheus.stop()


def do_everything(
    folder: Path, environment: dict[str, str], s3: LoopbackS3, prometheus: Prometheus
) -> dict[str, subprocess.CompletedProcess[str]]:
    """Ingest, a training beside faults of the storage, one that diverges, a sweep."""
    common = (
        "data.source=folder", f"data.path={folder / 'photos'}", "data.imbalance_ratio=null",
        "data.num_test_per_class=4", "data.root=s3://bucket/data", "run.root=s3://bucket/runs",
        "ingest.max_reject_frac=0.5", "feed.canvas_px=16", "augment.crop_px=16",
        "train.methods=[sdclr]", "train.global_batch=16", "train.log_every_steps=1",
    )  # fmt: skip
    program = [sys.executable, str(REPO / "pipeline" / "run.py")]
    seen, begun_s = folder / "seen", time.time()
    rare = subprocess.Popen([sys.executable, "-c", RARE, str(seen)], env=environment, cwd=folder)

    def start(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*program, *words, *common], cwd=folder, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def end_of(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
        out, _ = process.communicate(timeout=300)
        return subprocess.CompletedProcess([], process.returncode, out, "")

    ends = {"ingest": end_of(start("ingest"))}
    # Workers, and only they, ask for things now and then: some of that is refused.
    training = start("train", "train.epochs=60", "train.checkpoint_every_epochs=2",
                     "cost.price_per_gpu_hour_usd=3")  # fmt: skip
    end_s = time.monotonic() + 240
    while training.poll() is None and time.monotonic() < end_s:
        if any(key.endswith("commit.json") for key in list(s3.buckets["bucket"])):
            s3.faults.extend([503] * 2)
            time.sleep(0.5)
        time.sleep(0.5)
    s3.faults.clear()
    ends["train"] = end_of(training)
    diverging = ("run.name=diverged", "train.epochs=5", "train.lr_per_256=1e30")
    ends["diverged"] = end_of(start("train", *diverging))
    sweep = ("tune.objective=train_loss", "tune.search={lr}", "tune.trials=2")
    sweep += ("tune.retrain_seeds=0", "train.epochs=2", "run.name=sweep")
    sweep += ("tune.early_stopping=false",)
    ends["sweep"] = end_of(start("tune", *sweep))
    restarts = 'ray_sdclr_restarts_total{run="rare"}'  # the last that it counted
    wait_for(lambda: prometheus.series(restarts, begun_s), rare, every_s=0.5)
    seen.touch()
    assert rare.wait(60) == 0
    return ends


@pytest.mark.parametrize(
    ("name", "exit_code"), [("ingest", 0), ("train", 0), ("diverged", 6), ("sweep", 0)]
)
def test_the_runs_ended_as_they_should(live: Live, name: str, exit_code: int) -> None:
    end = live.ends[name]
    assert end.returncode == exit_code, end.stdout[-3000:]


def dashboard_expressions() -> list[str]:
    """Return the queries of our panels; those of GPUs have no data on a machine without one."""
    dashboard = json.loads((REPO / "infra" / "grafana" / "sdclr.json").read_text())
    found = [t["expr"] for panel in dashboard["panels"] for t in panel["targets"]]
    return [e for e in found if torch.cuda.is_available() or not re.search("_gpus_|_gram_", e)]


@pytest.mark.parametrize("expression", dashboard_expressions())
def test_every_query_of_the_dashboard_returns_data(live: Live, expression: str) -> None:
    series = live.series(plain(expression))
    assert series, expression
    values = [float(value) for one in series for _, value in one["values"]]
    assert any(np.isfinite(values))


@pytest.mark.parametrize("metric", TABLE, ids=lambda metric: metric.name)
def test_every_metric_arrives_with_its_tags(live: Live, metric: Any) -> None:
    series = live.series(metric.exported_name)
    assert series, metric.exported_name
    for one in series:
        assert set(metric.tags) <= one["metric"].keys()
        assert all(one["metric"][tag] for tag in metric.tags)


def test_a_number_that_is_set_once_stays(live: Live) -> None:
    (price,) = live.series("ray_sdclr_usd_per_hour")
    (times,) = {tuple(t for t, _ in price["values"])}
    assert times[-1] - times[0] > 20 and len(times) > 5


def test_the_numbers_are_those_of_the_run(live: Live) -> None:
    (images,) = live.series('max(ray_sdclr_images_total{run!~"diverged.*"})')
    (steps,) = live.series('max(ray_sdclr_num_steps{run!~"diverged.*"})')
    num_steps = max(float(value) for _, value in steps["values"])  # trials have fewer
    last = max(float(value) for _, value in images["values"])
    assert 0.5 * num_steps * 16 < last <= num_steps * 16
    (kept,) = live.series("avg(ray_sdclr_kept_frac)")
    assert 0 < float(kept["values"][0][1]) < 1


def test_the_best_trial_of_a_sweep_is_the_one_of_its_record(live: Live) -> None:
    (best,) = live.series("ray_sdclr_best_trial")
    assert best["metric"]["objective"] == "train_loss"
    (shown,) = re.findall(r"best train_loss ([\d.]+)", live.ends["sweep"].stdout)[-1:]
    assert float(best["values"][-1][1]) == pytest.approx(float(shown), abs=1e-4)
    (done,) = live.series('ray_sdclr_trials{status="complete"}')
    assert float(done["values"][-1][1]) == 2


def test_a_run_that_diverged_raises_the_alert(live: Live) -> None:
    found = live.series('ALERTS{alertname="SdclrNonFinite"}')
    assert found and found[0]["metric"]["run"].startswith("diverged")


def test_the_dashboard_knows_the_runs_and_prometheus(live: Live) -> None:
    assert live.ask("/api/prometheus_health")["result"] is True
    runs = live.ask("/api/train/v2/runs/v1")["train_runs"]
    assert {run["name"].partition("-")[0] for run in runs} == {"demo", "diverged"}
    assert {run["status"] for run in runs} == {"FINISHED"}  # a stop is told, not raised


def test_the_health_call_of_the_metrics_tab_asks_grafana(live: Live) -> None:
    found = live.ask("/api/grafana_health")
    assert found["result"] is True
    assert found["data"]["grafanaHost"] == live.grafana.url.replace("127.0.0.1", "localhost")
    assert set(RAY_DASHBOARDS) <= found["data"]["dashboardUids"].keys()
    live.grafana.database = "failing"
    try:
        with pytest.raises(urllib.error.HTTPError):
            live.ask("/api/grafana_health")
    finally:
        live.grafana.database = "ok"


RAY_DASHBOARDS = ("default", "data", "train")
# Of Ray 2.60. Panels of what such a run has none of stay empty; each has its reason.
EMPTY = {
    "no accelerator": r"GPU|GRAM|TPU",
    "no memory ran out, no worker was lost": r"OOM Kills|Unexpected System Level",
    "buckets are dropped, see infra/prometheus/prometheus.yaml": r"^P\d\d |Histogram",
    "Ray measures them where it is told to": r"by Node\)",
    "Ray 2.60 exports no such number": r"Task Completion Time Without Backpressure",
    "images are read once and kept, no rank iterates": r"by Rank|Data Loading|Data Production",
}


def panels_of(dashboard: Any) -> Iterator[Any]:
    for panel in dashboard.get("panels", ()):
        yield from panels_of(panel)
        if panel.get("targets"):
            yield panel


@pytest.mark.parametrize("name", RAY_DASHBOARDS)
def test_every_panel_of_ray_returns_data(live: Live, name: str) -> None:
    dashboard = json.loads((live.ray_dashboards / f"{name}_grafana_dashboard.json").read_text())
    empty, filled = [], []
    for panel in panels_of(dashboard):
        queries = [plain(target["expr"]) for target in panel["targets"]]
        (filled if any(map(live.series, queries)) else empty).append(panel["title"])
    unexplained = [t for t in empty if not any(re.search(p, t) for p in EMPTY.values())]
    assert not unexplained, "; ".join(unexplained)
    assert len(filled) >= 10


def plain(expression: str) -> str:
    """Return a panel's query with every variable set to all of its values."""
    for variable in ("$__rate_interval", "$window", "$__range"):
        expression = expression.replace(variable, "10s")
    expression = expression.replace("[30d:1m]", "[10m:5s]")  # a run of a minute
    return re.sub(r"\$\{?\w+\}?", ".*", expression)


@pytest.mark.skipif(find_chromium() is None, reason="chromium is absent")
def test_the_metrics_tab_shows_the_panels(live: Live, tmp_path: Path) -> None:
    program = find_chromium()
    assert program is not None
    with Browser(program, tmp_path / "profile") as browser:
        (tmp_path / "profile").mkdir(exist_ok=True)
        sources = browser.wait_for(
            f"{live.dashboard_url}/#/metrics",
            "[...document.querySelectorAll('iframe')].map(frame => frame.src)",
            width_px=1280, deadline_s=60, picture=tmp_path / "metrics.png",
        )  # fmt: skip
    host = live.grafana.url.replace("127.0.0.1", "localhost")
    assert all(source.startswith(f"{host}/d/rayDefaultDashboard/") for source in sources), sources
    assert any(path.startswith("/d/rayDefaultDashboard/") for path in live.grafana.asked)
    if (folder := os.environ.get("SDCLR_PICTURES")) is not None:
        shutil.copy(tmp_path / "metrics.png", Path(folder) / "metrics.png")


def test_series_are_few(live: Live) -> None:
    only = {"match[]": '{__name__=~"ray_sdclr_.*"}', "start": live.start_s}
    series = live.prometheus.ask("series", **only)
    assert len(series) < 200, len(series)  # of two trainings and a sweep of two trials
