"""Readers' decisions on the findings of a study or a video, in a table to which rows are only ever added.

The table of a study is in the study's folder; that of a video is in `video_reviews`, by the content of the video. A row
of `REVIEW` is either a finding without a decision, to be filled in by hand, or a decision with its time and its reader.
A decision belongs to the frame it was made on: it holds for the segment that contains this frame, however the scores
are smoothed. Of several decisions on a finding the last one counts, and an empty decision withdraws the earlier ones.
Cells that a spreadsheet would run as a formula are written as text.
"""

import hashlib
import io
import os
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from endofm_lab.errors import UserError
from endofm_lab.files import atomic_path, formulas_as_text, text_from_cells

REVIEW = "review.csv"
CONFIRM, REJECT, OPEN = "confirm", "reject", ""
_FINDING = ["head", "finding", "start_s", "end_s", "frame", "time_s", "score"]
_DECISION = ["decision", "remark", "decided_at", "decided_by"]
_TEXTS = ["head", "finding", *_DECISION]
_creating = threading.Lock()  # several sessions of the app may decide at once


def video_reviews(video: str) -> Path:
    """The folder with the decisions on a video, which need not exist yet.

    It is in ``ENDOFM_LAB_REVIEWS`` if that is set, otherwise in ``.local/share/endofm_lab/reviews`` in the user's home.

    Args:
        video: the fingerprint of the video's content (`VideoPrediction.provenance`, entry ``video``).
    """
    setting = os.environ.get("ENDOFM_LAB_REVIEWS")
    root = Path(setting) if setting else Path.home() / ".local" / "share" / "endofm_lab" / "reviews"
    return root / hashlib.sha256(video.encode()).hexdigest()[:32]


def read_review(folder: str | Path) -> pd.DataFrame:
    """All rows in the order they were written: head, finding, start_s, end_s, frame, time_s, score, decision, remark,
    decided_at (ISO 8601, UTC; empty in rows that were filled in by hand) and decided_by (empty if the reader gave no
    name). The table is empty if there is no such file.

    Raises:
        UserError: somebody changed the table so that it cannot be read.
    """
    path = Path(folder) / REVIEW
    if not path.exists():
        return pd.DataFrame(columns=[*_FINDING, *_DECISION])
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(_TEXTS, str), keep_default_na=False, encoding="utf-8-sig")
        if list(table.columns) == [*_FINDING, *_DECISION[:-1]]:  # written before tables named the reader
            table[_DECISION[-1]] = ""
        if list(table.columns) != [*_FINDING, *_DECISION]:
            raise ValueError(f"its columns are {', '.join(map(str, table.columns))}")
        table[_TEXTS] = text_from_cells(table[_TEXTS])
        table = table.astype({"start_s": float, "end_s": float, "frame": int, "time_s": float, "score": float})
    except ValueError as error:
        raise UserError(
            f"{path} cannot be read ({error}). It needs commas and the columns {', '.join([*_FINDING, *_DECISION])}: "
            "repair it, or move it away to start with an empty table."
        ) from error
    table["decision"] = table["decision"].str.strip().str.lower()
    wrong = table.index[~table["decision"].isin([CONFIRM, REJECT, OPEN])]
    if len(wrong):
        raise UserError(
            f"{path}, line {wrong[0] + 2}: The decision is {table.loc[wrong[0], 'decision']!r}. Write {CONFIRM} or "
            f"{REJECT}, or leave the cell empty."
        )
    return table


def decide(folder: str | Path, finding: Mapping[str, Any], decision: str, remark: str = "", by: str = "") -> None:
    """Add a decision to the table: `CONFIRM`, `REJECT`, or `OPEN` to withdraw an earlier decision.

    Args:
        folder: the folder of the study, or `video_reviews`.
        finding: a row of `endofm_lab.study.findings.findings` or `endofm_lab.study.stretches.video_findings`: head,
            finding, start_s, end_s, frame, time_s and score.
        decision: the reader's decision.
        remark: the reader's comment.
        by: the name of the reader.

    Raises:
        UserError: an unknown decision, or the table cannot be read or written.
    """
    if decision not in (CONFIRM, REJECT, OPEN):
        raise UserError(f"The decision is {decision!r}. It must be {CONFIRM!r}, {REJECT!r} or {OPEN!r}.")
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    row = {name: finding[name] for name in _FINDING}
    decided = {"decision": decision, "remark": remark.strip(), "decided_at": time, "decided_by": by.strip()}
    _append(Path(folder), pd.DataFrame([row | decided]))


def list_findings(folder: str | Path, findings: pd.DataFrame) -> pd.DataFrame:
    """Add the findings that the table does not contain yet, so that they can be decided on by hand.

    Returns:
        The findings with their decisions, see `with_decisions`.

    Raises:
        UserError: the table cannot be read or written.
    """
    review = read_review(folder)
    listed = set(zip(review["head"], review["finding"], review["frame"], strict=True))
    keys = zip(findings["head"], findings["finding"], findings["frame"], strict=True)
    new = findings.loc[[key not in listed for key in keys], _FINDING]
    _append(Path(folder), new.assign(**dict.fromkeys(_DECISION, "")))
    return with_decisions(findings, review)


def with_decisions(findings: pd.DataFrame, review: pd.DataFrame) -> pd.DataFrame:
    """Findings with decision, remark, decided_at and decided_by of the last row of the review that concerns them.

    Decisions on frames outside all these segments, which can happen if the scores were smoothed differently, follow at
    the end and continue the numbering.
    """
    decisions = review[(review[_DECISION] != "").any(axis=1)]
    table = findings.assign(**dict.fromkeys(_DECISION, ""))
    assigned = pd.Series(False, index=decisions.index)
    for at, finding in findings.iterrows():
        inside = (
            (decisions["head"] == finding["head"])
            & (decisions["finding"] == finding["finding"])
            & (decisions["time_s"] >= finding["start_s"])
            & (decisions["time_s"] < finding["end_s"])
        )
        assigned |= inside
        if inside.any():
            table.loc[at, _DECISION] = decisions.loc[inside, _DECISION].iloc[-1]
    unassigned = decisions[~assigned].drop_duplicates(["head", "finding", "frame"], keep="last")
    unassigned = unassigned[unassigned["decision"] != OPEN]
    unassigned.insert(0, "number", range(len(table) + 1, len(table) + 1 + len(unassigned)))
    return table if unassigned.empty else pd.concat([table, unassigned], ignore_index=True)


def _append(folder: Path, rows: pd.DataFrame) -> None:
    """Append rows in a single write, and flush them to the disk."""
    path, text = folder / REVIEW, io.StringIO()
    try:
        with _creating:
            review = read_review(folder)  # refuses a damaged table before anything is added to it
            if not path.exists() or not _names_readers(path):
                with atomic_path(path) as temporary:
                    formulas_as_text(review[[*_FINDING, *_DECISION]]).to_csv(temporary, index=False)
        formulas_as_text(rows[[*_FINDING, *_DECISION]]).to_csv(text, index=False, header=False, lineterminator="\n")
        with path.open("a+b", buffering=0) as file:
            file.seek(-1, os.SEEK_END)
            closed = file.read(1) == b"\n"  # an editor may have left the last line open
            file.write(("" if closed else "\n").encode() + text.getvalue().encode())
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}), so the decision was not stored. Make the folder writable, "
            "then decide again."
        ) from error


def _names_readers(path: Path) -> bool:
    """Whether a table has the column decided_by, which older tables do not have."""
    with path.open(encoding="utf-8-sig") as file:
        return file.readline().rstrip().endswith(_DECISION[-1])
