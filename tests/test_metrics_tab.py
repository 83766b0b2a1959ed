"""Wherever a head starts, its dashboard knows Prometheus and Grafana, and Grafana knows Ray."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests import manifest_policy as policy
from tests.manifests import INFRA, KUBERAY, LAUNCHER, load

NAMES = ("RAY_PROMETHEUS_HOST", "RAY_GRAFANA_HOST", "RAY_GRAFANA_IFRAME_HOST")
COMPOSE = load("compose.yaml")["services"]


def settings() -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each place that starts a head, with the environment it gives to it."""
    yield "compose", COMPOSE["head"]["environment"]
    for name in KUBERAY:
        head = policy.cluster_spec(load(name))["headGroupSpec"]["template"]["spec"]
        yield name, {v["name"]: v.get("value", "") for v in head["containers"][0]["env"]}
    for name in LAUNCHER:
        words = shlex.split(" ".join(load(name)["head_start_ray_commands"]))
        yield name, dict(w.split("=", 1) for w in words if re.match(r"[A-Z_]+=", w))
    (line,) = re.findall(r"^ENV ((?:.*\\\n)*.*)$", (INFRA / "Dockerfile").read_text(), re.M)
    yield "image", dict(w.split("=", 1) for w in line.replace("\\\n", " ").split())


@pytest.mark.parametrize(("place", "environment"), list(settings()), ids=lambda v: str(v)[:30])
def test_every_head_is_given_the_three_addresses(place: str, environment: dict[str, str]) -> None:
    for name in NAMES:
        assert re.fullmatch(r"http://[\w.-]+:\d+", environment.get(name, "")), f"{place}: {name}"
    # Only the browser's own machine is the same wherever the page is open.
    assert environment["RAY_GRAFANA_IFRAME_HOST"] == "http://127.0.0.1:3000"


def address(url: str) -> tuple[str, str]:
    host, port = url.removeprefix("http://").split(":")
    return host, port


def test_compose_gives_addresses_of_its_own_services() -> None:
    head = COMPOSE["head"]["environment"]
    for name, service in (("RAY_PROMETHEUS_HOST", "prometheus"), ("RAY_GRAFANA_HOST", "grafana")):
        host, port = address(head[name])
        assert host == service
        published = COMPOSE[service]["ports"][0]
        assert published == f"127.0.0.1:{port}:{port}"
    assert not set(NAMES) & COMPOSE["worker"]["environment"].keys()


def test_grafana_is_given_what_the_head_writes_and_shows_it_in_frames() -> None:
    head, grafana = COMPOSE["head"], COMPOSE["grafana"]
    folder = head["environment"]["RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR"]
    assert f"dashboards:{folder}" in head["volumes"]
    provider = provisioned("dashboards/ray.yaml")["providers"][0]
    assert f"dashboards:{provider['options']['path']}:ro" in grafana["volumes"]
    # The head is no root: without this the volume would be root's.
    assert f"install --directory --owner ray {folder}" in (INFRA / "Dockerfile").read_text()
    for name in ("GF_SECURITY_ALLOW_EMBEDDING", "GF_AUTH_ANONYMOUS_ENABLED"):
        assert grafana["environment"][name] == "true"


def provisioned(name: str) -> dict[str, Any]:
    text = (INFRA / "grafana" / "provisioning" / name).read_text()
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def test_the_data_source_has_the_name_that_ray_asks_for() -> None:
    from ray.dashboard.modules.metrics.metrics_head import DEFAULT_PROMETHEUS_NAME

    (source,) = provisioned("datasources/prometheus.yaml")["datasources"]
    assert source["name"] == DEFAULT_PROMETHEUS_NAME
    assert source["url"] == COMPOSE["head"]["environment"]["RAY_PROMETHEUS_HOST"]


def test_each_provider_has_a_folder_of_its_own() -> None:
    providers = [provisioned(f"dashboards/{n}.yaml")["providers"][0] for n in ("ray", "sdclr")]
    assert len({p["options"]["path"] for p in providers}) == 2
    assert len({p["name"] for p in providers}) == 2


def test_prometheus_scrapes_every_page_of_the_head() -> None:
    from ray.autoscaler._private.constants import AUTOSCALER_METRIC_PORT
    from ray.dashboard.consts import DASHBOARD_METRIC_PORT

    (job,) = load("prometheus/prometheus.yaml")["scrape_configs"]
    targets = set(job["static_configs"][0]["targets"])
    ports = (8080, AUTOSCALER_METRIC_PORT, DASHBOARD_METRIC_PORT)
    assert {f"head:{port}" for port in ports} <= targets
    for name in KUBERAY:
        head = policy.cluster_spec(load(name))["headGroupSpec"]["template"]["spec"]
        assert set(ports) <= {p["containerPort"] for p in head["containers"][0]["ports"]}
