"""The rows of a manifest's splits as examples, each with the target that its task found for it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from endofm_lab.data.manifest import Manifest, read_manifest
from endofm_lab.data.rows import Row, stretch
from endofm_lab.data.splits import named_split
from endofm_lab.errors import ManifestError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Example(Row):
    """One row of a split.

    Attributes:
        row: its number in its split, from 0: the id of a test item.
        patient: data set and patient; the video's name where the manifest does not say.
        target: what is to be found in it, in the form that its task gives it.
    """

    row: int
    patient: str
    target: Any


def read_split(path: str | Path, name: str = "manifest") -> Manifest:
    """A manifest with the split that its column ``split`` holds ("manifest"), or a further one by its name.

    Raises:
        UserError: the manifest cannot be read, or carries no split of that name.
    """
    manifest = read_manifest(path)
    return manifest if name == "manifest" else replace(manifest, table=named_split(manifest.table, name))


def examples_of(manifest: Manifest, split: str, targets: Sequence[Any]) -> list[Example]:
    """The rows of a split, each with its target."""
    return [
        Example(
            **stretch(manifest, row),
            row=number,
            patient=f"{row['dataset']}/{row['patient'] or row['video']}",  # patient 1 of two data sets are two
            target=target,
        )
        for number, (row, target) in enumerate(zip(manifest.rows(split).to_dict("records"), targets, strict=True))
    ]


def shared_patients(manifest: Manifest) -> list[str]:
    """Patients (with their data set) that are in more than one of the splits, sorted."""
    rows = manifest.table[(manifest.table["patient"] != "") & manifest.table["split"].isin(SPLITS)]
    splits = rows.groupby(["dataset", "patient"])["split"].nunique()
    return sorted(f"{dataset}/{patient}" for dataset, patient in splits[splits > 1].index)


def refuse_shared_patients(manifest: Manifest) -> None:
    """Raise a ManifestError that counts and names the patients of more than one split, if there are any."""
    if shared := shared_patients(manifest):
        raise ManifestError(
            f"{len(shared)} patients are in two splits or more: {named(shared)}. Split by patient, or accept it by "
            "name (shared_patients='accept'); the run then says so."
        )


def named(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(list(names)[:most]) + more
