"""Check that every file of a manifest exists, can be opened, and has the content it had when it was prepared."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from endofm_lab.brief import Brief
from endofm_lab.data.manifest import Manifest, read_manifest
from endofm_lab.data.prepare.scan import IMAGE_FORMATS, Journal, Problem, in_parallel, read_facts, stamp
from endofm_lab.errors import UserError, VideoError
from endofm_lab.files import reading
from endofm_lab.machine import cores
from endofm_lab.video.reader import open_video


@dataclass(frozen=True, repr=False)
class Checked(Brief):
    """The result of a check: the numbers of checked files, and every difference."""

    manifest: Path
    fingerprint: str
    rows: int
    files: int
    masks: int
    boxes: int
    problems: list[Problem]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"manifest": str(self.manifest)}

    def text(self) -> str:
        """A report for people: at most twenty problems by name, and the number of problems."""
        head = (
            f"{self.manifest}: {self.rows} rows, {self.files} files or folders, {self.masks} masks, {self.boxes} boxes;"
            f" fingerprint {self.fingerprint[:16]}"
        )
        lines = [f"{problem.kind}: {problem.path}: {problem.message}" for problem in self.problems[:20]]
        if len(self.problems) > 20:
            lines.append(f"... and {len(self.problems) - 20} more")
        return "\n".join([head, *lines, "no problems" if not lines else f"{len(self.problems)} problems"])


def check_manifest(path: str | Path, workers: int | None = None) -> Checked:
    """Open every file that a manifest names and compare it with what the manifest says.

    Files must exist, be readable, be unchanged (``sha256``) and be long enough for the row's ``end_s``. Masks must
    exist and have the size of their picture. Boxes must lie inside their picture and belong to a video of the manifest.

    Raises:
        ManifestError: The manifest itself is malformed.
    """
    manifest = read_manifest(path)
    table = manifest.table
    problems: list[Problem] = []
    facts = file_facts(manifest, workers or cores(), problems)
    for i, row in enumerate(table.to_dict("records")):
        fact = facts.get(row["video"])
        if fact is None:
            continue
        place = f"{row['video']} (row {i + 1})"
        if row["end_s"] > fact["duration_s"] + 0.05:
            message = f"the row ends at {row['end_s']} s, but the video ends at {fact['duration_s']} s"
            problems.append(Problem("row ends after its video", place, message, False))
        if (recorded := row.get("sha256")) and fact["sha256"] and recorded != fact["sha256"]:
            message = f"the SHA-256 is {fact['sha256'][:16]} and was {recorded[:16]}"
            problems.append(Problem("file has changed", place, message, False))
    n_masks = sum(1 for _ in _check_masks(manifest, facts, problems))
    n_boxes = _check_boxes(manifest, facts, problems)
    return Checked(Path(path), manifest.fingerprint, len(table), len(facts), n_masks, n_boxes, problems)


def file_facts(manifest: Manifest, workers: int, problems: list[Problem]) -> dict[str, dict[str, Any]]:
    """Size, length and fingerprint of every video, picture or folder by its name in the manifest; a journal in the
    manifest's folder keeps them. What is missing, refused or unreadable is added to ``problems``.
    """
    table = manifest.table
    rates = {}
    if "fps" in table:
        rates = pd.to_numeric(table.set_index("video")["fps"], errors="coerce").dropna().to_dict()
    todo, facts = {}, {}
    for video in table["video"].drop_duplicates():
        try:
            full = manifest.resolve(video)
        except UserError as error:
            problems.append(Problem("path is refused", video, str(error), True))
            continue
        if not full.exists():
            problems.append(Problem("file is missing", video, f"there is no {full}", True))
        else:
            todo[f"check:{full}:{stamp(full)}"] = video

    def look(video: str) -> dict[str, Any]:
        full = manifest.resolve(video)
        if full.is_dir():
            try:
                with open_video(full, fps=Fraction(rates.get(video, 25)).limit_denominator(1001)) as frames:
                    info = frames.info
            except VideoError as error:
                return {"error": error.reason}
            size = {"width_px": info.width_px, "height_px": info.height_px}
            return size | {"duration_s": info.duration_s, "sha256": "", "error": ""}
        return asdict(read_facts(full.parent, full.name))

    with Journal(manifest.root / ".prepare" / "check.jsonl") as journal:
        for key, fact in in_parallel(look, todo.items(), journal, workers, "checking files"):
            if fact["error"]:
                problems.append(Problem("cannot be read", todo[key], fact["error"], True))
            else:
                facts[todo[key]] = fact
    return facts


def _check_masks(manifest: Manifest, facts: dict[str, dict[str, Any]], problems: list[Problem]) -> Iterator[str]:
    table = manifest.table
    if "masks" not in table:
        return
    pairs = table.loc[table["masks"].fillna("") != "", ["video", "masks"]].drop_duplicates()
    for video, mask in pairs.itertuples(index=False):
        yield mask
        try:
            full = manifest.resolve(mask)
            if full.is_dir():
                continue
            with Image.open(full) as image:
                size = image.size
        except (UserError, OSError) as error:
            problems.append(Problem("mask cannot be read", mask, str(error), True))
            continue
        fact = facts.get(video)
        if fact and full.suffix.lower() in IMAGE_FORMATS and size != (fact["width_px"], fact["height_px"]):
            message = f"the mask is {size[0]}x{size[1]} px, its picture {fact['width_px']}x{fact['height_px']} px"
            problems.append(Problem("mask of another size", mask, message, True))


def _check_boxes(manifest: Manifest, facts: dict[str, dict[str, Any]], problems: list[Problem]) -> int:
    path = manifest.root / "boxes.csv"
    if "boxes" not in manifest.table or not path.is_file():
        return 0
    with reading(path, "Prepare the data set again."):
        boxes = pd.read_csv(path).astype(dict.fromkeys(("x1_px", "y1_px", "x2_px", "y2_px"), float))
        boxes["video"], boxes["label"] = boxes["video"].astype(str), boxes["label"].astype(str)
    facts_of = pd.DataFrame(facts).T.reindex(boxes["video"])
    has_video = boxes["video"].isin(set(manifest.table["video"]))
    edge_px = 0.001  # the file has three decimals
    inside = pd.Series(True, index=boxes.index)
    for axis, side in (("x", "width_px"), ("y", "height_px")):
        low, high = boxes[f"{axis}1_px"], boxes[f"{axis}2_px"]
        limit = pd.to_numeric(facts_of[side]).to_numpy() + edge_px  # NaN where the picture itself is a problem
        inside &= (low >= -edge_px) & (low < high) & ~(high > limit)
    for video in boxes.loc[~has_video, "video"].unique():
        problems.append(Problem("box of an unknown video", str(video), "the manifest does not name it", True))
    for box in boxes[has_video & ~inside].to_dict("records"):
        corners = [box[column] for column in ("x1_px", "y1_px", "x2_px", "y2_px")]
        problems.append(Problem("box outside", str(box["video"]), f"{box['label']}: {corners}", True))
    return len(boxes)
