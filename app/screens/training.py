"""Page Training: start a small pre-training run in its own process, watch its curves and health, stop and resume it."""

import re
from pathlib import Path

import errors
import streamlit as st
from guide.glossary import meaning
from texts import plain
from turns import place_in_words

import endofm_lab as lab
from endofm_lab.data.phantom_set import write_phantom
from endofm_lab.figures.style import CONFIG
from endofm_lab.files import cache_folder, read_json
from endofm_lab.folders.background import WAITING, is_running, job_of, list_jobs, printed, start, stop
from endofm_lab.pretraining.config import OBJECTIVES, signs_of, tiny
from endofm_lab.pretraining.health import verdict
from endofm_lab.reports.pretraining import curves, probe_table, reference_for
from endofm_lab.training.loop import LOG, read_log

DATA = {"Generated, small (seconds to draw)": "tiny", "Generated, tutorial (minutes to draw)": "tutorial"}
LOCAL = "A manifest on this machine"
VERDICT = {"healthy": st.success, "too early to say": st.info}


def manifest_of(data: str, text: str) -> Path:
    """The chosen manifest; a generated data set is drawn if it is not in the cache."""
    if data == LOCAL:
        return Path(text.strip()).expanduser()
    with st.spinner("Drawing the generated videos ..."):
        return write_phantom(cache_folder("phantom") / DATA[data], DATA[data], progress=False)


def new_run() -> None:
    """Show the form that starts a run."""
    with st.form("new run"):
        left, middle, right = st.columns(3)
        name = left.text_input("Name", "first run")
        data = left.selectbox("Videos", [*DATA, LOCAL])
        text = left.text_input("Manifest", placeholder="path of your own CSV or Parquet manifest")
        default = tiny(Path(), Path()).objective
        objective = middle.selectbox(
            "Objective",
            list(OBJECTIVES),
            index=list(OBJECTIVES).index(default),
            help=f"{default} learns in minutes; the others take longer",
        )
        teacher = middle.text_input("Teacher", "demo", help="Only for the objective features: the folder of a model")
        steps = middle.number_input("Steps", 1, 1_000_000, 200, help="About two seconds each on a laptop")
        batch = middle.number_input("Clips per step", 2, 4096, 32)
        seed = right.number_input("Seed", 0, 2**31 - 1, 0)
        temperature = right.number_input(
            "Teacher temperature", 0.001, 10.0, 0.03, format="%.3f", help="Only for the objectives dino and masked"
        )
        centring = right.toggle(
            "Centring",
            True,
            help="Only for the objectives dino and masked: switch it off to watch the collapse that it prevents",
        )
        probe = right.toggle(
            "Measure with labels", True, help="By kNN and a linear probe; the network does not learn from the labels"
        )
        if not st.form_submit_button("Start", type="primary", icon=":material/play_arrow:"):
            return
    manifest = manifest_of(data, text)
    folder = cache_folder("runs") / (re.sub(r"[^\w-]+", "-", name.strip()).strip("-") or "run")
    settings = [
        "--dino.centring" if centring else "--dino.no-centring",
        "--dino.teacher-temperature",
        str(temperature),
        "--dino.teacher-temperature-start",
        str(temperature),
        "--features.teacher",
        teacher.strip(),
        "--save-every",
        "20",
    ]
    command = ["pretrain", str(lab.read_manifest(manifest).path), "--out", str(folder), "--preset", "tiny"]
    command += ["--objective", str(objective), "--steps", str(steps), "--batch", str(batch), "--seed", str(seed)]
    command += [*(["--probe", str(manifest)] if probe else []), *settings]
    start(command, folder, f"Pre-training {folder.name}")
    st.session_state["run"] = str(folder)
    st.rerun()


def choose_run() -> Path | None:
    """The chosen run: one of this app, the newest first, or a typed folder."""
    runs = {path.parent: path.stat().st_mtime for path in cache_folder("runs").glob("*/config.json")}
    runs |= {job.out: job.entered_s for job in list_jobs() if job.command[0] == "pretrain"}
    folders = [str(run) for run in sorted(runs, key=lambda run: runs[run], reverse=True)]
    text = st.sidebar.text_input("Folder of another run", help="Written by endofm-lab pretrain --out").strip()
    if text:
        return Path(text).expanduser()
    if not folders:
        return None
    if st.session_state.get("run") not in folders:
        st.session_state["run"] = folders[0]
    return Path(st.sidebar.selectbox("Run", folders, key="run", format_func=lambda path: Path(path).name))


def show_state(run: Path, running: bool, description: dict, n_records: int) -> None:
    """Show the progress of the run, and the button that stops or resumes it."""
    done, steps = n_records, int(description["steps"])
    waits = (job := job_of(run)) is not None and job.state == WAITING
    words = "waiting" if waits else "running" if running else "finished" if done >= steps else "stopped"
    text, button = st.columns([5, 1], vertical_alignment="center")
    text.progress(min(done / steps, 1.0), text=f"**{plain(run.name)}** · {words} · {done} of {steps} steps")
    try:
        if running and button.button("Stop", icon=":material/stop:", help="Saves a checkpoint and stops the run"):
            stop(run)
            st.toast("The run saves a checkpoint and stops.")
        elif words == "stopped" and button.button("Resume", icon=":material/play_arrow:"):
            start(["pretrain", str(run)], run, f"Pre-training {run.name}")
            st.rerun()
    except errors.SHOWN as error:
        errors.show(error)


def show_run(run: Path) -> None:
    """Show state, health and curves, which are updated every few seconds while the run continues."""
    running = is_running(run)
    if not (run / "config.json").is_file():
        job = job_of(run)
        if job is not None and job.state == WAITING:
            st.info(place_in_words(job.before))
        elif running:
            st.info("The run is starting: it reads the manifest and builds the network.")
        else:
            st.error(
                f"{plain(run)} contains no run."
                if not printed(run)
                else f"The run ended before its first step: {plain(printed(run, 3))}"
            )
        return
    description, records = read_json(run / "config.json"), read_log(run / LOG)
    show_state(run, running, description, len(records))
    if not running and (last := printed(run, 1)).startswith("Error:"):
        st.error(plain(last.removeprefix("Error: ")))
    st.caption(
        f"{plain(description['n_clips'])} clips of {plain(description['n_files'])} videos · "
        f"{plain(description['initialisation']['words'])}"
    )
    if not records:
        st.info("No step is finished yet. With a probe, the untrained network is measured first.")
        return
    if not running and len(records) < description["steps"]:
        st.caption(f"Last output of the run: {plain(printed(run, 2))}" if printed(run) else "")
    health = verdict(records, signs_of(description))
    VERDICT.get(health.state, st.warning)(plain(health))
    if left_out := records[-1].get("left_out"):
        st.warning(f"{plain(left_out)} videos cannot be read and were left out. The report of the run names them.")
    reference = reference_for(description["config"]) if st.session_state.get("reference", True) else []
    figures = curves(description, records, reference)
    for place, (title, figure) in enumerate(figures.items()):
        if place % 2 == 0:
            columns = st.columns(2)
        columns[place % 2].plotly_chart(figure, width="stretch", key=f"curve {title}", config=CONFIG)
    if len(table := probe_table(run)):
        st.dataframe(table, width="content", hide_index=True)
        st.caption(
            "Balanced accuracy on held-out patients (or recordings if patients are unknown), with 95 % intervals over "
            "them."
        )
    if (run / "report.html").is_file():
        st.download_button("Report", (run / "report.html").read_bytes(), f"{run.name}.html", "text/html")


st.title("Training", help=meaning("Pre-training", "Probe"))
st.markdown(
    "A small network learns from video **without labels**. The run continues in its own process when you close this "
    "page. This page is for teaching; start large runs on the command line (`endofm-lab pretrain --help`)."
)
try:
    run = choose_run()
    with st.expander("Start a new run", expanded=run is None, icon=":material/add:"):
        new_run()
    if run is not None:
        st.sidebar.toggle("Show a reference run", True, key="reference", help="A healthy run as dotted lines")
        st.fragment(show_run, run_every=3.0 if is_running(run) else None)(run)
except errors.SHOWN as error:
    errors.show(error)
