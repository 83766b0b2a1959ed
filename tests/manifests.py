"""The files of infra/, and small changes to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import manifest_schemas as schemas

INFRA = Path(__file__).resolve().parents[1] / "infra"
CRDS = schemas.crd_folder()
needs_crds = pytest.mark.skipif(
    CRDS is None, reason="KubeRay's CRDs are absent: set SDCLR_KUBERAY_CRDS to their folder"
)
KUBERAY = ("kuberay/rayjob.yaml", "kuberay/raycluster.yaml")
LAUNCHER = ("ray-up/aws.yaml", "ray-up/gcp.yaml")
Document = dict[str, Any]
Change = Callable[[Document], Any]


def load(name: str) -> Document:
    """A file of infra/."""
    document: Document = yaml.safe_load((INFRA / name).read_text())
    return document


def changed(document: Document, change: Change) -> Document:
    """A copy with one change."""
    # YAML anchors give shared nodes: a copy through text changes one place only.
    own: Document = yaml.safe_load(plain_text(document))
    change(own)
    return own


def plain_text(document: Document) -> str:
    """As YAML without anchors."""

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
