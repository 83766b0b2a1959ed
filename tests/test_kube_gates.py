"""Manifests need no gate that is off, delete what they start, and their overlays hold too."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import manifest_gates as gates
from tests import manifest_policy as policy
from tests import manifest_schemas as schemas
from tests.manifests import CRDS, INFRA, KUBERAY, changed, load, needs_crds, put

JOB = KUBERAY[0]
# Patches of the RayJob, with the gates that their first lines name.
OVERLAYS = {"kuberay/kueue.yaml": [], "kuberay/history.yaml": ["RayClusterHistoryServer"]}


def merged(document: Any, patch: Any) -> Any:
    """Apply a JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return patch
    base = document if isinstance(document, dict) else {}
    found = {k: v for k, v in base.items() if k not in patch}
    found |= {k: merged(base.get(k), v) for k, v in patch.items() if v is not None}
    return found


def overlaid(name: str) -> dict[str, Any]:
    document: dict[str, Any] = merged(load(JOB), load(name))
    return document


def test_the_page_names_the_versions_that_the_table_is_of() -> None:
    page = (INFRA.parent / "docs" / "kuberay.md").read_text()
    assert re.findall(r"operator (\d+\.\d+) or (\d+\.\d+)", page) == [gates.VERSIONS]


@pytest.mark.promise("S6")
@pytest.mark.parametrize("name", KUBERAY)
def test_no_manifest_needs_a_gate_that_is_off(name: str) -> None:
    assert gates.gated(load(name)) == []


GATED = {
    "RayClusterNetworkPolicy": put("networkPolicy", {"mode": "DenyAll"}),
    "RayClusterMTLS": put("tlsOptions", {}),
    "RayClusterHistoryServer": put("historyServerOptions", {}),
    "GCSFaultToleranceEmbeddedStorage": put("gcsFaultToleranceOptions", {"backend": "rocksdb"}),
}


@pytest.mark.promise("S6", control=True)
@pytest.mark.parametrize("gate", GATED)
@pytest.mark.parametrize("name", KUBERAY)
def test_a_field_behind_a_gate_is_caught(gate: str, name: str) -> None:
    document = changed(load(name), lambda whole: GATED[gate](policy.cluster_spec(whole)))
    assert gates.gated(document) == [gate]


def test_an_older_operator_would_have_more_of_the_fields_off() -> None:
    assert gates.gated(load(JOB), ("1.5",)) == ["RayJobDeletionPolicy"]


def test_a_finished_job_keeps_its_head_for_an_hour_and_nothing_else() -> None:
    job = load(JOB)["spec"]
    assert gates.deletion_breaches(job) == []
    waits = {
        (next(iter(rule["condition"].values())), rule["policy"]): rule["condition"]["ttlSeconds"]
        for rule in job["deletionStrategy"]["deletionRules"]
    }
    for end in ("Failed", "SUCCEEDED"):
        assert waits[end, "DeleteWorkers"] == 0
        assert waits[end, "DeleteCluster"] == 3600


RULE = "deletionStrategy.deletionRules"
DELETION_SLIPS = {
    "a switch beside rules": put("shutdownAfterJobFinishes", True),
    "older policies beside rules": put("deletionStrategy.onSuccess", {"policy": "DeleteSelf"}),
    "the autoscaler, which keeps workers": put("rayClusterSpec.enableInTreeAutoscaling", True),
    "a rule without an end": put(f"{RULE}.0.condition", {"ttlSeconds": 0}),
    "a rule of two ends": put(f"{RULE}.0.condition.jobStatus", "FAILED"),
    "the same rule twice": put(f"{RULE}.0.policy", "DeleteCluster"),
    "a missed deadline keeps the cluster": put(f"{RULE}.1.condition", {"jobStatus": "FAILED"}),
    "success keeps the cluster": put(f"{RULE}.3.policy", "DeleteNone"),
    "workers after the head": put(f"{RULE}.0.condition.ttlSeconds", 7200),
    "no rules and no switch": put("deletionStrategy", None),
}


@pytest.mark.parametrize("slip", DELETION_SLIPS)
def test_slips_in_what_is_deleted_are_caught(slip: str) -> None:
    document = changed(load(JOB), lambda job: DELETION_SLIPS[slip](job["spec"]))
    assert gates.deletion_breaches(document["spec"])


@needs_crds
@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_gives_what_the_operator_accepts(name: str) -> None:
    assert CRDS is not None
    document = overlaid(name)
    assert document != load(JOB)
    assert schemas.kuberay_errors(CRDS, document) == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_keeps_the_rules_and_names_its_gates(name: str) -> None:
    document = overlaid(name)
    assert policy.kuberay_breaches(document) == []
    assert gates.deletion_breaches(document["spec"]) == []
    assert gates.gated(document) == OVERLAYS[name]
    text = (INFRA / name).read_text()
    assert all(f"gate {gate}," in text for gate in OVERLAYS[name])


def test_kueue_would_admit_its_overlay() -> None:
    """Check what Kueue's webhook asks for (`pkg/controller/jobs/rayjob/rayjob_webhook.go`)."""

    def is_admitted(document: dict[str, Any]) -> bool:
        job = document["spec"]
        return bool(
            document["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name")
            and job.get("suspend")
            and job.get("shutdownAfterJobFinishes")
            and not job.get("clusterSelector")
            and not job["rayClusterSpec"].get("enableInTreeAutoscaling")
            and len(job["rayClusterSpec"]["workerGroupSpecs"]) <= 7
        )

    assert is_admitted(overlaid("kuberay/kueue.yaml"))
    assert not is_admitted(load(JOB))


def history_documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((INFRA / "kuberay" / "historyserver.yaml").read_text()))


def test_the_history_server_keeps_the_rules_of_pods() -> None:
    kinds = {document["kind"]: document for document in history_documents()}
    assert policy.pod_breaches(kinds["Deployment"]) == []
    pod = kinds["Deployment"]["spec"]["template"]
    assert kinds["Service"]["spec"]["selector"] == pod["metadata"]["labels"]
    assert kinds["Service"]["spec"]["type"] == "ClusterIP"
    (used,) = {pod["spec"]["serviceAccountName"]}
    assert used == kinds["ServiceAccount"]["metadata"]["name"]
    assert kinds["RoleBinding"]["subjects"][0]["name"] == used


def test_the_history_server_reads_where_the_collector_writes() -> None:
    collector = load("kuberay/history.yaml")["spec"]["rayClusterSpec"]["historyServerOptions"]
    (deployment,) = (d for d in history_documents() if d["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["env"] == collector["collectorOptions"]["env"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is absent")
@pytest.mark.parametrize("name", OVERLAYS)
def test_kubectl_patches_as_the_pages_say(name: str, tmp_path: Path) -> None:
    (command,) = re.findall(r"^#\s+(kubectl patch .*?) \|", (INFRA / name).read_text(), re.M)
    words = command.split()
    result = subprocess.run(
        words, cwd=INFRA / "kuberay", env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert yaml.safe_load(result.stdout) == overlaid(name)
