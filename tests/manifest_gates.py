"""Fields of KubeRay behind a feature gate, and what the operator's code refuses beyond schemas."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.manifest_policy import cluster_spec

VERSIONS = ("1.6", "1.7")
"""The versions of KubeRay that docs/kuberay.md names."""


@dataclass(frozen=True)
class Gate:
    """A feature gate, the fields behind it, and the versions that have it off by default.

    Of `ray-operator/pkg/features/features.go` (which gates, since when, on or off) and
    `ray-operator/controllers/ray/utils/validation.go` (which field asks for which gate), as of
    feeaf72fa, 2026-08-19. A version without the gate drops the field, so it counts as off.
    """

    name: str
    off_in: tuple[str, ...]
    in_use: Callable[[dict[str, Any]], bool]


def _cluster_field(name: str) -> Callable[[dict[str, Any]], bool]:
    return lambda document: name in cluster_spec(document)


def _gcs(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = cluster_spec(document).get("gcsFaultToleranceOptions", {})
    return found


GATES = (
    # Alpha since 1.7.
    Gate("RayClusterNetworkPolicy", ("1.6", "1.7"), _cluster_field("networkPolicy")),
    Gate("RayClusterMTLS", ("1.6", "1.7"), _cluster_field("tlsOptions")),
    Gate("RayClusterHistoryServer", ("1.6", "1.7"), _cluster_field("historyServerOptions")),
    Gate(
        "GCSFaultToleranceEmbeddedStorage",
        ("1.6", "1.7"),
        lambda d: _gcs(d).get("backend") == "rocksdb" or "storage" in _gcs(d),
    ),
    # Alpha since 1.6.
    Gate("RayCronJob", ("1.6", "1.7"), lambda d: d["kind"] == "RayCronJob"),
    # Beta since 1.6, so on: here to be turned off when a page names an older version.
    Gate("RayJobDeletionPolicy", ("1.5",), lambda d: "deletionStrategy" in d["spec"]),
    Gate(
        "RayMultiHostIndexing",
        ("1.5",),
        lambda d: any(g.get("numOfHosts", 1) > 1 for g in cluster_spec(d)["workerGroupSpecs"]),
    ),
)


def gated(document: dict[str, Any], versions: tuple[str, ...] = VERSIONS) -> list[str]:
    """Gates that a manifest needs and that one of the versions has off by default."""
    return [g.name for g in GATES if g.in_use(document) and set(g.off_in) & set(versions)]


_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")
_ENDS = ("Failed", "SUCCEEDED")


def deletion_breaches(job: dict[str, Any]) -> list[str]:
    """What is wrong with how a RayJob's cluster goes away, by the operator's code or by us."""
    rules = job.get("deletionStrategy", {}).get("deletionRules", [])
    if not rules:
        return _switch_breaches(job)
    found = []
    if job.get("shutdownAfterJobFinishes") or "ttlSecondsAfterFinished" in job:
        found.append("deletion rules exclude shutdownAfterJobFinishes and its wait")
    if {"onSuccess", "onFailure"} & job["deletionStrategy"].keys():
        found.append("deletion rules exclude the older policies")
    if job["rayClusterSpec"].get("enableInTreeAutoscaling") and any(
        rule["policy"] == "DeleteWorkers" for rule in rules
    ):
        found.append("DeleteWorkers is refused where the autoscaler is on")
    waits: dict[tuple[str, str], int] = {}
    for rule in rules:
        condition = rule["condition"]
        ends = [condition[key] for key in ("jobStatus", "jobDeploymentStatus") if key in condition]
        if len(ends) != 1:
            found.append(f"a rule needs one end, not {ends}")
            continue
        if (ends[0], rule["policy"]) in waits:
            found.append(f"two rules for {rule['policy']} after {ends[0]}")
        waits[ends[0], rule["policy"]] = condition.get("ttlSeconds", 0)
    for end in _ENDS:
        # A missed deadline leaves jobStatus as it was: a rule for FAILED would keep the cluster.
        if (end, "DeleteCluster") not in waits and (end, "DeleteSelf") not in waits:
            found.append(f"the cluster stays after {end}")
        found += list(_out_of_order(end, waits))
    return found


def _out_of_order(end: str, waits: dict[tuple[str, str], int]) -> Iterator[str]:
    times = [waits[end, policy] for policy in _ORDER if (end, policy) in waits]
    if times != sorted(times):
        yield f"after {end} something goes before what is in it"


def _switch_breaches(job: dict[str, Any]) -> list[str]:
    found = []
    if job.get("shutdownAfterJobFinishes") is not True:
        found.append("the cluster stays")
    if not job.get("ttlSecondsAfterFinished"):
        found.append("no wait before the cluster goes")
    return found
