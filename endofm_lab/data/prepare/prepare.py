"""An unpacked archive and its recipe become a manifest: ``prepare("kvasir-seg", root, out)``.

Nothing that lies on disk disappears in silence: what is left out, put right or differs from the published counts is
named in ``problems.csv`` and counted in ``prepare.json``. Work that is done is noted in a journal, so that a run that
was stopped goes on where it was.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from PIL import Image

from endofm_lab.data.prepare import annotations
from endofm_lab.data.prepare.cut import ClipKind
from endofm_lab.data.prepare.layouts import FoundLayout, LayoutError, find_layout, left_over
from endofm_lab.data.prepare.prepared import Collected, Prepared, differences, write_prepared
from endofm_lab.data.prepare.recipes import Layout, Recipe, load_recipe
from endofm_lab.data.prepare.rows import Row, build_rows, fit_row_boxes
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
from endofm_lab.files import atomic_path, sweep
from endofm_lab.hashes import HASHES
from endofm_lab.machine import cores
from endofm_lab.run_folder import claim

WORK, JOURNAL = ".prepare", "journal.jsonl"  # a folder in the target, and what it holds
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
    parts: Mapping[str, str | Path] | None = None,
    kind: Literal["parquet", "csv"] = "parquet",
    recipes: str | Path | None = None,
    workers: int | None = None,
) -> Prepared:
    """Turn an unpacked data set into ``out/manifest.parquet`` (or ``.csv``).

    A preparation that was stopped goes on when called again with the same arguments.

    Args:
        recipe: Name of a recipe, path of a recipe file, or a recipe.
        root: Folder of the unpacked archive; it may lie up to two folders deeper. Never written to.
        out: Folder of manifest, masks, boxes, clips, ``problems.csv`` and ``prepare.json``.
        cut: ``windows`` makes rows of 5 s on the files where they lie; ``encode`` writes clips of 5 s, short side
            256 px, 30 frames per second, as for Endo-FM's pre-training.
        layout: Name of a layout of the recipe, to try no other.
        lists: Folder of official lists (splits, labels) that were downloaded apart from the pictures.
        name: What the manifest calls the data set; the recipe's name where it is not given.
        fps: Frames per second of folders of frames, where the recipe does not know.
        parts: For a merged corpus: part -> folder, where it is not below ``root``.
        kind: Format of the manifest.
        recipes: Folder of recipes other than the project's.
        workers: Threads; as many as cores where it is not given.

    Raises:
        RecipeError: No such recipe, or it is malformed.
        LayoutError: Nothing on disk fits the recipe; the message names what was tried and what is there.
        UserError: The folder is not there, ``out`` holds another preparation (the message names what differs), or
            another process works there.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, recipes)
    root, out = Path(root), Path(out)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: give the folder of the unpacked archive")
    workers = workers or cores()
    request = _request(recipe, root, cut=cut, layout=layout, lists=lists, name=name, fps=fps, parts=parts, kind=kind)
    with (
        claim(out / WORK, request, "a preparation", beside=(JOURNAL,), product=out) as folder,
        Journal(folder / JOURNAL) as journal,
    ):
        (out / HASHES).unlink(missing_ok=True)  # pictures that were replaced are read again
        run = _Run(out, journal, workers, cut, fps)
        if recipe.parts:
            collected = _merged(run, recipe, root, parts or {}, recipes)
        else:
            collected = _one(run, recipe, root, layout, Path(lists) if lists else None, name or recipe.name)
        sweep(out)
        return write_prepared(recipe, root, out, collected, kind, cut)


def _request(
    recipe: Recipe,
    root: Path,
    *,
    cut: Cut,
    layout: str | None,
    lists: str | Path | None,
    name: str | None,
    fps: float | None,
    parts: Mapping[str, str | Path] | None,
    kind: str,
) -> dict[str, Any]:
    """What has to be equal for a preparation to go on."""
    return {
        "recipe": f"{recipe.name}@{recipe.version}",
        "root": str(root.resolve()),
        "cut": cut,
        "layout": layout,
        "lists": str(Path(lists).resolve()) if lists else None,
        "name": name or recipe.name,
        "fps": fps,
        "parts": {part: str(Path(folder).resolve()) for part, folder in (parts or {}).items()},
        "format": kind,
    }


@dataclass
class _Run:
    """What holds for the whole preparation."""

    out: Path
    journal: Journal
    workers: int
    cut: Cut
    fps: float | None

    def each(
        self, what: str, rows: Sequence[Row], base: Path, work: Callable[[Row], dict[str, Any]]
    ) -> Iterator[tuple[Row, dict[str, Any]]]:
        """(row, result of ``work``) from the journal, or done now, for the picture or mask of each row as it is now."""
        by_key = {}
        for row in rows:
            path = base.absolute() / (row.mask if what.startswith("mask") else row.path)
            by_key[f"{what}:{path}:{stamp(path)}:{row.binary_above}"] = row
        for key in by_key:  # what was made must still be there
            made = self.journal.done.get(key, {}).get("made")
            if made and not (self.out / made).is_file():
                del self.journal.done[key]
        for key, result in in_parallel(work, by_key.items(), self.journal, self.workers, f"reading: {what}"):
            yield by_key[key], result


def _merged(
    run: _Run, recipe: Recipe, root: Path, folders: Mapping[str, str | Path], recipes: str | Path | None
) -> Collected:
    """All parts that are there, one after the other; parts that are not there are named."""
    if strange := sorted(set(folders) - {part.name for part in recipe.parts}):
        known = ", ".join(part.name for part in recipe.parts)
        raise UserError(f"{strange[0]} is no part of {recipe.name}; its parts are {known}")
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
        one = _one(run, inner, folder, part.layout, None, inner.name)
        published = differences(part.expected, one.table, one.boxes)
        one.counts = pd.concat([one.counts, published.assign(what="in the corpus: " + published["what"])])
        one.counts.insert(0, "part", part.name)
        one.problems = [Problem(p.kind, f"{part.folder}/{p.path}", p.message, p.left_out) for p in one.problems]
        collected.append(one)
    if not collected:
        names = ", ".join(part.folder for part in recipe.parts)
        raise LayoutError(f"none of the parts of {recipe.name} is in {root}; their folders are called {names}")
    return Collected(
        pd.concat([one.table for one in collected], ignore_index=True),
        pd.concat([one.boxes for one in collected], ignore_index=True),
        pd.concat([one.counts for one in collected], ignore_index=True),
        problems + [problem for one in collected for problem in one.problems],
        f"{len(collected)} of {len(recipe.parts)} parts",
    )


def _one(run: _Run, recipe: Recipe, root: Path, layout: str | None, lists: Path | None, name: str) -> Collected:
    files, problems = walk(root)
    found = find_layout(recipe, files, layout)
    base = root / found.base if found.base else root
    problems += left_over(recipe, found)
    if lists:
        problems += _add_lists(found, lists)
    rows, joining = build_rows(recipe, found, base)
    problems += joining
    facts = _read_all(run, base, rows, problems)
    rows = [row for row in rows if row.path in facts]
    for row in rows:
        problems += fit_row_boxes(row, facts[row.path])
    masks = _masks(run, base, rows, facts, problems, f"{recipe.name}-{found.layout.name}")
    table = _table(recipe, found, base, rows, facts, masks, name)
    boxes = _box_table(base, rows)
    counts = differences(found.layout.expected, table, boxes)
    _split(recipe, table)
    table, boxes, more = _cut(run, found.layout, table, boxes)
    problems += more
    where = f"{found.layout.name}" + (f" in {found.base}/" if found.base else "")
    return Collected(table, boxes, counts, problems, where)


def _cut(
    run: _Run, layout: Layout, table: pd.DataFrame, boxes: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, list[Problem]]:
    """The rows that were asked for: files as they are, sequences, windows, or new clips. Stills stay stills."""
    fps, kind = run.fps or layout.fps, ClipKind()
    if not len(table) or layout.unit == "image" or (run.cut == "no" and layout.unit != "sequence"):
        return table, boxes, []
    if run.cut == "encode":
        table, problems = encoded_rows(table, fps, kind, run.out, run.journal, run.workers)
        return table, boxes.iloc[:0], problems
    if layout.unit == "video":
        return window_rows(table, kind), boxes, []
    return sequence_rows(table, boxes, fps, kind if run.cut == "windows" else None)


def _add_lists(found: FoundLayout, folder: Path) -> list[Problem]:
    """Official lists from another folder, by the same patterns as within the archive."""
    files, problems = walk(folder)
    for path in files:
        for table in found.layout.tables:
            if (pieces := table.file.read(path)) is not None:
                found.tables[str((folder / path).absolute())] = (table, pieces)
    return problems


def _read_all(run: _Run, base: Path, rows: Sequence[Row], problems: list[Problem]) -> dict[str, FileFacts]:
    """Facts of every file that can be read, by path; the others are problems."""
    facts = {}
    for _, result in run.each("file", rows, base, lambda row: asdict(read_facts(base, row.path))):
        fact = FileFacts(**result)
        if fact.error:
            problems.append(Problem("cannot be read", fact.path, fact.error, True))
            continue
        if said := wrong_ending(fact):
            problems.append(Problem("wrong ending", fact.path, said, False))
        facts[fact.path] = fact
    return facts


def _masks(
    run: _Run, base: Path, rows: Sequence[Row], facts: Mapping[str, FileFacts], problems: list[Problem], name: str
) -> dict[str, Path]:
    """The usable mask of each picture.

    Masks with more than two values become 1-bit files where the recipe says how, and then so do the others of their
    folder, because a sequence needs its masks in one folder.
    """
    masked = [row for row in rows if row.mask]
    folder = Path("masks") / name
    found = {
        row.path: result
        for row, result in run.each("mask", masked, base, lambda row: _read_mask(run.out, folder, base, row, False))
    }
    made = {str(Path(row.mask).parent) for row in masked if found[row.path]["made"]}
    rest = [row for row in masked if str(Path(row.mask).parent) in made and not found[row.path]["made"]]
    for row, result in run.each("mask as PNG", rest, base, lambda row: _read_mask(run.out, folder, base, row, True)):
        found[row.path] = result
    masks = {}
    for row in masked:
        result, fact = found[row.path], facts[row.path]
        size = f"{result.get('width_px')}x{result.get('height_px')}"
        if result["error"]:
            problems.append(Problem("mask cannot be read", row.mask, result["error"], True))
        elif size != f"{fact.width_px}x{fact.height_px}":
            message = f"is {size} px, its picture {fact.width_px}x{fact.height_px}"
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
    """What the journal keeps of a mask; written as a 1-bit PNG where it is not black and white, or with ``copy``."""
    try:
        mask = annotations.read_mask(base / row.mask, row.binary_above)
    except annotations.AnnotationError as error:
        return {"error": str(error).replace(f"{base}/", ""), "made": ""}
    made = ""
    if copy or (not mask.plain and (mask.levels <= 2 or row.binary_above is not None)):
        made = (folder / Path(row.mask).with_suffix(".png")).as_posix()
        with atomic_path(out / made) as temporary:
            Image.fromarray(mask.mask).save(temporary)
    height, width = mask.mask.shape
    size = {"width_px": width, "height_px": height}
    return size | {"error": "", "levels": mask.levels, "plain": mask.plain, "made": made}


def _table(
    recipe: Recipe,
    found: FoundLayout,
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
    """Fill ``split`` with the recipe's default official split; all official ones stay as columns ``split_NAME``."""
    for name, split in recipe.splits.items():
        column = "split_" + name.replace("-", "_")
        if "sides" in split:
            sides: dict[str, str] = {}
            for side, items in split["sides"].items():
                for item in map(str, items):  # on several sides in a split that leaks: `train|test`
                    sides[item] = f"{sides[item]}|{side}" if item in sides else side
            table[column] = table[split["by"]].map(sides).fillna("")
        if split.get("default") and column in table:
            table["split"] = table[column].fillna("")
        elif split.get("default") and (table["split"] != "").any():
            table[column] = table["split"]
