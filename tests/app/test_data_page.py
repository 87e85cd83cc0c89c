"""The page Data without a browser: counts, mapping, split and audit of a small set of pictures; bad paths in red."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from endofm_lab.data.manifest import write_manifest
from tests.app.addresses import typed_before

APP = Path(__file__).resolve().parents[2] / "app"


@pytest.fixture
def manifest(tmp_path):
    """12 pictures of 6 patients in a leaking split, named after Kvasir-SEG so that the shipped mappings know them."""
    rows = []
    for n in range(12):
        noise = np.random.default_rng(n).integers(0, 255, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((64, 48)).save(tmp_path / f"{n}.png")
        rows.append((f"{n}.png", f"p{n // 2}", "train" if n < 7 else "test"))
    table = pd.DataFrame(rows, columns=["video", "patient", "split"])
    table = table.assign(start_s=0.0, end_s=0.0, label="polyp", dataset="kvasir-seg")
    table.loc[3, "label"] = "never heard of"
    return write_manifest(table, tmp_path / "manifest.csv").path


@pytest.fixture
def page(tmp_path, monkeypatch, manifest):
    monkeypatch.setenv("ENDOFM_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(APP))

    def open_page(view: str, paths: str = str(manifest)) -> AppTest:
        app = AppTest.from_file(str(APP / "screens" / "data.py"), default_timeout=300)
        app.query_params["data_view"] = view
        app.query_params |= {"own_manifests": "yes", "manifests": typed_before(paths)}
        return app.run()

    return open_page


def values(elements):
    return " ".join(str(element.value) for element in elements)


def test_the_manifest_is_counted_and_shown(page):
    app = page("Manifest")
    assert not app.exception and not app.error and not app.warning
    assert "12 rows · 2 classes · 6 patients · kvasir-seg" in values(app.caption)
    assert len(app.dataframe[0].value) == 12


def test_a_missing_picture_is_named(page, manifest):
    (manifest.parent / "3.png").unlink()
    app = page("Manifest")
    assert "1 of 1 pictures could not be opened" in values(app.warning)


def test_the_mapping_shows_its_coverage(page):
    app = page("Classes")
    app.selectbox(key="mapping").set_value("polyp").run()
    assert not app.exception and not app.error
    assert {metric.label: metric.value for metric in app.metric} == {
        "mapped": "91.7%",
        "coarse or ambiguous": "0.0%",
        "left out": "0.0%",
        "unmapped or conflicting": "8.3%",
    }
    states = app.dataframe[0].value.set_index("label")["state"].to_dict()
    assert states == {"polyp": "mapped", "never heard of": "unmapped"}


def test_an_error_in_the_users_mapping_is_named_with_its_line(page, tmp_path):
    (tmp_path / "mine.yaml").write_text("title: mine\ntargets: [polyp]\ncolour: red\n")
    app = page("Classes")
    app.selectbox(key="mapping").set_value("own mapping file").run()
    app.text_input(key="mapping_path").set_value(str(tmp_path / "mine.yaml")).run()
    assert "mine.yaml, line 3" in app.error[0].value and not app.exception


def test_a_hold_out_keeps_groups_together_that_the_manifests_own_split_divides(page):
    app = page("Split")
    torn = {metric.label: metric.value for metric in app.metric}
    assert torn["Groups"] == "6" and torn["Divided groups"] == "1"
    app.selectbox(key="split").set_value("hold-out").run()
    assert not app.exception and {m.label: m.value for m in app.metric}["Divided groups"] == "0"
    app.selectbox(key="split").set_value("k-fold").run()
    assert not app.exception and {m.label: m.value for m in app.metric}["Divided groups"] == "0"


def test_the_audit_shows_the_leak_with_its_pictures_and_follows_the_split(page):
    app = page("Audit")
    assert not app.exception
    assert "LEAKAGE: 1 of 5 test rows (20.0 %)" in app.error[0].value.replace("\\", "")
    assert "1 of 3 patients of test are also in train" in values(app.markdown)
    assert "patient p3" in values(app.caption)
    assert len(app.get("image")) == 2
    app.selectbox(key="split").set_value("hold-out").run()
    assert not app.exception and not app.error
    assert "No leakage found between train, val, test" in app.success[0].value


def test_recipes_are_listed_with_their_command(page):
    app = page("Recipes")
    assert not app.exception and len(app.dataframe[0].value) >= 20
    app.selectbox(key="recipe").set_value("kvasir-seg").run()
    assert "prepare kvasir-seg --root" in app.code[0].value and "recipe: kvasir-seg" in app.code[1].value


def test_a_wrong_path_is_a_red_box_and_a_missing_path_is_requested(page):
    assert "There is no such manifest" in page("Manifest", "nowhere.csv").error[0].value
    assert "Give the path of a manifest" in page("Manifest", "").info[0].value


def test_two_manifests_are_shown_as_one(page, manifest, tmp_path):
    (tmp_path / "more").mkdir()
    Image.new("RGB", (64, 48), "red").save(tmp_path / "more" / "0.png")
    row = {
        "video": "0.png",
        "start_s": 0,
        "end_s": 0,
        "label": "polyp",
        "patient": "p0",
        "dataset": "other",
        "split": "",
    }
    write_manifest(pd.DataFrame([row]), tmp_path / "more" / "m.parquet")
    app = page("Manifest", f"{manifest}\n{tmp_path / 'more' / 'm.parquet'}")
    assert not app.exception and not app.error
    assert "13 rows" in values(app.caption) and "kvasir-seg, other" in values(app.caption)
