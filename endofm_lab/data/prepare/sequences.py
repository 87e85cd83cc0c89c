"""Turn rows of single frames and whole videos into rows of sequences and clips."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from endofm_lab.data.prepare.cut import ClipKind, clip_file, cut_frames, cut_video, natural, runs, windows
from endofm_lab.data.prepare.scan import IMAGE_FORMATS, Journal, Problem, in_parallel, is_video
from endofm_lab.errors import UserError
from endofm_lab.files import sha256_of
from endofm_lab.video.reader import open_video


def sequence_rows(
    table: pd.DataFrame, boxes: pd.DataFrame, fps: float | None, kind: ClipKind | None
) -> tuple[pd.DataFrame, pd.DataFrame, list[Problem]]:
    """One row per run of frames of a folder, or per clip of this kind; the frames stay in place and are not copied.

    A row's video is the folder. Its times count all pictures of the folder at ``fps``, as `video.reader` does.

    Args:
        table: One row per frame file, paths absolute.
        boxes: Boxes of the frame files.
        fps: Frames per second.
        kind: Length of the clips; None keeps runs whole.

    Returns:
        The rows, the boxes with ``frame`` counting the pictures of the folder from 0, and the problems.
    """
    rate = _needed(fps, table)
    records, problems = [], []
    places: dict[str, tuple[str, int]] = {}  # frame file -> its folder and its place there
    for folder, rows in table.groupby(table["video"].map(lambda path: str(Path(path).parent)), sort=True):
        place = {path: i for i, path in enumerate(_pictures(Path(folder)))}
        places |= {path: (folder, place[path]) for path in rows["video"]}
        rows = rows.assign(place=rows["video"].map(place)).sort_values("place")
        masks = _mask_folder(rows)
        if not masks and (rows["masks"] != "").any():
            message = "its masks do not lie in one folder with one mask per picture in the same order"
            problems.append(Problem("masks do not line up", folder, message, False))
        for piece in _pieces(rows, rows["place"].tolist(), rate, kind):
            start, end = piece["place"].iloc[0] / rate, (piece["place"].iloc[-1] + 1) / rate
            span = {"video": folder, "start_s": start, "end_s": end, "fps": rate, "masks": masks}
            records.append(_common(piece) | span)
    if len(boxes):
        moved = [places[video] for video in boxes["video"]]
        boxes = boxes.assign(video=[folder for folder, _ in moved], frame=[place for _, place in moved])
    return pd.DataFrame(records), boxes, problems


def window_rows(table: pd.DataFrame, kind: ClipKind) -> pd.DataFrame:
    """One row per clip of the original video files, with its start and end."""
    records = [
        row | {"start_s": start, "end_s": end}
        for row in table.to_dict("records")
        for start, end in windows(row["start_s"], row["end_s"], kind)
    ]
    return pd.DataFrame(records, columns=table.columns)


@dataclass(frozen=True)
class _Job:
    """One clip to be written: from a video between two times, or from frame files at ``fps`` (0 for a video)."""

    row: dict[str, Any]
    sources: tuple[Path, ...]
    target: Path
    start_s: float
    end_s: float
    fps: float
    kind: ClipKind

    @property
    def key(self) -> str:
        return f"clip:{self.target}:{self.row['sha256']}:{self.start_s}:{self.end_s}:{self.fps}:{self.kind}"

    def make(self) -> dict[str, Any]:
        """Write the clip; an unreadable source is returned as a result, because the other clips continue."""
        try:
            if self.fps:
                n = cut_frames(self.sources, self.target, self.fps, self.start_s, self.end_s, self.kind)
            else:
                n = cut_video(self.sources[0], self.target, self.start_s, self.end_s, self.kind)
        except (UserError, OSError) as error:
            return {"error": str(error)}
        with open_video(self.target) as clip:
            size = {"width_px": clip.info.width_px, "height_px": clip.info.height_px}
        return size | {"error": "", "n_frames": n, "sha256": sha256_of(self.target)}


def encoded_rows(
    table: pd.DataFrame, fps: float | None, kind: ClipKind, out: Path, journal: Journal, workers: int
) -> tuple[pd.DataFrame, list[Problem]]:
    """Clips as new files below ``out/clips``, from videos and from runs of frames with consecutive numbers.

    Clips that are in the journal and still exist are not made again. Masks and boxes stay with the uncut files, and
    their number is reported.
    """
    videos = table["video"].map(is_video)
    problems: list[Problem] = []
    jobs = list(_video_jobs(table[videos], kind, out))
    if not videos.all():
        jobs += _frame_jobs(table[~videos], _needed(fps, table), kind, out)
    for job in jobs:
        if not job.target.is_file():
            journal.results.pop(job.key, None)
    by_key = {job.key: job for job in jobs}
    records = []
    for key, result in in_parallel(_Job.make, by_key.items(), journal, workers, "cutting clips"):
        job = by_key[key]
        if result["error"]:
            problems.append(Problem("clip cannot be made", job.row["source"], result["error"], True))
            continue
        clip = {"video": str(job.target.absolute()), "start_s": 0.0, "end_s": result["n_frames"] / kind.fps}
        facts = {key: result[key] for key in ("width_px", "height_px", "sha256")}
        records.append(job.row | clip | facts | {"masks": "", "boxes": ""})
    for column in ("masks", "boxes"):
        if n := int((table[column] != "").sum()):
            message = f"those of {n} files stay with the uncut files: prepare without --cut encode to use them"
            problems.append(Problem(f"{column} not carried into clips", "clips", message, False))
    return pd.DataFrame(records).sort_values("video", ignore_index=True) if records else table.iloc[:0], problems


def _video_jobs(table: pd.DataFrame, kind: ClipKind, out: Path) -> Iterator[_Job]:
    for record in table.to_dict("records"):
        row = {str(column): value for column, value in record.items()}
        for start, end in windows(row["start_s"], row["end_s"], kind):
            target = clip_file(out, f"{row['dataset']}/{row['source']}", start)
            origin = {"source_start_s": start, "sequence": row["sequence"] or row["source"]}
            yield _Job(row | origin, (Path(row["video"]),), target, start, end, 0.0, kind)


def _frame_jobs(table: pd.DataFrame, fps: float, kind: ClipKind, out: Path) -> Iterator[_Job]:
    folders = table["source"].map(lambda source: Path(source).parent.as_posix())
    for name, rows in table.groupby(table["sequence"].where(table["sequence"] != "", folders), sort=True):
        names = [natural(f"{frame}/{source}") for frame, source in zip(rows["frame"], rows["source"], strict=True)]
        rows = rows.iloc[[place for _, place in sorted(zip(names, range(len(rows)), strict=True))]]
        for piece in _pieces(rows, range(len(rows)), fps, kind):
            first = piece.iloc[0]
            target = clip_file(out, f"{first['dataset']}/{name}/{first['frame'] or Path(first['source']).stem}", 0.0)
            files = tuple(Path(path) for path in piece["video"])
            yield _Job(_common(piece) | {"sequence": name}, files, target, 0.0, len(piece) / fps, fps, kind)


def _pieces(rows: pd.DataFrame, places: Iterable[int], fps: float, kind: ClipKind | None) -> Iterator[pd.DataFrame]:
    """Rows of consecutive frames of one patient, sequence and split side: whole runs, or clips of them."""
    rows = rows.assign(_place=list(places))
    for _, group in rows.groupby(["patient", "sequence", "split"], sort=True):
        for run in runs(group["_place"].tolist(), group["frame"].astype(str).tolist()):
            sequence = group.iloc[run.first : run.last + 1].drop(columns="_place")
            clips = windows(0.0, len(sequence) / fps, kind) if kind else [(0.0, len(sequence) / fps)]
            for start, end in clips:
                yield sequence.iloc[round(start * fps) : round(end * fps)]


def _common(piece: pd.DataFrame) -> dict[str, Any]:
    """Facts of a run of frames: those of its first frame, its most frequent label and the share of that label."""
    label, count = Counter(piece["label"]).most_common(1)[0]
    facts = {
        "label": label,
        "label_share": count / len(piece),
        "n_frames": len(piece),
        "sha256": hashlib.sha256("".join(piece["sha256"]).encode()).hexdigest(),
        "boxes": "boxes.csv" if (piece["boxes"] != "").any() else "",
    }
    return {str(key): value for key, value in piece.iloc[0].items() if key != "place"} | facts


def _pictures(folder: Path) -> list[str]:
    """All pictures of a folder in the order in which `video.reader` shows them."""
    names = [path.name for path in folder.iterdir() if path.suffix.lower() in IMAGE_FORMATS and path.is_file()]
    return [str(folder / name) for name in sorted(names, key=natural) if not name.startswith(".")]


def _mask_folder(rows: pd.DataFrame) -> str:
    """The folder of the masks of a folder of frames, if it holds one mask per frame in the same order."""
    folders = {str(Path(path).parent) for path in rows["masks"]}
    if len(folders) != 1 or (rows["masks"] == "").any():
        return ""
    folder = folders.pop()
    return folder if _pictures(Path(folder)) == rows["masks"].tolist() else ""


def _needed(fps: float | None, table: pd.DataFrame) -> float:
    if fps is None or fps <= 0:
        recipe = table["recipe"].iloc[0]
        raise UserError(
            f"The recipe {recipe} does not state the frames per second of its folders of frames. Give --fps."
        )
    return fps
