"""infra/sbom.json, a CycloneDX list of the image's packages, from the lock: python infra/sbom.py.

It has no time and no random number: the same lock gives the same bytes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

INFRA = Path(__file__).resolve().parent
LOCK, SBOM = INFRA / "requirements.lock", INFRA / "sbom.json"
_PINNED = re.compile(r"([a-z0-9-]+)==(\S+) --hash=sha256:([0-9a-f]{64})")
_BASE = re.compile(r"^FROM (\S+?):(\S+?)@sha256:([0-9a-f]{64})", re.MULTILINE)


def made(lock: str, dockerfile: str) -> str:
    """Return the document for a lock and the base image of a Dockerfile.

    Raises:
        ValueError: a line of the lock is no pin with one hash, or the image has no digest.
    """
    base = _BASE.search(dockerfile)
    if base is None:
        raise ValueError("the base image has no digest")
    name, tag, digest = base.groups()
    components = [
        {
            "type": "container", "bom-ref": f"pkg:docker/{name}@{tag}", "name": name,
            "version": tag, "purl": f"pkg:docker/{name}@{tag}",
            "hashes": [{"alg": "SHA-256", "content": digest}],
        }
    ]  # fmt: skip
    for line in lock.splitlines():
        if line.startswith("#") or not line:
            continue
        found = _PINNED.fullmatch(line)
        if found is None:
            raise ValueError(f"no pin with one hash: {line}")
        package, version, digest = found.groups()
        purl = f"pkg:pypi/{package}@{version}"
        components.append(
            {
                "type": "library", "bom-ref": purl, "name": package, "version": version,
                "purl": purl, "hashes": [{"alg": "SHA-256", "content": digest}],
            }
        )  # fmt: skip
    content = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": "sdclr"}},
        "components": components,
    }
    return json.dumps(content, indent=1) + "\n"


if __name__ == "__main__":
    SBOM.write_text(made(LOCK.read_text(), (INFRA / "Dockerfile").read_text()))
