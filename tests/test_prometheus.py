"""A real Prometheus scrapes a live run: every query of every panel returns data.

Needs the program `prometheus` (a package of that name in Debian); skipped where it is absent.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.record.gauges import TABLE
from tests.conftest import REPO
from tests.loopback_ray import LoopbackRay, free_ports
from tests.loopback_s3 import ACCESS_KEY, SECRET_KEY, LoopbackS3

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is absent"),
]
# Events that a healthy run of a minute does not have; a task raises them.
RARE = """
import os
import ray
from pipeline.record.gauges import Monitor

@ray.remote
def raise_them():
    import time
    monitor = Monitor(run="rare", method="sdclr")
    for name in ("sdclr_checkpoint_failures", "sdclr_checkpoints_refused"):
        monitor.add(name)
    time.sleep(5)

path = {"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}}
ray.init(address="auto", log_to_driver=False, runtime_env=path)
ray.get(raise_them.remote())
"""


class Prometheus:
    """A server that scrapes these ports of 127.0.0.1 and listens on one of its own."""

    def __init__(self, targets: list[int], folder: Path, port: int) -> None:
        scrape = {"job_name": "ray", "static_configs": [
            {"targets": [f"127.0.0.1:{port}" for port in targets]}
        ]}  # fmt: skip
        rules = str(REPO / "infra" / "prometheus" / "rules.yaml")
        config = {
            "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
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

    def series(self, expression: str, start_s: float) -> list[Any]:
        found: list[Any] = self.ask(
            "query_range", query=expression, start=start_s, end=time.time(), step=2
        )["result"]
        return found


Live = tuple[Prometheus, float, dict[str, subprocess.CompletedProcess[str]], str]


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
    (port,) = free_ports(1)
    with LoopbackS3() as s3:
        s3.buckets["bucket"] = {}
        nodes = {
            "RAY_PROMETHEUS_HOST": f"http://127.0.0.1:{port}",
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
            prometheus = Prometheus(cluster.metrics_ports, folder, port)
            try:
                ends = do_everything(folder, environment, s3)
                time.sleep(8)  # a few more scrapes
                yield prometheus, start_s, ends, cluster.dashboard_url
            finally:
                prometheus.stop()


def do_everything(
    folder: Path, environment: dict[str, str], s3: LoopbackS3
) -> dict[str, subprocess.CompletedProcess[str]]:
    """Ingest, a training beside faults of the storage, one that diverges, a sweep."""
    common = (
        "data.source=folder", f"data.path={folder / 'photos'}", "data.imbalance_ratio=null",
        "data.num_test_per_class=4", "data.root=s3://bucket/data", "run.root=s3://bucket/runs",
        "ingest.max_reject_frac=0.5", "feed.canvas_px=16", "augment.crop_px=16",
        "train.methods=[sdclr]", "train.global_batch=16", "train.log_every_steps=1",
    )  # fmt: skip
    program = [sys.executable, str(REPO / "pipeline" / "run.py")]
    rare = subprocess.Popen([sys.executable, "-c", RARE], env=environment, cwd=folder)

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
    training = start("train", "train.epochs=60", "train.checkpoint_every_epochs=2")
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
    assert rare.wait(60) == 0
    return ends


@pytest.mark.parametrize(
    ("name", "exit_code"), [("ingest", 0), ("train", 0), ("diverged", 6), ("sweep", 0)]
)
def test_the_runs_ended_as_they_should(live: Live, name: str, exit_code: int) -> None:
    _, _, ends, _ = live
    assert ends[name].returncode == exit_code, ends[name].stdout[-3000:]


def dashboard_expressions() -> list[str]:
    dashboard = json.loads((REPO / "infra" / "grafana" / "sdclr.json").read_text())
    return [t["expr"] for panel in dashboard["panels"] for t in panel["targets"]]


@pytest.mark.parametrize("expression", dashboard_expressions())
def test_every_query_of_the_dashboard_returns_data(live: Live, expression: str) -> None:
    prometheus, start_s, *_ = live
    plain = expression.replace("$__rate_interval", "10s").replace("$run", ".*")
    series = prometheus.series(plain, start_s)
    assert series, plain
    values = [float(value) for one in series for _, value in one["values"]]
    assert any(np.isfinite(values))


@pytest.mark.parametrize("metric", TABLE, ids=lambda metric: metric.name)
def test_every_metric_arrives_with_its_tags(live: Live, metric: Any) -> None:
    prometheus, start_s, *_ = live
    series = prometheus.series(metric.exported_name, start_s)
    assert series, metric.exported_name
    for one in series:
        assert set(metric.tags) <= one["metric"].keys()
        assert all(one["metric"][tag] for tag in metric.tags)


def test_the_numbers_are_those_of_the_run(live: Live) -> None:
    prometheus, start_s, *_ = live
    (images,) = prometheus.series('max(ray_sdclr_images_total{run!~"diverged.*"})', start_s)
    (steps,) = prometheus.series('max(ray_sdclr_num_steps{run!~"diverged.*"})', start_s)
    num_steps = max(float(value) for _, value in steps["values"])  # trials have fewer
    last = max(float(value) for _, value in images["values"])
    assert 0.5 * num_steps * 16 < last <= num_steps * 16
    (kept,) = prometheus.series("avg(ray_sdclr_kept_frac)", start_s)
    assert 0 < float(kept["values"][0][1]) < 1


def test_the_best_trial_of_a_sweep_is_the_one_of_its_record(live: Live) -> None:
    prometheus, start_s, ends, _ = live
    (best,) = prometheus.series("ray_sdclr_best_trial", start_s)
    assert best["metric"]["objective"] == "train_loss"
    (shown,) = re.findall(r"best train_loss ([\d.]+)", ends["sweep"].stdout)[-1:]
    assert float(best["values"][-1][1]) == pytest.approx(float(shown), abs=1e-4)
    (done,) = prometheus.series('ray_sdclr_trials{status="complete"}', start_s)
    assert float(done["values"][-1][1]) == 2


def test_a_run_that_diverged_raises_the_alert(live: Live) -> None:
    prometheus, start_s, *_ = live
    found = prometheus.series('ALERTS{alertname="SdclrNonFinite"}', start_s)
    assert found and found[0]["metric"]["run"].startswith("diverged")


def test_the_dashboard_knows_the_runs_and_prometheus(live: Live) -> None:
    *_, dashboard_url = live

    def ask(path: str) -> Any:
        with urllib.request.urlopen(dashboard_url + path, timeout=30) as answer:
            return json.load(answer)

    assert ask("/api/prometheus_health")["result"] is True
    runs = ask("/api/train/v2/runs/v1")["train_runs"]
    assert {run["name"].partition("-")[0] for run in runs} == {"demo", "diverged"}
    assert {run["status"] for run in runs} == {"FINISHED"}  # a stop is told, not raised


def test_series_are_few(live: Live) -> None:
    prometheus, start_s, *_ = live
    series = prometheus.ask("series", **{"match[]": '{__name__=~"ray_sdclr_.*"}', "start": start_s})
    assert len(series) < 150, len(series)
