"""Settings for all tests: one thread per parallel worker, nothing from the network, nothing in the user's cache."""

import os
import tempfile

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while they wait slow their neighbours
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["ENDOFM_LAB_CACHE"] = tempfile.mkdtemp(prefix="endofm_lab_tests_")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
