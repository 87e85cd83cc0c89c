"""What this machine has: studies, embedding stores, runs and pre-trainings in known folders, and recent videos."""

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import session

from endofm_lab.files import cache_folder, read_json, write_json
from endofm_lab.folders.background import LIVE, list_jobs
from endofm_lab.folders.run_folder import held_by

FINISHED, NOT_FINISHED = "finished", "not finished"
RECENT_KEPT = 20
# Kind -> the file that finishes a folder, the file that tells an unfinished one, and the command that writes it. The
# names are not imported, because the modules that own them take seconds to import.
_FILES = {
    "study": ("study.json", "job.json", "study"),
    "store": ("store.json", "job.json", "embed"),
    "run": ("predictions.parquet", "seed-0", "finetune"),
    "pre-training": ("model/card.json", "log.jsonl", "pretrain"),
}


@dataclass(frozen=True)
class Place:
    """A folder with a result.

    Attributes:
        kind: "study", "store", "run" or "pre-training".
        path: of the folder.
        state: "waiting", "running", `FINISHED` or `NOT_FINISHED`.
        time_s: when it last changed, in seconds since 1970.
    """

    kind: str
    path: Path
    state: str
    time_s: float


def folder_for(kind: str) -> Path:
    """The folder that the app writes results of a kind to.

    Studies hold decisions of readers, which cannot be computed again, so that they are not in the cache but in
    ``ENDOFM_LAB_STUDIES``, otherwise in ``.local/share/endofm_lab/studies`` in the user's home.
    """
    if kind != "study":
        return cache_folder("stores" if kind == "store" else "runs")
    setting = os.environ.get("ENDOFM_LAB_STUDIES")
    return Path(setting) if setting else Path.home() / ".local" / "share" / "endofm_lab" / "studies"


def places(kind: str) -> list[Place]:
    """The results of a kind, the latest first: those of the app, and typed folders."""
    root, (_, _, command) = folder_for(kind), _FILES[kind]
    jobs = {job.out: job for job in list_jobs() if job.command[0] == command}
    typed_folders = [Path(text).expanduser() for text in session.typed_paths() if not session.is_remote(text)]
    candidates = [*(root.iterdir() if root.is_dir() else ()), *jobs, *typed_folders]
    results = []
    for path in dict.fromkeys(candidates):
        state = _state(path, kind)
        if path in jobs and jobs[path].state in LIVE:
            state = jobs[path].state
        if state is not None:
            results.append(Place(kind, path, state, _changed_s(path, jobs[path].entered_s if path in jobs else 0.0)))
    return sorted(results, key=lambda place: place.time_s, reverse=True)


def _state(path: Path, kind: str) -> str | None:
    """The state of a folder, or None if it is no result of this kind that can be told from its files."""
    finished, unfinished, _ = _FILES[kind]
    try:
        if (path / finished).is_file():
            return FINISHED
        if path.parent != folder_for(kind) or not (path / unfinished).exists():
            return None
        return "running" if held_by(path) is not None else NOT_FINISHED
    except (OSError, ValueError):  # no permission, or a typed text that is no path
        return None


def _changed_s(path: Path, otherwise_s: float) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # a job that waits has not written its folder yet
        return otherwise_s


def recent_videos() -> list[dict[str, Any]]:
    """The videos that were predicted last, the latest first: the fields of the session that open them, and ``time_s``.

    Files that are gone are left out. A server that others can reach remembers no videos.
    """
    file = _recent_file()
    entries = read_json(file) if file.is_file() and not is_shared() else []
    return [entry for entry in entries if _is_there(entry["fields"])]


def remember_video(fields: Mapping[str, str]) -> None:
    """Store which video was predicted, by the fields of the session that open it again."""
    if is_shared():
        return
    file = _recent_file()
    entries = read_json(file) if file.is_file() else []
    if entries and entries[0]["fields"] == dict(fields):
        return
    others = [entry for entry in entries if entry["fields"] != dict(fields)]
    write_json(file, [{"fields": dict(fields), "time_s": time.time()}, *others][:RECENT_KEPT])


def is_shared() -> bool:
    """Whether the app is served to others, who have to give a password."""
    return "ENDOFM_LAB_PASSWORD" in os.environ


def _recent_file() -> Path:
    return cache_folder("app") / "recent.json"


def _is_there(fields: Mapping[str, str]) -> bool:
    try:
        match fields["source"]:
            case session.FILE:
                return not session.is_remote(fields["path"]) and Path(fields["path"]).expanduser().exists()
            case session.UPLOAD:
                return (cache_folder("uploads") / fields["upload"]).is_file()
    except OSError:
        return False
    return True


def when(time_s: float) -> str:
    """A time in words: today's by its hour, others by their day."""
    day, today = time.strftime("%Y-%m-%d", time.localtime(time_s)), time.strftime("%Y-%m-%d")
    return time.strftime("today %H:%M" if day == today else "%Y-%m-%d", time.localtime(time_s))


def names_of(results: Iterable[Place]) -> dict[str, str]:
    """Name, state and date of results by their paths, for lists to choose from."""
    return {str(place.path): f"{place.path.name} · {place.state} · {when(place.time_s)}" for place in results}
