"""Fixtures of the app's tests: packages are scanned once, instead of for every page; pages run as they are served."""

import functools

import pytest
from streamlit import config
from streamlit.components.v2 import manifest_scanner


@pytest.fixture(autouse=True, scope="session")
def packages_are_scanned_once():
    plain = manifest_scanner.scan_component_manifests
    manifest_scanner.scan_component_manifests = functools.cache(plain)
    yield
    manifest_scanner.scan_component_manifests = plain


@pytest.fixture(autouse=True, scope="session")
def pages_run_as_the_app_is_served():
    """Without Streamlit's magic, as `cli.serve.command_line` serves the app."""
    config.set_option("runner.magicEnabled", False)
