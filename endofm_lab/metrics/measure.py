"""The contract of a metric from outside the library, beside those that a task has."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from endofm_lab.errors import UserError
from endofm_lab.metrics.classification import Values
from endofm_lab.metrics.intervals import MetricSet


class Measure:
    """A number of a table of answers; the class itself goes to ``finetune`` and ``evaluate``: ``metrics=[F2]``.

    It is resampled over units like the task's own metrics, compared between runs, and may choose on validation rows
    (``chosen_by``) unless lower values are better.

    Attributes:
        name: in reports and tables.
        lower_is_better: whether the lowest value is the best.
    """

    name: ClassVar[str]
    lower_is_better: ClassVar[bool] = False

    @classmethod
    def of(cls, rows: pd.DataFrame) -> Callable[[NDArray[np.float64]], Values]:
        """The number as a function of the items' weights (R, N): R values, NaN where it is not defined.

        Args:
            rows: the table of one training seed, as `runs.run` describes it for the task; its rows are the N items
                unless the task measures others.
        """
        raise NotImplementedError


def with_measures(metrics: MetricSet, measures: Sequence[type[Measure]], rows: pd.DataFrame) -> MetricSet:
    """The metrics of a task on some rows, and beside them those from outside.

    Raises:
        UserError: a measure has the name of one of the task's metrics, when the metrics are computed.
    """
    functions = {measure.name: measure.of(rows) for measure in measures}

    def together(weights: NDArray[np.float64]) -> dict[str, Values]:
        values = dict(metrics(weights))
        if taken := functions.keys() & values.keys():
            raise UserError(f"The task has a metric {sorted(taken)[0]!r} already; give yours another name.")
        return values | {name: of(weights) for name, of in functions.items()}

    return together if functions else metrics
