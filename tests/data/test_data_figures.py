"""Figures of data sets say the numbers of the table."""

import pandas as pd
import pytest

from endofm_lab.data.splits import official
from endofm_lab.errors import UserError
from endofm_lab.figures.data import class_counts, split_balance

TABLE = pd.DataFrame(
    {
        "video": [f"{n}.mp4" for n in range(6)],
        "label": ["polyp", "polyp", "polyp", "normal", "normal", ""],
        "split": ["test", "train", "train", "train", "val", "train"],
        "patient": list("aabbcd"),
        "dataset": "x",
    }
)


def test_the_bars_are_the_rows_of_each_class_and_part_the_longest_on_top() -> None:
    figure = class_counts(TABLE)
    bars = {trace.name: dict(zip(trace.y, trace.x, strict=True)) for trace in figure.data}
    assert list(bars) == ["train", "val", "test"]
    assert bars["train"] == {"(no label)": 1, "normal": 1, "polyp": 2}
    assert bars["val"]["normal"] == 1 and bars["test"]["polyp"] == 1
    assert figure.data[0].y[-1] == "polyp"
    with pytest.raises(UserError, match="no column 'colour'"):
        class_counts(TABLE, "colour")


def test_the_dots_are_the_shares_of_each_class_and_the_lines_what_was_asked_for() -> None:
    figure = split_balance(official(TABLE))
    dots = {trace.name: dict(zip(trace.y, trace.x, strict=True)) for trace in figure.data}
    assert dots["train"]["polyp"] == pytest.approx(2 / 3) and dots["val"]["normal"] == 0.5
    assert sorted(line.x0 for line in figure.layout.shapes) == pytest.approx([1 / 6, 1 / 6, 4 / 6])
