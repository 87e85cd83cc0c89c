"""Page Attention: where a model looks in a clip, in space and in time, and what its answer is based on."""

from typing import Any

import cache
import errors
import pandas as pd
import session
import streamlit as st
from cache import Content
from choose import choose_model, choose_video
from guide.glossary import meaning
from memory import kept
from texts import plain
from turns import heavy, soon

import endofm_lab as lab
from endofm_lab.explain.attention import AttentionMaps, By, HeadChoice, look
from endofm_lab.explain.attribution import METHODS, Attribution, methods_for
from endofm_lab.explain.targets import target_of
from endofm_lab.explain.trust import in_words, trust_steps
from endofm_lab.figures.attention import (
    curves,
    film_strip,
    head_grid,
    head_statistics,
    overlay,
    patch_picker,
    temporal_matrices,
)
from endofm_lab.figures.style import CONFIG, marked
from endofm_lab.reports.explanation import Explained

TESTS_KEPT = 40
Key = tuple[Content, Content, float]  # video, model, start in seconds


@kept(512)
def attention(video: Content, chosen: Content, start_s: float) -> AttentionMaps:
    """All attention of a clip, with norms if the model allows it."""
    network, clip = cache.model(chosen), cache.clip(video, chosen, start_s)
    with soon("Looking inside ..."):
        return look(network, lab.to_input(clip.frames, network.card.input), norms=network.backbone.has_video_blocks)


@st.cache_data(max_entries=40, show_spinner=False)
def top_classes(video: Content, chosen: Content, start_s: float) -> dict[str, int]:
    """The number of the class with the highest score in a clip, for every class head."""
    network, clip = cache.model(chosen), cache.clip(video, chosen, start_s)
    scores = network.predict(lab.to_input(clip.frames, network.card.input))
    heads = network.card.heads
    return {name: int(scores[name][0].argmax()) for name in heads if heads[name].kind in ("multiclass", "multilabel")}


@kept(64)
def attribution(video: Content, chosen: Content, start_s: float, head: str, label: str, method: str) -> Attribution:
    """The map of one method for one class."""
    network, clip = cache.model(chosen), cache.clip(video, chosen, start_s)
    with soon("Attributing ..."):
        return METHODS[method](network, lab.to_input(clip.frames, network.card.input), target_of(network, head, label))


def tested(key: Key, head: str, label: str, method: str) -> Explained:
    """An attribution map with its deletion and insertion, and its rank correlation with maps of shuffled weights.

    During the computation a bar shows the progress. A button stops it, because every click runs the page again.
    """
    results = st.session_state.setdefault("tested maps", {})
    if (name := (key, head, label, method)) not in results:
        video, chosen, start_s = key
        network, clip = cache.model(chosen), cache.clip(video, chosen, start_s)
        x = lab.to_input(clip.frames, network.card.input)
        explained = attribution(*key, head, label, method)
        steps = trust_steps(network, x, head, label, METHODS[method], explained.values)
        with heavy("the test", lambda: st.session_state.update({"test the map": False})) as bar:
            try:
                while True:
                    done, total = next(steps)
                    bar.progress(done / total, text=f"Testing the map: {done} of {total} steps")
            except StopIteration as finished:
                while len(results) >= TESTS_KEPT:
                    results.pop(next(iter(results)))
                results[name] = Explained(explained, *finished.value)
    return results[name]


def choose_clip() -> tuple[Content | None, Content, float]:
    """The chosen video and model, and the start of the clip in seconds."""
    video, chosen = choose_video(), choose_model()
    start_s = st.sidebar.number_input("Start of the clip (s)", 0.0, step=0.5, **session.field("start_s"))
    return video, chosen, float(start_s)


def choose_map(maps: AttentionMaps) -> tuple[int, HeadChoice]:
    """The chosen block and head."""
    left, right = st.columns(2)
    block, last = 0, maps.blocks - 1
    if last:
        block = left.slider("Block", 0, last, last, key=f"block of {last}", persist_state="session")
    heads = ["mean", "max", *range(maps.heads)]
    return block, right.selectbox("Head", heads, key=f"head of {maps.heads}", persist_state="session")


def take_patch(chart: Any) -> None:
    """Make the clicked patch the query."""
    points = chart["selection"]["points"]
    if points:
        row, column = cache.clicked(points[0])[:2]
        st.session_state["patch"] = (int(row), int(column))


def show_space(clip, maps: AttentionMaps, generated: bool) -> None:
    """Show one frame covered by the map of CLS or of a chosen patch."""
    block, head = choose_map(maps)
    T, h, w = maps.grid
    step = len(clip.frames) // T  # frames of a token
    t = st.slider("Frame of the clip", 0, T - 1, 0, key="clip_frame", persist_state="session") if T > 1 else 0
    patch = st.session_state.get("patch")
    if patch is not None and not (patch[0] < h and patch[1] < w):
        patch = None
    query = maps.reader if patch is None else f"the patch in row {patch[0]}, column {patch[1]}"
    figure = patch_picker(clip.frames[t * step], maps.in_space(block, head, patch)[t], patch)
    st.plotly_chart(
        marked(figure, generated),
        width="stretch",
        key="picker",
        on_select=session.with_value("picker", take_patch),
        selection_mode="points",
        config=CONFIG,
    )
    st.caption(
        f"Where **{query}** looks in the frame at {clip.times_s[t * step]:.2f} s. Click a dot to choose another patch."
    )
    if patch is not None:
        st.button(f"Back to {maps.reader}", on_click=lambda: st.session_state.pop("patch", None))


def show_time(clip, maps: AttentionMaps) -> None:
    """Show which frame reads from which, as matrices."""
    block, head = choose_map(maps)
    patch = st.session_state.get("patch")
    where = "mean over all patches" if patch is None else f"patch in row {patch[0]}, column {patch[1]}"
    matrices = {
        f"block {block}, {where}": maps.in_time(block, head, patch),
        "through all blocks": maps.rollout_in_time(head),
    }
    st.plotly_chart(temporal_matrices(matrices, clip.times_s), width="content", config=CONFIG)
    st.caption("Row: the frame that reads. Column: the frame that it reads from. Each row sums to one.")


def show_rollout(clip, maps: AttentionMaps, generated: bool) -> None:
    """Show how much of each patch reaches CLS through all blocks, or through the last blocks."""
    left, right = st.columns(2)
    first, last = 0, maps.blocks - 1
    if last:
        first = left.slider("From block", 0, last, 0, key=f"rollout from of {last}", persist_state="session")
    steps: dict[str, By] = {"What arrives (norms)": "norms"} if maps.norms else {}
    steps["Attention alone"] = "attention"
    by = steps[right.selectbox("Steps by", list(steps), key="rollout_by", persist_state="session")]
    rollout = maps.since(first).rollout(by=by)
    for figure in (overlay, film_strip):
        chart = figure(clip.frames, rollout, clip.times_s)
        st.plotly_chart(marked(chart, generated), width="stretch", key=figure.__name__, config=CONFIG)
    st.caption(
        "Rollout follows attention and residuals through the blocks, back to the tokens that enter the first block. It "
        "is the same for every class. By norms, each step is weighted by the length of the vector that arrives. By "
        "attention alone, a patch that is attended to counts even if it contributes nothing, and early blocks often "
        "attend to such patches. With a later first block, rollout shows what the last blocks read."
    )


def show_heads(clip, maps: AttentionMaps, generated: bool) -> None:
    """Show the maps of all heads of a block, and statistics of the heads of all blocks."""
    block, _ = choose_map(maps)
    grids = {f"head {k}": maps.in_space(block, k)[0] for k in range(maps.heads)}
    figure = head_grid(clip.frames[0], grids, f"{maps.reader} in the first frame, block {block}")
    st.plotly_chart(marked(figure, generated), width="stretch", config=CONFIG)
    st.plotly_chart(head_statistics(maps.statistics()), width="stretch", config=CONFIG)


def show_attribution(clip, key: Key, heads: dict, generated: bool) -> None:
    """Show the attribution of one class by one method, and how far it can be trusted."""
    if not heads:
        st.info("Only the backbone of this model was loaded. Without a head it has no answer to explain.")
        return
    first, second, third = st.columns(3)
    head = first.selectbox("Head", list(heads), key="target_head")
    # The default class depends on clip and model, so the key of the widget contains both.
    top = top_classes(*key).get(head, 0)
    label = second.selectbox("Class", heads[head].classes, index=top, key=f"class of {head} in {key}")
    method = third.selectbox("Method", methods_for(cache.model(key[1]), head))
    explained = attribution(*key, head, label, method)
    figure = overlay(clip.frames, explained.values, clip.times_s, explained.target)
    st.plotly_chart(marked(figure, generated), width="stretch", config=CONFIG)
    help_ = "Deletion and insertion, and maps of the same model with shuffled weights. This takes up to a minute."
    if st.toggle("Test this map", key="test the map", help=help_):
        test = tested(key, head, label, method)
        curves_of, correlation = test.curves, test.randomised
        sentences = in_words(curves_of, correlation, explained.completeness)
        st.markdown("\n".join(f"- {sentence}" for sentence in sentences))
        error = "not defined" if explained.completeness is None else f"{explained.completeness:.1%}"
        metrics = (
            ("Completeness error", error, "Difference between the sum of the map and the score that it explains"),
            (
                "Insertion minus deletion",
                f"{curves_of.gap:.2f}",
                "Area between the curves; 0: no better than chance",
            ),
            ("Same with shuffled weights", f"{correlation:.2f}", "Rank correlation; near 1: the map ignores the model"),
        )
        row = st.container(horizontal=True)
        for words, value, help_ in metrics:
            row.metric(words, value, help=help_, width=240)
        lines = {
            "deletion": (curves_of.share, curves_of.deletion),
            "insertion": (curves_of.share, curves_of.insertion),
            "deletion, random order": (curves_of.share, curves_of.random_deletion),
        }
        st.plotly_chart(curves(lines, "share of patches", "score"), width="stretch", config=CONFIG)


def show_two(key: Key, name: str, maps: AttentionMaps, clip, generated: bool) -> None:
    """Show rollouts of two models for the same clip, by norms if the models allow it."""
    placeholder = "the folder of a model, or a released checkpoint"
    second_model = st.text_input("Second model", placeholder=placeholder, **session.field("second_model")).strip()
    if not second_model:
        st.info("Give a second model to see both models side by side.")
        return
    second_key = (key[0], cache.model_content(second_model), key[2])
    second, second_clip = attention(*second_key), cache.clip(*second_key)
    for place, column, title, frames, times, attended in zip(
        ("first", "second"),
        st.columns(2),
        (name, second_model),
        (clip.frames, second_clip.frames),
        (clip.times_s, second_clip.times_s),
        (maps, second),
        strict=True,
    ):
        rollout = attended.rollout(by="norms" if attended.norms else "attention")
        figure = marked(overlay(frames, rollout, times, title), generated)
        column.plotly_chart(figure, width="stretch", key=f"{place} {title}", config=CONFIG)
    tables = [item.statistics().groupby("axis")[["distance", "entropy"]].mean() for item in (maps, second)]
    st.dataframe(pd.concat(tables, axis=1, keys=["first", "second"]))


st.title("Attention", help=meaning("Attention", "CLS", "Rollout", "Relevance", "Trust"))
video, chosen, start_s = choose_clip()
if video is None:
    st.info("Choose a video in the sidebar, or come here from a clip on the page Prediction.")
    st.stop()
try:
    key: Key = (video, chosen, start_s)
    generated = cache.video_info(video).generated
    network = cache.model(chosen)
    clip, maps = cache.clip(*key), attention(*key)
    T, h, w = maps.grid
    notice = "**Generated** video: it shows no patient. " if generated else ""
    st.caption(
        f"{notice}{plain(network.card.name)} · {len(clip.frames)} frames from {clip.times_s[0]:.2f} s to "
        f"{clip.times_s[-1]:.2f} s · {h} x {w} patches · {maps.blocks} blocks of {maps.heads} heads"
    )
    view = st.segmented_control(
        "View", session.VIEWS["look"], label_visibility="collapsed", required=True, **session.field("look")
    )
    if view == "Space":
        show_space(clip, maps, generated)
    elif view == "Time":
        show_time(clip, maps)
    elif view == "Rollout":
        show_rollout(clip, maps, generated)
    elif view == "Heads":
        show_heads(clip, maps, generated)
    elif view == "Attribution":
        show_attribution(clip, key, network.card.heads, generated)
    else:
        show_two(key, network.card.name, maps, clip, generated)
except errors.SHOWN as error:
    errors.show(error)
