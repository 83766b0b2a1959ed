"""infra/: each file is what its reader accepts, keeps the rules of security, and no slip passes."""

from __future__ import annotations

import copy
import functools
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import scale
from pipeline.config.file import load_config
from tests import manifest_policy as policy
from tests import manifest_schemas as schemas

INFRA = Path(__file__).resolve().parents[1] / "infra"
CRDS = schemas.crd_folder()
needs_crds = pytest.mark.skipif(
    CRDS is None, reason="KubeRay's CRDs are absent: set SDCLR_KUBERAY_CRDS to their folder"
)
Document = dict[str, Any]
Change = Callable[[Document], Any]


def load(name: str) -> Document:
    document: Document = yaml.safe_load((INFRA / name).read_text())
    return document


def changed(document: Document, change: Change) -> Document:
    # YAML anchors give shared nodes: a copy through text changes one place only.
    own: Document = yaml.safe_load(_dump(document))
    change(own)
    return own


def _dump(document: Document) -> str:
    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    return yaml.dump(document, Dumper=Plain)


def put(path: str, value: Any) -> Change:
    """Set `a.b.0.c`; a value of None deletes the key."""

    def change(document: Document) -> None:
        *parents, last = path.split(".")
        node: Any = document
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node[part]
        key: Any = int(last) if isinstance(node, list) else last
        if value is None:
            del node[key]
        else:
            node[key] = value

    return change


KUBERAY = ("kuberay/rayjob.yaml", "kuberay/raycluster.yaml")


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
    "unknown network policy": put("rayClusterSpec.networkPolicy.mode", "Deny"),
    "negative key of a group": put("rayClusterSpec.workerGroupSpecs.0.maxReplica", 3),
    "unknown version of the autoscaler": put("rayClusterSpec.autoscalerOptions.version", "v3"),
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
    "no network policy": put("networkPolicy", None),
    "only egress denied": put("networkPolicy.mode", "DenyAllEgress"),
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
    "a cluster that stays": put("shutdownAfterJobFinishes", False),
    "packages from the network": put("runtimeEnvYAML", "pip: [boto3]"),
    "what CEL refuses": put("deletionStrategy", {"onSuccess": {"policy": "DeleteSelf"}}),
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
    config = load_config(None, words[2:])
    groups = {g["groupName"]: g for g in job["rayClusterSpec"]["workerGroupSpecs"]}
    assert config.train.workers <= groups["gpu-spot"]["maxReplicas"]
    large = replace(
        scale.RESNET50, num_images=10**6, num_workers=config.train.workers,
        global_batch=config.train.global_batch, canvas_px=config.feed.canvas_px or 0,
    )  # fmt: skip
    assert large.stream_bytes <= config.feed.max_memory_bytes
    for group, resource in (
        ("gpu-spot", config.placement.train_resource), ("data", config.placement.data_resource),
    ):  # fmt: skip
        assert f'\\"{resource}\\"' in groups[group]["rayStartParams"]["resources"]


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


def test_prometheus_finds_the_pods_and_may_reach_them() -> None:
    (endpoint,) = load("kuberay/podmonitor.yaml")["spec"]["podMetricsEndpoints"]
    for name in KUBERAY:
        cluster = policy.cluster_spec(load(name))
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            ports = {p["name"]: p for p in group["template"]["spec"]["containers"][0]["ports"]}
            port = ports[endpoint["port"]]["containerPort"]
            for side in ("head", "worker"):
                (rule,) = cluster["networkPolicy"][side]["ingressRules"]
                assert port in [p["port"] for p in rule["ports"]]


LAUNCHER = ("ray-up/aws.yaml", "ray-up/gcp.yaml")


def node_errors(config: Document) -> list[str]:
    aws = config["provider"]["type"] == "aws"
    return schemas.ec2_errors(config) if aws else schemas.compute_errors(config)


@pytest.mark.promise("S6")
@pytest.mark.parametrize("name", LAUNCHER)
def test_launcher_files_are_what_ray_up_and_the_cloud_accept(name: str) -> None:
    config = load(name)
    assert schemas.launcher_errors(config) == []
    assert node_errors(config) == []
    assert policy.launcher_breaches(config) == []


LAUNCHER_SLIPS = {
    "misspelt key": put("max_worker", 3),
    "text for a number": put("max_workers", "many"),
    "unknown key of a node type": put("available_node_types.head.node_conf", {}),
    "unknown type of the head": put("head_node_type", "heads"),
    "more least than most": put("available_node_types.gpu-spot.min_workers", 99),
    "unknown provider": put("provider.type", "azur"),
}


@pytest.mark.parametrize("name", LAUNCHER)
@pytest.mark.parametrize("slip", LAUNCHER_SLIPS)
def test_slips_in_launcher_files_are_caught(slip: str, name: str) -> None:
    assert schemas.launcher_errors(changed(load(name), LAUNCHER_SLIPS[slip]))


NODE = "available_node_types.gpu-spot.node_config"
NODE_SLIPS = {
    "aws: misspelt key": (LAUNCHER[0], put(f"{NODE}.InstanceTyp", "g6.2xlarge")),
    "aws: text for a number": (
        LAUNCHER[0],
        put(f"{NODE}.BlockDeviceMappings.0.Ebs.VolumeSize", "x"),
    ),
    "aws: misspelt spot": (LAUNCHER[0], put(f"{NODE}.InstanceMarketOptions", {"Market": "spot"})),
    "gcp: misspelt key": (LAUNCHER[1], put(f"{NODE}.machine_type", "g2")),
    "gcp: unknown model": (LAUNCHER[1], put(f"{NODE}.scheduling.provisioningModel", "CHEAP")),
    "gcp: list for a map": (LAUNCHER[1], put(f"{NODE}.scheduling", [{"preemptible": True}])),
    "gcp: unknown disk": (LAUNCHER[1], put(f"{NODE}.disks.0.type", "FLOPPY")),
}


@pytest.mark.parametrize("slip", NODE_SLIPS)
def test_slips_in_node_types_are_caught_by_the_clouds_own_model(slip: str) -> None:
    name, change = NODE_SLIPS[slip]
    assert node_errors(changed(load(name), change))


LAUNCHER_RULE_SLIPS = {
    "no authentication": put("worker_start_ray_commands", ["ray start --address=x"]),
    "no authentication of the head": lambda c: c.update(
        head_start_ray_commands=["ray start --head --dashboard-host=127.0.0.1"]
    ),
    "dashboard for everyone": lambda c: c.update(
        head_start_ray_commands=["RAY_AUTH_MODE=token ray start --head --dashboard-host=0.0.0.0"]
    ),
    "dashboard by default": lambda c: c.update(
        head_start_ray_commands=["RAY_AUTH_MODE=token ray start --head"]
    ),
    "nodes without the token": put("file_mounts", {}),
    "tag for a digest": put("docker.image", "sdclr:latest"),
    "packages from the network": put("setup_commands", ["pip install boto3"]),
    "capabilities": put("docker.run_options", ["--shm-size=16g"]),
    "no limit": put("available_node_types.data.max_workers", None),
}


@pytest.mark.promise("S6", control=True)
@pytest.mark.parametrize("name", LAUNCHER)
@pytest.mark.parametrize("slip", LAUNCHER_RULE_SLIPS)
def test_slips_in_launcher_files_break_a_rule(slip: str, name: str) -> None:
    assert policy.launcher_breaches(changed(load(name), LAUNCHER_RULE_SLIPS[slip]))


CLOUD_RULE_SLIPS = {
    "aws: ssh for everyone": (
        LAUNCHER[0], put("provider.security_group.IpPermissions.0.IpRanges.0.CidrIp", "0.0.0.0/0"),
    ),
    "aws: default security group": (LAUNCHER[0], put("provider.security_group", None)),
    "aws: dashboard port": (
        LAUNCHER[0], put("provider.security_group.IpPermissions.0.ToPort", 8265),
    ),
    "aws: plain disk": (LAUNCHER[0], put(f"{NODE}.BlockDeviceMappings.0.Ebs.Encrypted", False)),
    "aws: old metadata service": (LAUNCHER[0], put(f"{NODE}.MetadataOptions", None)),
    "aws: no role": (LAUNCHER[0], put(f"{NODE}.IamInstanceProfile", None)),
    "aws: GPU on demand": (LAUNCHER[0], put(f"{NODE}.InstanceMarketOptions", None)),
    "gcp: GPU on demand": (LAUNCHER[1], put(f"{NODE}.scheduling.provisioningModel", "STANDARD")),
    "gcp: no account": (LAUNCHER[1], put(f"{NODE}.serviceAccounts", None)),
}  # fmt: skip


@pytest.mark.promise("S6", control=True)
@pytest.mark.parametrize("slip", CLOUD_RULE_SLIPS)
def test_slips_in_node_types_break_a_rule(slip: str) -> None:
    name, change = CLOUD_RULE_SLIPS[slip]
    assert policy.launcher_breaches(changed(load(name), change))


@pytest.mark.promise("S6")
def test_the_compose_file_keeps_the_rules() -> None:
    assert policy.compose_breaches(load("compose.yaml")) == []


COMPOSE_SLIPS = {
    "open port": put("services.head.ports.0", "8265:8265"),
    "tag for a digest": put("services.grafana.image", "grafana/grafana:latest"),
    "capabilities": put("services.s3.cap_drop", None),
    "privileges": put("services.head.security_opt", None),
    "host's network": put("services.worker.network_mode", "host"),
    "no limit": put("services.worker.mem_limit", None),
    "a secret in clear": put("services.s3.environment.ROOT_SECRET_KEY", "minioadmin"),
    "a secret that may be empty": put(
        "services.head.environment.RAY_AUTH_TOKEN", "${RAY_AUTH_TOKEN}"
    ),
    "no authentication": put("services.worker.environment.RAY_AUTH_MODE", "disabled"),
    "listens on every address": put(
        "services.head.command", "ray start --head --dashboard-host=0.0.0.0"
    ),
}


@pytest.mark.promise("S6", control=True)
@pytest.mark.parametrize("slip", COMPOSE_SLIPS)
def test_slips_in_the_compose_file_break_a_rule(slip: str) -> None:
    assert policy.compose_breaches(changed(load("compose.yaml"), COMPOSE_SLIPS[slip]))


def test_what_the_compose_file_mounts_exists() -> None:
    for service in load("compose.yaml")["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (INFRA / source).is_dir(), source


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is absent")
def test_compose_itself_accepts_the_file() -> None:
    names = ("RAY_AUTH_TOKEN", "S3_ACCESS_KEY", "S3_SECRET_KEY", "GRAFANA_PASSWORD")
    command = ["docker-compose", "-f", str(INFRA / "compose.yaml"), "config", "--quiet"]
    environment = dict.fromkeys(names, "x") | {"PATH": "/usr/bin:/bin"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    without = subprocess.run(command, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert without.returncode != 0 and "set a" in without.stderr


def findings(name: str, document: Document) -> list[str]:
    """Everything that any check says of a file; a check that breaks on it has found something."""
    if name in KUBERAY:
        assert CRDS is not None
        checks = [functools.partial(schemas.kuberay_errors, CRDS), policy.kuberay_breaches]
    elif name in LAUNCHER:
        checks = [schemas.launcher_errors, node_errors, policy.launcher_breaches]
    else:
        checks = [policy.compose_breaches]
    try:
        return [finding for check in checks for finding in check(document)]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        return [repr(error)]


# Names of our own, and templates of YAML, which are copied to where they are used.
FREE = re.compile(r"\.(x-.*|available_node_types\.(gpu-spot|data))")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [*(pytest.param(name, marks=needs_crds) for name in KUBERAY), *LAUNCHER, "compose.yaml"],
)
def test_every_misspelt_key_is_caught(name: str) -> None:
    document: Document = yaml.safe_load(_dump(load(name)))
    assert findings(name, document) == []
    passed = []
    for path, node in list(policy.walk(document)):
        for key in list(node) if isinstance(node, dict) else ():
            if not FREE.fullmatch(f"{path}.{key}"):
                node[f"{key}x"] = node.pop(key)
                if not findings(name, document):
                    passed.append(f"{path}.{key}")
                node[key] = node.pop(f"{key}x")
    assert passed == []


DOCKERFILE = (INFRA / "Dockerfile").read_text()


@pytest.mark.promise("S6")
def test_the_dockerfile_keeps_the_rules() -> None:
    assert policy.dockerfile_breaches(DOCKERFILE) == []


@pytest.mark.promise("S6", control=True)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (r"@sha256:\w+", ""),
        (r"USER 1000", "USER root"),
        (r"USER 1000\n", ""),
        (r"USER 1000", "USER ray"),
        (r"--require-hashes", ""),
        (r"--only-binary :all:", ""),
        (r"(ENV) ", r"\1 AWS_SECRET_ACCESS_KEY=x "),
        (r"(WORKDIR)", r"ARG TOKEN\n\1"),
        (r"COPY pipeline pipeline", "COPY . ."),
        (r"COPY pipeline", "ADD pipeline"),
        (r"(RUN apt-get)", r"RUN curl https://example.com | sh\n\1"),
    ],
)
def test_slips_in_the_dockerfile_break_a_rule(old: str, new: str) -> None:
    slipped, count = re.subn(old, new, DOCKERFILE, count=1)
    assert count == 1
    assert policy.dockerfile_breaches(slipped)


def test_a_stopped_job_has_time_for_the_last_checkpoint_of_a_run() -> None:
    (wait_s,) = re.findall(r"\bRAY_JOB_STOP_WAIT_TIME_S=(\d+)$", DOCKERFILE, re.MULTILINE)
    assert int(wait_s) >= 2 * load_config(None, ()).train.stop_grace_s


def test_what_the_dockerfile_copies_exists_and_is_let_through() -> None:
    sources = re.findall(r"^COPY (\S+)", DOCKERFILE, re.MULTILINE)
    ignore = (INFRA / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignore[0] == "*"
    for source in sources:
        assert (INFRA.parent / source).exists() and f"!{source}" in ignore, source


LOCK_LINE = re.compile(r"([a-z0-9-]+)==(\S+) --hash=sha256:[0-9a-f]{64}")


def lock_errors(lock: str, requirements: str) -> list[str]:
    found = []
    locked = {}
    for line in lock.splitlines():
        match = LOCK_LINE.fullmatch(line)
        if match:
            locked[match.group(1)] = match.group(2)
        elif not line.startswith("#"):
            found.append(f"no version and hash: {line}")
    for name, version in re.findall(r"^([\w-]+)(?:\[[\w,]+\])?==(\S+)", requirements, re.MULTILINE):
        if locked.get(name.lower()) != version:
            found.append(f"{name}: {version} is required, the lock has {locked.get(name.lower())}")
    return found


@pytest.mark.promise("S6")
def test_the_lock_holds_every_requirement_by_hash() -> None:
    lock = (INFRA / "requirements.lock").read_text()
    requirements = (INFRA.parent / "requirements.txt").read_text()
    assert lock_errors(lock, requirements) == [], "run python infra/lock.py"
    assert lock_errors(lock.replace("ray==2", "ray==3"), requirements)
    assert lock_errors(re.sub(r" --hash=\S+", "", lock, count=1), requirements)
    assert lock_errors(lock, requirements + "newcomer==1.0  # someone\n")


def test_the_lock_is_made_of_pips_report_and_refuses_local_files() -> None:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("lock", INFRA / "lock.py")
    assert spec is not None and spec.loader is not None
    lock = module_from_spec(spec)
    spec.loader.exec_module(lock)
    info = {"url": "https://host/b.whl", "archive_info": {"hashes": {"sha256": "a" * 64}}}
    report = {
        "install": [
            {"metadata": {"name": "B_b", "version": "2"}, "download_info": copy.deepcopy(info)},
            {"metadata": {"name": "a", "version": "1"}, "download_info": copy.deepcopy(info)},
        ]
    }
    lines = lock.locked(report).splitlines()
    assert lines[1:] == [f"a==1 --hash=sha256:{'a' * 64}", f"b-b==2 --hash=sha256:{'a' * 64}"]
    report["install"][0]["download_info"]["url"] = "file:///wheels/b.whl"
    with pytest.raises(ValueError, match="B_b comes from a local file"):
        lock.locked(report)
