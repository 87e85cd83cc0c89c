"""The rows of a manifest's splits as examples, each with the target that the task assigns to it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from endofm_lab.data.manifest import Manifest, read_manifest
from endofm_lab.data.rows import Row, stretch
from endofm_lab.data.splits import named_split
from endofm_lab.data.units import Units, units
from endofm_lab.errors import ManifestError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Example(Row):
    """One row of a split.

    Attributes:
        row: number of the row in its split, counted from 0: the id of a test item.
        patient: the unit of independence: data set and patient, or sequence or video if patients are unknown.
        target: the truth of the row, in the form that the task defines.
    """

    row: int
    patient: str
    target: Any


def read_split(path: str | Path, name: str = "manifest") -> Manifest:
    """A manifest with the split of its column ``split`` ("manifest"), or with a further split by its name.

    Raises:
        UserError: the manifest cannot be read, or has no split of that name.
    """
    manifest = read_manifest(path)
    return manifest if name == "manifest" else replace(manifest, table=named_split(manifest.table, name))


def examples_of(manifest: Manifest, split: str, targets: Sequence[Any]) -> list[Example]:
    """The rows of a split, each with its target."""
    ids = units_of(manifest, split).ids
    return [
        Example(
            **stretch(manifest, row),
            row=number,
            patient=str(ids[number]),
            target=target,
        )
        for number, (row, target) in enumerate(zip(manifest.rows(split).to_dict("records"), targets, strict=True))
    ]


def units_of(manifest: Manifest, split: str) -> Units:
    """The units of independence of a split's rows; connections through rows of other splits count too."""
    return units(manifest.table).take((manifest.table["split"] == split).to_numpy())


def shared_units(manifest: Manifest) -> list[str]:
    """Patients, sequences and videos (the units, with their data set) in more than one of the splits, sorted."""
    rows = manifest.table[manifest.table["split"].isin(SPLITS)]
    splits = rows["split"].groupby(units(rows).ids).nunique()
    return sorted(map(str, splits[splits > 1].index))


def refuse_shared_units(manifest: Manifest) -> None:
    """Raise a ManifestError that counts and names the units in more than one split, if there are any."""
    if shared := shared_units(manifest):
        raise ManifestError(
            f"{len(shared)} patients or recordings are in more than one split: {named(shared)}. Split by patient, or "
            "accept this with shared_patients='accept', which the report of the run then states."
        )


def named(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, and the number of further names."""
    remainder = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(list(names)[:most]) + remainder
