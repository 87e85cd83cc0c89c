"""Set up a Python environment beside this file and run something in it. Standard library only.

    python3 bootstrap.py demo [--headless]   install, predict a generated video, open the app
    python3 bootstrap.py test [pytest ...]   install, run the tests
    python3 bootstrap.py setup               install only

The environment is `.venv`, or the folder in ENDOFM_LAB_VENV. It is made once and made again only when
pyproject.toml or constraints.txt change.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = Path(os.environ.get("ENDOFM_LAB_VENV", ROOT / ".venv"))
EXTRAS = "app,notebooks,dev,export,encoders"
NEEDED_GB = 9.0


def setup() -> Path:
    """Install the project into the environment if that is not up to date; return its Python."""
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = VENV / "endofm_lab.stamp"
    wanted = hashlib.sha256(
        b"".join((ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
        + f"{ROOT}{EXTRAS}{sys.version}".encode()
    ).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    if sys.version_info < (3, 11):
        sys.exit(
            f"Python {sys.version.split()[0]} is too old: endofm_lab needs 3.11 or newer. Run this with python3.11."
        )
    VENV.parent.mkdir(parents=True, exist_ok=True)
    free_gb = shutil.disk_usage(VENV.parent).free / 1e9
    if free_gb < NEEDED_GB and not python.exists():
        print(f"Warning: {free_gb:.1f} GB free in {VENV.parent}; the environment takes about {NEEDED_GB:.0f} GB.")
    print(f"Installing into {VENV} (about three minutes the first time) ...", flush=True)
    start = time.monotonic()
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    log = VENV / "install.log"
    with log.open("w") as file:
        result = subprocess.run(
            [str(python), "-m", "pip", "install", "-e", f"{ROOT}[{EXTRAS}]", "-c", str(ROOT / "constraints.txt")],
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    if result.returncode:
        print("\n".join(log.read_text().splitlines()[-20:]))
        sys.exit(f"The installation failed; the whole log is in {log}.")
    stamp.write_text(wanted)
    print(f"Installed in {time.monotonic() - start:.0f} s.", flush=True)
    return python


def main() -> int:
    """Run one of the three actions; the exit code is that of what was run."""
    action, rest = (sys.argv[1] if len(sys.argv) > 1 else ""), sys.argv[2:]
    if action == "setup":
        setup()
        return 0
    if action == "demo":
        command = ["-m", "endofm_lab.cli.main", "demo", "show", *rest]
    elif action == "test":
        command = ["-m", "pytest", *rest]
    else:
        print(__doc__)
        return 2
    return subprocess.run([str(setup()), *command], cwd=ROOT).returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
