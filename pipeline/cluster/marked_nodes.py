"""Nodes that a key of `placement` names: by a label of Ray, or by a custom resource.

`ray.io/market-type=spot` names the nodes that have this label; KubeRay and the cluster launcher set
Ray's own labels. `train` names the nodes that were started with --resources='{"train": 1}', for
clusters whose nodes have no labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from pipeline.errors import ClusterError

_SHARE_OF_RESOURCE = 0.001
_BUILT_IN = ("CPU", "GPU", "TPU", "memory", "object_store_memory", "node:", "accelerator_type:")
_OF_ONE_NODE = "ray.io/node-id"


class NodeOptions(TypedDict, total=False):
    """Options of Ray, alike for tasks, actors and datasets."""

    resources: dict[str, float]
    label_selector: dict[str, str]


def on_nodes(mark: str | None) -> NodeOptions:
    """Return the options with which Ray runs work on marked nodes only; none without a mark.

    The share of a resource is so small that a node started with 1 of it never runs out.
    """
    if mark is None:
        return {}
    key, has_value, value = mark.partition("=")
    if has_value:
        return {"label_selector": {key: value}}
    return {"resources": {mark: _SHARE_OF_RESOURCE}}


def resources_on(mark: str | None) -> dict[str, float]:
    """Return the part of `on_nodes` that is a resource, for what counts resources."""
    return on_nodes(mark).get("resources", {})


def labels_on(mark: str | None) -> dict[str, str]:
    """Return the part of `on_nodes` that is a label."""
    return on_nodes(mark).get("label_selector", {})


def marks_of(node: Mapping[str, Any]) -> frozenset[str]:
    """Return the marks of a node as `ray.nodes` describes it."""
    labels = (f"{k}={v}" for k, v in node.get("Labels", {}).items() if k != _OF_ONE_NODE)
    resources = (name for name in node["Resources"] if not name.startswith(_BUILT_IN))
    return frozenset((*labels, *resources))


def own_node(mark: str | None, *, num_ranks: int) -> str | None:
    """Return the id of this node if its ranks' tasks can run here, else None.

    A task that is bound to a node waits there for ever, so a CPU must be left beside one for each
    rank.

    Args:
        mark: of the nodes for the tasks; None = any node.
        num_ranks: training workers on this node.
    """
    import ray

    here = ray.get_runtime_context().get_node_id()
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    for node in (n for n in nodes if n["NodeID"] == here):
        is_marked = mark is None or mark in marks_of(node)
        if is_marked and node["Resources"].get("CPU", 0) > num_ranks:
            return str(here)
    return None


def check_placement(there: frozenset[str], *marks: str | None) -> None:
    """Refuse marks that no node has: what asks for them would wait for ever.

    Args:
        there: marks of all nodes of the cluster.
        marks: those that are asked for.

    Raises:
        ClusterError: naming the mark and those that there are.
    """
    for mark in marks:
        if mark is None or mark in there:
            continue
        offered = ", ".join(sorted(there)) or "none"
        kind, option = (
            ("label", f"--labels={mark}")
            if labels_on(mark)
            else ("resource", f"--resources='{{\"{mark}\": 1}}'")
        )
        raise ClusterError(
            "E-CLUSTER-003",
            f"no node of the cluster has the {kind} {mark!r}; there are: {offered}",
            where="placement",
            todo=f"start nodes with {option}, set placement.wait_s if an autoscaler adds them, or "
            "set the key to null",
        )
