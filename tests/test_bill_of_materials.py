"""The bill of materials lists the installed packages, and the packages that they need."""

import importlib.metadata
import json

from endofm_lab.cli.main import main
from endofm_lab.folders.bill_of_materials import bill_of_materials


def test_every_direct_and_indirect_dependency_is_listed_with_its_version():
    bill = bill_of_materials()
    versions = {part["name"]: part["version"] for part in bill["components"]}
    for name in ("torch", "timm", "einops", "safetensors", "huggingface-hub"):
        assert versions[name] == importlib.metadata.version(name)
    assert "filelock" in versions, "needed by torch, not directly"
    assert "endofm-lab" not in versions
    assert bill["metadata"]["component"]["version"] == importlib.metadata.version("endofm-lab")


def test_doctor_writes_it_to_a_file(tmp_path):
    assert main(["doctor", "--sbom", str(tmp_path / "sbom.json")]) == 0
    bill = json.loads((tmp_path / "sbom.json").read_text())
    assert bill["bomFormat"] == "CycloneDX" and len(bill["components"]) > 50
