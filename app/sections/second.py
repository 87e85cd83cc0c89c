"""A second model beside the first on the page Prediction: its scores, and the findings that only one of the two has."""

from collections.abc import Callable
from typing import Any

import cache
import pandas as pd
import session
import streamlit as st
from cache import Content
from machine.picking import offer
from sections.review import SCORE
from texts import plain

from endofm_lab.figures.prediction import timeline
from endofm_lab.figures.style import STILL
from endofm_lab.prediction import VideoPrediction
from endofm_lab.reports.study import readable
from endofm_lab.study.stretches import Thresholds, disagreements


def show_second(
    video: Content, first: VideoPrediction, thresholds: Thresholds, time_s: float, move_to: Callable[[int], None]
) -> None:
    """Show what a second model answers for the same video; choosing a disagreement moves the viewer to its frame."""
    st.subheader("Second model")
    placeholder = "a name, the folder of a model, or a released checkpoint"
    model = st.text_input("Second model", placeholder=placeholder, **session.field("second_model")).strip()
    offer("second_model", "model", st.container())
    if not model:
        st.caption("Give a second model to see where the two disagree.")
        return
    second = cache.prediction(video, cache.model_content(model), session.current().every_frame)
    names = [prediction.provenance["model_name"] for prediction in (first, second)]
    if names[0] == names[1]:
        names = [f"{name} ({place})" for name, place in zip(names, ("first", "second"), strict=True)]
    show_disagreements(disagreements(first, second, thresholds), names, move_to)
    show_both(first, second, names, time_s)
    if second.scores:
        figure = timeline(second, time_s, thresholds.score)
        st.plotly_chart(figure, width="stretch", key="timeline of the second model", config=STILL)
        st.caption(f"The scores of {plain(names[1])} over time.")


def show_disagreements(table: pd.DataFrame, names: list[str], move_to: Callable[[int], None]) -> None:
    """Show the findings that only one model has."""
    if table.empty:
        st.success("The two models have the same findings at this threshold.")
        return

    def follow_row(shown: Any) -> None:
        selected = shown["selection"]["rows"]
        if selected:
            move_to(int(table["frame"].iloc[selected[0]]))

    shown = readable(table)
    shown["only"] = [names[only] for only in table["only"]]
    shown["the other model"] = [
        "does not find it" if possible else "has no such class" for possible in table["possible"]
    ]
    columns = ["number", "finding", "only", "the other model", "score", "at", "from", "to"]
    st.dataframe(
        shown[columns],
        hide_index=True,
        key="disagreements",
        on_select=session.with_value("disagreements", follow_row),
        selection_mode="single-row",
        column_config={"score": SCORE, "number": st.column_config.NumberColumn("no.", width=40)},
    )
    st.caption(
        "Findings of one model during which the other has no finding of this name, in order of time. Select a row to "
        "move the viewer to its frame."
    )


def show_both(first: VideoPrediction, second: VideoPrediction, names: list[str], time_s: float) -> None:
    """Show the scores of both models around the shown frame, side by side for heads of the same name."""
    for head, scores in second.scores.items():
        columns = {names[1]: dict(zip(second.classes[head], scores[second.clip_at(time_s)], strict=True))}
        if head in first.scores:
            clip = first.scores[head][first.clip_at(time_s)]
            columns = {names[0]: dict(zip(first.classes[head], clip, strict=True))} | columns
        table = pd.DataFrame(columns).rename_axis(head).sort_values(names[1], ascending=False)
        st.dataframe(table, column_config=dict.fromkeys(columns, SCORE), key=f"both {head}")
