"""The image, its lock and the compose file keep the rules of security, and no slip passes."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess

import pytest

from pipeline.config.file import load_config
from tests import manifest_policy as policy
from tests.manifests import INFRA, changed, load, put


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


def test_the_image_has_the_compiler_that_torch_compile_calls() -> None:
    installs = re.search(r"--no-install-recommends (.*?)\\\n", (INFRA / "Dockerfile").read_text())
    assert installs is not None
    assert {"gcc", "libc6-dev"} <= set(installs[1].split())
