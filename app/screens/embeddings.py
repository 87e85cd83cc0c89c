"""Page Embeddings: a map of embedded clips; a lasso shows the selected pictures, and a click shows neighbours."""

from importlib.util import find_spec
from pathlib import Path

import cache
import errors
import numpy as np
import pandas as pd
import session
import streamlit as st
from cache import Content, content_of
from guide.glossary import meaning
from machine.jobs import watch
from machine.picking import offer
from machine.starting import new_store
from memory import kept
from sheets import show_sheet
from texts import plain
from turns import soon

from endofm_lab.data.units import units
from endofm_lab.explain.atlas import (
    Neighbours,
    fit_pca,
    linear_cka,
    outlier_scores,
    procrustes,
    shortcut_test,
    tsne,
    umap,
)
from endofm_lab.explain.embeddings import EmbeddingStore, load_store
from endofm_lab.figures.embeddings import scatter
from endofm_lab.figures.pictures import with_mark
from endofm_lab.figures.style import CONFIG, UPLOADS
from endofm_lab.folders.background import job_of

SHOWN = 18  # largest number of pictures shown at a time
MAPS = ["PCA", "t-SNE", *(["UMAP"] if find_spec("umap") else [])]  # umap-learn is an optional package
CLICK = "Click a marker"
# Streamlit reports no click while the mouse is set to draw a lasso or a box, so the user chooses what the mouse does.
MOUSE = {
    CLICK: (
        "pan",
        "Click a marker to see its neighbours. To see the pictures of several markers, choose the lasso or the box.",
    ),
    "Draw a lasso": (
        "lasso",
        "Draw a lasso around markers to see their pictures, or around a single marker to see its neighbours.",
    ),
    "Draw a box": (
        "select",
        "Draw a box around markers to see their pictures, or around a single marker to see its neighbours.",
    ),
}


@st.cache_resource(max_entries=4, show_spinner=False)
def opened(folder: Content) -> EmbeddingStore:
    """An embedding store; its vectors stay on disk."""
    return load_store(folder.path)


@kept(64)
def projection(folder: Content, method: str) -> np.ndarray:
    """Positions (N, 2) of the readable rows of a store, by "PCA", "t-SNE" or "UMAP"."""
    store = opened(folder)
    vectors = store.vectors[store.usable()]
    with soon("Drawing the map ..."):
        if method == "PCA":
            return fit_pca(vectors, 2).project(vectors)
        return tsne(vectors) if method == "t-SNE" else umap(vectors)


def store_content(folder: str) -> Content:
    """The folder of an embedding store."""
    return content_of(Path(folder).expanduser(), ("store.json",))


def picture(store: EmbeddingStore, row: pd.Series) -> np.ndarray:
    """The first frame of a row's clip; a generated frame carries the mark."""
    path = Path(row["video"]) if Path(row["video"]).is_absolute() else Path(store.about["root"]) / row["video"]
    video = cache.video_content(path)
    frame = cache.frame(video, int(np.abs(cache.frame_times(video) - row["time_s"]).argmin()))
    return with_mark(frame) if cache.video_info(video).generated else frame


def sheet(store: EmbeddingStore, rows: pd.DataFrame, extra: list[str] | None = None) -> None:
    """Show the pictures of rows with their labels."""
    rows = rows.head(SHOWN)
    titles = [
        f"{row['label'] or 'no label'}{' ' + extra[n] if extra else ''}" for n, (_, row) in enumerate(rows.iterrows())
    ]
    show_sheet([picture(store, row) for _, row in rows.iterrows()], titles)


st.title("Embeddings", help=meaning("Embedding", "Store"))
placeholder = "a folder made by endofm-lab embed"
folder = st.sidebar.text_input("Embedding store", placeholder=placeholder, **session.field("store")).strip()
offer("store", "store")
new_store()
if not folder:
    st.info("Embed a manifest first: make a store above. Or give the folder of a store in the sidebar.")
    st.stop()
watch(Path(folder).expanduser())
if job_of(folder) is not None and not store_content(folder).stamp:
    st.stop()
try:
    content = store_content(folder)
    store = opened(content)
    usable = store.usable()
    rows = store.rows[usable].reset_index(drop=True)
    method = st.sidebar.selectbox("Map", MAPS)
    columns = [c for c in rows.columns if c not in ("video", "masks", "boxes", "error", "start_s", "end_s", "source")]
    color = st.sidebar.selectbox("Colour", columns, index=columns.index("label"))
    left_out = f" · {int((~usable).sum())} could not be read" if not usable.all() else ""
    generated = " · the model was trained on generated video only" if store.about["generated"] else ""
    st.caption(
        f"{len(rows)} clips of {plain(units(rows).words)} · {plain(store.about['model_name'])}{generated}{left_out}"
    )
    figure = scatter(projection(content, method), rows, color)
    mouse = st.segmented_control("Mouse", list(MOUSE), default=CLICK, key="mouse", label_visibility="collapsed")
    mode, words = MOUSE[mouse or CLICK]
    figure.update_layout(dragmode=mode, modebar={"remove": [*UPLOADS, "lasso2d", "select2d"]})
    chosen = st.plotly_chart(
        figure,
        width="stretch",
        key=f"map {mode}",
        on_select="rerun",
        selection_mode=("points", "lasso", "box"),
        config=CONFIG,
    )
    st.caption(words)
    points = [int(cache.clicked(point)[0]) for point in chosen["selection"]["points"]]
    if len(points) == 1:
        leave_out = st.radio(
            "Leave out neighbours that were recorded together with the clip",
            ["yes", "no"],
            horizontal=True,
            help="Clips of the same patient, or of the same sequence or video if patients are unknown",
        )
        neighbours = Neighbours(store.vectors[usable], rows).of(
            points[0], 11, "recording" if leave_out == "yes" else None
        )
        st.subheader("The clicked clip and its neighbours")
        selection = pd.concat([rows.iloc[points], rows.iloc[neighbours["row"]]])
        sheet(store, selection, ["(chosen)", *(f"{s:.2f}" for s in neighbours["similarity"])])
    elif points:
        limit = f", of which the first {SHOWN} are shown" if len(points) > SHOWN else ""
        st.subheader(f"{len(points)} clips{limit}")
        sheet(store, rows.iloc[points])
    with st.expander("Shortcut test"):
        st.dataframe(shortcut_test(store.vectors[usable], rows), hide_index=True)
        st.caption(
            "Balanced accuracy of a linear probe on held-out patients (or recordings if patients are unknown). If the "
            "probe recognises the device, the data set or the patient as well as the label, the model may use "
            "them as shortcuts."
        )
    with st.expander("Outliers"):
        score = outlier_scores(store.vectors[usable])
        order = np.argsort(-score)[:6]
        sheet(store, rows.iloc[order], [f"{score[n]:.2f}" for n in order])
    second = st.text_input("Compare with a second store of the same manifest").strip()
    if second:
        second_store = opened(store_content(second))
        if second_store.about["manifest_fingerprint"] != store.about["manifest_fingerprint"]:
            st.error("The second store was made from another manifest. Embed the same manifest with both models.")
        else:
            common = usable & second_store.usable()
            pair = (np.asarray(store.vectors[common]), np.asarray(second_store.vectors[common]))
            left, right = st.columns(2)
            left.metric("Linear CKA (1 = alike)", f"{linear_cka(*pair):.3f}")
            right.metric("Procrustes distance (0 = alike)", f"{procrustes(*pair):.3f}")
except errors.SHOWN as error:
    errors.show(error)
