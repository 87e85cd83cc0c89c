"""The caches of the page Data: manifests, splits, the effect of class mappings, audits and pictures of rows."""

import hashlib

import numpy as np
import pandas as pd
import streamlit as st
from cache import Content
from memory import kept
from turns import soon

import endofm_lab as lab
from endofm_lab.data.audit.audit import Audit
from endofm_lab.data.coverage import Coverage, coverage
from endofm_lab.data.labels import read_mapping
from endofm_lab.data.manifest import Manifest, join_manifests
from endofm_lab.data.prepare.recipes import list_recipes
from endofm_lab.data.splits import Split, holdout, kfold, named_split, official
from endofm_lab.files import cache_folder
from endofm_lab.reports.audit import picture_at, write_audit_html

Files = tuple[Content, ...]  # one manifest, or several that are joined


@st.cache_data(show_spinner="Drawing the generated data set ...")
def sample_set() -> str:
    """The path of the manifest of a small generated data set."""
    folder = cache_folder("samples") / f"phantom_{lab.__version__}"
    return str(lab.write_phantom(folder, preset="tiny", progress=False))


@st.cache_resource(max_entries=4, show_spinner="Reading the manifests ...")
def manifest(files: Files) -> Manifest:
    """One manifest, or several manifests joined."""
    return join_manifests([lab.read_manifest(file.path) for file in files])


@st.cache_resource(max_entries=4, show_spinner="Splitting ...")
def divided(files: Files, choice: tuple) -> tuple[Manifest, Split | None]:
    """The manifest with a split, and this split: its own, an official split by name, a hold-out or one of k folds."""
    data = manifest(files)
    match choice:
        case ("as it is",):
            return data, official(data.table) if (data.table["split"] != "").any() else None
        case ("official", name):
            table = named_split(data.table, name)
            return Manifest(table, data.root, data.path), official(table, name)
        case ("hold-out", shares, seed):
            split = holdout(data.table, dict(shares), seed)
        case ("k-fold", k, fold, seed):
            split = kfold(data.table, k, seed)[fold]
    return Manifest(data.table.assign(split=split.parts), data.root, data.path), split


@st.cache_resource(max_entries=8, show_spinner="Mapping the labels ...")
def covered(files: Files, mapping: Content) -> Coverage:
    """The effect of a class mapping on the labels."""
    return coverage(manifest(files).table, read_mapping(mapping.path))


@kept(256)
def audited(files: Files, choice: tuple, pictures: bool) -> tuple[Audit, str]:
    """The audit of a split, and its report as HTML."""
    chosen = divided(files, choice)[0]
    with soon("Auditing ..."):
        audit = lab.audit(chosen, pictures=pictures, progress=False)
    key = hashlib.sha256(f"{audit.fingerprints} {pictures} {lab.__version__}".encode()).hexdigest()[:24]
    page = cache_folder("audits") / f"{key}.html"
    write_audit_html(audit, page)
    return audit, page.read_text(encoding="utf-8")


@kept(128)
def picture(video: Content, start_s: float) -> np.ndarray | None:
    """The picture of a row at ``start_s``, or None if it cannot be opened."""
    return picture_at(video.path, start_s)


@st.cache_data(show_spinner="Reading the recipes ...")
def recipes() -> pd.DataFrame:
    """Name, title, access and licence of every recipe, and its file as text."""
    rows = [
        {
            "recipe": recipe.name,
            "data set": recipe.title,
            "access": recipe.facts["access"],
            "licence": recipe.facts["licence"] or "not stated",
            "text": recipe.path.read_text(encoding="utf-8"),
        }
        for recipe in list_recipes()
    ]
    return pd.DataFrame(rows)
