"""infra/ray-up: what `ray up` and the clouds accept and the rules of security; no slip passes."""

from __future__ import annotations

import pytest

from tests import manifest_policy as policy
from tests import manifest_schemas as schemas
from tests.manifests import LAUNCHER, Document, changed, load, put


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
