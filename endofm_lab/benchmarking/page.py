"""The report of a benchmark: for each task its audit, a table, learning curves, and the effect of degradations."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from endofm_lab.figures.comparison import learning_curves
from endofm_lab.metrics.intervals import value_with_interval
from endofm_lab.reports.html import Item, Section, bullets, verdict

_NOTES = (
    "Brackets: 95 % intervals from 1,000 resamples of the units.",
    "A rank is one more than the number of runs of the same budget that are better by a paired interval without 0. "
    "Runs that cannot be told apart share a rank. Ranks do not allow for the number of comparisons.",
    "A label budget is one fixed draw of training patients; another draw gives other numbers.",
    "Seconds are those of training and test of the largest budget; features are computed once and shared by all runs "
    "that read them. Peak memory is that of the process, or of tensors on the GPU.",
)


def sections(result: Mapping[str, Any]) -> list[Section]:
    """The sections of a report, from the content of ``benchmark.json``."""
    parts: list[Section] = []
    for name, facts in result["tasks"].items():
        rows = [row for row in result["rows"] if row["task"] == name]
        leaks = facts["leaks"]
        items: list[Item] = [
            verdict(f"Audit: {facts['audit']}", "bad" if leaks else "good"),
            f"Test: {facts['test']['words']}. Training: "
            + "; ".join(f"{budget}: {part['words']}" for budget, part in facts["training"].items())
            + ".",
            task_table(rows),
        ]
        if reasons := not_ranked(facts):
            items.append(bullets(reasons))
        if (curves := curves_of(rows)) is not None:
            items.append(curves)
        if any(row["degraded"] for row in rows):
            items += [
                "Under made degradations of the test videos: value, and in brackets the paired change.",
                degraded_table(rows),
            ]
        parts.append((f"{name}: {rows[0]['metric']}" if rows else name, items))
    encoders = [
        (name, _number(facts.get("parameters")), facts.get("initialisation", ""))
        for name, facts in result["encoders"].items()
    ]
    table = pd.DataFrame(encoders, columns=["encoder", "parameters", "initialisation"])
    return [*parts, ("Encoders", [table]), ("How to read the tables", [bullets(_NOTES)])]


def not_ranked(facts: Mapping[str, Any]) -> list[str]:
    """The reasons against ranks in a task, a sentence each with its budgets."""
    budgets: dict[str, list[str]] = {}
    for budget, reasons in facts["not_ranked"].items():
        for reason in reasons:
            budgets.setdefault(reason, []).append(budget)
    return [f"Not ranked ({', '.join(names)}): {reason}" for reason, names in budgets.items()]


def task_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Encoders and methods of one task with a column per budget, and the cost of the largest budget, as text."""
    budgets = list(dict.fromkeys(row["budget"] for row in rows))
    lines = []
    for line in _lines(rows):
        shown = line.get("all") or list(line.values())[-1]
        cells = {"encoder": shown["encoder"], "method": shown["method"]}
        if any(row["source"] for row in rows):
            cells["added from"] = shown["source"]
        cells |= {budget: _cell(line[budget]) if budget in line else "" for budget in budgets}
        cells |= {
            "parameters": _number(shown.get("parameters")),
            "trained": _number(shown.get("trained")),
            "seconds": _seconds(shown),
            "features (s)": _decimal(shown.get("features_s")),
            "peak (MB)": _number(shown.get("peak_mb")),
        }
        lines.append(cells)
    return pd.DataFrame(lines)


def degraded_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Encoders and methods with the clean value and a column per degradation, as text."""
    lines = []
    for row in rows:
        if row["degraded"]:
            cells = {"encoder": row["encoder"], "method": row["method"], "clean": _decimal(row["value"], 3)}
            for fault, facts in row["degraded"].items():
                change = _decimal(facts["change"], 3, sign=True)
                if facts["low"] is not None:
                    change += f" [{facts['low']:+.3f}, {facts['high']:+.3f}]"
                cells[fault] = f"{_decimal(facts['value'], 3)} ({change})"
            lines.append(cells)
    return pd.DataFrame(lines)


def curves_of(rows: Sequence[Mapping[str, Any]]) -> go.Figure | None:
    """Learning curves of one task; None with a single budget."""
    points = [row for row in rows if row.get("training_units") and row["value"] is not None]
    if len({row["training_units"] for row in points}) < 2:
        return None
    table = pd.DataFrame(points)
    table = table.assign(name=table["encoder"] + ", " + table["method"], training=table["training_units"])
    table[["value", "low", "high"]] = table[["value", "low", "high"]].astype(float)
    return learning_curves(table, f"{points[0]['metric']}, 95 % interval over {points[0]['unit']}")


def _lines(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Mapping[str, Any]]]:
    """The rows of each encoder with a method, by budget."""
    lines: dict[tuple[str, str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        lines.setdefault((row["encoder"], row["method"], row["source"]), {})[row["budget"]] = row
    return list(lines.values())


def _cell(row: Mapping[str, Any]) -> str:
    value, low, high = (math.nan if row[name] is None else row[name] for name in ("value", "low", "high"))
    text = (
        f"{value:.3f}"
        if math.isnan(low) and not math.isnan(value)
        else value_with_interval(value, low, high, row["units"])
    )
    spread = "" if row["seed_std"] is None else f" ±{row['seed_std']:.3f}"
    return text + spread + ("" if row["rank"] is None else f" · rank {row['rank']}")


def _seconds(row: Mapping[str, Any]) -> str:
    return ("at least " if row.get("interrupted") else "") + _decimal(row.get("seconds"))


def _decimal(value: float | None, digits: int = 1, sign: bool = False) -> str:
    return "" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"
