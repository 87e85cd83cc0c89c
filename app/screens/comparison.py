"""Page: finished runs in one table, with intervals and a paired test; beside them the published results."""

from pathlib import Path

import errors
import pandas as pd
import session
import streamlit as st
from cache import Content, content_of
from texts import plain

import endofm_lab as lab
from endofm_lab.figures.comparison import classes, intervals, reliability_of
from endofm_lab.figures.style import STILL
from endofm_lab.files import cache_folder
from endofm_lab.finetuning.config import FinetuneConfig
from endofm_lab.finetuning.finetune import finetune
from endofm_lab.reports.comparison import comparison_page
from endofm_lab.runs.by_class import by_class
from endofm_lab.runs.compare import Comparison, compare
from endofm_lab.runs.paper_table import paper_table
from endofm_lab.runs.run import REPORT, Run, read_run, run_folders


def run_content(folder: Path) -> Content:
    """The folder of a finished run."""
    return content_of(folder, (REPORT,))


@st.cache_resource(max_entries=64, show_spinner="Reading the runs ...")
def opened(folder: Content) -> Run:
    """A finished run."""
    return read_run(folder.path)


@st.cache_resource(max_entries=16, show_spinner="Comparing ...")
def compared(folders: tuple[Content, ...], by: str) -> Comparison:
    """The comparison of finished runs."""
    return compare([opened(folder) for folder in folders], by)


@st.cache_data(max_entries=64, show_spinner="Counting class by class ...")
def class_by_class(folder: Content) -> pd.DataFrame:
    """A run class by class."""
    return by_class(opened(folder))


def metric_names(one: Run) -> list[str]:
    """The metrics of a run, the usual one of its task first."""
    return sorted(one.samples(n=1).values, key=lambda name: name != one.asked.primary)


def sample_runs() -> None:
    """Two runs on a small generated data set of patients that the demo has not seen, kept with the runs of this app."""
    folder = cache_folder("samples") / f"phantom_unseen_{lab.__version__}"
    with st.spinner("Drawing generated video and measuring two methods on it ..."):
        manifest = lab.write_phantom(folder, preset="tiny", seed=41, progress=False)
        for method in ("linear probe", "knn"):
            out = cache_folder("runs") / f"sample {method}"
            list(finetune(FinetuneConfig(manifest, out, method=method, clips=1)))


def choose_runs(root: Path) -> tuple[list[Run], list[Path]]:
    """All readable runs below a folder, and the folders of those that are chosen: of one task."""
    found: dict[Path, Run] = {}
    problems = []
    for folder in run_folders(root):
        try:
            found[folder] = opened(run_content(folder))
        except lab.UserError as error:
            problems.append(str(error))
    for problem in problems:
        st.warning(f"Left out: {plain(problem)}")
    if not found:
        return [], []
    tasks = sorted({run.task for run in found.values()})
    task = st.segmented_control("Task", tasks, default=tasks[0], format_func=plain) or tasks[0]
    own = [folder for folder, run in found.items() if run.task == task]
    chosen = st.multiselect(
        "Runs",
        own,
        default=own[:8],
        format_func=lambda folder: f"{folder.relative_to(root)} · {found[folder].method}",
        key=f"runs of {task}",
    )
    return list(found.values()), chosen


def show_comparison(comparison: Comparison) -> None:
    """Why there is no ranking, the table, its figure, its notes, and the files to take away."""
    if not comparison.ranked:
        st.warning(
            "**These runs are not ranked**, and no test is given:\n\n"
            + "\n".join(f"- {plain(reason)}" for reason in comparison.reasons)
        )
    head, rows = comparison.cells()
    narrow = {"initialisation": st.column_config.TextColumn(width="medium")}
    st.dataframe(pd.DataFrame(rows, columns=head), hide_index=True, width="stretch", column_config=narrow)
    st.plotly_chart(intervals(comparison), width="stretch", key="intervals", config=STILL)
    notes = [note for note in comparison.notes() if not note.startswith("Not ranked: ")]
    st.markdown("\n".join(f"- {plain(note)}" for note in notes))
    for column, (text, ending, kind) in zip(
        st.columns(3),
        [
            (comparison.to_markdown(), "md", "text/markdown"),
            (comparison.to_csv(), "csv", "text/csv"),
            (comparison_page(comparison), "html", "text/html"),
        ],
        strict=True,
    ):
        name = {"md": "Markdown", "csv": "CSV", "html": "HTML"}[ending]
        column.download_button(f"Table as {name}", text, f"comparison.{ending}", kind, width="stretch")


def show_classes(folders: list[Path], runs: list[Run]) -> None:
    """Every class on its own, and how far confidences can be believed, where the runs hold it."""
    tables = {run.run: class_by_class(run_content(f)) for f, run in zip(folders, runs, strict=True)}
    tables = {name: table for name, table in tables.items() if len(table)}
    calibration = reliability_of(runs)
    if tables:
        st.subheader("Class by class")
        st.plotly_chart(classes(tables), width="stretch", key="classes", config=STILL)
        st.caption("In brackets: how often the class occurs in the truth. A mean hides the class that is never found.")
    if calibration is not None:
        st.subheader("Can the scores be believed?")
        st.plotly_chart(calibration, width="stretch", key="reliability", config=STILL)
        st.caption(
            "Below the diagonal a model promises more than it keeps. Bins of few items (small dots) jump; "
            "`ece` in the table is the mean gap."
        )


def offer_sample() -> None:
    """Two runs to try the page with, made on this machine in about a minute."""
    st.info(
        "There is no finished run here yet. `endofm-lab finetune MANIFEST --out RUN` and `endofm-lab evaluate` write "
        "them; give the folder that holds them in the side bar."
    )
    if st.button("Make two small runs to try", icon=":material/science:", help="Generated video, about a minute"):
        sample_runs()
        st.rerun()


st.title("Comparison")
st.markdown(
    "Finished runs side by side: **values with intervals over patients** (over recordings where patients are unknown), "
    "and a paired test. Runs are ranked only if they answered the same test items by the same protocol, on enough "
    "patients."
)
placeholder = "default: the runs of this app"
typed = st.sidebar.text_input("Folder with runs", placeholder=placeholder, **session.field("runs")).strip()
root = Path(typed).expanduser() if typed else cache_folder("runs")
try:
    found, chosen = choose_runs(root)
    if not found:
        offer_sample()
    elif not chosen:
        st.info("Choose at least one run.")
    else:
        runs = [opened(run_content(folder)) for folder in chosen]
        metrics = metric_names(runs[0])
        by = st.sidebar.selectbox("Rank by", metrics, help="By default the task's usual metric")
        show_comparison(compared(tuple(map(run_content, chosen)), by))
        show_classes(chosen, runs)
    st.subheader("Beside the published results")
    st.markdown(paper_table(found))
except errors.SHOWN as error:
    errors.show(error)
