import pytest

import endofm_lab as lab
from endofm_lab.data.prepare.recipes import RecipeError
from endofm_lab.models.recipe import list_model_recipes, load_model_recipe, read_model_recipe
from endofm_lab.tasks import TASKS
from tests.models.made_data import micro_recipe

RECIPES = list_model_recipes()


def test_every_task_of_the_issue_has_a_recipe():
    names = {recipe.name for recipe in RECIPES}
    assert names >= {"polyp-segmenter", "polyp-detector", "surgical-phases", "surgical-tools", "capsule-findings"}
    assert names >= {"findings", "landmarks", "polyp-classes", "polypdiag"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_recipe_names_data_with_its_licence_and_starts_that_can_be_trained(recipe, tmp_path):
    assert recipe.task in TASKS and recipe.limits and "diagnosis" in recipe.intended_use
    for choice in recipe.data:
        data = recipe.data_recipe(choice)
        assert choice.layout is None or choice.layout in {layout.name for layout in data.layouts}
        assert choice.official is None or choice.official in data.splits
        assert abs(sum(choice.split.values()) - 1) < 1e-9 or choice.official
    *trained, scratch = recipe.starts
    assert scratch.source == "scratch" and trained
    for start in recipe.starts:
        config = recipe.config(start, tmp_path / "manifest.csv", tmp_path / "run")
        assert config.task == recipe.task and config.validate_every <= config.steps
    assert recipe.title in lab.models.show(recipe.name)
    assert len(recipe.path.read_text().splitlines()) <= 60


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lr: 3.0e-4", "lr: 3e-4", r"starts\[0\].training.lr: '3e-4' has the wrong form; a number with an exponent"),
        ("task: segmentation", "task: segmenting", "segmenting"),
        ("steps: 4", "setps: 4", "unknown key 'setps'"),
        ("limits:\n  - Knows made pictures only.", "limits: []", "limits: .. has the wrong form"),
        ("recipe: kvasir-seg", "recipe: kvasir", "There is no recipe 'kvasir'"),
        ("{train: 0.6, val: 0.2, test: 0.2}", "{train: 0.6, test: 0.4}", "give shares of train, val and test"),
        ("model: micro-segmenter", "model: other", "is not the file's name"),
        ("size: micro", "manifest: a.csv", "unknown key 'manifest'"),
        ("average: 0.9", "average: 1.5", "average is 1.5"),
        ("version: 1", "version: [", "not readable YAML"),
    ],
)
def test_a_recipe_with_a_mistake_is_refused_with_its_place(tmp_path, old, new, message):
    with pytest.raises(lab.UserError, match=message):
        read_model_recipe(micro_recipe(tmp_path, replace={old: new}))


def test_an_unknown_recipe_is_answered_with_those_that_exist():
    with pytest.raises(RecipeError, match=r"Choose one of: capsule-findings, .*polyp-segmenter"):
        load_model_recipe("polyp-segmentor")
