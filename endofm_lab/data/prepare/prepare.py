"""Turn an unpacked archive and its recipe into a manifest: ``prepare("kvasir-seg", root, out)``.

No file disappears silently: everything that is left out, corrected or different from the published counts is named in
``problems.csv`` and counted in ``prepare.json``. Finished work is recorded in a journal, so that a stopped run
continues where it was.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from PIL import Image

from endofm_lab.data.prepare import annotations
from endofm_lab.data.prepare.cut import ClipKind
from endofm_lab.data.prepare.layouts import FoundLayout, LayoutError, find_layout, left_over
from endofm_lab.data.prepare.names import patient_finder
from endofm_lab.data.prepare.prepared import (
    Collected,
    Prepared,
    differences,
    fact_fingerprints,
    refuse_altered,
    write_prepared,
)
from endofm_lab.data.prepare.recipes import Layout, Recipe, load_recipe
from endofm_lab.data.prepare.rows import Row, build_rows, fit_row_boxes, name_patients
from endofm_lab.data.prepare.scan import (
    FileFacts,
    Journal,
    Problem,
    in_parallel,
    is_video,
    read_facts,
    stamp,
    walk,
    wrong_ending,
)
from endofm_lab.data.prepare.sequences import encoded_rows, sequence_rows, window_rows
from endofm_lab.errors import UserError
from endofm_lab.files import atomic_path, fingerprint_of, sweep
from endofm_lab.folders.run_folder import claim, unseal
from endofm_lab.machine import cores

WORK, JOURNAL = ".prepare", "journal.jsonl"  # a folder in the target, and the file in it
Cut = Literal["no", "windows", "encode"]
COLUMNS = ("video", "start_s", "end_s", "label", "patient", "dataset", "split", "sequence", "frame", "device")
MADE_COLUMNS = ("masks", "boxes", "width_px", "height_px", "source", "recipe", "sha256")
BOX_COLUMNS = ("video", "frame", "label", "x1_px", "y1_px", "x2_px", "y2_px")


def prepare(
    recipe: str | Recipe,
    root: str | Path,
    out: str | Path,
    *,
    cut: Cut = "no",
    layout: str | None = None,
    lists: str | Path | None = None,
    name: str | None = None,
    fps: float | None = None,
    patient_from: str | None = None,
    parts: Mapping[str, str | Path] | None = None,
    kind: Literal["parquet", "csv"] = "parquet",
    recipes: str | Path | None = None,
    workers: int | None = None,
) -> Prepared:
    """Turn an unpacked data set into ``out/manifest.parquet`` (or ``.csv``).

    A preparation that was stopped continues when called again with the same arguments.

    Args:
        recipe: Name of a recipe, path of a recipe file, or a recipe.
        root: Folder of the unpacked archive; it may lie up to two folders deeper. Never written to.
        out: Folder of manifest, masks, boxes, clips, ``problems.csv`` and ``prepare.json``.
        cut: ``windows`` makes rows of 5 s of the original files; ``encode`` writes clips of 5 s, short side 256 px,
            30 frames per second, as for Endo-FM's pre-training.
        layout: Name of a layout of the recipe; no other layout is tried.
        lists: Folder of official lists (splits, labels) that were downloaded apart from the pictures.
        name: Name of the data set in the manifest; the recipe's name if it is not given.
        fps: Frames per second of folders of frames, if the recipe does not state it.
        patient_from: For private-folder: Regular expression whose group is the patient in the path, as in "(P[0-9]+)_".
        parts: For a merged corpus: part -> folder, for folders that are not below ``root``.
        kind: Format of the manifest.
        recipes: Folder of recipes other than the project's.
        workers: Number of threads; the number of cores if it is not given.

    Raises:
        RecipeError: There is no such recipe, or it is malformed.
        LayoutError: No file fits the recipe; the message names the patterns that were tried and the files found.
        UserError: The folder is missing, or ``out`` is in use, or holds another preparation (what differs is named).
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, recipes)
    root, out = Path(root), Path(out)
    finder = _finder(recipe, patient_from)
    options = {"cut": cut, "layout": layout, "name": name or recipe.name, "fps": fps, "format": kind}
    options |= {"patient_from": patient_from} if patient_from is not None else {}
    request = _request(recipe, root, recipes, lists, parts, options)
    with (
        claim(out / WORK, request, "a preparation", allowed_files=(JOURNAL,), product=out) as folder,
        Journal(folder / JOURNAL) as journal,
    ):
        refuse_altered(out)
        unseal(folder, out)  # pictures that were replaced are read again
        run = _Run(out, journal, workers or cores(), cut, fps, finder)
        if recipe.parts:
            collected = _merged(run, recipe, root, parts or {}, recipes)
        else:
            collected = _one(run, recipe, root, layout, Path(lists) if lists else None, name or recipe.name)
        sweep(out)
        return write_prepared(recipe, root, out, collected, kind, cut)


def _check_folders(root: Path, lists: str | Path | None) -> None:
    if not root.is_dir():
        raise UserError(f"{root} is not a folder. Give the folder of the unpacked archive.")
    if lists is not None and not Path(lists).is_dir():
        raise UserError(f"{lists} is not a folder. Give the folder of the official lists.")


def _request(
    recipe: Recipe,
    root: Path,
    recipes: str | Path | None,
    lists: str | Path | None,
    parts: Mapping[str, str | Path] | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    """The settings that must be equal for a preparation to continue; a folder that does not exist is refused."""
    _check_folders(root, lists)
    return {
        "recipe": f"{recipe.name}@{recipe.version}",
        **fact_fingerprints(recipe, recipes),
        "root": str(root.resolve()),
        "lists": str(Path(lists).resolve()) if lists else None,
        "lists_fingerprint": fingerprint_of(lists) if lists else None,
        "parts": {part: str(Path(folder).resolve()) for part, folder in (parts or {}).items()},
        **options,
    }


@dataclass
class _Run:
    """The settings of the whole preparation."""

    out: Path
    journal: Journal
    workers: int
    cut: Cut
    fps: float | None
    patient: re.Pattern[str] | None

    def each(
        self, kind: str, rows: Sequence[Row], base: Path, work: Callable[[Row], dict[str, Any]]
    ) -> Iterator[tuple[Row, dict[str, Any]]]:
        """(row, result of ``work``) for the current picture or mask of each row, from the journal or computed now."""
        by_key = {}
        for row in rows:
            path = base.absolute() / (row.mask if kind.startswith("mask") else row.path)
            by_key[f"{kind}:{path}:{stamp(path)}:{row.binary_above}"] = row
        for key in by_key:  # a file that was made must still exist
            output = self.journal.results.get(key, {}).get("made")
            if output and not (self.out / output).is_file():
                del self.journal.results[key]
        for key, result in in_parallel(work, by_key.items(), self.journal, self.workers, f"reading: {kind}"):
            yield by_key[key], result


def _merged(
    run: _Run, recipe: Recipe, root: Path, folders: Mapping[str, str | Path], recipes: str | Path | None
) -> Collected:
    """All parts that exist on disk, one after the other; missing parts are reported."""
    if strange := sorted(set(folders) - {part.name for part in recipe.parts}):
        part_names = ", ".join(part.name for part in recipe.parts)
        raise UserError(f"{strange[0]} is not a part of {recipe.name}. Its parts are {part_names}.")
    problems, collected = [], []
    for part in recipe.parts:
        folder = Path(folders.get(part.name, root / part.folder))
        if part.name not in folders and not folder.resolve().is_relative_to(root.resolve()):
            message = f"is a symbolic link out of the root: name the folder with --part {part.name}=DIR"
            problems.append(Problem("link out of the root", part.folder, message, True))
            continue
        if not folder.is_dir():
            problems.append(Problem("part is missing", part.name, f"there is no folder {folder}", True))
            continue
        inner = load_recipe(part.recipe, recipes or recipe.path.parent)
        collection = _one(run, inner, folder, part.layout, None, inner.name)
        published = differences(part.expected, collection.table, collection.boxes)
        collection.counts = pd.concat([collection.counts, published.assign(what="in the corpus: " + published["what"])])
        collection.counts.insert(0, "part", part.name)
        collection.problems = [
            Problem(p.kind, f"{part.folder}/{p.path}", p.message, p.left_out) for p in collection.problems
        ]
        collected.append(collection)
    if not collected:
        names = ", ".join(part.folder for part in recipe.parts)
        raise LayoutError(f"None of the parts of {recipe.name} is in {root}. Their folders are called {names}.")
    return Collected(
        pd.concat([collection.table for collection in collected], ignore_index=True),
        pd.concat([collection.boxes for collection in collected], ignore_index=True),
        pd.concat([collection.counts for collection in collected], ignore_index=True),
        problems + [problem for collection in collected for problem in collection.problems],
        f"{len(collected)} of {len(recipe.parts)} parts",
    )


def _one(run: _Run, recipe: Recipe, root: Path, layout: str | None, lists: Path | None, name: str) -> Collected:
    files, problems = walk(root)
    match = find_layout(recipe, files, layout)
    base = root / match.base if match.base else root
    problems += left_over(recipe, match)
    if lists:
        problems += _add_lists(match, lists)
    rows, joining = build_rows(recipe, match, base)
    problems += joining
    if run.patient is not None:
        problems += name_patients(rows, run.patient)
    facts = _read_all(run, base, rows, problems)
    rows = [row for row in rows if row.path in facts]
    for row in rows:
        problems += fit_row_boxes(row, facts[row.path])
    masks = _masks(run, base, rows, facts, problems, f"{recipe.name}-{match.layout.name}")
    table = _table(recipe, match, base, rows, facts, masks, name)
    boxes = _box_table(base, rows)
    counts = differences(match.layout.expected, table, boxes)
    _split(recipe, table)
    table, boxes, cut_problems = _cut(run, match.layout, table, boxes)
    problems += cut_problems
    place = f"{match.layout.name}" + (f" in {match.base}/" if match.base else "")
    return Collected(table, boxes, counts, problems, place)


def _cut(
    run: _Run, layout: Layout, table: pd.DataFrame, boxes: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, list[Problem]]:
    """The rows that the caller wants: files as they are, sequences, windows, or new clips; stills stay unchanged."""
    fps, kind = run.fps or layout.fps, ClipKind()
    if not len(table) or layout.unit == "image" or (run.cut == "no" and layout.unit != "sequence"):
        return table, boxes, []
    if run.cut == "encode":
        table, problems = encoded_rows(table, fps, kind, run.out, run.journal, run.workers)
        return table, boxes.iloc[:0], problems
    if layout.unit == "video":
        return window_rows(table, kind), boxes, []
    return sequence_rows(table, boxes, fps, kind if run.cut == "windows" else None)


def _finder(recipe: Recipe, expression: str | None) -> re.Pattern[str] | None:
    if expression is not None and recipe.facts["access"] != "yours":
        raise UserError(
            f"--patient-from is for data of your own, and {recipe.name} says itself how patients are told apart: leave "
            "it out, or use the recipe private-folder."
        )
    return None if expression is None else patient_finder(expression)


def _add_lists(match: FoundLayout, folder: Path) -> list[Problem]:
    """Official lists from another folder, by the same patterns as within the archive."""
    files, problems = walk(folder)
    for path in files:
        for table in match.layout.tables:
            if (pieces := table.file.read(path)) is not None:
                match.tables[str((folder / path).absolute())] = (table, pieces)
    return problems


def _read_all(run: _Run, base: Path, rows: Sequence[Row], problems: list[Problem]) -> dict[str, FileFacts]:
    """Facts of every readable file, by path; unreadable files become problems."""
    facts = {}
    for _, result in run.each("file", rows, base, lambda row: asdict(read_facts(base, row.path))):
        fact = FileFacts(**result)
        if fact.error:
            problems.append(Problem("cannot be read", fact.path, fact.error, True))
            continue
        if message := wrong_ending(fact):
            problems.append(Problem("wrong ending", fact.path, message, False))
        facts[fact.path] = fact
    return facts


def _masks(
    run: _Run, base: Path, rows: Sequence[Row], facts: Mapping[str, FileFacts], problems: list[Problem], name: str
) -> dict[str, Path]:
    """The usable mask of each picture.

    Masks with more than two values become 1-bit files if the recipe says how, and then so do the other masks of their
    folder, because a sequence needs its masks in one folder.
    """
    masked = [row for row in rows if row.mask]
    folder = Path("masks") / name
    results = {
        row.path: result
        for row, result in run.each("mask", masked, base, lambda row: _read_mask(run.out, folder, base, row, False))
    }
    converted_folders = {str(Path(row.mask).parent) for row in masked if results[row.path]["made"]}
    remaining = [
        row for row in masked if str(Path(row.mask).parent) in converted_folders and not results[row.path]["made"]
    ]
    for row, result in run.each(
        "mask as PNG", remaining, base, lambda row: _read_mask(run.out, folder, base, row, True)
    ):
        results[row.path] = result
    masks = {}
    for row in masked:
        result, fact = results[row.path], facts[row.path]
        size = f"{result.get('width_px')}x{result.get('height_px')}"
        if result["error"]:
            problems.append(Problem("mask cannot be read", row.mask, result["error"], True))
        elif size != f"{fact.width_px}x{fact.height_px}":
            message = f"the mask is {size} px, its picture {fact.width_px}x{fact.height_px} px"
            problems.append(Problem("mask of another size", row.mask, message, True))
        elif result["levels"] > 2 and row.binary_above is None:
            message = f"has {result['levels']} grey values and the recipe does not say which are the finding"
            problems.append(Problem("mask is not binary", row.mask, message, True))
        else:
            if not result["plain"]:
                message = f"had {result['levels']} grey values; those above {row.binary_above or 0} are the finding"
                problems.append(Problem("mask made binary", row.mask, message, False))
            masks[row.path] = (run.out / result["made"] if result["made"] else base / row.mask).absolute()
    return masks


def _read_mask(out: Path, folder: Path, base: Path, row: Row, copy: bool) -> dict[str, Any]:
    """The journal entry of a mask, which is written as a 1-bit PNG if it is not black and white, or with ``copy``."""
    try:
        mask = annotations.read_mask(base / row.mask, row.binary_above)
    except annotations.AnnotationError as error:
        return {"error": str(error).replace(f"{base}/", ""), "made": ""}
    output = ""
    if copy or (not mask.plain and (mask.levels <= 2 or row.binary_above is not None)):
        output = (folder / Path(row.mask).with_suffix(".png")).as_posix()
        with atomic_path(out / output) as temporary:
            Image.fromarray(mask.mask).save(temporary)
    height, width = mask.mask.shape
    size = {"width_px": width, "height_px": height}
    return size | {"error": "", "levels": mask.levels, "plain": mask.plain, "made": output}


def _table(
    recipe: Recipe,
    match: FoundLayout,
    base: Path,
    rows: Sequence[Row],
    facts: Mapping[str, FileFacts],
    masks: Mapping[str, Path],
    name: str,
) -> pd.DataFrame:
    """One line per file, paths absolute."""
    records = []
    for row in rows:
        fact = facts[row.path]
        record: dict[str, Any] = dict.fromkeys(COLUMNS, "") | {"device": recipe.device} | row.says
        record |= {
            "video": str((base / row.path).absolute()),
            "dataset": name,
            "masks": str(masks.get(row.path, "")),
            "boxes": "boxes.csv" if row.boxes else "",
            "width_px": fact.width_px,
            "height_px": fact.height_px,
            "source": row.path,
            "recipe": f"{recipe.name}@{recipe.version}",
            "sha256": fact.sha256,
        }
        end = fact.duration_s if is_video(row.path) else 0.0
        for start_s, end_s, label in row.stretches or [(0.0, end, record["label"])]:
            records.append(record | {"start_s": start_s, "end_s": min(end_s, end), "label": label})
    return pd.DataFrame(records).fillna("") if records else pd.DataFrame(columns=[*COLUMNS, *MADE_COLUMNS])


def _box_table(base: Path, rows: Sequence[Row]) -> pd.DataFrame:
    records = [
        (str((base / row.path).absolute()), 0, box.label, box.x1, box.y1, box.x2, box.y2)
        for row in rows
        for box in row.boxes
    ]
    return pd.DataFrame(records, columns=list(BOX_COLUMNS))


def _split(recipe: Recipe, table: pd.DataFrame) -> None:
    """Fill ``split`` with the recipe's default official split; all official splits stay as columns ``split_NAME``."""
    for name, split in recipe.splits.items():
        column = "split_" + name.replace("-", "_")
        if "sides" in split:
            sides: dict[str, str] = {}
            for side, items in split["sides"].items():
                for item in map(str, items):  # an item can be on several sides of a leaking split: `train|test`
                    sides[item] = f"{sides[item]}|{side}" if item in sides else side
            table[column] = table[split["by"]].map(sides).fillna("")
        if split.get("default") and column in table:
            table["split"] = table[column].fillna("")
        elif split.get("default") and (table["split"] != "").any():
            table[column] = table["split"]
