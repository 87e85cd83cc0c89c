"""Figures of finished runs: values with their intervals, reliability, classes one by one, and phases over time."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import ArrayLike
from plotly.subplots import make_subplots

from endofm_lab.figures.style import PALETTE, color_of, tidy
from endofm_lab.metrics.calibration import reliability_curve
from endofm_lab.runs.compare import Comparison
from endofm_lab.runs.run import Run
from endofm_lab.tasks import TASKS


def intervals(comparison: Comparison, metric: str | None = None, title: str = "") -> go.Figure:
    """A dot with its interval per run, the first on top; ``metric`` is by default the one that ranks."""
    name = metric or comparison.by
    values = [line.metrics[name] for line in comparison.lines]
    runs = [line.run.run for line in comparison.lines]
    table = pd.DataFrame([(v.value, v.low, v.high, v.units) for v in values], columns=["value", "low", "high", "units"])
    figure = go.Figure(_dots(table, runs, name, PALETTE[0]))
    kinds = "; ".join(dict.fromkeys(line.run.units_in_words for line in comparison.lines))
    figure.update_yaxes(autorange="reversed", type="category", automargin=True)
    known = any(not np.isnan(value.low) for value in values)
    figure.update_xaxes(title_text=f"{name}, 95 % interval over {kinds}" if known else f"{name}; no interval ({kinds})")
    figure.update_layout(title=title, height=130 + _top(title) + 36 * len(runs), margin_t=_top(title), showlegend=False)
    return tidy(figure)


def reliability(scores: Mapping[str, tuple[ArrayLike, ArrayLike]], n_bins: int = 10, title: str = "") -> go.Figure:
    """Accuracy over mean confidence, a line per name; on the diagonal a confidence of 0.9 is right nine times in ten.

    ``scores``: name -> targets (N,) and probabilities (N, K). Dots are as large as their bin is full.
    """
    figure = go.Figure(
        go.Scatter(x=[0, 1], y=[0, 1], mode="lines", name="calibrated", line={"color": "#999999", "dash": "dot"})
    )
    for k, (name, (target, probabilities)) in enumerate(scores.items()):
        curve = reliability_curve(target, probabilities, n_bins).query("n > 0")
        figure.add_scatter(
            x=curve["confidence"],
            y=curve["accuracy"],
            name=name,
            mode="lines+markers",
            line={"color": PALETTE[k % len(PALETTE)]},
            marker={"size": 6 + 20 * np.sqrt(curve["n"] / curve["n"].sum())},
            customdata=curve["n"],
            hovertemplate="%{fullData.name}: confidence %{x:.2f}, accuracy %{y:.2f}, %{customdata} items"
            "<extra></extra>",
        )
    figure.update_xaxes(range=[0, 1.03], title_text="mean confidence of a bin")
    figure.update_yaxes(range=[-0.03, 1.06], title_text="accuracy of the bin")
    figure.update_layout(title=title, height=340 + _top(title), margin_t=_top(title))
    return tidy(figure)


def reliability_of(runs: Sequence[Run], title: str = "") -> go.Figure | None:
    """The reliability of runs whose answers are probabilities of classes, their first seed; None if there is none."""
    curves = {}
    for run in runs:
        rows = run.predictions[run.predictions["seed"] == run.seeds[0]]
        if (found := TASKS[run.task].probabilities(rows)) is not None:
            curves[run.run] = found
    return reliability(curves, title=title) if curves else None


def classes(tables: Mapping[str, pd.DataFrame], title: str = "") -> go.Figure:
    """A panel per metric, a row per class, a dot with its interval per run.

    ``tables``: run -> `runs.by_class.by_class`. Classes keep the order of the first run; their true items are counted
    in their names.
    """
    first = next(iter(tables.values()))
    metrics = list(dict.fromkeys(first["metric"]))
    items = first.drop_duplicates("class")
    names = {row["class"]: f"{row['class']} ({row['items']})" for _, row in items.iterrows()}
    figure = make_subplots(cols=len(metrics), shared_yaxes=True, subplot_titles=metrics, horizontal_spacing=0.04)
    for k, (run, table) in enumerate(tables.items()):
        for column, metric in enumerate(metrics, start=1):
            part = table[table["metric"] == metric]
            dots = _dots(part, [names.get(c, c) for c in part["class"]], run, PALETTE[k % len(PALETTE)])
            dots.update(showlegend=column == 1, legendgroup=run, offsetgroup=run, orientation="h")
            figure.add_trace(dots, row=1, col=column)
    figure.update_yaxes(autorange="reversed", type="category", automargin=True)
    figure.update_xaxes(range=[-0.03, 1.03])
    figure.update_layout(
        title=title,
        scattermode="group",
        height=100 + _top(title) + len(names) * (26 + 14 * len(tables)),
        margin_t=_top(title),
        showlegend=len(tables) > 1,
    )
    return tidy(figure)


def ribbons(times_s: ArrayLike, answers: Mapping[str, ArrayLike], names: Sequence[str], title: str = "") -> go.Figure:
    """One band per line of answers over time, coloured by class: truth and predictions of phases above each other.

    Args:
        times_s: (N + 1,) borders of the steps in seconds.
        answers: line -> class number (N,) of every step; -1 where there is none.
        names: of the classes.
        title: of the figure.
    """
    borders = np.asarray(times_s, dtype=np.float64)
    figure, told = go.Figure(), set()
    for line, values in answers.items():
        steps = np.asarray(values)
        cuts = np.flatnonzero(np.diff(steps)) + 1
        for start, stop in zip([0, *cuts], [*cuts, len(steps)], strict=True):
            if steps[start] < 0:
                continue
            name = names[int(steps[start])]
            figure.add_bar(
                y=[line],
                base=[borders[start]],
                x=[borders[stop] - borders[start]],
                orientation="h",
                name=name,
                legendgroup=name,
                showlegend=name not in told,
                marker={"color": color_of(name, int(steps[start])), "line": {"width": 0}},
                hovertemplate="%{fullData.name}<br>"
                f"{borders[start]:.2f} s to {borders[stop]:.2f} s<extra>%{{y}}</extra>",
            )
            told.add(name)
    figure.update_yaxes(autorange="reversed", type="category", automargin=True, ticksuffix=" ")
    figure.update_xaxes(title_text="time in the video (s)", range=[borders[0], borders[-1]])
    figure.update_layout(
        title=title,
        barmode="overlay",
        bargap=0.25,
        height=200 + 40 * len(answers),
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    )
    return tidy(figure)


def _top(title: str) -> int:
    """The margin above the axes in pixels: smaller where there is no title."""
    return 80 if title else 30


def _interval_words(low: float, high: float, units: int) -> str:
    """The interval and the units behind it, or that there are too few of them."""
    return f"(no interval, {units} units)" if np.isnan(low) else f"[{low:.3f}, {high:.3f}] ({units} units)"


def _dots(table: pd.DataFrame, labels: Sequence[str], name: str, colour: str) -> go.Scatter:
    """Dots at ``value`` with bars from ``low`` to ``high``; no bar where there is no interval."""
    return go.Scatter(
        x=table["value"],
        y=list(labels),
        mode="markers",
        name=name,
        marker={"color": colour, "size": 10},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": (table["high"] - table["value"]).fillna(0.0).clip(lower=0),
            "arrayminus": (table["value"] - table["low"]).fillna(0.0).clip(lower=0),
            "color": colour,
            "thickness": 2,
        },
        customdata=[_interval_words(*row) for row in table[["low", "high", "units"]].itertuples(index=False)],
        hovertemplate="%{fullData.name}<br>%{y}: %{x:.3f} %{customdata}<extra></extra>",
    )
