"""Figures of data sets: the number of rows of every class, and how close a split is to the requested shares."""

import pandas as pd
import plotly.graph_objects as go

from endofm_lab.data.splits import Split
from endofm_lab.errors import UserError
from endofm_lab.figures.style import PALETTE, tidy

# (symbol, size in px). Parts with equal shares overlap, so each has a symbol that stays visible: dot, ring, cross.
_SYMBOLS = (("circle", 9), ("circle-open", 15), ("x-thin-open", 11), ("diamond-open", 15))


def class_counts(table: pd.DataFrame, by: str = "split", title: str = "") -> go.Figure:
    """Stacked bars: the number of rows of every class in a manifest's table, by a column such as split or device.

    Raises:
        UserError: there is no such column.
    """
    if by not in table:
        raise UserError(f"There is no column {by!r} to count by. The columns are {', '.join(table.columns)}.")
    counts = pd.crosstab(table["label"].replace("", "(no label)"), table[by].astype(str).replace("", "(not known)"))
    counts = counts.loc[counts.sum(axis=1).sort_values().index]  # the longest bar on top
    figure = go.Figure()
    for k, value in enumerate(_in_order(counts.columns.tolist())):
        figure.add_trace(
            go.Bar(
                y=counts.index,
                x=counts[value],
                name=value,
                orientation="h",
                marker_color=PALETTE[k % len(PALETTE)],
                hovertemplate="%{y}, %{fullData.name}: %{x:,} rows<extra></extra>",
            )
        )
    figure.update_layout(barmode="stack", legend={"title": by, "traceorder": "normal"})
    figure.update_xaxes(title_text="rows")
    return _sized(figure, counts.index.tolist(), title)


def split_balance(split: Split, title: str = "") -> go.Figure:
    """The share of every class in each part of a split, and the requested share as a dotted line."""
    figure = go.Figure()
    parts = _in_order(split.balance["part"].unique().tolist())
    labels = list(dict.fromkeys(split.balance["label"]))[::-1]
    for k, part in enumerate(parts):
        symbol, size = _SYMBOLS[k % len(_SYMBOLS)]
        rows = split.balance[split.balance["part"] == part].set_index("label").loc[labels]
        figure.add_trace(
            go.Scatter(
                y=labels,
                x=rows["share"],
                mode="markers",
                name=part,
                marker={"size": size, "symbol": symbol, "color": PALETTE[k % len(PALETTE)]},
                customdata=rows[["rows", "groups"]],
                hovertemplate="%{y}, %{fullData.name}: %{x:.1%}, %{customdata[0]:,} rows of %{customdata[1]:,} groups"
                "<extra></extra>",
            )
        )
        figure.add_vline(x=rows["wanted"].iloc[0], line={"dash": "dot", "color": PALETTE[k % len(PALETTE)]})
    figure.update_xaxes(title_text="share of the class's rows (dotted: requested)", tickformat=".0%", range=[-0.02, 1])
    return _sized(figure, labels, title)


def _sized(figure: go.Figure, labels: list[str], title: str) -> go.Figure:
    """Set the size of the figure so that the names on the left, a line for each, and the legend fit in."""
    left = 30 + 8 * max(map(len, labels))
    figure.update_layout(
        title=title,
        height=(50 if title else 20) + 55 + max(130, 26 * len(labels)),
        margin={"l": left, "r": 20, "t": 50 if title else 20, "b": 55},
    )
    return tidy(figure)


def _in_order(names: list[str]) -> list[str]:
    """Names of parts in the order pretrain, train, val, test; other names follow alphabetically."""
    order = ["pretrain", "train", "val", "test"]
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))
