"""A real Prometheus scrapes a live run: every query of every panel returns data.

Needs the program `prometheus` (a package of that name in Debian); skipped where it is absent.
"""

from __future__ import annotations

import json
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

from pipeline.monitor import TABLE
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
import ray
from pipeline.monitor import Monitor

@ray.remote
def raise_them():
    import time
    monitor = Monitor(run="rare", method="sdclr")
    for name in ("sdclr_checkpoint_failures", "sdclr_checkpoints_refused"):
        monitor.add(name)
    time.sleep(5)

ray.init(address="auto", log_to_driver=False)
ray.get(raise_them.remote())
"""


class Prometheus:
    def __init__(self, targets: list[int], folder: Path) -> None:
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
        (port,) = free_ports(1)
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


Live = tuple[Prometheus, float, dict[str, subprocess.CompletedProcess[str]]]


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
    with LoopbackS3() as s3:
        s3.buckets["bucket"] = {}
        nodes = {
            "RAY_metrics_report_interval_ms": "1000",
            "AWS_ENDPOINT_URL": s3.url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        with LoopbackRay(num_cpus=4, environment=nodes) as cluster:
            prometheus = Prometheus(cluster.metrics_ports, folder)
            start_s = time.time()
            environment = {**cluster.environment(), **nodes, "RAY_ADDRESS": cluster.address}
            environment["PYTHONPATH"] = str(REPO)
            common = (
                "data.source=folder", f"data.path={photos}", "data.imbalance_ratio=null",
                "data.num_test_per_class=4", "data.root=s3://bucket/data",
                "run.root=s3://bucket/runs", "ingest.max_reject_frac=0.5", "feed.canvas_px=16",
                "train.methods=[sdclr]", "train.global_batch=16", "train.log_every_steps=1",
            )  # fmt: skip

            def run(*words: str) -> subprocess.CompletedProcess[str]:
                command = [sys.executable, str(REPO / "pipeline" / "run.py"), *words, *common]
                return subprocess.run(
                    command, cwd=folder, env=environment, capture_output=True, text=True,
                    timeout=300,
                )  # fmt: skip

            command = [sys.executable, "-c", RARE]
            process = subprocess.Popen(command, env=environment, cwd=folder)
            ends = {"ingest": run("ingest")}
            # Workers, and only they, ask for things now and then: some of that is refused.
            epochs = ("train.epochs=60", "train.checkpoint_every_epochs=2")
            training = subprocess.Popen(
                [sys.executable, str(REPO / "pipeline" / "run.py"), "train", *epochs, *common],
                cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            end_s = time.monotonic() + 240
            while training.poll() is None and time.monotonic() < end_s:
                if any(key.endswith("commit.json") for key in list(s3.buckets["bucket"])):
                    s3.faults.extend([503] * 2)
                    time.sleep(0.5)
                time.sleep(0.5)
            s3.faults.clear()
            out, _ = training.communicate(timeout=60)
            ends["train"] = subprocess.CompletedProcess([], training.returncode, out.decode(), "")
            ends["diverged"] = run("train", "run.name=diverged", "train.epochs=5", "train.lr=1e30")
            assert process.wait(60) == 0
            time.sleep(8)
            try:
                yield prometheus, start_s, ends
            finally:
                prometheus.stop()


def test_the_runs_ended_as_they_should(live: Live) -> None:
    _, _, ends = live
    assert ends["ingest"].returncode == 0, ends["ingest"].stderr[-3000:]
    assert ends["train"].returncode == 0, ends["train"].stdout[-3000:]
    assert ends["diverged"].returncode == 6, ends["diverged"].stderr[-3000:]


def dashboard_expressions() -> list[str]:
    dashboard = json.loads((REPO / "infra" / "grafana" / "sdclr.json").read_text())
    return [t["expr"] for panel in dashboard["panels"] for t in panel["targets"]]


@pytest.mark.parametrize("expression", dashboard_expressions())
def test_every_query_of_the_dashboard_returns_data(live: Live, expression: str) -> None:
    prometheus, start_s, _ = live
    plain = expression.replace("$__rate_interval", "10s").replace("$run", ".*")
    series = prometheus.series(plain, start_s)
    assert series, plain
    values = [float(value) for one in series for _, value in one["values"]]
    assert any(np.isfinite(values))


@pytest.mark.parametrize("metric", TABLE, ids=lambda metric: metric.name)
def test_every_metric_arrives_with_its_tags(live: Live, metric: Any) -> None:
    prometheus, start_s, _ = live
    series = prometheus.series(metric.exported_name, start_s)
    assert series, metric.exported_name
    for one in series:
        assert set(metric.tags) <= one["metric"].keys()
        assert all(one["metric"][tag] for tag in metric.tags)


def test_the_numbers_are_those_of_the_run(live: Live) -> None:
    prometheus, start_s, _ = live
    (images,) = prometheus.series('max(ray_sdclr_images_total{run!~"diverged.*"})', start_s)
    (steps,) = prometheus.series('max(ray_sdclr_num_steps{run!~"diverged.*"})', start_s)
    num_steps = float(steps["values"][-1][1])
    last = max(float(value) for _, value in images["values"])
    assert 0.5 * num_steps * 16 < last <= num_steps * 16
    (kept,) = prometheus.series("avg(ray_sdclr_kept_frac)", start_s)
    assert 0 < float(kept["values"][0][1]) < 1


def test_a_run_that_diverged_raises_the_alert(live: Live) -> None:
    prometheus, start_s, _ = live
    found = prometheus.series('ALERTS{alertname="SdclrNonFinite"}', start_s)
    assert found and found[0]["metric"]["run"].startswith("diverged")


def test_series_are_few(live: Live) -> None:
    prometheus, start_s, _ = live
    series = prometheus.ask("series", **{"match[]": '{__name__=~"ray_sdclr_.*"}', "start": start_s})
    assert len(series) < 150, len(series)
