"""``endofm-lab score``: a prediction file against its labels, by the rules of a challenge."""

import json as json_module
from pathlib import Path


def capsule_vision(labels: Path, probabilities: Path, json: bool = False, submission: Path | None = None) -> None:
    """Score a Capsule Vision 2024 submission, after checking it for everything that would make the score wrong.

    Args:
        labels: table with the columns image and class (CSV or XLSX).
        probabilities: table with an image column and ten probability columns (CSV or XLSX).
        json: print all numbers as JSON instead of a table.
        submission: also write the checked probabilities as a submission (.xlsx or .csv) to this path.
    """
    from endofm_lab.metrics.capsule_vision import read_probabilities, score_files, write_submission

    result = score_files(labels, probabilities)
    if submission is not None:
        table = read_probabilities(probabilities)
        write_submission(submission, [str(name) for name in table.index], table.to_numpy())
    print(json_module.dumps(result, indent=1) if json else _as_text(result))


def _as_text(result: dict) -> str:
    """The numbers as aligned text."""
    lines = [f"{name:<22}{_number(value):>8}" for name, value in result.items() if name != "class_wise_metrics"]
    classes = result["class_wise_metrics"]
    keys = list(next(iter(classes.values())))
    lines += ["", f"{'class (p >= 0.5)':<22}" + "".join(f"{key:>12}" for key in keys)]
    lines += [f"{name:<22}" + "".join(f"{_number(row[key]):>12}" for key in keys) for name, row in classes.items()]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


SCORE = {"capsule-vision": capsule_vision}
