"""``endofm-lab data list | show | prepare | check | split | coverage``: recipes, and the manifests made with them."""

import json as json_module
from pathlib import Path
from typing import Annotated, Literal

import tyro

from endofm_lab.errors import UserError


def list_recipes(recipes: Path | None = None, json: bool = False) -> None:
    """Name the data sets that have a recipe.

    Args:
        recipes: folder of recipes other than the project's.
        json: print JSON instead of a table.
    """
    from endofm_lab.data.prepare import recipes as library

    found = library.list_recipes(recipes)
    if json:
        rows = [{"recipe": one.name, "name": one.title, "access": one.facts["access"]} for one in found]
        print(json_module.dumps(rows, indent=2, ensure_ascii=False))
        return
    for one in found:
        kind = "merged from " + ", ".join(part.recipe for part in one.parts) if one.parts else one.title
        print(f"{one.name:<22}{one.facts['access']:<13}{kind}")


def show(name: Annotated[str, tyro.conf.Positional], recipes: Path | None = None, json: bool = False) -> None:
    """Print a recipe: source, licence, layouts on disk, expected counts, known defects, what is unverified.

    Args:
        name: name of a recipe, or the path of a recipe file.
        recipes: folder of recipes other than the project's.
        json: print the parsed facts as JSON instead of the file.
    """
    from endofm_lab.data.prepare.recipes import load_recipe

    recipe = load_recipe(name, recipes)
    if json:
        print(json_module.dumps(recipe.facts, indent=2, ensure_ascii=False))
    else:
        print(recipe.path.read_text(encoding="utf-8").rstrip())


def prepare(
    name: Annotated[str, tyro.conf.Positional],
    root: Path,
    out: Path,
    cut: Literal["no", "windows", "encode"] = "no",
    layout: str | None = None,
    lists: Path | None = None,
    dataset: str | None = None,
    fps: float | None = None,
    part: tuple[str, ...] = (),
    format: Literal["parquet", "csv"] = "parquet",
    recipes: Path | None = None,
    workers: int | None = None,
    json: bool = False,
) -> None:
    """Turn an unpacked data set into a manifest. A run that was stopped goes on where it was.

    Args:
        name: name of a recipe, or the path of a recipe file.
        root: folder of the unpacked archive; nothing is written there.
        out: folder for the manifest and all that is made.
        cut: "windows" makes rows of 5 s on the files where they lie, "encode" writes clips of 5 s, short side 256 px,
            30 frames per second.
        layout: name of the layout, where more than one could fit.
        lists: folder of official lists that were downloaded apart from the pictures.
        dataset: what the manifest calls the data set; by default the recipe's name.
        fps: frames per second of folders of frames, where the recipe does not know.
        part: for a merged corpus, PART=FOLDER for parts that do not lie below the root.
        format: of the manifest.
        recipes: folder of recipes other than the project's.
        workers: threads; by default as many as cores.
        json: print counts and problems as JSON.
    """
    from endofm_lab.data.prepare.prepare import prepare as run
    from endofm_lab.files import read_json

    if strange := [text for text in part if "=" not in text]:
        raise UserError(f"--part {strange[0]} is not of the form PART=FOLDER")
    folders = {name: Path(folder) for name, folder in (text.split("=", 1) for text in part)}
    done = run(
        name,
        root,
        out,
        cut=cut,
        layout=layout,
        lists=lists,
        name=dataset,
        fps=fps,
        parts=folders,
        kind=format,
        recipes=recipes,
        workers=workers,
    )
    print(json_module.dumps(read_json(out / "prepare.json"), indent=2, ensure_ascii=False) if json else done.text())


def check(manifest: Annotated[Path, tyro.conf.Positional], json: bool = False, workers: int | None = None) -> None:
    """Check that everything a manifest names is there, can be read and is unchanged; exit code 2 if not.

    Args:
        manifest: manifest.csv or manifest.parquet.
        json: print the result as JSON.
        workers: threads; by default as many as cores.
    """
    from endofm_lab.data.prepare.check import check_manifest

    result = check_manifest(manifest, workers)
    print(json_module.dumps(result.as_dict(), indent=2, ensure_ascii=False) if json else result.text())
    if result.problems:
        raise SystemExit(2)


def split(
    manifest: Annotated[Path, tyro.conf.Positional],
    out: Path,
    val: float = 0.15,
    test: float = 0.15,
    folds: int | None = None,
    seed: int = 0,
) -> None:
    """Split a manifest by patient, video and sequence, classes balanced; print the balance reached.

    Args:
        manifest: manifest.csv or manifest.parquet.
        out: the new manifest.
        val: share of the validation part.
        test: share of the test part.
        folds: make this many folds instead: columns split_fold_0, split_fold_1, ...; the column split holds the first.
        seed: decides between equally good splits.
    """
    from endofm_lab.data.manifest import absolute_paths, read_manifest, write_manifest
    from endofm_lab.data.splits import holdout, kfold

    read = read_manifest(manifest)
    table = read.table if out.absolute().parent == manifest.absolute().parent else absolute_paths(read)
    if folds is None:
        made = [holdout(table, {"train": 1 - val - test, "val": val, "test": test}, seed)]
    else:
        made = kfold(table, folds, seed)
        table = table.assign(**{f"split_fold_{i}": one.parts for i, one in enumerate(made)})
    write_manifest(table.assign(split=made[0].parts), out)
    print("\n\n".join(one.text() for one in made))


def coverage(
    manifests: Annotated[tuple[Path, ...], tyro.conf.Positional],
    mapping: str,
    json: bool = False,
) -> None:
    """Say what a class mapping makes of the labels: mapped, coarse, ambiguous, left out, unmapped, conflicting.

    Args:
        manifests: CSV or Parquet files.
        mapping: name of a mapping that comes with the project, or the path of a mapping file.
        json: print the labels as JSON instead of text.
    """
    from endofm_lab.data.coverage import coverage as cover
    from endofm_lab.data.labels import read_mapping
    from endofm_lab.data.manifest import join_manifests, read_manifest

    report = cover(join_manifests([read_manifest(path) for path in manifests]).table, read_mapping(mapping))
    print(report.labels.to_json(orient="records", indent=2) if json else report.text())


DATA = {
    "list": list_recipes,
    "show": show,
    "prepare": prepare,
    "check": check,
    "split": split,
    "coverage": coverage,
}
