"""``endofm-lab data list | show | prepare | check``: recipes and the manifests that are made with them."""

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
    from endofm_lab.data import recipes as library

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
    from endofm_lab.data.recipes import load_recipe

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
    from endofm_lab.data.prepare import prepare as run
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
    from endofm_lab.data.check import check_manifest

    result = check_manifest(manifest, workers)
    print(json_module.dumps(result.as_dict(), indent=2, ensure_ascii=False) if json else result.text())
    if result.problems:
        raise SystemExit(2)


DATA = {"list": list_recipes, "show": show, "prepare": prepare, "check": check}
