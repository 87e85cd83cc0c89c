"""Fixtures of the app's tests: Streamlit scans the installed packages once, instead of for every page."""

import functools

import pytest
from streamlit.components.v2 import manifest_scanner


@pytest.fixture(autouse=True, scope="session")
def packages_are_scanned_once():
    plain = manifest_scanner.scan_component_manifests
    manifest_scanner.scan_component_manifests = functools.cache(plain)
    yield
    manifest_scanner.scan_component_manifests = plain
