"""Commands for data on disk: `endofm-lab phantom`, `audit` and `check`, and the commands of `endofm-lab data`."""

from pathlib import Path
from typing import Any, Literal

import pandas as pd
from tqdm import tqdm

from endofm_lab.cli.command import Output, command
from endofm_lab.data.audit.audit import audit as run_audit
from endofm_lab.data.coverage import coverage as cover
from endofm_lab.data.download import get_data
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
def phantom(
    out: Path,
    output: Output,
    preset: Literal["tiny", "tutorial", "demo", "examinations", "examinations-tiny"] = "tutorial",
    seed: int = 0,
) -> None:
    """Write a data set of generated endoscopy: videos, masks, boxes and a manifest, split by patient.

    Args:
        preset: size of the data set: tiny (10 patients, 32 frames of 64 px each), tutorial (40 patients, 48 frames of
            256 px) or demo (68 patients, 48 frames of 160 px). examinations has 72 patients with a video of about 14
            minutes each, one frame of 64 px per second, whose phases only the context tells; examinations-tiny has 8
            patients with a minute each.
        seed: other seeds give other patients.
    """
    path = write_phantom(out, preset, seed, progress=output.progress)
    table = read_manifest(path).table
    counts = table.pivot_table(index="split", columns="label", values="video", aggfunc="count", margins=True)
    patients = table.groupby("split")["patient"].nunique().rename("patients")
    output.result({"manifest": path, "rows": len(table), "patients": patients.to_dict()})
    output.say(counts.to_string(), patients.to_string())
    output.say(f"\nWritten to {path}. Every picture is generated; no picture shows a patient.")


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

    Leakage is reported; it does not make the command fail.

    Args:
        manifests: CSV or Parquet files; their column `split` says which rows are for training and testing.
        pretrain: manifests that a model was pre-trained on, compared with the validation and test rows of the others.
        pictures: open the pictures and videos and look for near-duplicates; this takes minutes for tens of thousands.
        html: also write a page that shows the pictures of each finding side by side.
    """
    read = [read_manifest(path) for path in manifests]
    if split != "manifest":
        read = [Manifest(named_split(manifest.table, split), manifest.root, manifest.path) for manifest in read]
    learned = [read_manifest(path) for path in pretrain]
    result = run_audit(read, pretrain=learned, pictures=pictures, progress=output.progress)
    output.result(result.to_json())
    output.say(result.text())
    if html is not None:
        output.say(f"\nThe page with the pictures is {write_audit_html(result, html)}")


@command()
def list_recipes(output: Output, recipes: Path | None = None) -> None:
    """List the data sets that have a recipe.

    Args:
        recipes: folder of your own recipes, used instead of the project's.
    """
    entries = library.list_recipes(recipes)
    output.result([{"recipe": entry.name, "name": entry.title, "access": entry.facts["access"]} for entry in entries])
    for entry in entries:
        kind = "merged from " + ", ".join(part.recipe for part in entry.parts) if entry.parts else entry.title
        output.say(f"{entry.name:<22}{entry.facts['access']:<13}{kind}")


@command(positional=("name",))
def show(name: str, output: Output, recipes: Path | None = None) -> None:
    """Print a recipe: source, licence, layouts on disk, expected counts, known defects and unverified facts.

    Args:
        name: name of a recipe, or the path of a recipe file.
        recipes: folder of your own recipes, used instead of the project's.
    """
    recipe = library.load_recipe(name, recipes)
    output.result(recipe.facts)
    output.say(recipe.path.read_text(encoding="utf-8").rstrip())


@command(
    preparing.prepare, positional=("recipe",), names={"name": "dataset", "kind": "format"}, without=("recipe", "parts")
)
def prepare(recipe: str, settings: dict[str, Any], output: Output, part: tuple[str, ...] = ()) -> None:
    """Turn an unpacked data set into a manifest. The same command continues a preparation that was stopped.

    Args:
        recipe: name of a recipe, or the path of a recipe file.
        part: for a merged corpus, PART=FOLDER for each part that is not below the root.
    """
    if wrong := [text for text in part if "=" not in text]:
        raise UserError(f"--part is {wrong[0]}, but it must have the form PART=FOLDER. Give the name of a part.")
    folders = {name: Path(folder) for name, folder in (text.split("=", 1) for text in part)}
    prepared = preparing.prepare(recipe, **settings, parts=folders)
    output.result(read_json(settings["out"] / "prepare.json"))
    output.say(prepared.text())


@command(
    own_table.import_table,
    positional=("table",),
    names={"name": "dataset"},
    without=("path",),
    columns=("video", "label", "patient", "split", "start", "end"),
)
def import_table(table: Path, settings: dict[str, Any], output: Output) -> None:
    """Turn a table of your own into a manifest: CSV with any separator, TSV, a spreadsheet or Parquet.

    The command prints the first rows as it reads them. If the table or its files have problems, it lists all problems
    and writes nothing.

    Args:
        table: the table, with a header and a row for each video, picture or folder of frames.
    """
    try:
        result = own_table.import_table(table, **settings)
    except own_table.TableError as error:
        output.say(error.text(), "")
        raise
    output.result({"manifest": result.manifest.path, "rows": len(result.manifest), "notes": result.notes})
    output.say(result.text())


@command(get_data, positional=("name",))
def get(name: str, out: Path, settings: dict[str, Any], output: Output) -> None:
    """Fetch a data set after its licence was agreed to, and unpack it; or say where to ask for it.

    Without --agree nothing is fetched, and source, size, licence and SHA-256 are shown. The same command continues a
    download that was stopped.

    Args:
        name: name of a recipe, or the path of a recipe file.
    """
    with tqdm(unit="B", unit_scale=True, disable=not output.progress) as bar:
        for done, total in get_data(name, out, **settings):
            bar.total, bar.n = total, done
            bar.refresh()
    output.result({"out": out})
    output.say(f"Unpacked to {out}. Next: endofm-lab data prepare {name} --root {out} --out FOLDER")


@command(check_manifest, positional=("manifest",), without=("path",))
def check(manifest: Path, settings: dict[str, Any], output: Output) -> None:
    """Check that every file of a manifest exists, can be read and is unchanged; exit code 2 if not.

    Args:
        manifest: a manifest (CSV or Parquet).
    """
    result = check_manifest(manifest, **settings)
    output.result(result.as_dict())
    output.say(result.text())
    if result.problems:
        raise SystemExit(2)


@command(positional=("folder",))
def check_integrity(folder: Path, output: Output) -> None:
    """Check whether the folder of a model, run, embedding store, study, prediction or data set is whole and unchanged.

    Its files are compared with the hashes that the command wrote at its end. The exit code is 2 if the folder is
    damaged or unfinished.

    Args:
        folder: a folder that a command wrote.
    """
    result = check_folder(folder)
    output.result(result.to_json())
    output.say(result.text())
    if not result.whole:
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
    """Split a manifest by patient, video and sequence with balanced classes, and print the balance.

    The new manifest is written into the folder under the same name. If --out ends in .csv or .parquet, it is the path
    of the new manifest.

    Args:
        manifest: a manifest (CSV or Parquet).
        val: share of the validation part.
        test: share of the test part.
        folds: number of folds to make instead: columns split_fold_0, split_fold_1, ...; the column split is the first.
        seed: decides between equally good splits.
    """
    if out.suffix.lower() not in (".csv", ".parquet"):
        out = out / manifest.name
    read = read_manifest(manifest)
    table = read.table if out.absolute().parent == manifest.absolute().parent else absolute_paths(read)
    if folds is None:
        splits = [holdout(table, {"train": 1 - val - test, "val": val, "test": test}, seed)]
    else:
        splits = kfold(table, folds, seed)
        table = table.assign(**{f"split_fold_{i}": fold.parts for i, fold in enumerate(splits)})
    write_manifest(table.assign(split=splits[0].parts), out)
    output.result({"manifest": out, "rows": [pd.Series(entry.parts).value_counts().to_dict() for entry in splits]})
    output.say("\n\n".join(entry.text() for entry in splits), f"\nWritten to {out}.")


@command(positional=("manifests",))
def coverage(manifests: tuple[Path, ...], mapping: str, output: Output) -> None:
    """Count the labels that a class mapping maps to one class, to several classes or to none, and conflicting labels.

    Args:
        manifests: manifests (CSV or Parquet).
        mapping: name of a mapping of the project, or the path of a mapping file.
    """
    report = cover(join_manifests([read_manifest(path) for path in manifests]).table, read_mapping(mapping))
    output.result(report.labels.to_dict("records"))
    output.say(report.text())


DATA = {
    "list": list_recipes,
    "show": show,
    "get": get,
    "prepare": prepare,
    "import": import_table,
    "check": check,
    "split": split,
    "coverage": coverage,
}
