import csv
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from endofm_lab.data.labels import list_mappings, read_mapping
from endofm_lab.data.prepare.layouts import read_name
from endofm_lab.data.prepare.names import NamePattern
from endofm_lab.data.prepare.recipes import RecipeError, list_recipes, load_recipe, read_recipe, recipes_folder
from endofm_lab.errors import UserError

RECIPES = list_recipes()
EXPECTED = {
    "colonoscopic", "sun", "sun-seg", "ldpolypvideo", "hyper-kvasir", "hyper-kvasir-videos", "kvasir-capsule",
    "cholect50", "cholec80", "private-folder", "polypdiag", "cvc-12k", "cvc-clinicdb", "kumc", "kvasir-seg",
    "see-ai", "kid", "ers", "limuc", "medfmc", "crohnipi", "gastrovision", "capsule-vision-2024",
    "endo-fm-pretrain", "endoextend24",
}  # fmt: skip


def test_every_data_set_of_the_two_papers_has_a_recipe():
    assert {recipe.name for recipe in RECIPES} == EXPECTED


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_recipe_says_for_citation_licence_and_layouts_whether_they_are_verified(recipe):
    evidence = " ".join(recipe.facts["evidence"])
    if recipe.name == "private-folder":
        return
    assert "citation" in evidence
    if recipe.layouts:
        assert "licence" in evidence
        whole = "layouts" in recipe.facts["evidence"]
        assert whole or all(f"layouts.{layout.name}" in evidence for layout in recipe.layouts)
    else:
        assert "parts" in evidence


@pytest.mark.parametrize("recipe", [item for item in RECIPES if item.layouts], ids=lambda recipe: recipe.name)
def test_a_recipe_says_what_its_patient_is(recipe):
    assert recipe.patient_is in ("patient", "sequence", "unknown")
    assert ("patient" in recipe.facts["names"]) == (recipe.patient_is == "patient")
    if recipe.patient_is == "sequence":
        assert "sequence" in recipe.facts["names"]
    assert recipe.facts["patient"]["why"]


def test_a_recipe_that_contradicts_itself_about_patients_is_refused(tmp_path):
    facts = yaml.safe_load((recipes_folder() / "limuc.yaml").read_text(encoding="utf-8"))
    for patient, message in (
        ({"is": "unknown", "why": "?"}, "contradicts names.patient"),
        ({"is": "operation", "why": "?"}, "'operation' is not one of patient, sequence, unknown"),
        ({"is": "patient"}, "'why' is missing"),
    ):
        path = tmp_path / "limuc.yaml"
        path.write_text(yaml.safe_dump(facts | {"patient": patient}), encoding="utf-8")
        with pytest.raises(RecipeError, match=message):
            read_recipe(path)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_evidence_names_facts_that_the_recipe_holds(recipe):
    for fact in recipe.facts["evidence"]:
        value = recipe.facts
        for step in fact.split("."):
            assert step in value, f"{recipe.name}: {fact}"
            value = value[step]


@pytest.mark.parametrize("recipe", [item for item in RECIPES if item.layouts], ids=lambda recipe: recipe.name)
def test_expected_counts_of_a_recipe_add_up(recipe):
    for layout in recipe.layouts:
        expected = layout.expected
        labels, splits = expected.get("labels"), expected.get("splits")
        if labels and "files" in expected and layout.name != "challenge-validation":
            assert sum(labels.values()) == expected["files"], layout.name
        if splits and "files" in expected:
            assert sum(splits.values()) == expected["files"], layout.name
        for split, counts in (expected.get("labels_by_split") or {}).items():
            assert sum(counts.values()) == splits[split]


@pytest.mark.parametrize("recipe", [item for item in RECIPES if item.layouts], ids=lambda recipe: recipe.name)
def test_names_made_from_a_recipe_are_read_back(recipe):
    """Write a path from the examples, read it, and get the examples again."""
    examples = {name: piece["example"] for name, piece in recipe.facts.get("names", {}).items()}
    pieces = {name: str(example[0] if isinstance(example, list) else example) for name, example in examples.items()}
    for layout in recipe.layouts:
        for media in layout.media:
            path = media.path.write(pieces)
            assert media.path.read(path) == {name: pieces[name] for name in media.path.placeholders}
            assert read_name(layout, path) is not None


@pytest.mark.parametrize("recipe", [item for item in RECIPES if item.parts], ids=lambda recipe: recipe.name)
def test_parts_of_a_merged_corpus_are_recipes_with_that_layout(recipe):
    for part in recipe.parts:
        inner = load_recipe(part.recipe)
        assert part.layout is None or part.layout in {layout.name for layout in inner.layouts}


def test_published_sums_of_the_corpora():
    endo_fm = load_recipe("endo-fm-pretrain")
    assert sum(part.expected["clips"] for part in endo_fm.parts) == 32_896
    assert sum(part.expected["files"] for part in load_recipe("endoextend24").parts) == 226_867


@pytest.mark.parametrize("name", list_mappings())
def test_every_label_that_a_recipe_names_is_known_to_the_mappings_of_its_data_set(name):
    mapping = read_mapping(name)
    for recipe in [item for item in RECIPES if item.name in mapping.rules]:
        labels = set(recipe.translate.get("label", {}).values())
        for layout in recipe.layouts:
            labels |= set(layout.expected.get("labels") or {})
            labels |= {label for boxes in layout.boxes for label in boxes.labels.values()}
            labels |= {label for table in layout.tables for label in table.one_hot}
            labels |= {
                media.says[key] for media in layout.media for key in ("label", "no_box_label") if key in media.says
            }
        assert [label for label in labels - {""} if mapping.targets_of(recipe.name, label) is None] == [], recipe.name


@pytest.mark.parametrize(
    ("template", "path", "pieces"),
    [
        ("a/{x}.jpg", "a/b.jpg", {"x": "b"}),
        ("a/{x}.jpg", "a/b/c.jpg", None),
        ("a/{x}.jpg", "z/a/b.jpg", None),
        ("**/{x}.jpg", "z/a/b.jpg", {"x": "b"}),
        ("**/{x}.jpg", "b.jpg", {"x": "b"}),
        ("{x}/{x}_1.jpg", "u/u_1.jpg", {"x": "u"}),
        ("{x}/{x}_1.jpg", "u/v_1.jpg", None),
        ("{x}.(png|jpg)", "a.jpg", {"x": "a"}),
        ("{x}.(png|jpg)", "a.jpgx", None),
        ("a.b/{n}.jpg", "aXb/1.jpg", None),
        ("*{n}.jpg", "frame_0012.jpg", {"n": "0012"}),
        ("{x}.jpg", "e\u0301.jpg", {"x": "é"}),
    ],
)
def test_name_patterns(template, path, pieces):
    assert NamePattern(template, {"n": "[0-9]+"}).read(path) == pieces


def broken(tmp_path: Path, **changes) -> Path:
    facts = yaml.safe_load((recipes_folder() / "see-ai.yaml").read_text())
    for key, value in changes.items():
        target, *steps = key.split("__")[::-1]
        inner = facts
        for step in steps[::-1]:
            inner = inner[step]
        if value is None:
            del inner[target]
        else:
            inner[target] = value
    path = tmp_path / "see-ai.yaml"
    path.write_text(yaml.safe_dump(facts))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"licence": None}, "see-ai.yaml, the file: 'licence' is missing"),
        ({"lisence": "x"}, "see-ai.yaml, the file: unknown key 'lisence'"),
        ({"access": "maybe"}, "see-ai.yaml, access: 'maybe' is not one of open"),
        ({"recipe": "other"}, "recipe: 'other' is not the file's name 'see-ai'"),
        ({"layouts__official__unit": "pictures"}, "layouts.official.unit: 'pictures' is not one of image"),
        ({"layouts__official__boxes__format": "xyz"}, "layouts.official.boxes.format: 'xyz' is not one of csv"),
        ({"layouts__official__expected": {"images": 3}}, "layouts.official.expected: unknown key 'images'"),
        ({"names__image__is": "[0-9"}, "is not a valid regular expression"),
        ({"evidence__licence": "probably"}, "evidence.licence: 'probably' begins with neither"),
        ({"version": "new"}, "version: expected a number"),
        ({"version": float("nan")}, "version: expected a number"),
        ({"layouts__official__fps": float("inf")}, "layouts.official.fps: expected a number"),
        ({"layouts__official__fps": "fast"}, "layouts.official.fps: expected a number"),
        ({"layouts__official__expected": {"files": "many"}}, "expected.files: expected a whole number"),
        ({"layouts": 3}, "layouts: expected a list of `key: value`"),
        ({"parts": {}}, "a recipe has either `layouts` .* or `parts`"),
    ],
)
def test_a_malformed_recipe_is_told_with_file_and_fact(changes, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        read_recipe(broken(tmp_path, **changes))


def test_yaml_that_cannot_be_parsed_is_told_with_its_line(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("recipe: x\nname: [unclosed\n")
    with pytest.raises(RecipeError, match=r"x\.yaml is not readable YAML(.|\n)*line"):
        read_recipe(path)


def test_a_fact_that_stands_twice_in_a_recipe_is_refused(tmp_path):
    path = list_recipes()[0].path
    (tmp_path / path.name).write_text(path.read_text(encoding="utf-8") + "\nname: another\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="'name' stands twice"):
        read_recipe(tmp_path / path.name)


def test_yaml_that_would_end_the_process_is_refused(tmp_path):
    path = tmp_path / "x.yaml"
    names = "abcdefghijkl"
    bomb = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    bomb += [f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in pairwise(names)]
    for text, message in (
        ("[" * 100_000, "more than 32 levels deep"),
        ("\n".join(" " * n + "a:" for n in range(100)), "more than 32 levels deep"),
        ("\n".join(bomb), "by its references"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_recipe(path)


def test_an_unknown_recipe_names_the_known_ones():
    with pytest.raises(RecipeError, match=r"There is no recipe 'kvasirseg'.*kvasir-seg"):
        load_recipe("kvasirseg")


DATA = os.environ.get("ENDOFM_LAB_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="set ENDOFM_LAB_DATA to the folder of real data")


def lines(*parts: str, delimiter: str = ",") -> list[dict[str, str]]:
    with Path(DATA, "label-lists", *parts).open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


@pytest.mark.real_data
@needs_data
def test_expected_counts_are_those_of_the_official_lists():
    images = Counter(row["class-name"] for row in lines("hyper-kvasir", "5_fold_split.csv", delimiter=";"))
    assert dict(images) == dict(load_recipe("hyper-kvasir").layouts[0].expected["labels"])
    videos = lines("hyper-kvasir", "hyper-kvasir-video-metadata.csv", delimiter=";")
    assert len(videos) == load_recipe("hyper-kvasir-videos").layouts[0].expected["files"]
    vision = Counter(row["Class"] for row in lines("gastrovision", "GastroVision_metadata.csv"))
    assert dict(vision) == dict(load_recipe("gastrovision").layouts[0].expected["labels"])
    sun = [int(row["Frames"]) for row in lines("sun-seg", "positive_cases.csv")]
    assert (len(sun), sum(sun)) == (285, 49136)


@pytest.mark.real_data
@needs_data
def test_every_name_of_capsule_vision_is_read_and_gives_the_published_counts_and_41_shared_videos():
    layout = load_recipe("capsule-vision-2024").layouts[0]
    names = []
    for name in ("train", "val"):
        names += [
            read_name(layout, row["image_path"]) for row in lines("capsule-vision-2024", f"{name}_image_list.csv")
        ]
    assert None not in names and len(names) == layout.expected["files"]
    assert dict(Counter(entry["label"] for entry in names)) == dict(layout.expected["labels"])
    assert Counter(entry["split"] for entry in names) == {"training": 37607, "validation": 16132}
    capsule = [entry for entry in names if entry["origin"] == "kvasir-capsule"]
    sides = [{entry["sequence"] for entry in capsule if entry["split"] == side} for side in ("training", "validation")]
    assert len(sides[0] & sides[1]) == len(sides[0] | sides[1]) == 41
    official = load_recipe("kvasir-capsule").layouts[0].expected["labels"]
    spelt = {"Angioectasia": "Angiectasia", "Bleeding": "Blood - fresh", "Foreign Body": "Foreign body",
             "Normal": "Normal clean mucosa"}  # fmt: skip
    for label, count in Counter(entry["label"] for entry in capsule).items():
        assert official[spelt.get(label, label)] == count


def test_all_missing_keys_of_a_recipe_are_told_at_once(tmp_path):
    facts = yaml.safe_load((recipes_folder() / "see-ai.yaml").read_text(encoding="utf-8"))
    for key in ("licence", "citation"):
        del facts[key]
    layout = next(iter(facts["layouts"]))
    del facts["layouts"][layout]["note"]
    facts["names"]["odd"] = {"meaning": "nothing"}
    (tmp_path / "see-ai.yaml").write_text(yaml.safe_dump(facts), encoding="utf-8")
    with pytest.raises(RecipeError) as error:
        read_recipe(tmp_path / "see-ai.yaml")
    assert "missing in 3 places" in str(error.value) and "the recipe: 'citation', 'licence'" in str(error.value)
    assert f"layouts.{layout}: 'note'" in str(error.value) and "names.odd: 'example'" in str(error.value)
