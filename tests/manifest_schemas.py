"""Offline validation of manifests against what their readers accept; each returns its findings."""

from __future__ import annotations

import copy
import functools
import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import yaml

REPO = Path(__file__).resolve().parents[1]


def crd_folder() -> Path | None:
    """The CustomResourceDefinitions of KubeRay: SDCLR_KUBERAY_CRDS, or ../shared/kuberay."""
    places = [os.environ.get("SDCLR_KUBERAY_CRDS"), str(REPO.parent / "shared" / "kuberay")]
    for place in places:
        if place and (Path(place) / "ray.io_rayjobs.yaml").is_file():
            return Path(place)
    return None


def _strict(node: Any) -> Any:
    """An OpenAPI schema as JSON schema that refuses unknown keys as well."""
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    found = {key: _strict(value) for key, value in node.items()}
    properties = found.get("properties")
    if isinstance(properties, dict):
        if not found.get("x-kubernetes-preserve-unknown-fields"):
            found["additionalProperties"] = False
        # The API server fills in defaults before it looks for what is missing.
        with_default = {k for k, v in properties.items() if isinstance(v, dict) and "default" in v}
        found["required"] = [k for k in found.get("required", []) if k not in with_default]
    if found.pop("x-kubernetes-int-or-string", False):
        found.pop("type", None)
        found["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    return found


@functools.cache
def _kuberay_validator(folder: Path, plural: str) -> Any:
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    crd = yaml.load((folder / f"ray.io_{plural}.yaml").read_text(), loader)
    (version,) = (v for v in crd["spec"]["versions"] if v["name"] == "v1")
    schema = _strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft7Validator(schema)


def kuberay_errors(folder: Path, document: dict[str, Any]) -> list[str]:
    """What the API server would refuse of a RayJob or RayCluster, but for CEL rules."""
    plural = {"RayJob": "rayjobs", "RayCluster": "rayclusters"}[document["kind"]]
    validator = _kuberay_validator(folder, plural)
    return [f"{e.json_path}: {e.message[:200]}" for e in validator.iter_errors(document)]


def launcher_errors(config: dict[str, Any]) -> list[str]:
    """What `ray up` would refuse before it calls the cloud."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except Exception as error:  # Ray raises several kinds, a bare KeyError among them
        return [f"{type(error).__name__}: {error}"[:300]]
    return []


@functools.cache
def _run_instances_shape() -> Any:
    import botocore.session

    model = botocore.session.get_session().get_service_model("ec2")
    return model.operation_model("RunInstances").input_shape


def ec2_errors(config: dict[str, Any]) -> list[str]:
    """Node types that are no valid call of RunInstances, by botocore's own model of EC2."""
    from botocore.validate import ParamValidator

    shape = _run_instances_shape()
    found = []
    for name, node_type in config["available_node_types"].items():
        call = node_type["node_config"] | {"MinCount": 1, "MaxCount": 1}
        report = ParamValidator().validate(call, shape)
        if report.has_errors():
            found.append(f"{name}: {report.generate_report()}")
    return found


@functools.cache
def _compute_schemas() -> dict[str, Any]:
    from googleapiclient import discovery_cache

    folder = Path(str(discovery_cache.__file__)).parent / "documents"
    schemas: dict[str, Any] = json.loads((folder / "compute.v1.json").read_text())["schemas"]
    return schemas


def compute_errors(config: dict[str, Any]) -> list[str]:
    """Node types that are no valid Instance, by Google's description of the Compute API."""
    return [
        f"{name}: {error}"
        for name, node_type in config["available_node_types"].items()
        for error in _discovery_errors(
            node_type["node_config"], {"$ref": "Instance"}, "node_config"
        )
    ]


def _discovery_errors(value: Any, schema: dict[str, Any], path: str) -> list[str]:
    if "$ref" in schema:
        schema = _compute_schemas()[schema["$ref"]]
    python_type: Any = {
        "object": dict, "array": list, "boolean": bool, "integer": int, "number": (int, float),
    }.get(schema["type"], str)  # fmt: skip
    if schema.get("format") in ("int64", "uint64"):
        python_type = (int, str)
    if not isinstance(value, python_type):
        return [f"{path}: {value!r} is not of type {schema['type']}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{path}: {value!r} is none of {', '.join(schema['enum'])}"]
    if isinstance(value, list):
        parts = [(f"{path}[{i}]", item, schema["items"]) for i, item in enumerate(value)]
        return [e for place, item, part in parts for e in _discovery_errors(item, part, place)]
    if isinstance(value, dict) and "properties" in schema:
        unknown = [f"{path}: unknown key {key}" for key in value if key not in schema["properties"]]
        known = {k: v for k, v in value.items() if k in schema["properties"]}
        return unknown + [
            error
            for key, item in known.items()
            for error in _discovery_errors(item, schema["properties"][key], f"{path}.{key}")
        ]
    return []
