"""infra/kuberay/networkpolicy.yaml: who may reach the pods of Ray, and who may not."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests import manifest_policy as policy
from tests.manifest_network import Pod, lets_through
from tests.manifests import INFRA, KUBERAY, changed, load

NAME = "kuberay/networkpolicy.yaml"
HEAD = Pod({"ray.io/is-ray-node": "yes", "ray.io/node-type": "head"})
WORKER = Pod({"ray.io/is-ray-node": "yes", "ray.io/node-type": "worker"})
OPERATOR = Pod({"app.kubernetes.io/name": "kuberay-operator"}, "ray-system")
SUBMITTER = Pod(load(KUBERAY[0])["spec"]["submitterPodTemplate"]["metadata"]["labels"])
PROMETHEUS = Pod({"app.kubernetes.io/name": "prometheus"}, "monitoring")
STRANGERS = (
    Pod(),
    Pod({"app": "shop"}, "shop"),
    Pod(WORKER.labels, "shop"),
    Pod(SUBMITTER.labels, "shop"),
)
GCS, DASHBOARD, CLIENT, AGENT = 6379, 8265, 10001, 52365
METRICS = (8080, 44217, 44227)
PORTS = (GCS, DASHBOARD, CLIENT, AGENT, *METRICS)


def is_let_in(document: dict[str, Any], source: Pod, port: int) -> bool:
    return any(lets_through([document], target, source, port) for target in (HEAD, WORKER))


@pytest.mark.promise("S6")
@pytest.mark.parametrize(
    ("source", "ports"),
    [
        (HEAD, PORTS),
        (WORKER, PORTS),
        (SUBMITTER, (DASHBOARD,)),
        (OPERATOR, (DASHBOARD,)),
        (PROMETHEUS, METRICS),
        *((stranger, ()) for stranger in STRANGERS),
    ],
)
def test_each_reaches_its_own_ports_only(source: Pod, ports: tuple[int, ...]) -> None:
    document = load(NAME)
    assert tuple(port for port in PORTS if is_let_in(document, source, port)) == ports


SLIPS = {
    "no policy for ingress": lambda d: d["spec"].update(policyTypes=["Egress"]),
    "an open rule": lambda d: d["spec"]["ingress"].append({}),
    "pods of another name": lambda d: (
        d["spec"]["podSelector"]["matchLabels"].clear()
        or d["spec"]["podSelector"]["matchLabels"].update({"app": "ray"})
    ),
    "any namespace's Ray": lambda d: d["spec"]["ingress"][0]["from"][0].update(
        namespaceSelector={}
    ),
}


@pytest.mark.promise("S6", control=True)
@pytest.mark.parametrize("slip", SLIPS)
def test_slips_let_a_stranger_in(slip: str) -> None:
    document = changed(load(NAME), SLIPS[slip])
    assert any(is_let_in(document, stranger, GCS) for stranger in STRANGERS)


def test_the_policy_is_one_of_plain_kubernetes() -> None:
    document = load(NAME)
    assert (document["apiVersion"], document["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy")
    assert document["metadata"].keys() == {"name"}


def test_prometheus_finds_the_pods_and_may_reach_them() -> None:
    scraped = {e["port"] for e in load("kuberay/podmonitor.yaml")["spec"]["podMetricsEndpoints"]}
    for name in KUBERAY:
        cluster = policy.cluster_spec(load(name))
        head, *workers = (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
        for group, expected in ((head, scraped), *((worker, {"metrics"}) for worker in workers)):
            ports = {p["name"]: p for p in group["template"]["spec"]["containers"][0]["ports"]}
            assert scraped & ports.keys() == expected
            for port in expected:
                number = ports[port]["containerPort"]
                assert lets_through([load(NAME)], WORKER, PROMETHEUS, number)


def test_nobody_but_a_port_forward_reaches_the_history_server() -> None:
    text = (INFRA / "kuberay" / "historyserver.yaml").read_text()
    documents = list(yaml.safe_load_all(text))
    (own,) = (d for d in documents if d["kind"] == "NetworkPolicy")
    (deployment,) = (d for d in documents if d["kind"] == "Deployment")
    target = Pod(deployment["spec"]["template"]["metadata"]["labels"])
    for source in (HEAD, PROMETHEUS, *STRANGERS):
        assert not lets_through([own], target, source, 8080)
        assert lets_through([], target, source, 8080)  # without a policy
