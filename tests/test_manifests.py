"""Every key of every file of infra/, misspelt, is caught by some check."""

from __future__ import annotations

import functools
import re

import pytest
import yaml

from tests import manifest_gates as gates
from tests import manifest_policy as policy
from tests import manifest_schemas as schemas
from tests.manifests import CRDS, KUBERAY, LAUNCHER, Document, load, needs_crds, plain_text
from tests.test_launcher import node_errors


def findings(name: str, document: Document) -> list[str]:
    """Everything that any check says of a file; a check that breaks on it has found something."""
    if name in KUBERAY:
        assert CRDS is not None
        checks = [functools.partial(schemas.kuberay_errors, CRDS), policy.kuberay_breaches]
        if name == KUBERAY[0]:
            checks.append(lambda job: gates.deletion_breaches(job["spec"]))
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
    document: Document = yaml.safe_load(plain_text(load(name)))
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
