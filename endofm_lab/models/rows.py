"""The manifest of a model: a data set prepared by its recipe, with near-duplicates together and three parts."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from endofm_lab.data.audit.audit import audit
from endofm_lab.data.audit.duplicates import picture_neighbours
from endofm_lab.data.audit.overlap import gather
from endofm_lab.data.manifest import Manifest, read_manifest, write_manifest
from endofm_lab.data.prepare.layouts import LayoutError
from endofm_lab.data.prepare.prepare import prepare
from endofm_lab.data.prepare.prepared import Prepared
from endofm_lab.data.prepare.recipes import Layout
from endofm_lab.data.prepare.sequences import sequence_rows
from endofm_lab.data.splits import holdout, named_split
from endofm_lab.data.units import group_ids
from endofm_lab.errors import UserError
from endofm_lab.models.recipe import DataChoice, ModelRecipe

Incomplete = Literal["refuse", "accept"]
PREPARED, SPLIT, AUDIT = "prepared", "split.csv", "audit.json"  # in the work folder of a build


def prepared_data(
    recipe: ModelRecipe, data: Path, work: Path, incomplete: Incomplete, dataset: str | None
) -> tuple[DataChoice, Prepared]:
    """The first data set of the recipe that the folder holds, prepared.

    Raises:
        UserError: the folder holds none of them, or not all of its published files and ``incomplete`` is "refuse".
    """
    names = [choice.recipe for choice in recipe.data]
    if dataset is not None and dataset not in names:
        raise UserError(f"{recipe.name} is not built from {dataset!r}; its data sets are {', '.join(names)}.")
    faults = []
    for choice in recipe.data:
        if dataset not in (None, choice.recipe):
            continue
        try:
            prepared = prepare(recipe.data_recipe(choice), data, work / PREPARED, layout=choice.layout, kind="csv")
        except LayoutError as fault:
            faults.append(fault)
            continue
        if incomplete == "refuse":
            refuse_incomplete(prepared, data)
        return choice, prepared
    raise faults[0] if len(faults) == 1 else UserError(f"{data} holds none of {', '.join(names)}. {faults[0]}")


def refuse_incomplete(prepared: Prepared, data: Path) -> None:
    """Refuse a data set whose counts differ from the published ones, or of which files cannot be used.

    Raises:
        UserError: the message names the first differences.
    """
    differing = [
        f"{row['what']}: {row['found']:,} instead of {int(row['expected']):,}"
        for row in prepared.counts.to_dict("records")
        if row["status"] not in ("as published", "not published")
    ]
    problems = [f"{problem.path}: {problem.message}" for problem in prepared.problems if problem.left_out]
    if faults := differing + problems:
        suffix = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise UserError(
            f"{data} is not {prepared.recipe} as published ({'; '.join(faults[:3])}{suffix}), so the expected number "
            "does not hold. Complete the download, or build from what is there with --incomplete accept."
        )


def split_manifest(
    choice: DataChoice, prepared: Prepared, layouts: Mapping[str, Layout], label: str, seed: int
) -> Manifest:
    """The rows of the prepared data with their parts, written beside the prepared manifest.

    Rows with a class (in the column ``label``) that no training row has are left out.

    Raises:
        UserError: there are fewer independent groups than parts, or no such official split.
    """
    manifest = read_manifest(prepared.manifest)
    table = manifest.table
    for column, value in choice.where.items():
        table = table[table[column] == value]
    if choice.labelled is not None:
        table = table[table[choice.labelled].fillna("").astype(str) != ""]
    table = table.reset_index(drop=True)
    if choice.rows == "stretches":
        table = stretches(table, layouts[prepared.layout.split(" in ")[0]].fps)
    if choice.near_duplicates:
        table = near_duplicates_together(replace(manifest, table=table))
    if choice.official is None:
        table = table.assign(split=holdout(table, choice.split, seed).parts)
    else:
        table = named_split(table, choice.official)
        train = table["split"] == "train"
        parts = holdout(table[train], {"train": 1 - choice.split["val"], "val": choice.split["val"]}, seed).parts
        table.loc[train, "split"] = parts
    trained = class_names(table[table["split"] == "train"], label)
    unseen = table[label].map(lambda cell: bool(cell) and not set(cell.split("|")) <= trained)
    return write_manifest(table[~unseen].reset_index(drop=True), prepared.manifest.with_name(SPLIT))


def class_names(table: pd.DataFrame, label: str) -> set[str]:
    """The classes that occur in a column; cells may hold several, joined by ``|``."""
    return {name for cell in table[label] for name in str(cell).split("|")} - {""}


def stretches(table: pd.DataFrame, fps: float | None) -> pd.DataFrame:
    """One row per stretch of a recording's frames with the same label; the frames stay in their folder."""
    table = table.assign(
        folder=table["video"].map(lambda path: Path(path).parent.as_posix()), number=pd.to_numeric(table["frame"])
    ).sort_values(["folder", "number"])
    changes = (table[["folder", "label"]] != table[["folder", "label"]].shift()).any(axis=1).cumsum()
    recordings = table["sequence"]
    parts = table.drop(columns=["folder", "number"]).assign(sequence=changes.astype(str) + "\n" + recordings)
    rows = sequence_rows(parts, pd.DataFrame(), fps, None)[0]
    return rows.assign(sequence=rows["sequence"].str.partition("\n")[2], boxes="", masks="")


def near_duplicates_together(manifest: Manifest) -> pd.DataFrame:
    """The table with one sequence for all rows that are near-duplicates, so that no split tears them apart."""
    table = manifest.table
    pairs = picture_neighbours(gather([manifest]), progress=False).pairs
    links = pairs[["row", "other"]].to_numpy(np.int64)
    joined, apart = group_ids(table, links), group_ids(table)
    several = pd.Series(apart).groupby(joined).transform("nunique").to_numpy() > 1
    names = np.array([f"near-duplicates {number}" for number in joined], dtype=object)
    return table.assign(sequence=np.where(several, names, table["sequence"]))


def audited(manifest: Manifest, pictures: bool, path: Path) -> str:
    """The verdict of the audit of the split, which is also written as JSON."""
    result = audit(manifest, pictures=pictures, progress=False)
    result.write_json(path)
    return result.verdict
