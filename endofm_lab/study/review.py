"""What a reader decided on the findings of a study: a table beside it that only ever grows.

Rows of `REVIEW` are findings without a decision, to fill in by hand, and decisions, each with its time. A decision
belongs to the frame it was made on: it holds for the stretch of its finding in which that frame lies, however much the
scores are smoothed. Of several the last counts; an empty one takes back. What a spreadsheet would run as a formula is
written as text.
"""

import io
import os
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
_DECISION = ["decision", "remark", "decided_at"]
_TEXTS = ["head", "finding", *_DECISION]


def read_review(folder: str | Path) -> pd.DataFrame:
    """All rows in the order they were written: head, finding, start_s, end_s, frame, time_s, score, decision, remark,
    decided_at (ISO 8601, UTC; empty where it was filled in by hand). No row if there is no such file.

    Raises:
        UserError: the table was changed so that it cannot be read; nothing is added to it then.
    """
    path = Path(folder) / REVIEW
    if not path.exists():
        return pd.DataFrame(columns=[*_FINDING, *_DECISION])
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(_TEXTS, str), keep_default_na=False, encoding="utf-8-sig")
        if list(table.columns) != [*_FINDING, *_DECISION]:
            raise ValueError(f"its columns are {', '.join(map(str, table.columns))}")
        table[_TEXTS] = text_from_cells(table[_TEXTS])
        table = table.astype({"start_s": float, "end_s": float, "frame": int, "time_s": float, "score": float})
    except ValueError as error:
        raise UserError(
            f"{path} cannot be read ({error}); it needs commas and the columns {', '.join([*_FINDING, *_DECISION])}: "
            "mend it, or move it away to begin anew."
        ) from error
    table["decision"] = table["decision"].str.strip().str.lower()
    wrong = table.index[~table["decision"].isin([CONFIRM, REJECT, OPEN])]
    if len(wrong):
        raise UserError(
            f"{path}, line {wrong[0] + 2}: The decision is {table.loc[wrong[0], 'decision']!r}; write {CONFIRM} or "
            f"{REJECT}, or leave it empty."
        )
    return table


def decide(folder: str | Path, finding: Mapping[str, Any], decision: str, remark: str = "") -> None:
    """Add a decision to the table: `CONFIRM`, `REJECT`, or `OPEN` to take an earlier one back.

    Args:
        folder: of the study.
        finding: head, finding, start_s, end_s, frame, time_s and score, a row of `study_findings.findings`.
        decision: what the reader decided.
        remark: in the reader's words.

    Raises:
        UserError: an unknown decision, or the table cannot be read or written.
    """
    if decision not in (CONFIRM, REJECT, OPEN):
        raise UserError(f"The decision is {decision!r}; possible are {CONFIRM!r}, {REJECT!r} and {OPEN!r}.")
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    row = {name: finding[name] for name in _FINDING}
    _append(Path(folder), pd.DataFrame([{**row, "decision": decision, "remark": remark.strip(), "decided_at": now}]))


def list_findings(folder: str | Path, findings: pd.DataFrame) -> pd.DataFrame:
    """Add the findings that the table does not hold yet, to decide on by hand; returns `with_decisions` of them.

    Raises:
        UserError: as `decide`.
    """
    before = read_review(folder)
    held = set(zip(before["head"], before["finding"], before["frame"], strict=True))
    named = zip(findings["head"], findings["finding"], findings["frame"], strict=True)
    fresh = findings.loc[[name not in held for name in named], _FINDING]
    _append(Path(folder), fresh.assign(**dict.fromkeys(_DECISION, "")))
    return with_decisions(findings, before)


def with_decisions(findings: pd.DataFrame, review: pd.DataFrame) -> pd.DataFrame:
    """Findings with the columns decision, remark and decided_at of the last row of a review that speaks of them.

    Decisions on frames that lie in no such stretch (the scores were smoothed otherwise) follow at the end, numbered on.
    """
    made = review[(review[_DECISION] != "").any(axis=1)]
    table = findings.assign(**dict.fromkeys(_DECISION, ""))
    placed = pd.Series(False, index=made.index)
    for at, found in findings.iterrows():
        inside = (
            (made["head"] == found["head"])
            & (made["finding"] == found["finding"])
            & (made["time_s"] >= found["start_s"])
            & (made["time_s"] < found["end_s"])
        )
        placed |= inside
        if inside.any():
            table.loc[at, _DECISION] = made.loc[inside, _DECISION].iloc[-1]
    others = made[~placed].drop_duplicates(["head", "finding", "frame"], keep="last")
    others = others[others["decision"] != OPEN]
    others.insert(0, "number", range(len(table) + 1, len(table) + 1 + len(others)))
    return table if others.empty else pd.concat([table, others], ignore_index=True)


def _append(folder: Path, rows: pd.DataFrame) -> None:
    """Write rows behind the last one, in one piece and through to the disk."""
    read_review(folder)  # nothing is added to what cannot be read
    path = folder / REVIEW
    try:
        if not path.exists():
            with atomic_path(path) as temporary:
                pd.DataFrame(columns=[*_FINDING, *_DECISION]).to_csv(temporary, index=False)
        text = io.StringIO()
        formulas_as_text(rows[[*_FINDING, *_DECISION]]).to_csv(text, index=False, header=False, lineterminator="\n")
        with path.open("a+b", buffering=0) as file:
            file.seek(-1, os.SEEK_END)
            closed = file.read(1) == b"\n"  # an editor may have left the last line open
            file.write(("" if closed else "\n").encode() + text.getvalue().encode())
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}), so the decision is not kept.") from error
