"""Rules of security for what runs in a cluster, beyond any schema; functions return breaches."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

IMAGE = re.compile(r"\S+@sha256:[0-9a-f]{64}")
GPU = "nvidia.com/gpu"
_SECRET_NAME = re.compile(r"(secret|token|password|access_key)", re.IGNORECASE)


def walk(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every (path, value) of a document, parents first."""
    yield path, node
    items = node.items() if isinstance(node, dict) else ()
    items = enumerate(node) if isinstance(node, list) else items
    for key, value in items:
        yield from walk(value, f"{path}.{key}")


def _pods(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, node in walk(document):
        if isinstance(node, dict) and "containers" in node:
            yield path, node


def cluster_spec(document: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = document["spec"]
    return spec["rayClusterSpec"] if document["kind"] == "RayJob" else spec


Rule = Callable[[dict[str, Any]], Any]
_DEADLINES = ("activeDeadlineSeconds", "preRunningDeadlineSeconds")


def _pod(group: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = group["template"]["spec"]
    return spec


def _market(group: dict[str, Any]) -> Any:
    return _pod(group).get("nodeSelector", {}).get("sdclr/market")


CLUSTER_RULES: dict[str, Rule] = {
    "token authentication is on": lambda c: c.get("authOptions", {}).get("mode") == "token",
    "the head is hidden": lambda c: c["headGroupSpec"].get("serviceType") == "ClusterIP",
    "the head has no ingress": lambda c: not c["headGroupSpec"].get("enableIngress"),
    "no work on the head": lambda c: c["headGroupSpec"]["rayStartParams"].get("num-cpus") == "0",
    "the head is on demand": lambda c: _market(c["headGroupSpec"]) == "on-demand",
    "some workers are on spot": lambda c: "spot" in map(_market, c["workerGroupSpecs"]),
    "workers cannot call the API server": lambda c: all(
        _pod(g).get("automountServiceAccountToken") is False for g in c["workerGroupSpecs"]
    ),
    "every group is on demand or on spot": lambda c: all(
        _market(g) in ("on-demand", "spot") for g in (c["headGroupSpec"], *c["workerGroupSpecs"])
    ),
    "Ray knows the GPUs of a pod": lambda c: all(
        g["rayStartParams"].get("num-gpus")
        == _pod(g)["containers"][0]["resources"]["limits"].get(GPU)
        for g in c["workerGroupSpecs"]
    ),
    "workers say which work they are for": lambda c: all(
        set(json.loads(json.loads(g["rayStartParams"].get("resources", '"{}"'))))
        & {"train", "data"}
        for g in c["workerGroupSpecs"]
    ),
    "Ray's own label of the market is that of the nodes": lambda c: all(
        g.get("labels", {}).get("ray.io/market-type") == _market(g)
        for g in (c["headGroupSpec"], *c["workerGroupSpecs"])
    ),
    "GPU nodes are labelled by their GPU": lambda c: all(
        ("num-gpus" in g["rayStartParams"]) == ("ray.io/accelerator-type" in g["labels"])
        for g in c["workerGroupSpecs"]
    ),
    "replicas are within their limits": lambda c: all(
        g.get("minReplicas", 0) <= g["replicas"] <= g.get("maxReplicas", 0)
        for g in c["workerGroupSpecs"]
    ),
}
JOB_RULES: dict[str, Rule] = {
    "every wait has a deadline": lambda j: all(j.get(key) for key in _DEADLINES),
    "the network policy knows the submitter": lambda j: (
        j["submitterPodTemplate"].get("metadata", {}).get("labels") == {"sdclr/role": "submitter"}
    ),
    "nothing is installed at the start": lambda j: "pip" not in j.get("runtimeEnvYAML", ""),
}
POD_RULES: dict[str, Rule] = {
    "not root": lambda p: (
        _security(p).get("runAsNonRoot") is True and _security(p).get("runAsUser", 0) > 0
    ),
    "a seccomp profile": lambda p: (
        _security(p).get("seccompProfile", {}).get("type") == "RuntimeDefault"
    ),
    "apart from the host": lambda p: (
        not any(p.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
        and not any("hostPath" in volume for volume in p.get("volumes", ()))
    ),
    "folders in memory and on disk have limits": lambda p: all(
        volume["emptyDir"].get("sizeLimit")
        for volume in p.get("volumes", ())
        if "emptyDir" in volume
    ),
}
CONTAINER_RULES: dict[str, Rule] = {
    "no new privileges": lambda c: (
        _security(c).get("allowPrivilegeEscalation") is False and not _security(c).get("privileged")
    ),
    "no capabilities": lambda c: _security(c).get("capabilities", {}).get("drop") == ["ALL"],
    "the image is not written": lambda c: _security(c).get("readOnlyRootFilesystem") is True,
    "cpu and memory have limits": lambda c: (
        {"cpu", "memory"} <= c.get("resources", {}).get("limits", {}).keys()
    ),
    "the image is pinned": lambda c: IMAGE.fullmatch(c["image"]),
    "no secret is written out": lambda c: (
        not any(
            _SECRET_NAME.search(variable["name"]) and "value" in variable
            for variable in c.get("env", ())
        )
    ),
}


def _security(node: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = node.get("securityContext", {})
    return found


def _broken(rules: dict[str, Rule], node: dict[str, Any], where: str) -> list[str]:
    return [f"{where}: not so: {name}" for name, holds in rules.items() if not holds(node)]


def kuberay_breaches(document: dict[str, Any]) -> list[str]:
    """Of a RayJob or RayCluster."""
    found = _broken(CLUSTER_RULES, cluster_spec(document), "cluster")
    if not document["metadata"].get("name"):
        found.append("it has no name")
    if document["kind"] == "RayJob":
        found += _broken(JOB_RULES, document["spec"], "job")
    return found + pod_breaches(document)


def pod_breaches(document: dict[str, Any]) -> list[str]:
    """Of the pods that any document holds, and of its text."""
    found = [
        f"{path}: no such resource: {name}"
        for path, kinds in walk(document)
        if path.endswith((".requests", ".limits")) and isinstance(kinds, dict)
        for name in kinds.keys() - {"cpu", "memory", GPU}
    ]
    for path, pod in _pods(document):
        found += _broken(POD_RULES, pod, path)
        for container in pod["containers"]:
            found += _broken(CONTAINER_RULES, container, f"{path}.{container['name']}")
    return found + text_breaches(document)


def text_breaches(document: Any) -> list[str]:
    """Addresses that listen to everyone, and secrets in clear, anywhere in a document."""
    found = []
    for path, node in walk(document):
        if not isinstance(node, str):
            continue
        if "0.0.0.0" in node:
            found.append(f"{path}: listens on every address")
        if re.search(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b|://[^/\s:]+:[^/\s@]+@", node):
            found.append(f"{path}: holds a credential")
    return found


PROVIDER_KEYS = {
    # Stopped instances of spot cannot be started again.
    "aws": ("region", "availability_zone", "cache_stopped_nodes"),
    "gcp": ("region", "availability_zone", "project_id"),
}


def launcher_breaches(config: dict[str, Any]) -> list[str]:
    """Of a cluster for `ray up`."""
    found = text_breaches(config)
    head, worker = (" ".join(config[f"{kind}_start_ray_commands"]) for kind in ("head", "worker"))
    if "--dashboard-host=127.0.0.1" not in head:
        found.append("the dashboard listens to others than its own node")
    for name, commands in (("head", head), ("worker", worker)):
        if "RAY_AUTH_MODE=token ray start" not in commands:
            found.append(f"{name}: token authentication is off")
    if not any(path.endswith(".ray/auth_token") for path in config.get("file_mounts", {})):
        found.append("the token does not reach the nodes")
    if not IMAGE.fullmatch(config["docker"]["image"]):
        found.append("the image is not pinned by digest")
    if not {"--cap-drop ALL", "--security-opt no-new-privileges"} <= {
        *config["docker"]["run_options"]
    }:
        found.append("the container keeps capabilities")
    if any(config[f"{kind}setup_commands"] for kind in ("", "head_", "worker_")):
        found.append("something is installed when a node starts")
    types = config["available_node_types"]
    provider = config["provider"]
    found += [
        f"{provider['type']} needs {key}"
        for key in PROVIDER_KEYS[provider["type"]]
        if key not in provider
    ]
    if types[config["head_node_type"]]["resources"].get("CPU") != 0:
        found.append("work would run on the head")
    found += [
        f"{name}: no such resource: {resource}"
        for name, kind in types.items()
        for resource in kind["resources"].keys() - {"CPU", "GPU", "train", "data"}
    ]
    found += [
        f"{name}: no limit of nodes"
        for name, kind in types.items()
        if name != config["head_node_type"] and "max_workers" not in kind
    ]
    is_aws = provider["type"] == "aws"
    return found + (_ec2_breaches(config) if is_aws else _compute_breaches(config))


def _ec2_breaches(config: dict[str, Any]) -> list[str]:
    found = []
    types = config["available_node_types"]
    for name, kind in types.items():
        node = kind["node_config"]
        if node.get("MetadataOptions", {}).get("HttpTokens") != "required":
            found.append(f"{name}: the instance's credentials can be read without a token")
        if "IamInstanceProfile" not in node:
            found.append(f"{name}: no role, keys would have to be written down")
        if not all(disk["Ebs"].get("Encrypted") for disk in node["BlockDeviceMappings"]):
            found.append(f"{name}: a disk is not encrypted")
        is_spot = node.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        if is_spot != ("GPU" in kind["resources"]):
            found.append(f"{name}: spot is for GPU workers")
    for rule in config["provider"].get("security_group", {}).get("IpPermissions", [{}]):
        if [rule.get(key) for key in ("IpProtocol", "FromPort", "ToPort")] != ["tcp", 22, 22]:
            found.append("a port besides ssh is open")
        for range_ in rule.get("IpRanges", [{"CidrIp": "0.0.0.0/0"}]):
            if ipaddress.ip_network(range_["CidrIp"]).prefixlen < 16:
                found.append("ssh is open to very many addresses")
    return found


def _compute_breaches(config: dict[str, Any]) -> list[str]:
    found = []
    for name, kind in config["available_node_types"].items():
        node = kind["node_config"]
        is_spot = node.get("scheduling", {}).get("provisioningModel") == "SPOT"
        if is_spot != ("GPU" in kind["resources"]):
            found.append(f"{name}: spot is for GPU workers")
        if not node.get("serviceAccounts"):
            found.append(f"{name}: no service account, keys would have to be written down")
    return found


# Of the Compose specification, what is used here.
SERVICE_KEYS = {
    "image", "build", "command", "environment", "restart", "cap_drop", "security_opt", "shm_size",
    "mem_limit", "cpus", "networks", "ports", "volumes", "depends_on",
}  # fmt: skip
_RAY_VARIABLES = {
    "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION",
}  # fmt: skip
# Services find each other by name; each with the variables that it cannot do without.
SERVICES = {
    "head": _RAY_VARIABLES,
    "worker": _RAY_VARIABLES,
    "s3": {"ROOT_ACCESS_KEY", "ROOT_SECRET_KEY"},
    "prometheus": set(),
    "grafana": {
        "GF_SECURITY_ADMIN_PASSWORD", "GF_ANALYTICS_REPORTING_ENABLED", "GF_USERS_ALLOW_SIGN_UP",
    },
}  # fmt: skip
SERVICE_RULES: dict[str, Rule] = {
    "every key is one of Compose": lambda s: (
        s.keys() <= SERVICE_KEYS and s.get("build", {}).keys() <= {"context", "dockerfile"}
    ),
    "the image is pinned": lambda s: "build" in s or IMAGE.fullmatch(s["image"]),
    "ports are for this machine only": lambda s: all(
        str(port).startswith("127.0.0.1:") for port in s.get("ports", ())
    ),
    "no capabilities": lambda s: s.get("cap_drop") == ["ALL"],
    "no new privileges": lambda s: "no-new-privileges:true" in s.get("security_opt", ()),
    "apart from the host": lambda s: not s.get("privileged") and s.get("network_mode") != "host",
    "cpu and memory have limits": lambda s: "mem_limit" in s and "cpus" in s,
    "secrets come from outside and are never empty": lambda s: all(
        re.fullmatch(r"\$\{\w+:\?[^}]+\}", str(value))
        for key, value in s.get("environment", {}).items()
        if _SECRET_NAME.search(key)
    ),
    "token authentication is on": lambda s: (
        "ray start" not in str(s.get("command", ""))
        or s.get("environment", {}).get("RAY_AUTH_MODE") == "token"
    ),
}


def compose_breaches(config: dict[str, Any]) -> list[str]:
    """Of a compose file."""
    found = text_breaches(config)
    top = {key for key in config if not key.startswith("x-")}
    if top != {"services", "networks", "volumes"}:
        found.append(f"the file has {sorted(top)}")
    services = config.get("services", {})
    if services.keys() != SERVICES.keys():
        found.append(f"the services are {sorted(services)}")
    for name, needed in SERVICES.items():
        missing = needed - services.get(name, {}).get("environment", {}).keys()
        if missing:
            found.append(f"{name}: without {sorted(missing)}")
    for name, service in services.items():
        found += _broken(SERVICE_RULES, service, name)
        if not set(service.get("networks", ())) <= config.get("networks", {}).keys():
            found.append(f"{name}: no such network")
        if not set(service.get("depends_on", ())) <= services.keys():
            found.append(f"{name}: no such service")
        named = {v.partition(":")[0] for v in service.get("volumes", ()) if v[0] not in "./"}
        if not named <= config.get("volumes", {}).keys():
            found.append(f"{name}: no such volume")
    return found


def dockerfile_breaches(text: str) -> list[str]:
    """Of a Dockerfile."""
    found = []
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    instructions = [line.split(None, 1) for line in lines if not line.startswith("#")]
    for word, rest in instructions:
        if word == "FROM" and not IMAGE.fullmatch(rest.split()[0]):
            found.append("the base is not pinned by digest")
        if word == "RUN" and re.search(r"\bpip3? install\b", rest):
            if not {"--require-hashes", "--only-binary"} <= set(rest.split()):
                found.append("packages are installed without hashes, or built from source")
        if word == "RUN" and re.search(r"\b(curl|wget)\b", rest):
            found.append("something is fetched that no hash holds")
        if word in ("ENV", "ARG") and _SECRET_NAME.search(rest.replace("RAY_AUTH_MODE=token", "")):
            found.append("a secret would stay in the image")
        if word == "ADD":
            found.append("ADD may fetch or unpack")
        if word == "COPY" and rest.split()[0] in (".", "./"):
            found.append("everything that lies in the folder would be in the image")
    users = [rest.split(":")[0] for word, rest in instructions if word == "USER"]
    if not users or users[-1] in ("root", "0"):
        found.append("it runs as root")
    if users and not users[-1].isdigit():
        found.append("runAsNonRoot needs the user's number")
    return found
