"""Patient-wise splits: groups stay whole, the balance beats chance, the same seed gives the same split."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from endofm_lab.cli.main import main
from endofm_lab.data.manifest import read_manifest, write_manifest
from endofm_lab.data.splits import holdout, kfold, named_split, official
from endofm_lab.data.units import group_ids
from endofm_lab.errors import UserError


def patients(n_patients: int = 60, seed: int = 0) -> pd.DataFrame:
    """Patients of very different size, each with a preferred class, as capsule sets have them."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient in range(n_patients):
        mix = rng.dirichlet([0.3] * 4)
        for i in range(int(rng.integers(1, 80))):
            rows.append(
                (
                    f"p{patient}",
                    f"p{patient}-{i // 10}.mp4",
                    ["normal", "polyp", "ulcer", "blood"][rng.choice(4, p=mix)],
                )
            )
    table = pd.DataFrame(rows, columns=["patient", "video", "label"])
    return table.assign(start_s=0.0, end_s=0.0, dataset="toy", split="")


def naive_groups(table: pd.DataFrame) -> list[int]:
    """Join rows again and again until nothing changes: the definition, quadratic on purpose."""
    group = list(range(len(table)))
    changed = True
    while changed:
        changed = False
        for i in range(len(table)):
            for j in range(i):
                connected = any(
                    table.loc[i, column] == table.loc[j, column] != ""
                    and (column == "video" or table.loc[i, "dataset"] == table.loc[j, "dataset"])
                    for column in ("patient", "video", "sequence")
                )
                if connected and group[i] != group[j]:
                    group = [min(group[i], group[j]) if g in (group[i], group[j]) else g for g in group]
                    changed = True
    return group


def test_groups_are_the_connected_components_of_patient_video_and_sequence() -> None:
    rng = np.random.default_rng(1)
    for _ in range(8):
        table = pd.DataFrame(
            {
                "patient": rng.choice(["", "1", "2", "3", "4"], 25),
                "video": rng.choice([f"v{i}" for i in range(25)], 25),
                "sequence": rng.choice(["", "", "", "a", "b"], 25),
                "dataset": rng.choice(["x", "y"], 25),
            }
        )
        groups, truth = group_ids(table), np.array(naive_groups(table))
        assert ((groups[:, None] == groups) == (truth[:, None] == truth)).all()


def test_patient_1_of_two_data_sets_is_two_people() -> None:
    table = pd.DataFrame({"patient": ["1", "1"], "video": ["a", "b"], "dataset": ["x", "y"]})
    assert len(set(group_ids(table))) == 2
    assert len(set(group_ids(table, links=np.array([[0, 1]])))) == 1


def test_empty_cells_bind_nothing() -> None:
    table = pd.DataFrame({"patient": ["", None], "video": ["a", "b"], "sequence": [np.nan, ""], "dataset": "x"})
    assert len(set(group_ids(table))) == 2


def test_no_group_is_torn_and_every_row_has_a_part() -> None:
    table = patients()
    split = holdout(table)
    assert split.torn == 0 and set(split.parts) == {"train", "val", "test"}
    assert pd.DataFrame({"p": table["patient"], "part": split.parts}).drop_duplicates()["p"].is_unique


def test_the_balance_beats_random_group_splits_by_far() -> None:
    table = patients()
    groups = group_ids(table)
    deviation = holdout(table).deviation
    rng = np.random.default_rng(0)
    by_chance = []
    for _ in range(200):
        parts = rng.choice(["train", "val", "test"], groups.max() + 1, p=[0.7, 0.15, 0.15])[groups]
        shares = pd.crosstab(table["label"], parts, normalize="index").reindex(columns=["train", "val", "test"])
        by_chance.append((shares.fillna(0) - [0.7, 0.15, 0.15]).abs().to_numpy().mean())
    assert deviation < min(by_chance) / 2, (deviation, min(by_chance))
    assert deviation < 0.02


def test_folds_are_at_least_as_even_as_those_of_scikit_learn() -> None:
    for seed in range(3):
        table = patients(seed=seed)
        groups, k = group_ids(table), 5

        def deviation(fold: np.ndarray, table: pd.DataFrame = table) -> float:
            return float((pd.crosstab(table["label"], fold, normalize="index") - 0.2).abs().to_numpy().mean())

        reference = np.zeros(len(table), int)
        splitter = StratifiedGroupKFold(k, shuffle=True, random_state=seed)
        for i, (_, test) in enumerate(splitter.split(table, table["label"], groups)):
            reference[test] = i
        folds = np.zeros(len(table), int)
        for i, split in enumerate(kfold(table, k, seed)):
            folds[split.parts == "test"] = i
        assert deviation(folds) <= deviation(reference)


def test_every_row_is_tested_once_and_validated_once() -> None:
    splits = kfold(patients(), 4)
    for part in ("test", "val"):
        assert (np.sum([split.parts == part for split in splits], axis=0) == 1).all()
    assert all(split.torn == 0 for split in splits)


def test_the_seed_decides_and_repeats() -> None:
    table = patients()
    assert (holdout(table, seed=3).parts == holdout(table, seed=3).parts).all()
    assert (holdout(table, seed=3).parts != holdout(table, seed=4).parts).any()


def test_the_reported_balance_is_what_a_count_gives() -> None:
    table = patients(20)
    split = holdout(table, {"train": 0.5, "test": 0.5})
    for row in split.balance.itertuples():
        inside = np.ones(len(table), bool) if row.label == "(all rows)" else (table["label"] == row.label).to_numpy()
        in_part = inside & (split.parts == row.part)
        assert row.rows == in_part.sum() and row.share == pytest.approx(in_part.sum() / inside.sum())
        assert row.groups == table["patient"][in_part].nunique()
    assert "0 torn apart" in split.text()


def test_rows_with_several_labels_count_in_each_class() -> None:
    table = pd.DataFrame({"video": [f"{i}.jpg" for i in range(8)], "dataset": "x", "label": ["a|b", "a"] * 4})
    balance = holdout(table, {"train": 0.5, "test": 0.5}).balance.set_index(["label", "part"])["rows"]
    assert balance["a", "train"] == 4 and balance["b", "train"] == 2


def test_few_groups_still_fill_every_part() -> None:
    table = patients(3)
    assert set(holdout(table).parts) == {"train", "val", "test"}
    with pytest.raises(UserError, match="3 groups"):
        holdout(table, {"a": 0.25, "b": 0.25, "c": 0.25, "d": 0.25})


def test_shares_that_are_no_shares_are_a_user_error() -> None:
    with pytest.raises(UserError, match="sum to 1"):
        holdout(patients(5), {"train": 0.7, "test": 0.2})
    with pytest.raises(UserError, match="at least 3"):
        kfold(patients(5), 2)


def test_an_official_split_keeps_its_names_and_counts_the_groups_it_tears() -> None:
    table = pd.DataFrame(
        {"patient": ["1", "1", "2", "3"], "video": list("abcd"), "dataset": "x", "label": "n",
         "split": ["training", "testing", "training", ""]}
    )  # fmt: skip
    split = official(table)
    assert split.parts.tolist() == ["training", "testing", "training", ""]
    assert split.torn == 1
    with pytest.raises(UserError, match="no split of its own"):
        official(table.assign(split=""))


def test_a_named_split_puts_a_row_on_every_side_that_was_published() -> None:
    table = pd.DataFrame({"video": list("abc"), "dataset": "x", "label": "n", "split": "train"})
    table["split_released_2023"] = ["train", "train|test", ""]
    released = named_split(table, "released-2023")
    assert released[["video", "split"]].to_numpy().tolist() == [
        ["a", "train"],
        ["b", "train"],
        ["b", "test"],
        ["c", ""],
    ]
    assert table["split"].tolist() == ["train"] * 3
    with pytest.raises(UserError, match="named splits are: released_2023"):
        named_split(table, "official")


def test_fifty_thousand_groups_are_dealt_in_seconds() -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "video": np.arange(50_000).astype(str),
            "dataset": "x",
            "label": rng.choice(list("abc"), 50_000, p=[0.9, 0.09, 0.01]),
        }
    )
    assert holdout(table).deviation < 1e-3


def test_the_command_writes_a_hold_out_or_folds_that_find_their_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest(patients(20), tmp_path / "m.csv")
    (tmp_path / "far").mkdir()
    path, folds = tmp_path / "far" / "holdout.csv", tmp_path / "folds.parquet"
    assert main(["data", "split", str(tmp_path / "m.csv"), "--out", str(path), "--test", "0.3"]) == 0
    assert "20 groups (20 patients), 0 torn apart" in capsys.readouterr().out
    table = read_manifest(path).table
    assert set(table["split"]) == {"train", "val", "test"} and official(table).torn == 0
    assert table.loc[0, "video"] == str(tmp_path / "p0-0.mp4")
    assert main(["data", "split", str(tmp_path / "m.csv"), "--out", str(folds), "--folds", "4"]) == 0
    table = read_manifest(folds).table
    assert table.loc[0, "video"] == "p0-0.mp4"
    tested = pd.concat([named_split(table, f"fold-{i}").query("split == 'test'") for i in range(4)])
    assert sorted(tested["video"]) == sorted(table["video"])
    assert main(["data", "split", str(tmp_path / "m.csv"), "--out", str(path), "--val", "0.6", "--test", "0.5"]) == 2
    assert "must be positive and sum to 1" in capsys.readouterr().err
