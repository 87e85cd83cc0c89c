"""For the app's tests: Streamlit looks through all installed packages once, not for every page."""

import functools

import pytest
from streamlit.components.v2 import manifest_scanner

from endofm_lab.files import cache_folder, read_json, write_json


@pytest.fixture(autouse=True, scope="session")
def packages_are_scanned_once():
    plain = manifest_scanner.scan_component_manifests
    manifest_scanner.scan_component_manifests = functools.cache(plain)
    yield
    manifest_scanner.scan_component_manifests = plain


def typed_before(path: object) -> str:
    """A path that an address may give without a question, because it was typed in this app: ENDOFM_LAB_CACHE is set."""
    file = cache_folder("app") / "typed.json"
    write_json(file, [*(read_json(file) if file.is_file() else []), str(path)])
    return str(path)
