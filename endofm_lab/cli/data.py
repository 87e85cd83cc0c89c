"""Data on disk: `endofm-lab phantom`, `endofm-lab audit`, `endofm-lab check` and the commands below `data`."""

from pathlib import Path
from typing import Any, Literal

import pandas as pd

from endofm_lab.cli.command import Output, command
from endofm_lab.data.audit.audit import audit as run_audit
from endofm_lab.data.coverage import coverage as cover
from endofm_lab.data.labels import read_mapping
from endofm_lab.data.manifest import Manifest, absolute_paths, join_manifests, read_manifest, write_manifest
from endofm_lab.data.phantom_set import write_phantom
from endofm_lab.data.prepare import own_table
from endofm_lab.data.prepare import prepare as preparing
from endofm_lab.data.prepare import recipes as library
from endofm_lab.data.prepare.check import check_manifest
from endofm_lab.data.splits import holdout, kfold, named_split
from endofm_lab.errors import UserError
from endofm_lab.files import read_json
from endofm_lab.integrity import check_folder
from endofm_lab.reports.audit import write_audit_html


@command(positional=("out",))
def phantom(out: Path, output: Output, preset: Literal["tiny", "tutorial", "demo"] = "tutorial", seed: int = 0) -> None:
    """Write a data set of generated endoscopy: videos, masks, boxes and a manifest, split by patient.

    Args:
        preset: tiny (10 patients of 32 frames at 64 px), tutorial (40 of 48 at 256 px), demo (68 of 48 at 160 px).
        seed: other seeds give other patients.
    """
    path = write_phantom(out, preset, seed, progress=output.progress)
    table = read_manifest(path).table
    counts = table.pivot_table(index="split", columns="label", values="video", aggfunc="count", margins=True)
    patients = table.groupby("split")["patient"].nunique().rename("patients")
    output.result({"manifest": path, "rows": len(table), "patients": patients.to_dict()})
    output.say(counts.to_string(), patients.to_string())
    output.say(f"\nWritten to {path}. Every picture is generated; none shows a patient.")


@command(positional=("manifests",))
def audit(
    manifests: tuple[Path, ...],
    output: Output,
    pretrain: tuple[Path, ...] = (),
    split: str = "manifest",
    pictures: bool = False,
    html: Path | None = None,
) -> None:
    """Look for leakage, duplicates, confounding and label conflicts between the splits of one or several manifests.

    Leakage is reported; it is no error.

    Args:
        manifests: CSV or Parquet files; their column `split` says what is trained and tested on.
        pretrain: manifests that a model was pre-trained on, compared with the validation and test rows of the others.
        pictures: open the pictures and videos and look for near-duplicates; takes minutes for tens of thousands.
        html: write a page with the pictures side by side.
    """
    read = [read_manifest(path) for path in manifests]
    if split != "manifest":
        read = [Manifest(named_split(manifest.table, split), manifest.root, manifest.path) for manifest in read]
    learned = [read_manifest(path) for path in pretrain]
    result = run_audit(read, pretrain=learned, pictures=pictures, progress=output.progress)
    output.result(result.to_json())
    output.say(result.text())
    if html is not None:
        output.say(f"\nThe pictures are side by side in {write_audit_html(result, html)}")


@command()
def list_recipes(output: Output, recipes: Path | None = None) -> None:
    """Name the data sets that have a recipe.

    Args:
        recipes: folder of recipes other than the project's.
    """
    found = library.list_recipes(recipes)
    output.result([{"recipe": entry.name, "name": entry.title, "access": entry.facts["access"]} for entry in found])
    for entry in found:
        kind = "merged from " + ", ".join(part.recipe for part in entry.parts) if entry.parts else entry.title
        output.say(f"{entry.name:<22}{entry.facts['access']:<13}{kind}")


@command(positional=("name",))
def show(name: str, output: Output, recipes: Path | None = None) -> None:
    """Print a recipe: source, licence, layouts on disk, expected counts, known defects, what is unverified.

    Args:
        name: name of a recipe, or the path of a recipe file.
        recipes: folder of recipes other than the project's.
    """
    recipe = library.load_recipe(name, recipes)
    output.result(recipe.facts)
    output.say(recipe.path.read_text(encoding="utf-8").rstrip())


@command(
    preparing.prepare, positional=("recipe",), names={"name": "dataset", "kind": "format"}, without=("recipe", "parts")
)
def prepare(recipe: str, settings: dict[str, Any], output: Output, part: tuple[str, ...] = ()) -> None:
    """Turn an unpacked data set into a manifest. A run that was stopped goes on where it was.

    Args:
        recipe: name of a recipe, or the path of a recipe file.
        part: for a merged corpus, PART=FOLDER for parts that do not lie below the root.
    """
    if wrong := [text for text in part if "=" not in text]:
        raise UserError(f"--part {wrong[0]} is not of the form PART=FOLDER.")
    folders = {name: Path(folder) for name, folder in (text.split("=", 1) for text in part)}
    done = preparing.prepare(recipe, **settings, parts=folders)
    output.result(read_json(settings["out"] / "prepare.json"))
    output.say(done.text())


@command(
    own_table.import_table,
    positional=("table",),
    names={"name": "dataset"},
    without=("path",),
    columns=("video", "label", "patient", "split", "start", "end"),
)
def import_table(table: Path, settings: dict[str, Any], output: Output) -> None:
    """Turn a table of your own into a manifest: CSV with any separator, TSV, a spreadsheet or Parquet.

    Shows the first rows as they are understood; every problem of the table and its files is listed before anything is
    refused.

    Args:
        table: the table, with a header and a row per video, picture or folder of frames.
    """
    try:
        done = own_table.import_table(table, **settings)
    except own_table.TableError as error:
        output.say(error.text(), "")
        raise
    output.result({"manifest": done.manifest.path, "rows": len(done.manifest), "notes": done.notes})
    output.say(done.text())


@command(check_manifest, positional=("manifest",), without=("path",))
def check(manifest: Path, settings: dict[str, Any], output: Output) -> None:
    """Check that everything a manifest names is there, can be read and is unchanged; exit code 2 if not.

    Args:
        manifest: manifest.csv or manifest.parquet.
    """
    result = check_manifest(manifest, **settings)
    output.result(result.as_dict())
    output.say(result.text())
    if result.problems:
        raise SystemExit(2)


@command(positional=("folder",))
def check_integrity(folder: Path, output: Output) -> None:
    """Say whether the folder of a model, run, store, study, prediction or data set is whole and unchanged.

    Its files are compared with the hashes that the job wrote last; exit code 2 if the folder is damaged or unfinished.

    Args:
        folder: what a command wrote to.
    """
    found = check_folder(folder)
    output.result(found.to_json())
    output.say(found.text())
    if not found.whole:
        raise SystemExit(2)


@command(positional=("manifest",))
def split(
    manifest: Path,
    out: Path,
    output: Output,
    val: float = 0.15,
    test: float = 0.15,
    folds: int | None = None,
    seed: int = 0,
) -> None:
    """Split a manifest by patient, video and sequence, classes balanced; print the balance reached.

    The folder then holds a manifest of the same name; an --out that ends in .csv or .parquet is the manifest itself.

    Args:
        manifest: manifest.csv or manifest.parquet.
        val: share of the validation part.
        test: share of the test part.
        folds: make this many folds instead: columns split_fold_0, split_fold_1, ...; the column split holds the first.
        seed: decides between equally good splits.
    """
    if out.suffix.lower() not in (".csv", ".parquet"):
        out = out / manifest.name
    read = read_manifest(manifest)
    table = read.table if out.absolute().parent == manifest.absolute().parent else absolute_paths(read)
    if folds is None:
        made = [holdout(table, {"train": 1 - val - test, "val": val, "test": test}, seed)]
    else:
        made = kfold(table, folds, seed)
        table = table.assign(**{f"split_fold_{i}": entry.parts for i, entry in enumerate(made)})
    write_manifest(table.assign(split=made[0].parts), out)
    output.result({"manifest": out, "rows": [pd.Series(entry.parts).value_counts().to_dict() for entry in made]})
    output.say("\n\n".join(entry.text() for entry in made))


@command(positional=("manifests",))
def coverage(manifests: tuple[Path, ...], mapping: str, output: Output) -> None:
    """Say what a class mapping makes of the labels: mapped, coarse, ambiguous, left out, unmapped, conflicting.

    Args:
        manifests: CSV or Parquet files.
        mapping: name of a mapping that comes with the project, or the path of a mapping file.
    """
    report = cover(join_manifests([read_manifest(path) for path in manifests]).table, read_mapping(mapping))
    output.result(report.labels.to_dict("records"))
    output.say(report.text())


DATA = {
    "list": list_recipes,
    "show": show,
    "prepare": prepare,
    "import": import_table,
    "check": check,
    "split": split,
    "coverage": coverage,
}
