"""infra/kuberay: what the operator accepts, within the rules of security, and no slip passes."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import yaml

from pipeline.cli import scale
from pipeline.cli.command_line import parse
from pipeline.config.file import load_config
from tests import manifest_policy as policy
from tests import manifest_schemas as schemas
from tests.manifests import CRDS, INFRA, KUBERAY, changed, load, needs_crds, put


@needs_crds
@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_manifests_are_what_the_operator_accepts(name: str) -> None:
    assert CRDS is not None
    assert schemas.kuberay_errors(CRDS, load(name)) == []


HEAD = "headGroupSpec.template.spec.containers.0"
SCHEMA_SLIPS = {
    "misspelt key": put("shutdownAfterJobFinish", True),
    "text for a number": put("backoffLimit", "two"),
    "misspelt key in a container": put(f"rayClusterSpec.{HEAD}.imagee", "x"),
    "container without a name": put(f"rayClusterSpec.{HEAD}.name", None),
    "unknown mode of authentication": put("rayClusterSpec.authOptions.mode", "tokens"),
    "unknown policy of deletion": put("deletionStrategy.deletionRules.0.policy", "DeleteAll"),
    "unknown end": put("deletionStrategy.deletionRules.0.condition.jobStatus", "LOST"),
    "negative key of a group": put("rayClusterSpec.workerGroupSpecs.0.maxReplica", 3),
    "unknown version of the autoscaler": put("rayClusterSpec.autoscalerOptions", {"version": "v3"}),
}


@needs_crds
@pytest.mark.parametrize("slip", SCHEMA_SLIPS)
def test_slips_in_a_rayjob_are_caught_by_the_schema(slip: str) -> None:
    assert CRDS is not None
    change = SCHEMA_SLIPS[slip]
    document = changed(load(KUBERAY[0]), lambda job: change(job["spec"]))
    assert schemas.kuberay_errors(CRDS, document)


@needs_crds
def test_a_redis_password_of_the_wrong_shape_is_caught() -> None:
    assert CRDS is not None
    change = put("spec.gcsFaultToleranceOptions.redisPassword", "secret")
    assert schemas.kuberay_errors(CRDS, changed(load(KUBERAY[1]), change))


@pytest.mark.promise("S6")
@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_manifests_keep_the_rules(name: str) -> None:
    assert policy.kuberay_breaches(load(name)) == []


WORKERS = "workerGroupSpecs.0.template.spec"
RULE_SLIPS = {
    "no authentication": put("authOptions.mode", "disabled"),
    "authentication left out": put("authOptions", None),
    "another market on the label": put(
        "workerGroupSpecs.0.labels", {"ray.io/market-type": "on-demand"}
    ),
    "a GPU without a name": put("workerGroupSpecs.0.labels", {"ray.io/market-type": "spot"}),
    "public head": put("headGroupSpec.serviceType", "LoadBalancer"),
    "ingress": put("headGroupSpec.enableIngress", True),
    "dashboard for everyone": put("headGroupSpec.rayStartParams.dashboard-host", "0.0.0.0"),
    "work on the head": put("headGroupSpec.rayStartParams.num-cpus", "4"),
    "head on spot": put("headGroupSpec.template.spec.nodeSelector", {"sdclr/market": "spot"}),
    "no spot": put(f"{WORKERS}.nodeSelector", {"sdclr/market": "on-demand"}),
    "root": put(f"{WORKERS}.securityContext.runAsUser", 0),
    "root allowed": put(f"{WORKERS}.securityContext.runAsNonRoot", False),
    "no seccomp": put(f"{WORKERS}.securityContext.seccompProfile", None),
    "privileged": put(f"{WORKERS}.containers.0.securityContext.privileged", True),
    "capabilities": put(f"{HEAD}.securityContext.capabilities", None),
    "writable image": put(f"{HEAD}.securityContext.readOnlyRootFilesystem", False),
    "tag for a digest": put(f"{HEAD}.image", "registry.example.com/sdclr:latest"),
    "no limits": put(f"{HEAD}.resources.limits", None),
    "host's network": put(f"{WORKERS}.hostNetwork", True),
    "host's folder": put(f"{WORKERS}.volumes.0", {"name": "tmp", "hostPath": {"path": "/"}}),
    "boundless folder": put(f"{WORKERS}.volumes.0.emptyDir", {}),
    "workers that call the API server": put(f"{WORKERS}.automountServiceAccountToken", True),
    "a secret in clear": put(f"{HEAD}.env.0", {"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}),
    "a key in the text": put(f"{HEAD}.env.0.value", "s3://user:password@bucket"),
    "replicas above the limit": put("workerGroupSpecs.0.replicas", 99),
}


@pytest.mark.promise("S6", control=True)
@pytest.mark.parametrize("name", KUBERAY)
@pytest.mark.parametrize("slip", RULE_SLIPS)
def test_slips_in_kuberay_manifests_break_a_rule(slip: str, name: str) -> None:
    change = RULE_SLIPS[slip]
    document = changed(load(name), lambda whole: change(policy.cluster_spec(whole)))
    assert policy.kuberay_breaches(document)


JOB_SLIPS = {
    "no deadline": put("activeDeadlineSeconds", None),
    "no deadline before the start": put("preRunningDeadlineSeconds", None),
    "a submitter that the policy shuts out": put("submitterPodTemplate.metadata", None),
    "packages from the network": put("runtimeEnvYAML", "pip: [boto3]"),
}


@pytest.mark.parametrize("slip", JOB_SLIPS)
def test_slips_in_a_rayjob_break_a_rule(slip: str) -> None:
    change = JOB_SLIPS[slip]
    document = changed(load(KUBERAY[0]), lambda job: change(job["spec"]))
    assert policy.kuberay_breaches(document)


def test_the_entrypoint_of_the_rayjob_is_a_configuration_that_loads() -> None:
    job = load(KUBERAY[0])["spec"]
    words = job["entrypoint"].split()
    assert words[:2] == ["python", "pipeline/run.py"]
    command = parse(words[2:])
    config = load_config(str(INFRA.parent / str(command.config_file)), command.overrides)
    groups = {g["groupName"]: g for g in job["rayClusterSpec"]["workerGroupSpecs"]}
    assert config.train.workers <= groups["gpu-spot"]["maxReplicas"]
    large = replace(
        scale.RESNET50, num_images=10**6, num_workers=config.train.workers,
        global_batch=config.train.global_batch, canvas_px=config.feed.canvas_px or 0,
    )  # fmt: skip
    assert large.stream_bytes <= config.feed.max_memory_bytes
    for group, mark in (
        ("gpu-spot", config.placement.train_nodes), ("data", config.placement.data_nodes),
    ):  # fmt: skip
        key, _, value = str(mark).partition("=")
        assert groups[group]["labels"][key] == value


def test_versions_agree_everywhere() -> None:
    pinned = re.search(r"^ray\[.*\]==(\S+)", (INFRA.parent / "requirements.txt").read_text(), re.M)
    assert pinned is not None
    for name in KUBERAY:
        assert policy.cluster_spec(load(name))["rayVersion"] == pinned.group(1)


def test_service_accounts_of_the_pods_exist() -> None:
    documents = list(yaml.safe_load_all((INFRA / "kuberay" / "accounts.yaml").read_text()))
    accounts = {d["metadata"]["name"] for d in documents if d["kind"] == "ServiceAccount"}
    for name in KUBERAY:
        used = {
            node["serviceAccountName"]
            for _, node in policy.walk(load(name))
            if isinstance(node, dict) and "serviceAccountName" in node
        }
        assert used == accounts
