"""Page Data: manifests, the effect of class mappings, splits, the audit with its pictures, and recipes."""

import json
from pathlib import Path

import cache
import errors
import pandas as pd
import session
import streamlit as st
from cache import content_of
from guide.glossary import meaning
from machine.picking import offer
from sections import manifests
from sections.manifests import Files
from sheets import show_sheet
from texts import plain

from endofm_lab.data.audit.checks import Example, Finding
from endofm_lab.data.labels import list_mappings
from endofm_lab.data.manifest import Manifest
from endofm_lab.data.splits import Split
from endofm_lab.data.units import units
from endofm_lab.figures.data import class_counts, split_balance
from endofm_lab.figures.style import STILL
from endofm_lab.files import formulas_as_text

AS_IT_IS, HOLD_OUT, FOLDS = "as in the manifest", "hold-out", "k-fold"
SHOWN, ROWS_SHOWN, PAIRS_SHOWN = 12, 1000, 4


def choose_manifests() -> tuple[tuple[str, ...], bool]:
    """Paths of the chosen manifests, and whether they are generated."""
    names = {False: "Generated sample", True: "Manifests on this machine"}
    if not st.sidebar.radio(
        "Data", list(names), format_func=lambda index: names[index], **session.field("own_manifests")
    ):
        return (manifests.sample_set(),), True
    placeholder = "paths of .csv or .parquet files, one per line"
    text = st.sidebar.text_area("Manifests", placeholder=placeholder, **session.field("manifests"))
    offer("manifests", "manifest")
    return tuple(str(Path(line.strip()).expanduser()) for line in text.splitlines() if line.strip()), False


def choose_split(table: pd.DataFrame) -> tuple:
    """The chosen split, which every view shows, in the form that `manifests.divided` takes."""
    splits = [column.removeprefix("split_") for column in table.columns if column.startswith("split_")]
    kind = st.sidebar.selectbox("Split", [AS_IT_IS, *splits, HOLD_OUT, FOLDS], key="split", persist_state="session")
    if kind == AS_IT_IS:
        return ("as it is",)
    if kind in splits:
        return ("official", kind)
    seed = int(st.sidebar.number_input("Seed", 0, value=0))
    if kind == FOLDS:
        k = int(st.sidebar.number_input("Folds", 3, value=5))
        return ("k-fold", k, int(st.sidebar.number_input("Fold to test on", 0, k - 1, 0)), seed)
    val = st.sidebar.slider("Share of val", 0.05, 0.4, 0.15, 0.05)
    test = st.sidebar.slider("Share of test", 0.05, 0.4, 0.15, 0.05)
    return ("hold-out", (("train", round(1 - val - test, 2)), ("val", val), ("test", test)), seed)


def show_manifest(data: Manifest, generated: bool) -> None:
    """Show counts, some pictures of a class, and the table."""
    table = data.table
    columns = [column for column in ("split", "dataset", "device", "motion") if column in table]
    by = st.selectbox("Count by", columns)
    st.plotly_chart(class_counts(table, by), width="stretch", config=STILL)
    label = st.selectbox("Pictures of", data.classes)
    rows = table[table["label"] == label]
    rows = rows.sample(min(SHOWN, len(rows)), random_state=0)
    opened = [picture_of(str(data.resolve(row.video)), row.start_s) for row in rows.itertuples()]
    titles = [f"{row.patient or 'no patient'} {row.split}" for row in rows.itertuples()]
    shown = [(picture, title) for picture, title in zip(opened, titles, strict=True) if picture is not None]
    if shown:
        pictures, names = zip(*shown, strict=True)
        show_sheet(pictures, names)
        notice = "**Generated** pictures: they show no patient. " if generated else ""
        st.caption(f"{notice}The first frame of {len(shown)} of {int((table['label'] == label).sum()):,} rows.")
    if len(shown) < len(rows):
        st.warning(
            f"{len(rows) - len(shown)} of {len(rows)} pictures could not be opened. `endofm-lab data check` names the "
            "damaged or missing files."
        )
    st.dataframe(table.head(ROWS_SHOWN), hide_index=True)
    if len(table) > ROWS_SHOWN:
        st.caption(f"The first {ROWS_SHOWN:,} of {len(table):,} rows.")


def show_classes(files: Files) -> None:
    """Show the effect of a class mapping on the labels."""
    own_mapping = "own mapping file"
    name = st.selectbox("Mapping", [*list_mappings(), own_mapping], key="mapping", persist_state="session")
    if name == own_mapping:
        name = st.text_input(
            "Path of the mapping", placeholder="a .yaml file", key="mapping_path", persist_state="session"
        ).strip()
    if not name:
        st.info("Give the path of a mapping file. `data_recipes/mappings/` contains five examples.")
        return
    report = manifests.covered(files, content_of(name))
    rows = report.labels.groupby("state")["rows"].sum()
    total = int(rows.sum())
    for column, names, help_ in zip(
        st.columns(4),
        (["mapped"], ["coarse", "ambiguous"], ["left out"], ["unmapped", "conflicting"]),
        (
            "Rows of exactly one class",
            "Rows that may belong to one of several classes",
            "Rows that the mapping leaves out on purpose",
            "Rows whose label the mapping does not contain, or whose labels contradict each other",
        ),
        strict=True,
    ):
        column.metric(" or ".join(names), f"{sum(rows.get(state, 0) for state in names) / total:.1%}", help=help_)
    if report.empty:
        st.warning(f"Classes without a row that belongs to exactly this class: {plain(', '.join(report.empty))}.")
    if report.unverified:
        st.warning(
            f"Label names that were not checked against an official list: {plain(', '.join(report.unverified))}."
        )
    if len(report.conflicts):
        st.warning(f"{report.conflicts['item'].nunique():,} pictures have contradictory labels.")
        st.dataframe(report.conflicts, hide_index=True)
    st.dataframe(report.labels, hide_index=True)
    st.subheader("Rows of each class")
    st.dataframe(report.classes.T)
    st.download_button(
        "Coverage as CSV", formulas_as_text(report.labels).to_csv(index=False), "coverage.csv", "text/csv"
    )


def show_split(data: Manifest, split: Split | None) -> None:
    """Show the balance of the split, and offer the manifest with this split."""
    if split is None:
        st.info("This manifest has no split. Choose hold-out or k-fold in the sidebar.")
        return
    if split.warning:
        st.warning(plain(split.warning))
    groups, torn, deviation = st.columns(3)
    help_ = f"A group contains all rows that share a patient, a video or a sequence: {plain(split.units.words)}"
    groups.metric("Groups", f"{split.n_groups:,}", help=help_)
    torn.metric("Divided groups", f"{split.torn:,}", help="Groups with rows in several parts; 0 for splits made here")
    help_ = "Mean difference between the shares of all classes and the requested shares"
    deviation.metric("Mean deviation", f"{split.deviation:.3f}", help=help_)
    st.plotly_chart(split_balance(split), width="stretch", config=STILL)
    st.dataframe(split.balance, hide_index=True)
    name = f"manifest-{split.name}.csv"
    st.download_button("Manifest with this split", data.table.to_csv(index=False), name, "text/csv")
    st.caption("Save it in the folder of the manifest, because its paths are relative to that folder.")


def show_audit(files: Files, choice: tuple, generated: bool) -> None:
    """Show the verdict and every finding with its pictures, and offer the report."""
    help_ = "Also looks for near-duplicates; this takes minutes for tens of thousands of pictures."
    pictures = st.toggle("Open the pictures", help=help_)
    audit, page = manifests.audited(files, choice, pictures)
    box = st.error if audit.leaks else st.warning if audit.unchecked or len(audit.parts) < 2 else st.success
    box(plain(audit.verdict))
    if generated:
        st.caption("**Generated** pictures: they show no patient.")
    for number, finding in enumerate(audit.findings):
        show_finding(finding, number)
    for sentence in audit.unchecked:
        st.markdown(f":gray-badge[not checked] {plain(sentence)}")
    left, right = st.columns(2)
    findings = json.dumps(audit.to_json(), indent=2, ensure_ascii=False)
    left.download_button("Report as a page", page, "audit.html", "text/html", width="stretch")
    right.download_button("Findings as JSON", findings, "audit.json", "application/json", width="stretch")


def show_finding(finding: Finding, number: int) -> None:
    """Show one finding and its first pairs of rows."""
    colour = {"leak": "red", "warning": "orange", "note": "gray"}[finding.severity]
    st.markdown(f":{colour}-badge[{finding.severity}] **{plain(finding.check)}** — {plain(finding.message)}")
    if not finding.examples:
        return
    count = min(PAIRS_SHOWN, len(finding.examples))
    with st.expander("One pair" if count == 1 else f"The first {count} pairs", expanded=number == 0):
        for start in range(0, min(PAIRS_SHOWN, len(finding.examples)), 2):
            for column, example in zip(st.columns(2), finding.examples[start : start + 2], strict=False):
                show_pair(column.container(border=True), example)


def show_pair(place, example: Example) -> None:
    """Show two rows side by side."""
    left, right = place.columns(2)
    for side, path, start_s, part, label in (
        (left, example.path, example.start_s, example.split, example.label),
        (right, example.other_path, example.other_start_s, example.other_split, example.other_label),
    ):
        picture = picture_of(path, start_s)
        if picture is None:
            side.info("The picture is missing.")
        else:
            side.image(picture, width="stretch")
        moment = f" at {start_s:.2f} s" if start_s else ""
        side.caption(plain(f"{part or 'no split'} · {label or 'no label'} · {Path(path).name}{moment}"))
    place.caption(plain(example.why))


def show_recipes() -> None:
    """Show the recipes of public data sets."""
    recipes = manifests.recipes()
    st.dataframe(recipes.drop(columns="text"), hide_index=True)
    name = st.selectbox("Recipe", recipes["recipe"], key="recipe")
    st.code(f"endofm-lab data prepare {name} --root FOLDER --out FOLDER", language="sh")
    st.code(recipes.set_index("recipe").loc[name, "text"], language="yaml")


def picture_of(path: str, start_s: float):
    """The picture of a row, uint8 (H, W, 3), or None if it cannot be opened."""
    return manifests.picture(cache.video_content(path), start_s)


st.title("Data", help=meaning("Manifest", "Split", "Generated"))
view = st.segmented_control(
    "View", session.VIEWS["data_view"], label_visibility="collapsed", required=True, **session.field("data_view")
)
try:
    if view == "Recipes":
        show_recipes()
        st.stop()
    paths, generated = choose_manifests()
    if not paths:
        st.info(
            "Give the path of a manifest in the sidebar. `endofm-lab data prepare` makes a manifest from a data set."
        )
        st.stop()
    files = tuple(content_of(path) for path in paths)
    choice = choose_split(manifests.manifest(files).table)
    data, split = manifests.divided(files, choice)
    sets = sorted(set(data.table["dataset"]))
    st.caption(
        f"{'**Generated** data · ' if generated else ''}{len(data):,} rows · {len(data.classes)} classes · "
        f"{plain(units(data.table).words)} · {plain(', '.join(sets))}"
    )
    if view == "Manifest":
        show_manifest(data, generated)
    elif view == "Classes":
        show_classes(files)
    elif view == "Split":
        show_split(data, split)
    else:
        show_audit(files, choice, generated)
except errors.SHOWN as error:
    errors.show(error)
