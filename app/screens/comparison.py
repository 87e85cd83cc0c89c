"""Page Comparison: finished runs in one table with intervals and a paired test, and the published results."""

from pathlib import Path

import errors
import pandas as pd
import session
import streamlit as st
from cache import Content, content_of
from guide.glossary import meaning
from machine.jobs import watch
from machine.picking import offer
from machine.starting import new_run
from texts import plain

import endofm_lab as lab
from endofm_lab.figures.comparison import classes, intervals, reliability_of
from endofm_lab.figures.style import STILL
from endofm_lab.files import cache_folder
from endofm_lab.finetuning.config import FinetuneConfig
from endofm_lab.finetuning.finetune import finetune
from endofm_lab.folders.background import list_jobs
from endofm_lab.reports.comparison import comparison_page
from endofm_lab.runs.by_class import by_class
from endofm_lab.runs.compare import Comparison, compare
from endofm_lab.runs.paper_table import paper_table
from endofm_lab.runs.run import REPORT, Run, read_run, run_folders
from endofm_lab.runs.tables import with_provenance


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
    """The metrics of a run for every class."""
    return by_class(opened(folder))


def metric_names(run: Run) -> list[str]:
    """The metrics of a run, the usual metric of its task first."""
    return sorted(run.samples(n=1).values, key=lambda name: name != run.task_class.primary)


def sample_runs() -> None:
    """Make two runs on a small generated data set of patients that the demo model was not trained on."""
    folder = cache_folder("samples") / f"phantom_unseen_{lab.__version__}"
    with st.spinner("Drawing generated video and measuring two methods on it ..."):
        manifest = lab.write_phantom(folder, preset="tiny", seed=41, progress=False)
        for method in ("linear probe", "knn"):
            out = cache_folder("runs") / f"sample {method}"
            list(finetune(FinetuneConfig(manifest, out, method=method, clips=1)))


def choose_runs(root: Path) -> tuple[list[Run], list[Path]]:
    """All readable runs below a folder, and the folders of the chosen runs, which have the same task."""
    runs: dict[Path, Run] = {}
    problems = []
    for folder in run_folders(root):
        try:
            runs[folder] = opened(run_content(folder))
        except lab.UserError as error:
            problems.append(str(error))
    for problem in problems:
        st.warning(f"Left out: {plain(problem)}")
    if not runs:
        return [], []
    tasks = sorted({run.task for run in runs.values()})
    task = st.segmented_control("Task", tasks, default=tasks[0], format_func=plain) or tasks[0]
    folders = [folder for folder, run in runs.items() if run.task == task]
    chosen = st.multiselect(
        "Runs",
        folders,
        default=folders[:8],
        format_func=lambda folder: f"{folder.relative_to(root)} · {runs[folder].method}",
        key=f"runs of {task}",
    )
    return list(runs.values()), chosen


def show_comparison(comparison: Comparison) -> None:
    """Show the table, its figure and notes, the reasons if there is no ranking, and buttons that download the table."""
    if not comparison.ranked:
        st.warning(
            "**These runs are not ranked**, and no significance test was run:\n\n"
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
            (with_provenance(comparison.to_markdown(), "markdown"), "md", "text/markdown"),
            (comparison.to_csv(), "csv", "text/csv"),
            (comparison_page(comparison), "html", "text/html"),
        ],
        strict=True,
    ):
        name = {"md": "Markdown", "csv": "CSV", "html": "HTML"}[ending]
        column.download_button(f"Table as {name}", text, f"comparison.{ending}", kind, width="stretch")


def show_classes(folders: list[Path], runs: list[Run]) -> None:
    """Show every class by itself, and the calibration of the scores, for the runs that contain them."""
    tables = {run.run: class_by_class(run_content(f)) for f, run in zip(folders, runs, strict=True)}
    tables = {name: table for name, table in tables.items() if len(table)}
    calibration = reliability_of(runs)
    if tables:
        st.subheader("Class by class")
        st.plotly_chart(classes(tables), width="stretch", key="classes", config=STILL)
        st.caption("In brackets: number of true items of the class. A mean can hide a class that is never found.")
    if calibration is not None:
        st.subheader("Calibration")
        st.plotly_chart(calibration, width="stretch", key="reliability", config=STILL)
        st.caption(
            "Below the diagonal a model is overconfident. Bins with few items (small dots) vary strongly by chance; "
            "`ece` in the table is the mean distance from the diagonal."
        )


def offer_sample() -> None:
    """Offer to make two runs with which the user can try the page."""
    st.info(
        "There is no finished run in this folder yet. `endofm-lab finetune MANIFEST --out RUN` and "
        "`endofm-lab evaluate` write runs; give the folder that contains them in the sidebar."
    )
    if st.button("Make two small runs", icon=":material/science:", help="On generated video, in about a minute"):
        sample_runs()
        st.rerun()


st.title("Comparison", help=meaning("Run", "Interval", "AUC", "Dice", "AP50"))
st.markdown(
    "Finished runs side by side: **metrics with intervals over patients** (over recordings if patients are unknown), "
    "and a paired test. Runs are ranked only if they were tested on the same items by the same protocol, with enough "
    "patients."
)
placeholder = "default: the runs of this app"
folder_text = st.sidebar.text_input("Folder with runs", placeholder=placeholder, **session.field("runs")).strip()
offer("runs", "run")
root = Path(folder_text).expanduser() if folder_text else cache_folder("runs")
new_run()
try:
    for job in list_jobs():
        if job.command[0] == "finetune":
            watch(job.out)
    available, chosen = choose_runs(root)
    if not available:
        offer_sample()
    elif not chosen:
        st.info("Choose at least one run.")
    else:
        runs = [opened(run_content(folder)) for folder in chosen]
        metrics = metric_names(runs[0])
        by = st.sidebar.selectbox("Rank by", metrics, help="By default the usual metric of the task")
        show_comparison(compared(tuple(map(run_content, chosen)), by))
        show_classes(chosen, runs)
    st.subheader("Published results")
    st.markdown(paper_table(available))
except errors.SHOWN as error:
    errors.show(error)
