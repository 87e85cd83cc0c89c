"""The result of a preparation: the manifest, the counts beside the published counts, and every problem by name."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from endofm_lab.brief import Brief, html_of
from endofm_lab.data.manifest import write_manifest
from endofm_lab.data.prepare.layouts import LayoutError
from endofm_lab.data.prepare.recipes import Recipe, load_recipe
from endofm_lab.data.prepare.scan import Problem
from endofm_lab.data.units import units
from endofm_lab.errors import UserError
from endofm_lab.files import atomic_path, sha256_of, write_json
from endofm_lab.folders.hashes import HASHES, changes
from endofm_lab.folders.provenance import provenance


@dataclass(frozen=True, eq=False, repr=False)
class Prepared(Brief):
    """The result of `prepare`.

    Attributes:
        manifest: The manifest's file.
        recipe: Name and version of the recipe, such as ``kvasir-seg@1``.
        layout: The layout that was found and its folder, such as ``official in Kvasir-SEG/``.
        rows: Number of rows of the manifest.
        counts: Expected and found counts: columns ``what``, ``expected``, ``found``, ``status``.
        problems: Every problem that was met.
        units: The units of independence of the rows, such as "16 patients".
    """

    manifest: Path
    recipe: str
    layout: str
    rows: int
    counts: pd.DataFrame
    problems: list[Problem]
    units: str

    def _repr_html_(self) -> str:
        return html_of(self, self.counts)

    def text(self) -> str:
        """A report for people."""
        lines = [f"{self.recipe}: layout {self.layout}, {self.rows} rows of {self.units} -> {self.manifest}"]
        if len(self.counts):
            lines += ["", self.counts.to_string(index=False)]
        kinds: dict[str, list[Problem]] = {}
        for problem in self.problems:
            kinds.setdefault(problem.kind, []).append(problem)
        for kind, several in kinds.items():
            left_out = sum(problem.left_out for problem in several)
            first = several[0]
            lines.append(f"{kind}: {len(several)} ({left_out} left out), such as {first.path}: {first.message}")
        return "\n".join(lines) + ("" if self.problems else "\nno problems")


@dataclass(eq=False, repr=False)
class Collected(Brief):
    """One data set before it is written: absolute paths, one table of rows and one of boxes."""

    table: pd.DataFrame
    boxes: pd.DataFrame
    counts: pd.DataFrame
    problems: list[Problem]
    layout: str


def differences(expected: Mapping[str, Any], table: pd.DataFrame, boxes: pd.DataFrame) -> pd.DataFrame:
    """Published counts beside those on disk."""
    totals: dict[str, int] = {
        "files": table["source"].nunique(),
        "clips": len(table),
        "frames": int(pd.to_numeric(table.get("n_frames", pd.Series(dtype=float))).sum()),
        "masks": int((table["masks"] != "").sum()),
        "boxes": len(boxes),
        "patients": table.loc[table["patient"] != "", "patient"].nunique(),
        "sequences": table.loc[table["sequence"] != "", "sequence"].nunique(),
    }
    lines: list[tuple[str, int | None, int]] = [
        (kind, expected[kind], count) for kind, count in totals.items() if kind in expected
    ]
    labels = Counter(label for text in table["label"] for label in text.split("|"))
    for kind, column in (("label", labels), ("split", Counter(table["split"]))):
        published = expected.get(f"{kind}s") or {}
        lines += [(f"{kind} {key}", count, column.get(key, 0)) for key, count in published.items()]
        if published:
            strange = {key: count for key, count in column.items() if key not in published and key != ""}
            lines += [(f"{kind} {key}", None, count) for key, count in strange.items()]
    for split, published in (expected.get("labels_by_split") or {}).items():
        inside = Counter(label for text in table.loc[table["split"] == split, "label"] for label in text.split("|"))
        lines += [(f"split {split}, label {key}", count, inside.get(key, 0)) for key, count in published.items()]
    counts = pd.DataFrame(lines, columns=["what", "expected", "found"]).astype({"expected": "Int64"})
    counts["status"] = [
        "not published" if pd.isna(e) else "as published" if e == f else f"{f - e:+d}"
        for e, f in zip(counts["expected"], counts["found"], strict=True)
    ]
    return counts


def write_prepared(recipe: Recipe, root: Path, out: Path, collection: Collected, kind: str, cut: str) -> Prepared:
    """Write manifest, boxes, problems and ``prepare.json``, each whole or not at all.

    Raises:
        LayoutError: No file can be used.
    """
    if not len(collection.table):
        first = collection.problems[0]
        raise LayoutError(
            f"{root}: No file of {recipe.name} can be used. The first of {len(collection.problems)} problems is "
            f"{first.path}: {first.message.removesuffix('.')}."
        )
    table = collection.table
    for column in ("video", "masks"):
        table[column] = [relative_to_manifest(path, out) for path in table[column]]
    collection.boxes["video"] = [relative_to_manifest(path, out) for path in collection.boxes["video"]]
    if len(collection.boxes):
        with atomic_path(out / "boxes.csv") as temporary:
            collection.boxes.to_csv(temporary, index=False, float_format="%.3f")
    target = out / f"manifest.{kind}"
    write_manifest(table, target)
    problems = sorted(collection.problems, key=lambda problem: (problem.kind, problem.path))
    with atomic_path(out / "problems.csv") as temporary:
        pd.DataFrame([asdict(p) for p in problems], columns=["kind", "path", "message", "left_out"]).to_csv(
            temporary, index=False
        )
    of_row, name = units(table), f"{recipe.name}@{recipe.version}"
    prepared = Prepared(target, name, collection.layout, len(table), collection.counts, problems, of_row.words)
    write_json(
        out / "prepare.json",
        {
            "recipe": recipe.name,
            "recipe_version": recipe.version,
            "recipe_sha256": sha256_of(recipe.path),
            "root": str(root.absolute()),
            "layout": collection.layout,
            "cut": cut,
            "rows": len(table),
            "unit": of_row.described(),
            "manifest_sha256": sha256_of(target),
            "counts": collection.counts.astype(object).where(collection.counts.notna(), None).to_dict("records"),
            "problems": dict(Counter(problem.kind for problem in problems)),
            "left_out": sum(problem.left_out for problem in problems),
            "unverified_facts": recipe.unverified,
            "provenance": provenance(),
        },
    )
    return prepared


def relative_to_manifest(path: str, out: Path) -> str:
    """A path below the manifest's folder as relative POSIX path, any other path unchanged."""
    if not path:
        return ""
    full, folder = Path(path), out.absolute()
    return full.relative_to(folder).as_posix() if full.is_relative_to(folder) else full.as_posix()


def refuse_altered(out: Path) -> None:
    """Refuse to go on with masks and clips that were made here and have changed since: they would not be made again."""
    report = changes(out)
    altered = [] if report is None else [name for name in report.changed if name.startswith(("masks/", "clips/"))]
    if report is not None and altered:
        suffix = f" and {len(altered) - 1} more" if len(altered) > 1 else ""
        raise UserError(
            f"{out / altered[0]}{suffix} changed since the preparation of {report.since}: damaged, or edited by hand. "
            f"Delete the file and prepare again to have it made again; to keep it as it is, delete {out / HASHES}."
        )


def fact_fingerprints(recipe: Recipe, recipes: str | Path | None) -> dict[str, Any]:
    """32 hexadecimal digits that change with any fact of a recipe or of its parts' recipes, and not with comments."""
    parts = {part.recipe: load_recipe(part.recipe, recipes or recipe.path.parent) for part in recipe.parts}
    return {
        "recipe_fingerprint": _fact_fingerprint(recipe),
        "part_fingerprints": {name: _fact_fingerprint(part) for name, part in parts.items()},
    }


def _fact_fingerprint(recipe: Recipe) -> str:
    return hashlib.sha256(repr(recipe.facts).encode()).hexdigest()[:32]
