"""What a NetworkPolicy lets through, read as Kubernetes reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Pod:
    """A pod by its labels and its namespace; `ours` is the namespace of the policy."""

    labels: dict[str, str] = field(default_factory=dict)
    namespace: str = "ours"


POLICY_KEYS = {"podSelector", "policyTypes", "ingress"}


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Say whether a selector of labels matches; one that is empty matches all."""
    if not selector.keys() <= {"matchLabels"}:
        raise ValueError(f"selector with {sorted(selector)}")
    return selector.get("matchLabels", {}).items() <= labels.items()


def _is_peer(peer: dict[str, Any], source: Pod) -> bool:
    if not peer.keys() <= {"podSelector", "namespaceSelector"} or not peer:
        raise ValueError(f"peer with {sorted(peer)}")
    # Kubernetes labels every namespace with its own name.
    namespace = {"kubernetes.io/metadata.name": source.namespace}
    if "namespaceSelector" in peer:
        if not _selects(peer["namespaceSelector"], namespace):
            return False
    elif source.namespace != "ours":
        return False
    return _selects(peer.get("podSelector", {}), source.labels)


def lets_through(policies: list[dict[str, Any]], target: Pod, source: Pod, port: int) -> bool:
    """Say whether the policies of a namespace let a pod reach a TCP port of another."""
    applied = [
        policy["spec"]
        for policy in policies
        if _selects(policy["spec"]["podSelector"], target.labels)
        and "Ingress" in policy["spec"]["policyTypes"]
    ]
    if not applied:
        return True
    for spec in applied:
        if not spec.keys() <= POLICY_KEYS:
            raise ValueError(f"policy with {sorted(spec)}")
        for rule in spec.get("ingress", ()):
            if not rule.keys() <= {"from", "ports"}:
                raise ValueError(f"rule with {sorted(rule)}")
            is_from = "from" not in rule or any(_is_peer(peer, source) for peer in rule["from"])
            to_port = "ports" not in rule or any(
                entry["port"] == port and entry["protocol"] == "TCP" for entry in rule["ports"]
            )
            if is_from and to_port:
                return True
    return False
