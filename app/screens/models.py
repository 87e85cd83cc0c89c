"""Page Models: the models of this machine with their cards; choose one for all pages, or build one from public data."""

from pathlib import Path

import errors
import pandas as pd
import session
import streamlit as st
from texts import plain

import endofm_lab as lab
from endofm_lab.folders.background import CAN_GO_ON, LIVE
from endofm_lab.model.card import CARD_FILE, read_card
from endofm_lab.model.loading.locate import locate
from endofm_lab.models.background import Progress, progress, resume_build, start_build, stop_build
from endofm_lab.models.building import choose_start, on_this_machine
from endofm_lab.models.facts import facts, metrics_table
from endofm_lab.models.recipe import ModelRecipe, StartChoice, list_model_recipes, load_model_recipe
from endofm_lab.models.shelf import Listed, built_text, folder_of, list_models

BUILDS = "the builds that this session watches"
LOADABLE = ("built", "in the package")
OWN_RECIPE = "A recipe of your own"


def choose_listed(models: list[Listed]) -> str:
    """Show the list of models, and return the name or path of the model whose card is shown."""
    chosen = session.current().model
    rows = [(model.name, model.task, model.state, model.about, "✓" * (model.name == chosen)) for model in models]
    columns = ["name", "task", "state", "about", "chosen"]
    st.dataframe(pd.DataFrame(rows, columns=columns), hide_index=True, width="stretch")
    names = [model.name for model in models]
    names += [chosen] if chosen not in names else []
    key = "the model whose card is shown"
    if st.session_state.get(key) not in names:
        st.session_state[key] = chosen
    return st.selectbox("Model", names, key=key)


def show_model(name: str, models: list[Listed]) -> None:
    """Show the card of a model, and the button that chooses it for all pages; without a card, what is known instead."""
    entry = next((model for model in models if model.name == name), None)
    if entry is not None and entry.state not in LOADABLE:
        st.info(f"{plain(name)} has no card yet: {plain(entry.state)}. Build it below.")
        return
    folder = locate(name)
    if name == session.current().model:
        st.success(f"{plain(name)} is the model of all pages.")
    else:
        st.button(
            "Use this model on all pages", icon=":material/check:", on_click=session.change, kwargs={"model": name}
        )
    if not (folder / CARD_FILE).is_file():
        st.info("This model has no card: it is a released checkpoint. What it was trained on is not in the file.")
        return
    card = read_card(folder)
    if card.data.get("generated"):
        st.warning("This model was trained on generated video only; it knows nothing about a real video.")
    st.markdown("\n".join(f"- **{item}**: {plain(value)}" for item, value in facts(card, folder)))
    if card.metrics:
        st.dataframe(metrics_table(card), hide_index=True)
        st.caption("95 % intervals over the cases of the held-out part, where they were measured.")
    for sentence in built_text(folder):
        st.markdown(f"- {plain(sentence)}")


def choose_recipe() -> ModelRecipe | None:
    """The chosen recipe: one of the project, or a file of the user."""
    recipes = {recipe.name: recipe for recipe in list_model_recipes()}
    name = st.selectbox("Recipe", [*recipes, OWN_RECIPE], key="model recipe", persist_state="session")
    if name != OWN_RECIPE:
        return recipes[name]
    path = st.text_input("File of the recipe", placeholder="a YAML file", key="own model recipe").strip()
    return load_model_recipe(str(Path(path).expanduser())) if path else None


def show_recipe(recipe: ModelRecipe) -> None:
    """Show what a recipe makes, from which data, and what was measured from each of its starts."""
    st.markdown(f"**{plain(recipe.title)}.** {plain(recipe.about)}")
    for choice in recipe.data:
        data = recipe.data_recipe(choice)
        st.markdown(
            f"- Data: {plain(data.title)}; licence: {plain(data.facts['licence'] or 'not known')}; access: "
            f"{plain(data.facts['access'])}"
        )
    st.dataframe(pd.DataFrame([start_row(start) for start in recipe.starts]), hide_index=True, width="stretch")


def start_row(start: StartChoice) -> dict[str, str]:
    """A start of a recipe: what is expected from it, how long it takes, and whether its weights are there."""
    minutes = {
        name: "not measured" if start.minutes[key] is None else f"{start.minutes[key]:g} min"
        for key, name in (("two_cores", "time on two cores"), ("gpu", "time on a GPU"))
    }
    weights = "here" if on_this_machine(start.source) else f"missing: {start.source}"
    return {"start": start.name, "weights": weights, "expected": start.expectation, **minutes}


def missing(recipe: ModelRecipe, data: str, weights: str) -> list[str]:
    """What a build still needs, a sentence each; empty if it can start."""
    sentences = []
    if not data:
        sentences.append("The folder of the unpacked data set.")
    elif not Path(data).expanduser().is_dir():
        sentences.append(f"{data} is not a folder. Give the folder of the unpacked data set.")
    try:
        _, source = choose_start(recipe, weights or None)
        if weights and not on_this_machine(source):
            sentences.append(f"The initial weights {weights} are not on this machine.")
    except lab.UserError as error:
        sentences.append(str(error))
    return sentences


def new_build() -> None:
    """Choose a recipe and its data, show what to expect and what is missing, and start the build."""
    recipe = choose_recipe()
    if recipe is None:
        st.info("Give the path of the recipe. docs/models.md describes its form.")
        return
    show_recipe(recipe)
    left, right = st.columns(2)
    data = left.text_input("Folder of the data set", key="data of the build", persist_state="session").strip()
    weights = right.text_input(
        "Initial weights",
        key="weights of the build",
        placeholder="by default the first start whose weights are here",
        help="A weights file, a model's name, or scratch. Nothing is fetched.",
    ).strip()
    accept = left.toggle("Build from an incomplete data set", help="The card then says that it is incomplete")
    seed = int(right.number_input("Seed of split and training", 0, 2**31 - 1, 0))
    needs = missing(recipe, data, weights)
    if needs:
        st.info("Missing: " + " ".join(map(plain, needs)))
    else:
        start = choose_start(recipe, weights or None)[0]
        st.markdown(f"Starts from **{plain(start.name)}**; expected: {plain(start.expectation)}.")
    if st.button("Build", type="primary", icon=":material/construction:", disabled=bool(needs)):
        path = str(recipe.path) if recipe.path.parent != list_model_recipes()[0].path.parent else recipe.name
        folder, incomplete = str(Path(data).expanduser()), "accept" if accept else "refuse"
        start_build(path, folder, weights or None, None, incomplete, seed)
        if recipe.name not in watched():
            watched().append(recipe.name)
        st.rerun()


def watched() -> list[str]:
    """The models whose builds this session has seen, the latest last."""
    return st.session_state.setdefault(BUILDS, [])


def builds() -> list[str]:
    """The models whose builds run, have stopped, or were seen in this session."""
    unfinished = [model.name for model in list_models() if model.state == "stopped" or "being built" in model.state]
    watched().extend(name for name in unfinished if name not in watched())
    return watched()


def show_builds() -> None:
    """Show every build with its progress and its buttons."""
    for name in builds():
        show_build(name, progress(name))


def show_build(name: str, build: Progress) -> None:
    """Show the progress of one build, and the button that stops it or goes on."""
    text, button = st.columns([5, 1], vertical_alignment="center")
    steps = f" · {build.done} of {build.steps} steps" if build.steps else ""
    text.progress(build.share, text=f"**{plain(name)}** · {build.state} · {plain(build.stage)}{steps}")
    try:
        if build.state in LIVE and button.button("Stop", key=f"stop {name}", icon=":material/stop:"):
            stop_build(name)
            st.toast("The build saves a checkpoint and stops.")
        elif build.state in CAN_GO_ON and button.button("Go on", key=f"go on {name}", icon=":material/play_arrow:"):
            resume_build(name)
            st.rerun()
    except errors.SHOWN as error:
        errors.show(error)
    if build.last.startswith("Error:") and build.state in CAN_GO_ON:
        st.error(plain(build.last.removeprefix("Error: ")))
    elif build.state == "finished":
        st.success(f"{plain(name)} is built: it is in the list, and known by its name on every page.")
        if not st.session_state.get(f"seen {folder_of(name)}"):  # the list above was drawn before it was finished
            st.session_state[f"seen {folder_of(name)}"] = True
            st.rerun(scope="app")


st.title("Models")
st.markdown(
    "Models by name, with their cards, and recipes that turn a **public data set on this machine** into a model. A "
    "build runs in its own process and continues when you close this page; nothing is fetched."
)
try:
    models = list_models()
    show_model(choose_listed(models), models)
except errors.SHOWN as error:
    errors.show(error)
try:
    st.subheader("Build a model")
    is_busy = any(progress(name).state in LIVE for name in builds())
    st.fragment(show_builds, run_every=3.0 if is_busy else None)()
    new_build()
except errors.SHOWN as error:
    errors.show(error)
