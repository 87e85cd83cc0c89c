"""Capsule Vision 2024: the challenge's metrics and ranking score, and checks and writing of its submission files.

Ten classes of capsule endoscopy frames; a submission gives ten probabilities per test image. Teams were ranked by
(mean AUC + balanced accuracy) / 2.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import multilabel_confusion_matrix, roc_auc_score

from endofm_lab.data.foreign_tables import read_spreadsheet
from endofm_lab.errors import UserError
from endofm_lab.files import atomic_path, formulas_as_text, reading, text_from_cells
from endofm_lab.metrics.calibration import confident_errors, ece
from endofm_lab.metrics.classification import nan_mean, ratio

CLASSES = (
    "Angioectasia",
    "Bleeding",
    "Erosion",
    "Erythema",
    "Foreign Body",
    "Lymphangiectasia",
    "Normal",
    "Polyp",
    "Ulcer",
    "Worms",
)
SUM_TOLERANCE = 1e-3  # the sum of ten columns rounded to four digits is at most 5e-4 off
_IMAGE_COLUMNS = ("image_path", "image")
_NEEDS_OPENPYXL = "a spreadsheet needs openpyxl: pip install 'endofm-lab[export]'."


class SubmissionError(UserError):
    """A label or submission file that cannot be scored; ``problems`` holds one sentence for each problem."""

    def __init__(self, path: str | Path, problems: Sequence[str]) -> None:
        self.path = str(path)
        self.problems = tuple(problems)
        super().__init__(f"{self.path}: " + " ".join(problems))

    def __reduce__(self) -> tuple[type, tuple[str, tuple[str, ...]]]:
        return type(self), (self.path, self.problems)


def score(target: ArrayLike, probabilities: ArrayLike) -> dict[str, Any]:
    """All numbers of the challenge for ``target`` (N,) class numbers and ``probabilities`` (N, 10), in CLASSES' order.

    * ``mean_auc``: mean over classes of one-against-rest ROC AUC of the raw probability column.
    * ``balanced_accuracy``, ``avg_precision`` (of predictions, not the area under a curve), ``avg_sensitivity``,
      ``avg_f1``, ``avg_specificity``: means over classes, each row predicted as its most probable class.
    * ``class_wise_metrics``: each class alone, predicted where its probability is at least 0.5. A ratio without cases
      (such as the precision of a class that is never predicted) is 0 here, as the challenge defines it.
    * ``ranking_score``: (mean AUC + balanced accuracy) / 2.
    * Not part of the challenge: ``ece`` (15 bins), ``errors_above_0.9`` (share of errors with a confidence over 0.9).

    A class without images has no AUC and no recall: these are None and left out of the means. The official test set has
    images of all ten classes.
    """
    target, probabilities = np.asarray(target), np.asarray(probabilities, dtype=np.float64)
    truth = target[:, None] == np.arange(len(CLASSES))
    predicted = probabilities.argmax(1)
    aucs = [_auc(truth[:, k], probabilities[:, k]) for k in range(len(CLASSES))]
    of_classes = _ratios(truth, probabilities >= 0.5)
    of_predictions = _ratios(truth, predicted[:, None] == np.arange(len(CLASSES)))
    present = truth.any(0)
    mean_auc = float(nan_mean(aucs))
    balanced = float(nan_mean(of_predictions["recall"][present]))
    errors = int((predicted != target).sum())
    result = {
        "mean_auc": mean_auc,
        "balanced_accuracy": balanced,
        "avg_precision": float(nan_mean(of_predictions["precision"][present])),
        "avg_sensitivity": balanced,
        "avg_f1": float(nan_mean(of_predictions["f1_score"][present])),
        "avg_specificity": float(nan_mean(of_predictions["specificity"][present])),
        "class_wise_metrics": {
            name: {
                key: float("nan") if key == "recall" and not present[k] else float(column[k])
                for key, column in of_classes.items()
            }
            | {"auc": aucs[k]}
            for k, name in enumerate(CLASSES)
        },
        "ranking_score": (mean_auc + balanced) / 2,
        "ece": float(ece(target, probabilities)),
        "errors_above_0.9": float(ratio(len(confident_errors(target, probabilities)), errors)),
    }
    return _without_nan(result)


def score_files(labels: str | Path, probabilities: str | Path) -> dict[str, Any]:
    """:func:`score` of a submission file against a label file; images are matched by file name, in any order.

    Raises:
        SubmissionError: lists every problem of either file, and the images that are in only one of them.
    """
    truth = read_labels(labels)
    table = read_probabilities(probabilities)
    table.index = pd.Index(_file_names(table.index))
    names = truth.index
    problems = []
    if missing := [name for name in names if name not in table.index]:
        problems.append(f"{len(missing)} of {len(names)} labelled images have no row: {_some(missing)}; add them.")
    if extra := [name for name in table.index if name not in names]:
        problems.append(f"{len(extra)} rows belong to images without a label: {_some(extra)}; remove them.")
    if problems:
        raise SubmissionError(probabilities, problems)
    return score(truth.to_numpy(), table.loc[names].to_numpy())


def read_labels(path: str | Path) -> pd.Series:
    """Class numbers in CLASSES' order, indexed by image file name, from the columns ``image`` and ``class``."""
    table = _read_table(path)
    image_column = _image_column(table)
    if image_column is None or "class" not in table:
        raise SubmissionError(path, [f"the columns are {list(table.columns)}; 'image' and 'class' are needed."])
    names = _file_names(table[image_column])
    problems = _row_problems(names)
    if unknown := sorted({str(name) for name in table["class"] if name not in CLASSES}):
        problems.append(
            f"{len(unknown)} class names are unknown: {_some(unknown)}; the challenge has {_some(CLASSES, 10)}."
        )
    if problems:
        raise SubmissionError(path, problems)
    return pd.Series([CLASSES.index(name) for name in table["class"]], index=names)


def read_probabilities(path: str | Path) -> pd.DataFrame:
    """Ten probability columns indexed by image as the file names it, from a CSV or XLSX submission without problems.

    Raises:
        SubmissionError: lists every problem that :func:`submission_problems` finds.
    """
    table = _read_table(path)
    if problems := submission_problems(table):
        raise SubmissionError(path, problems)
    values = table[list(CLASSES)].astype(np.float64)
    values.index = pd.Index(table[_image_column(table)].astype(str), name="image_path")
    return values


def submission_problems(table: pd.DataFrame) -> list[str]:
    """All problems of a submission table, one sentence each; an empty list means that it can be scored.

    Checked are missing, unknown or reordered columns; repeated or nameless images; values that are not numbers, NaN or
    outside [0, 1]; rows that do not sum to one (within 1e-3); a ``predicted_class`` that is not the most probable one.
    """
    image_column = _image_column(table)
    columns = [str(column) for column in table.columns]
    classes = [column for column in columns if column not in (*_IMAGE_COLUMNS, "predicted_class")]
    problems = []
    if image_column is None:
        problems.append("there is no image column; name it 'image_path' or 'image'.")
    if missing := [name for name in CLASSES if name not in classes]:
        problems.append(f"{len(missing)} class columns are missing: {_some(missing, 10)}.")
    if unknown := [name for name in classes if name not in CLASSES]:
        problems.append(f"{len(unknown)} columns are unknown: {_some(unknown, 10)}.")
    if not missing and not unknown and tuple(classes) != CLASSES:
        first = next(k for k, (name, expected) in enumerate(zip(classes, CLASSES, strict=True)) if name != expected)
        problems.append(
            f"the class columns are in the wrong order: number {first + 1} is '{classes[first]}', but must be "
            f"'{CLASSES[first]}'; reorder them to {', '.join(CLASSES)}."
        )
    names = _file_names(table[image_column]) if image_column else [f"row {k + 2}" for k in range(len(table))]
    if image_column:
        problems += _row_problems(names)
    if missing:
        return problems
    return problems + _value_problems(table, names)


def write_submission(path: str | Path, images: Sequence[str], probabilities: ArrayLike) -> None:
    """Write a submission, .xlsx or .csv: ``image_path``, ten probability columns, ``predicted_class``.

    Args:
        path: a file that ends in .xlsx (needs the extra ``export``) or .csv; it is written completely or not at all.
        images: the N image paths as the challenge lists them.
        probabilities: (N, 10) in CLASSES' order.

    Raises:
        SubmissionError: the table would not pass :func:`submission_problems`.
    """
    values = np.asarray(probabilities, dtype=np.float64)
    if values.shape != (len(images), len(CLASSES)):
        problem = f"the probabilities have shape {values.shape}, but must have shape ({len(images)}, 10)."
        raise SubmissionError(path, [problem])
    table = pd.DataFrame(values, columns=list(CLASSES))
    table.insert(0, "image_path", list(images))
    table["predicted_class"] = [CLASSES[k] for k in values.argmax(1)]
    if problems := submission_problems(table):
        raise SubmissionError(path, problems)
    suffix = Path(path).suffix.lower()
    if suffix not in (".csv", ".xlsx"):
        raise SubmissionError(path, [f"the ending is '{suffix}'; use .xlsx or .csv."])
    with atomic_path(path) as temporary:
        if suffix == ".csv":
            formulas_as_text(table).to_csv(temporary, index=False)
        else:
            _write_sheet(table, temporary)


def _value_problems(table: pd.DataFrame, names: Sequence[str]) -> list[str]:
    values = table[list(CLASSES)].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    empty = table[list(CLASSES)].isna().to_numpy()
    finite = np.isfinite(values)
    outside = finite & ((values < 0) | (values > 1))
    complete = finite.all(1)
    wrong_sum = complete & (np.abs(np.where(finite, values, 0).sum(1) - 1) > SUM_TOLERANCE)
    checks = [
        (empty.any(1), "have empty or NaN probabilities"),
        ((~finite & ~empty).any(1), "have probabilities that are not finite numbers"),
        (outside.any(1), "have probabilities outside [0, 1]"),
        (wrong_sum, f"do not sum to one within {SUM_TOLERANCE}"),
    ]
    if "predicted_class" in table:
        best = np.array(CLASSES)[np.where(finite, values, -1).argmax(1)]
        wrong_class = complete & (table["predicted_class"].to_numpy() != best)
        checks.append((wrong_class, "have a predicted_class that is not the most probable one"))
    return [
        f"{rows.sum()} rows {problem}: {_some([name for name, bad in zip(names, rows, strict=True) if bad])}."
        for rows, problem in checks
        if rows.any()
    ]


def _row_problems(names: Sequence[str]) -> list[str]:
    problems = []
    if not names:
        problems.append("there are no rows.")
    if nameless := [k + 2 for k, name in enumerate(names) if not name]:
        problems.append(f"{len(nameless)} rows have no image name: lines {_some(nameless)}.")
    counts = pd.Series(list(names)).value_counts()
    if repeated := [str(name) for name in counts.index[counts > 1] if name]:
        problems.append(f"{len(repeated)} images have more than one row: {_some(repeated)}.")
    return problems


def _ratios(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> dict[str, NDArray[np.float64]]:
    """Per class (K,), with 0 where there are no cases; ``truth`` and ``predicted`` (N, K)."""
    tn, fp, fn, tp = multilabel_confusion_matrix(truth, predicted).reshape(-1, 4).T
    columns = {
        "precision": ratio(tp, tp + fp),
        "recall": ratio(tp, tp + fn),
        "f1_score": ratio(2 * tp, 2 * tp + fp + fn),
        "specificity": ratio(tn, tn + fp),
        "accuracy": ratio(tp + tn, tp + tn + fp + fn),
    }
    return {name: np.nan_to_num(column) for name, column in columns.items()}


def _auc(truth: NDArray[np.bool_], column: NDArray[np.float64]) -> float:
    return float(roc_auc_score(truth, column)) if 0 < truth.sum() < len(truth) else float("nan")


def _without_nan(value: Any) -> Any:
    """The same with None for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value


def _read_table(path: str | Path) -> pd.DataFrame:
    path = Path(path)
    if not path.is_file():
        raise SubmissionError(path, ["the file does not exist; check the path."])
    try:
        with reading(path, "Write the table again."):
            if path.suffix.lower() != ".xlsx":
                return text_from_cells(pd.read_csv(path, dtype=dict.fromkeys(_IMAGE_COLUMNS, str)))
            return read_spreadsheet(path)
    except ImportError as error:
        raise SubmissionError(path, [_NEEDS_OPENPYXL]) from error
    except (UserError, OSError) as error:
        raise SubmissionError(path, [f"it is not a table that can be read ({error})."]) from error


def _write_sheet(table: pd.DataFrame, path: Path) -> None:
    try:
        from openpyxl import Workbook
        from openpyxl.cell import WriteOnlyCell
    except ImportError as error:
        raise SubmissionError(path, [_NEEDS_OPENPYXL]) from error
    book = Workbook(write_only=True)
    sheet = book.create_sheet("submission")
    sheet.append(list(table.columns))
    for row in table.itertuples(index=False):
        image = WriteOnlyCell(sheet, value=str(row[0]))
        image.data_type = "s"  # a name that begins with '=' stays text
        sheet.append([image, *row[1:]])
    book.save(path)


def _image_column(table: pd.DataFrame) -> str | None:
    return next((name for name in _IMAGE_COLUMNS if name in table), None)


def _file_names(images: Iterable[Any]) -> list[str]:
    """The last part of each path, whichever slash it uses; '' for an empty cell."""
    return ["" if pd.isna(image) else PurePosixPath(str(image).replace("\\", "/")).name for image in images]


def _some(items: Sequence[Any], most: int = 3) -> str:
    text = ", ".join(f"'{item}'" if isinstance(item, str) else str(item) for item in items[:most])
    return text if len(items) <= most else f"{text}, and {len(items) - most} more"
