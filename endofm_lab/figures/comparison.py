"""Figures of finished runs: values with their intervals, reliability, every class by itself, and phases over time."""

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


def intervals(comparison: Comparison, metric: str | None = None, title: str = "") -> go.Figure:
    """A dot with its interval per run, the first run on top; ``metric`` is by default the metric of the ranking."""
    name = metric or comparison.by
    values = [line.metrics[name] for line in comparison.lines]
    runs = [line.run.run for line in comparison.lines]
    table = pd.DataFrame([(v.value, v.low, v.high, v.units) for v in values], columns=["value", "low", "high", "units"])
    figure = go.Figure(_dots(table, runs, name, PALETTE[0]))
    kinds = "; ".join(dict.fromkeys(line.run.units_in_words for line in comparison.lines))
    figure.update_yaxes(autorange="reversed", type="category", automargin=True)
    has_interval = any(not np.isnan(value.low) for value in values)
    axis = f"{name}, 95 % interval over {kinds}" if has_interval else f"{name}; no interval ({kinds})"
    figure.update_xaxes(title_text=axis)
    figure.update_layout(title=title, height=130 + _top(title) + 36 * len(runs), margin_t=_top(title), showlegend=False)
    return tidy(figure)


def reliability(scores: Mapping[str, tuple[ArrayLike, ArrayLike]], n_bins: int = 10, title: str = "") -> go.Figure:
    """Accuracy over mean confidence, a line per name; on the diagonal, answers with confidence 0.9 are right in 90 %.

    ``scores``: name -> targets (N,) and probabilities (N, K). The size of a dot shows the number of items in its bin.
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
    """The reliability of the first seed of each run whose answers are class probabilities; None without such a run."""
    curves = {}
    for run in runs:
        rows = run.predictions[run.predictions["seed"] == run.seeds[0]]
        if (probabilities := run.task_class.probabilities(rows)) is not None:
            curves[run.run] = probabilities
    return reliability(curves, title=title) if curves else None


def classes(tables: Mapping[str, pd.DataFrame], title: str = "") -> go.Figure:
    """A panel per metric, a row per class, a dot with its interval per run.

    ``tables``: run -> `runs.by_class.by_class`. Classes have the order of the first run; the number of their true items
    is part of their names.
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
    """One band per line of answers over time, coloured by class, for example true phases above predicted phases.

    Args:
        times_s: (N + 1,) borders of the steps in seconds.
        answers: line -> class number (N,) of every step; -1 where there is no answer.
        names: names of the classes.
        title: title of the figure.
    """
    borders = np.asarray(times_s, dtype=np.float64)
    figure, in_legend = go.Figure(), set()
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
                showlegend=name not in in_legend,
                marker={"color": color_of(name, int(steps[start])), "line": {"width": 0}},
                hovertemplate="%{fullData.name}<br>"
                f"{borders[start]:.2f} s to {borders[stop]:.2f} s<extra>%{{y}}</extra>",
            )
            in_legend.add(name)
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


def learning_curves(table: pd.DataFrame, axis: str, title: str = "") -> go.Figure:
    """Values over the number of training units, a line per name with its intervals.

    Args:
        table: columns ``name``, ``training`` (number of units), ``value``, ``low``, ``high``, ``units`` (of the test).
        axis: the metric, with the units of its intervals.
        title: title of the figure.
    """
    figure = go.Figure()
    for k, (name, line) in enumerate(table.groupby("name", sort=False)):
        line = line.sort_values("training")
        dots = _dots(line.assign(value=line["value"].astype(float)), [], str(name), PALETTE[k % len(PALETTE)])
        bars = dots.error_x.to_plotly_json()
        dots.update(x=line["training"], y=line["value"], mode="lines+markers", error_x=None, error_y=bars)
        figure.add_trace(dots.update(hovertemplate="%{fullData.name}<br>%{x}: %{y:.3f} %{customdata}<extra></extra>"))
    figure.update_xaxes(title_text="training units (patients, where they are known)", type="log", dtick="D2")
    figure.update_yaxes(title_text=axis)
    figure.update_layout(title=title, height=380 + _top(title), margin_t=_top(title))
    return tidy(figure)


def _top(title: str) -> int:
    """The margin above the axes in pixels, which is smaller without a title."""
    return 80 if title else 30


def _interval_words(low: float, high: float, units: int) -> str:
    """The interval and its number of units, or the statement that there is no interval."""
    return f"(no interval, {units} units)" if np.isnan(low) else f"[{low:.3f}, {high:.3f}] ({units} units)"


def _dots(table: pd.DataFrame, labels: Sequence[str], name: str, colour: str) -> go.Scatter:
    """Dots at ``value`` with bars from ``low`` to ``high``; a dot without an interval has no bar."""
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
