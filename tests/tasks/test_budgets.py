"""Label budgets: which patients are drawn, and what is refused."""

import pandas as pd
import pytest

from endofm_lab.data.manifest import Manifest, checked, read_manifest
from endofm_lab.errors import ManifestError, UserError
from endofm_lab.tasks.budgets import checked_budget, head_within, within_budget
from endofm_lab.tasks.classification import Classification
from endofm_lab.tasks.examples import units_of


def manifest_of(n_patients=30, rare=1):
    """Two rows per patient; ``rare`` patients have a class that no other has."""
    rows = [
        {
            "video": f"v{n}{k}.mp4",
            "label": "ulcer" if n < rare else "polyp" if n % 3 == 0 else "normal",
            "patient": f"p{n}",
        }
        for n in range(n_patients)
        for k in range(2)
    ]
    tests = [{"video": "t.mp4", "label": name, "patient": "t"} for name in ("ulcer", "polyp", "normal")]
    table = pd.DataFrame([{**row, "split": "train"} for row in rows] + [{**row, "split": "test"} for row in tests])
    return Manifest(checked(table.assign(start_s=0, end_s=1, dataset="made"), "made"), root=None)


def test_a_smaller_budget_is_a_part_of_a_larger_one_and_keeps_the_shares_of_the_classes():
    manifest = manifest_of()
    patients = {
        budget: set(within_budget(manifest, budget).rows("train")["patient"])
        for budget in ("3 patients", "20 %", "50 %")
    }
    assert [len(of_budget) for of_budget in patients.values()] == [3, 6, 15]
    assert patients["3 patients"] < patients["20 %"] < patients["50 %"]
    half = within_budget(manifest, "50 %")
    shares = half.rows("train")["label"].value_counts(normalize=True)
    assert abs(shares["normal"] - 2 / 3) < 0.08
    assert half.rows("test").equals(manifest.rows("test")), "test rows stay"
    assert within_budget(manifest, "all") is manifest and len(within_budget(manifest, "100 %")) == len(manifest)


def test_patients_stay_whole(phantom):
    manifest = read_manifest(phantom)
    part = within_budget(manifest, "2 patients")
    assert units_of(part, "train").n == 2
    assert len(part.rows("train")) == sum(manifest.rows("train")["patient"].isin(set(part.rows("train")["patient"])))


@pytest.mark.parametrize("budget", ["", "10", "0 %", "101 %", "five patients", "-1 patients", "0 patients", "1e3 %"])
def test_other_spellings_are_refused(budget):
    with pytest.raises(UserError, match="label budget is"):
        checked_budget(budget)


def test_spellings_that_mean_the_same_are_one_budget():
    assert [checked_budget(b) for b in ("10%", "10 %", "10.0 %", "1 patients", "5 patients")] == [
        "10 %", "10 %", "10 %", "1 patient", "5 patients",
    ]  # fmt: skip


def test_a_budget_beyond_the_data_or_without_a_class_is_refused():
    manifest, task = manifest_of(), Classification()
    with pytest.raises(UserError, match="budget is 31 patients, but training has 30 patients"):
        within_budget(manifest, "31 patients")
    part = within_budget(manifest, "2 patients")
    with pytest.raises(ManifestError, match=r"budget 2 patients \(2 patients\) leaves classes without .*: ulcer"):
        head_within(task.head, manifest, part, "2 patients")
    with pytest.raises(ManifestError, match="without a training example"):
        head_within(task.head, manifest, within_budget(manifest, "1 patient"), "1 patient")
    assert head_within(task.head, manifest, within_budget(manifest, "29 patients"), "29 patients").classes
