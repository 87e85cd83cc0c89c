"""The lessons: each runs from a clean kernel with its solutions, keeps the course's frame, and proves its claims.

A claim is proved by a mutation: one line of a lesson is changed so that the effect is gone (shuffled labels, untrained
weights, a still clip), and the lesson must stop at the assert that states the claim.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
# The first lesson runs with every test run; the others compute for up to minutes.
RUN = [pytest.param(p, marks=[] if p.stem.startswith("01") else [pytest.mark.slow], id=p.stem) for p in NOTEBOOKS]


@dataclass(frozen=True)
class Mutation:
    """A lesson without its effect.

    Attributes:
        lesson: two digits.
        effect: what is taken away, as the name of the test.
        old: source that stands in exactly one code cell.
        new: what replaces it.
        fails: source of the assert that must fail.
    """

    lesson: str
    effect: str
    old: str
    new: str
    fails: str


MUTATIONS = [
    Mutation(
        "01",
        "a still clip in place of a moving one",
        "    frames = lab.render(scene).frames\n",
        "    frames = lab.render(scene).frames[:1].repeat(8, axis=0)\n",
        "assert accuracy >= 0.9",
    ),
    Mutation(
        "02",
        "training without centring",
        'healthy = learn("healthy")',
        'healthy = learn("healthy", centring=False, momentum=0.5)',
        "assert states == expected",
    ),
    Mutation(
        "03",
        "a careless split that keeps patients together",
        'split=np.random.default_rng(0).choice(["train", "test"], len(clips), p=[0.7, 0.3])',
        'split=holdout(clips, {"train": 0.7, "test": 0.3}, seed=0).parts',
        "assert wrong.leaks",
    ),
    Mutation(
        "04",
        "labels shuffled over the pictures",
        "pictures = pd.DataFrame(rows, columns=columns)\n",
        "pictures = pd.DataFrame(rows, columns=columns)\n"
        'pictures["label"] = np.random.default_rng(0).permutation(pictures["label"])\n',
        "assert gap > 0.2",
    ),
    Mutation(
        "05",
        "temporal attention that ignores its input",
        "maps = lab.look(model, x)\n",
        "for one in model.backbone.blocks:\n    torch.nn.init.zeros_(one.temporal_attn.qkv.weight)\n"
        "maps = lab.look(model, x)\n",
        "assert min(found",
    ),
    Mutation(
        "06",
        "maps of a model with shuffled weights",
        "attention_relevance(model, x_n, asked)",
        'attention_relevance(nothing, x_n, target_of(nothing, "finding", label))',
        'assert hits["attention relevance"] > 0.8',
    ),
    Mutation(
        "07",
        "endoscopes that do not depend on the finding",
        "k if confounded else (n + k) % 2, finding",
        "(n + k) % 2, finding",
        'assert table.loc[("confounded", "untrained"), "label"] >= 0.9',
    ),
    Mutation(
        "08",
        "coarse labels drawn at random",
        'coarse = "clean" if finding == "normal" else "pathological"',
        'coarse = ("clean", "pathological")[np.random.default_rng([patient, number, len(finding)]).integers(2)]',
        "assert np.mean(loss[-20:]) < 0.6",
    ),
    Mutation(
        "09",
        "a model that was calibrated after training",
        'replace(model.card.heads["label"], temperature=None)',
        'model.card.heads["label"]',
        "assert confidence > accuracy + 0.08",
    ),
    Mutation(
        "10",
        "masks of other patients",
        "found = [predictions[number].mask(frame)[0] for number, frame in frames]",
        "found = [predictions[60_011 - number].mask(frame)[0] for number, frame in frames]",
        "assert gap.low > 0.2",
    ),
    Mutation(
        "11",
        "normal videos without distractors",
        "pictures.append(add(picture, u, v, np.random.default_rng(number)))",
        "pictures.append(picture)",
        'assert table.loc[0.3, "stool"] > 0.2',
    ),
    Mutation(
        "12",
        "scores that stay overconfident",
        "    return 2 / noise**2\n",
        "    return 1.0\n",
        "assert loss_of(80, calibrated) < loss_of(2000, calibrated)",
    ),
    Mutation(
        "13",
        "strange pictures that are ordinary ones",
        "others = [strange(frame, number) for number, frame in enumerate(frames)]",
        "others = [drawn(72_000 + number)[0] for number, frame in enumerate(frames)]",
        "assert auc >= 0.95",
    ),
]


def lesson_of(digits: str) -> Path:
    (path,) = [path for path in NOTEBOOKS if path.stem.startswith(digits)]
    return path


def run(notebook, folder: Path) -> None:
    """Execute a notebook from a clean kernel in a folder."""
    from nbclient import NotebookClient  # here: it takes six seconds to load

    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(folder)}}).execute()


def read(path: Path):
    import nbformat

    return nbformat.read(path, as_version=4)


def code_of(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook, tag: str) -> list[int]:
    """Places of the cells with a tag."""
    return [n for n, cell in enumerate(notebook.cells) if tag in cell.metadata.get("tags", [])]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", RUN)
def test_the_lesson_runs_from_top_to_bottom(path, tmp_path):
    run(read(path), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: f"{mutation.lesson}: {mutation.effect}")
def test_the_claim_of_a_lesson_fails_without_its_effect(mutation, tmp_path):
    from nbclient.exceptions import CellExecutionError

    notebook = read(lesson_of(mutation.lesson))
    (cell,) = [cell for cell in code_of(notebook) if mutation.old in cell.source]
    cell.source = cell.source.replace(mutation.old, mutation.new)
    with pytest.raises(CellExecutionError) as stopped:
        run(notebook, tmp_path)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", stopped.value.traceback).splitlines()
    failed = [line for line in lines if line.lstrip().startswith("-")]  # arrows to the lines that failed
    assert stopped.value.ename == "AssertionError", stopped.value.traceback
    assert any(mutation.fails in line for line in failed), failed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_lesson_is_text_first_and_carries_no_output(path):
    cells = read(path).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert cells[0].cell_type == "markdown"
    assert len(code) <= len(cells) * 0.6, "at least two cells in five are text"
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert max(len(cell.source.splitlines()) for cell in code) <= 16


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_lesson_opens_with_its_aims_and_ends_with_exercises_and_sources(path):
    notebook = read(path)
    opening = notebook.cells[0].source
    aims, cost, guesses = (opening.index(f"**{part}") for part in ("After this lesson you can", "Cost", "Guess first"))
    assert aims < cost < guesses
    assert len(re.findall(r"^\d\. ", opening[guesses:], re.MULTILINE)) == 3, "three questions to guess"
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for part in ("## Your guesses", "## Exercises", "real data", "## References", "**Next:**"):
        assert part in text, part


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_exercise_has_a_folded_solution_that_runs(path):
    notebook = read(path)
    questions, solutions = tagged(notebook, "exercise"), tagged(notebook, "solution")
    assert 2 <= len(questions) <= 3 and solutions == [n + 1 for n in questions]
    for place in questions:
        assert notebook.cells[place].cell_type == "markdown"
    for place in solutions:
        cell = notebook.cells[place]
        assert cell.cell_type == "code" and cell.metadata["jupyter"]["source_hidden"]
        assert "assert " in cell.source, "a solution states what it found"
