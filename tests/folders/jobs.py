"""Jobs as they are after their process has ended without a word."""

import os
from pathlib import Path
from unittest import mock

from endofm_lab.files import write_json
from endofm_lab.folders.background import job_folder


def lost_job(out: Path, output: str = "", command: tuple[str, ...] = ("pretrain",), cache: Path | None = None) -> None:
    """Write down a job for a folder whose process has ended; ``cache`` replaces the cache of this process."""
    with mock.patch.dict(os.environ, {"ENDOFM_LAB_CACHE": str(cache)} if cache else {}):
        folder = job_folder(out)
    facts = {"out": str(out), "command": list(command), "title": out.name, "entered_s": 0.0}
    write_json(folder / "job.json", facts)
    write_json(folder / "process.json", {"pid": 2**22, "created": 0.0})
    (folder / "output.txt").write_text(output)
