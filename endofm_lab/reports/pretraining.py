"""The report of a pre-training run: curves, health, configuration, actual initialisation, data and versions."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from endofm_lab.errors import UserError
from endofm_lab.figures.style import PALETTE, tidy
from endofm_lab.files import read_json, write_json
from endofm_lab.pretraining.config import OBJECTIVES, signs_of
from endofm_lab.pretraining.health import Health, verdict, with_interval
from endofm_lab.reports.html import Item, write_report
from endofm_lab.training.checkpoints import STATE, Checkpoints
from endofm_lab.training.loop import CHECKPOINTS, LOG, Record, read_log

REFERENCE = Path(__file__).parents[1] / "weights" / "reference"

# Title of a figure -> values of the log that it shows. The figures of the objective come before these.
CURVES = {
    "Probe, balanced accuracy": ("knn", "linear", "chance"),
    "Feature standard deviation (1: all directions alike)": ("feature_std",),
    "Rank of the features (RankMe)": ("rankme",),
    "Learning rate": ("lr",),
    "Gradient norm": ("grad_norm",),
    "Seconds per step": ("step_s", "data_s"),
}


def curves(
    description: dict[str, Any], records: Sequence[Record], reference: Sequence[Record] = ()
) -> dict[str, go.Figure]:
    """The figures of a run by title, those of its objective first; figures without data in the log are left out.

    Args:
        description: the content of the run's ``config.json``.
        records: the run's log.
        reference: log of another run, which is drawn as dotted lines.
    """
    titles = signs_of(description).curves | CURVES
    figures = {title: _curve(records, title, names, reference) for title, names in titles.items()}
    return {title: figure for title, figure in figures.items() if figure.data}


def _curve(records: Sequence[Record], title: str, names: Sequence[str], reference: Sequence[Record]) -> go.Figure:
    figure = go.Figure()
    for colour, name in zip(PALETTE, names, strict=False):
        for run, log, dash in (("reference", reference, "dot"), ("", records, "solid")):
            points = [(record["step"], record[name]) for record in log if record.get(name) is not None]
            if points:
                steps, values = zip(*points, strict=True)
                line = {"color": colour, "dash": dash, "width": 1 if run else 2}
                figure.add_scatter(
                    x=steps,
                    y=values,
                    name=f"{name} {run}".strip(),
                    line=line,
                    mode="lines+markers" if len(points) < 20 else "lines",
                    opacity=0.5 if run else 1,
                )
    figure.update_layout(title=title, xaxis_title="step", height=340, showlegend=True)
    return tidy(figure)


def health_of(run: str | Path) -> Health:
    """The health verdict on the run in a folder.

    Raises:
        UserError: the folder contains no pre-training run.
    """
    description = _described(Path(run))
    return verdict(read_log(Path(run) / LOG), signs_of(description))


def reference_for(config: dict[str, Any]) -> list[Record]:
    """The log of a healthy run, which comes with the package, for comparison with runs of the same kind.

    It is the log of `endofm-lab pretrain --preset tiny` on the phantom's preset "demo" with seed 0. The losses of other
    objectives, settings of the objective or batch sizes have another scale, so the log is empty for such runs.
    """
    description = read_json(REFERENCE / "config.json")["config"]
    names = ("objective", OBJECTIVES[description["objective"]], "batch")
    matches = all(config.get(name) == description[name] for name in names)
    return read_log(REFERENCE / LOG) if matches else []


def report_run(run: str | Path) -> Path:
    """Write ``report.html`` and ``report.json`` into the folder of a run, finished or not; returns the HTML's path.

    The curves of `reference_for` are drawn with those of the run.

    Raises:
        UserError: the folder contains no pre-training run.
    """
    run = Path(run)
    description, records = _described(run), read_log(run / LOG)
    health, reference = verdict(records, signs_of(description)), reference_for(description["config"])
    left_out = _left_out(run)
    probes = _probes(run)
    summary = {
        **description,
        "steps_done": len(records),
        "health": {"state": health.state, "words": health.words, "advice": health.advice},
        "last": {k: v for k, v in records[-1].items() if v is None or math.isfinite(v)} if records else {},
        "left_out": left_out,
        "probe": probes,
    }
    write_json(run / "report.json", summary)
    items: list[Item] = [
        f"Health: {health}",
        f"Initialisation: {description['initialisation']['words']}",
        f"{len(records)} of {description['steps']} steps on {description['n_clips']} clips of {description['n_files']} "
        f"videos (manifest {description['manifest_fingerprint'][:16]}).",
        *(extension["words"] for extension in description.get("extensions", ())),
        *(
            f"{part['share']:.1%} of the training clips: {Path(part['manifest']).name} ({part['n_clips']} clips)."
            for part in description.get("manifests", ())
        ),
        f"Videos left out because they cannot be read: {len(left_out)}.",
    ]
    if left_out:
        items.append(pd.DataFrame(left_out.items(), columns=["video", "reason"]))
    if probes:
        items.append(probe_table(run))
    sections: list[tuple[str, Sequence[Item]]] = [
        ("Summary", items),
        ("Curves", list(curves(description, records, reference).values())),
        ("Configuration", [pd.DataFrame(_rows(description["config"]), columns=["setting", "value"])]),
    ]
    return write_report(run / "report.html", f"Pre-training: {run.name}", sections, description.get("provenance", {}))


def _described(run: Path) -> dict[str, Any]:
    if not (run / "config.json").is_file():
        raise UserError(f"{run} contains no pre-training run: config.json is missing. Give the folder of a run.")
    return read_json(run / "config.json")


def _left_out(run: Path) -> dict[str, str]:
    checkpoints = Checkpoints(run / CHECKPOINTS).all()
    return read_json(checkpoints[-1] / STATE)["left_out"] if checkpoints else {}


def _probes(run: Path) -> dict[str, Any]:
    return read_json(run / "probe.json") if (run / "probe.json").is_file() else {}


def probe_table(run: str | Path) -> pd.DataFrame:
    """Balanced accuracy of kNN and linear probe before and after training, with 95 % intervals; may be empty."""
    rows = []
    for state, numbers in _probes(Path(run)).items():
        row = {"network": state, "tested on": numbers.get("tested_on", "patients, not counted")}
        for name in ("knn", "linear"):
            row[name] = with_interval(numbers, name)
        rows.append(row | {"chance": f"{numbers['chance']:.3f}"})
    return pd.DataFrame(rows)


def _rows(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as rows; paths are shortened to their last component."""
    rows = []
    for key, value in tree.items():
        if isinstance(value, dict):
            rows += _rows(value, f"{prefix}{key}.")
        else:
            if key == "others":
                value = ", ".join(Path(path).name for path in value)
            local = key in ("manifest", "out", "probe", "initialisation") and value is not None
            rows.append((prefix + key, Path(value).name if local else str(value)))
    return rows
