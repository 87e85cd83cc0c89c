"""The table of findings in which a reader decides, of a study and of a video alike: confirm, reject, remark, undo."""

import os
from collections.abc import Callable
from typing import Any

import pandas as pd
import session
import streamlit as st
from texts import plain

import endofm_lab as lab
from endofm_lab.figures.study import clock
from endofm_lab.files import cache_folder, read_json, write_json
from endofm_lab.reports.study import readable
from endofm_lab.study.review import CONFIRM, OPEN, REJECT, decide, read_review, with_decisions

SCORE = st.column_config.ProgressColumn(min_value=0.0, max_value=1.0, format="%.3f")
TITLE = "optional, such as the number of a case"
REPORT_HELP = (
    "One HTML file that can be printed: findings with decisions, key frames, timeline, calibration and model card. It "
    "names no file; its pictures show the video as it was recorded, with any text in it."
)
STATES = {CONFIRM: "confirmed", REJECT: "rejected", OPEN: "open"}
Chosen = Callable[[dict[str, Any]], object]


def show_review(
    folder: str, rows: pd.DataFrame, subject: str, about: str, at_first: int | None = None, chosen: Chosen | None = None
) -> dict[str, Any] | None:
    """Show findings with their decisions, and the fields and buttons to decide on the chosen finding.

    Args:
        folder: the folder of the table of decisions.
        rows: the findings, see `with_decisions`.
        subject: names the findings; with other findings the first open one is chosen.
        about: what the findings are, and where the decisions are stored.
        at_first: position of the finding that is chosen at first, in place of the first open one.
        chosen: called with the finding that the reader has just chosen.

    Returns:
        The chosen finding; None if there is none, or if the table of decisions cannot be read.
    """
    try:
        table = with_decisions(rows, read_review(folder))
    except lab.UserError as error:
        st.error(plain(error))
        return None
    if table.empty:
        return None
    if st.session_state.get("review of") != subject or st.session_state.get("finding", len(table)) >= len(table):
        st.session_state["review of"] = subject
        st.session_state["finding"] = next_open(table, 0) if at_first is None else at_first

    def take(at: int) -> None:
        st.session_state["finding"] = at
        if chosen is not None:
            chosen(table.iloc[at].to_dict())

    show_table(table, take)
    n_open = int((table["decision"] == OPEN).sum())
    st.caption(f"{len(table)} {'finding' if len(table) == 1 else 'findings'}, **{n_open} open**: {about}")
    return show_decision(folder, table, take)


def show_table(table: pd.DataFrame, take: Callable[[int], None]) -> None:
    """Show the findings and their decisions; ``take`` is called with the position of a selected row."""

    def follow_row(shown: Any) -> None:
        selected = shown["selection"]["rows"]
        if selected:
            take(selected[0])

    shown = readable(table).assign(decision=table["decision"].map(STATES))
    columns = ["number", "decision", "finding", "score", "at", "head", "from", "to", "remark", "decided_by"]
    if "lowest" in table and table["lowest"].notna().any():
        spread = [
            "" if row.lowest != row.lowest else f"{row.lowest:.2f} to {row.highest:.2f}" for row in table.itertuples()
        ]
        shown, columns = shown.assign(spread=spread), [*columns[:4], "spread", *columns[4:]]
    if "familiar" in table:
        shown, columns = shown.assign(familiar=table["familiar"].fillna("")), [*columns[:4], "familiar", *columns[4:]]
    st.dataframe(
        shown[columns].rename(columns={"decided_by": "by"}),
        hide_index=True,
        key="findings",
        on_select=session.with_value("findings", follow_row),
        selection_mode="single-row",
        column_config={"score": SCORE, "number": st.column_config.NumberColumn("no.", width=40)},
    )


def show_decision(folder: str, table: pd.DataFrame, take: Callable[[int], None]) -> dict[str, Any]:
    """Show the fields and buttons to decide on the chosen finding, and return this finding."""
    names = [
        f"{row.number}: {row.finding} at {clock(row.time_s)}, {STATES[row.decision]}" for row in table.itertuples()
    ]
    fields = st.container(horizontal=True, vertical_alignment="bottom")  # on narrow screens below each other
    at = fields.selectbox(
        "Finding",
        range(len(table)),
        format_func=lambda n: names[n],
        key="finding",
        on_change=session.with_value("finding", take),
        width=300,
    )
    finding = table.iloc[at].to_dict()
    field = f"remark {folder} {finding['head']} {finding['finding']} {finding['frame']}"
    fields.text_input("Remark", finding["remark"], key=field, placeholder="stored with the decision", width=300)
    if "reviewer" not in st.session_state:
        st.session_state["reviewer"] = last_reviewer()
    help_ = "Stored with every decision and shown in the report."
    name = {"key": "reviewer", "on_change": session.with_value("reviewer", keep_reviewer), "placeholder": "your name"}
    fields.text_input("Reviewer", help=help_, width=160, **name)
    row = st.container(horizontal=True)
    following = next_open(table, at + 1, but=at)
    for text, decision in (("Confirm", CONFIRM), ("Reject", REJECT), ("Undo", OPEN)):
        row.button(
            text,
            disabled=decision == finding["decision"] == OPEN,
            type="primary" if decision == finding["decision"] != OPEN else "secondary",
            on_click=keep,
            args=(folder, finding, decision, field, lambda to=at if decision == OPEN else following: take(to)),
        )
    if finding["decided_at"]:
        decision = STATES[finding["decision"]].capitalize()
        by = f" by {plain(finding['decided_by'])}" if finding["decided_by"] else ""
        st.caption(f"{decision}{by} at {plain(finding['decided_at'][:16]).replace('T', ' ')} UTC.")
    return finding


def next_open(table: pd.DataFrame, start: int, but: int | None = None) -> int:
    """The first open finding from ``start`` on, continuing at the top; ``but`` itself if no other finding is open."""
    open_ = [at for at in table.index[table["decision"] == OPEN] if at != but]
    return next((at for at in open_ if at >= start), open_[0] if open_ else but or 0)


def keep(folder: str, finding: dict[str, Any], decision: str, field: str, go_on: Callable[[], None]) -> None:
    """Store a decision on the finding that the reader saw, and go on to the next open finding."""
    try:
        decide(folder, finding, decision, st.session_state[field], st.session_state["reviewer"])
        go_on()
    except lab.UserError as error:
        st.error(plain(error))


def last_reviewer() -> str:
    """The name of the reader who decided last on this machine; none if the app is served to others."""
    if "ENDOFM_LAB_PASSWORD" in os.environ:
        return ""
    file = cache_folder("app") / "reviewer.json"
    name = read_json(file) if file.is_file() else ""
    return name if isinstance(name, str) else ""


def keep_reviewer(name: str) -> None:
    """Store the name of the reader for the next session."""
    write_json(cache_folder("app") / "reviewer.json", name.strip())
