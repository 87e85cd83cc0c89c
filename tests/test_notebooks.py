from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


# The first lesson runs with every test run; the others compute for minutes.
RUN = [pytest.param(p, marks=[] if p.stem.startswith("01") else [pytest.mark.slow], id=p.stem) for p in NOTEBOOKS]


@pytest.mark.parametrize("path", RUN)
def test_the_lesson_runs_from_top_to_bottom(path, tmp_path):
    import nbformat  # here: it takes six seconds to load
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_lesson_is_text_first_and_carries_no_output(path):
    import nbformat

    cells = nbformat.read(path, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert cells[0].cell_type == "markdown"
    assert len(code) <= len(cells) * 0.6, "at least two cells in five are text"
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert max(len(cell.source.splitlines()) for cell in code) <= 16
