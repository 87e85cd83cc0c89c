"""For all tests: one thread per parallel worker, nothing from the network, nothing in the user's cache, one phantom."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded, as `import endofm_lab` does it
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["ENDOFM_LAB_CACHE"] = tempfile.mkdtemp(prefix="endofm_lab_tests_")
os.environ["ENDOFM_LAB_MODELS"] = f"{os.environ['ENDOFM_LAB_CACHE']}/models"
os.environ["ENDOFM_LAB_STUDIES"] = f"{os.environ['ENDOFM_LAB_CACHE']}/studies"
os.environ["ENDOFM_LAB_REVIEWS"] = f"{os.environ['ENDOFM_LAB_CACHE']}/reviews"
atexit.register(shutil.rmtree, os.environ["ENDOFM_LAB_CACHE"], ignore_errors=True)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def phantom(tmp_path_factory) -> Path:
    """The manifest of the phantom `tiny`, written once for all workers; nobody writes into it."""
    from endofm_lab.data.phantom_set import write_phantom

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with FileLock(shared / "phantom.lock"):
        return write_phantom(shared / "phantom", "tiny", progress=False)
