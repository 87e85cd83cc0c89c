"""The installed packages that endofm-lab needs, as a software bill of materials in CycloneDX format (ECMA-424)."""

import importlib.metadata
import re
from collections import deque
from typing import Any

from packaging.requirements import Requirement


def bill_of_materials() -> dict[str, Any]:
    """Name, version, licence and package URL of every installed package that endofm-lab needs directly or indirectly.

    Packages of extras are listed if they are installed. The network is not used.
    """
    packages: dict[str, importlib.metadata.Distribution] = {}
    waiting = deque(["endofm-lab"])
    while waiting:
        name = _canonical(waiting.popleft())
        if name in packages:
            continue
        try:
            packages[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # needed on another platform, or by an extra that is not installed
        waiting.extend(Requirement(line).name for line in packages[name].requires or ())
    project = packages.pop("endofm-lab", None)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {"type": "application", "name": "endofm-lab", "version": project.version if project else ""}
        },
        "components": [_component(name, packages[name]) for name in sorted(packages)],
    }


def _component(name: str, package: importlib.metadata.Distribution) -> dict[str, Any]:
    facts = package.metadata.json
    licence = str(facts.get("license_expression") or facts.get("license") or "")
    component = {
        "type": "library",
        "name": name,
        "version": package.version,
        "purl": f"pkg:pypi/{name}@{package.version}",
    }
    # Some packages put the whole text of their licence into this field; it is left out.
    return component | ({"licenses": [{"license": {"name": licence}}]} if licence and len(licence) < 80 else {})


def _canonical(name: str) -> str:
    """The normalised name of a package (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
