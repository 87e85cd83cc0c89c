"""The site of the course: pages that need no network, keep their size, and are not computed twice.

One tiny lesson is executed in a real kernel; the other tests read pages that are made from its result.
"""

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from endofm_lab import NOTICE, UserError
from endofm_lab.cli.main import main

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbconvert")

from endofm_lab.course import outputs, running, site  # noqa: E402  (after the packages that they need)

OPENING = """\
# 1 · A *tiny* lesson

**After this lesson you can**

- count to `3`;
- stop.

**Cost** about 2 seconds.
"""
CODE = """\
import os, sys
print("<script>alert(1)</script>", os.getcwd())
print("beside", file=sys.stderr)
layout = {"title": {"text": "Three <b>points</b>"}, "width": 860}
display({"application/vnd.plotly.v1+json": {"data": [{"y": [1, 3, 2]}], "layout": layout}}, raw=True)
"""
LOADED = re.compile(r"""<(?:script|link|img|iframe|source|video)\b[^>]*?\b(?:src|href)=["']([^"']*)""")


def lesson(path: Path, *codes: str, opening: str = OPENING) -> Path:
    """Write a lesson with code cells; the last one is a folded solution if there are several."""
    cells = [nbformat.v4.new_markdown_cell(opening), *(nbformat.v4.new_code_cell(code) for code in codes)]
    if len(codes) > 1:
        cells[-1].metadata["jupyter"] = {"source_hidden": True}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def notebook_of(*data: dict, text: str = OPENING):
    """An executed lesson of one code cell with outputs."""
    cell = nbformat.v4.new_code_cell("show()", outputs=[nbformat.v4.new_output("display_data", one) for one in data])
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text), cell])


@pytest.fixture(autouse=True)
def no_browser_for_pictures(monkeypatch):
    """Still pictures take seconds; a slow test draws them."""

    def missing(figures, folder):
        raise ImportError("no kaleido")

    monkeypatch.setattr(site, "_draw", missing)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of lessons, and a site of them that a real kernel computed."""
    folder = tmp_path_factory.mktemp("course")
    lesson(folder / "lessons" / "01_tiny.ipynb", CODE, "assert True")
    before = (folder / "lessons" / "01_tiny.ipynb").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site, "_draw", lambda figures, folder: (_ for _ in ()).throw(ImportError("no kaleido")))
        pages = site.write_site(folder / "lessons", folder / "site")
    assert [page.name for page in pages] == ["index.html", "01_tiny.html"]
    assert (folder / "lessons" / "01_tiny.ipynb").read_bytes() == before, "the lesson itself stays as it is"
    return folder


def test_a_page_shows_text_code_outputs_and_the_notice(written):
    page = (written / "site" / "01_tiny.html").read_text()
    assert "<em>tiny</em> lesson" in page and NOTICE in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; .</pre>" in page, "escaped, and the folder of the run is not named"
    assert '<pre class="output stderr" tabindex="0">beside</pre>' in page
    assert '<details class="solution"><summary>Solution</summary>' in page
    assert "This figure is drawn by JavaScript" in page, "a sentence where there is no still picture"
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in (written / "site" / "site.css").read_text()


def test_the_map_says_what_a_lesson_teaches_and_what_it_costs(written):
    page = (written / "site" / "index.html").read_text()
    assert '<a href="01_tiny.html">1 · A *tiny* lesson</a>' in page and "<li>count to <code>3</code></li>" in page
    assert "about 2 seconds" in page and NOTICE in page


def test_pages_load_nothing_from_beyond_their_folder(written):
    folder = written / "site"
    for page in folder.glob("*.html"):
        for address in LOADED.findall(page.read_text()):
            assert address.startswith("data:image/") or (folder / address).is_file(), address
        assert "default-src 'none'" in page.read_text()
    assert "http" not in (folder / "site.css").read_text() + (folder / "site.js").read_text()


def test_figures_cannot_be_uploaded(written):
    page = (written / "site" / "01_tiny.html").read_text()
    figure = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)[1])
    assert figure["config"]["showSendToCloud"] is False and figure["config"]["plotlyServerURL"] == ""
    assert figure["layout"]["title"]["text"] == "Three <b>points</b>" and 'aria-label="Three points"' in page


def test_an_unchanged_lesson_is_not_executed_again_and_a_changed_one_is(written, tmp_path, monkeypatch):
    shutil.copytree(written, tmp_path / "copy")
    lessons, folder = tmp_path / "copy" / "lessons", tmp_path / "copy" / "site"
    executed = []
    monkeypatch.setattr(site, "execute", lambda path, into: executed.append(path.stem))
    assert len(site.write_site(lessons, folder)) == 2 and executed == []
    lesson(lessons / "02_next.ipynb", "1")
    pages = site.write_site(lessons, folder)
    assert executed == ["02_next"] and len(pages) == 2, "the map names a lesson without a page"
    assert "This site has no page of this lesson" in pages[0].read_text()
    lesson(lessons / "01_tiny.ipynb", "2")
    assert [page.name for page in site.write_site(lessons, folder, only=["01"])] == ["index.html"]
    assert executed[1:] == ["01_tiny"] and not (folder / "01_tiny.html").exists(), "no page shows an older lesson"
    monkeypatch.setattr(running, "__version__", "99")
    assert running.executed(lessons / "01_tiny.ipynb", folder) is None, "another version of the library"


def test_a_failing_cell_is_named_with_its_lesson_and_leaves_nothing_half_written(tmp_path):
    lesson(tmp_path / "lessons" / "01_wrong.ipynb", "1", "raise ValueError('no such video')", "3")
    with pytest.raises(UserError, match=r"01_wrong stopped in code cell 2 of 3: ValueError: no such video\.") as error:
        site.write_site(tmp_path / "lessons", tmp_path / "site")
    assert str(error.value).endswith("to see why.")
    assert [path.name for path in (tmp_path / "site").rglob("*")] == ["executed"]


def test_an_interrupted_lesson_ends_its_kernel_and_leaves_nothing(tmp_path):
    lesson(tmp_path / "01_slow.ipynb", "import os, signal, time; os.kill(os.getppid(), signal.SIGINT); time.sleep(60)")
    children = set(psutil.Process().children())
    with pytest.raises(KeyboardInterrupt):
        running.execute(tmp_path / "01_slow.ipynb", tmp_path / "site")
    assert set(psutil.Process().children()) <= children and not (tmp_path / "site").exists()


def picture(side: int) -> str:
    noise = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_large_pictures_are_re_encoded_also_inside_figures():
    large = picture(500)
    figure = {"data": [], "layout": {"images": [{"source": f"data:image/png;base64,{large}"}]}}
    body = outputs.body_of(notebook_of({"image/png": large}, {outputs.FIGURE: figure}), {}, {})
    assert body.count("data:image/webp;base64,") == 2 and "data:image/png" not in body
    assert len(body) < len(large)


def test_an_output_that_is_too_large_gives_way_to_a_sentence(monkeypatch):
    assert outputs.PAGE_BYTES == 3_000_000
    monkeypatch.setattr(outputs, "PAGE_BYTES", 100_000)
    figure = {"data": [{"y": [0.123456789] * 20_000}], "layout": {}}
    body = outputs.body_of(notebook_of({"text/plain": "small"}, {outputs.FIGURE: figure}), {}, {})
    assert "This output of 0.3 MB is too large for a page" in body and "small" in body
    assert len(body.encode()) <= outputs.PAGE_BYTES
    with pytest.raises(UserError, match=r"has 0\.2 MB of text and code, at most 0\.1 MB"):
        outputs.body_of(notebook_of(text="word " * 31_000), {}, {})


def test_scripts_styles_and_foreign_addresses_are_removed_from_outputs():
    hostile = (
        '<style>td {}</style><table><tr><td onclick="x()">1</td></tr></table><script>x()</script>'
        '<img src="https://example.org/a.png"><iframe src="https://example.org"></iframe><a href="javascript:x()">a</a>'
    )
    body = outputs.body_of(notebook_of({"text/html": hostile}, text=f"Text {hostile}"), {}, {})
    assert body.count("<td>1</td>") == 2
    for word in ("x()", "example.org", "<iframe", "<style", "javascript"):
        assert word not in body, word


def test_widgets_show_their_first_state_or_say_what_they_need():
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "0"}, "text/plain": "IntSlider(value=3)"}
    still = f'<figure><img alt="A clip" src="data:image/png;base64,{picture(4)}"></figure>'
    body = outputs.body_of(notebook_of(widget, {**widget, "text/html": still}), {}, {})
    assert body.count("Moving this control needs JupyterLab") == 1 and 'alt="A clip"' in body
    assert "IntSlider" not in body


def test_links_between_lessons_lead_to_pages():
    text = "[next](02_next.ipynb#aims), [later](03_later.ipynb), [paper](https://arxiv.org/abs/2306.16741)\n\n"
    text += "**Next:** lesson 2 shows more. Lesson 3 does not."
    body = outputs.body_of(notebook_of(text=text), {"02_next": "02_next.html"}, {})
    assert '<a href="02_next.html#aims">next</a>, later, <a href="https://arxiv.org' in body
    assert '<strong>Next:</strong> <a href="02_next.html">lesson 2</a> shows more. Lesson 3 does not.' in body


def test_folders_and_numbers_that_cannot_be_are_answered_in_a_sentence(tmp_path, capsys):
    lesson(tmp_path / "lessons" / "01_tiny.ipynb", "1")
    (tmp_path / "notes.txt").write_text("mine")
    for folder, only, message in (
        (tmp_path / "lessons" / "site", (), "inside the folder of the lessons"),
        (tmp_path, (), "already contains other files"),
        (tmp_path / "site", ("07",), "There is no lesson '07'. The lessons are 01."),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            site.write_site(tmp_path / "lessons", folder, only)
    with pytest.raises(UserError, match="contains no lessons"):
        site.write_site(tmp_path / "empty", tmp_path / "site")
    assert main(["notebooks", "--only", "01"]) == 2 and "--site" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_first_lesson_becomes_a_page_with_still_pictures(tmp_path, monkeypatch):
    pytest.importorskip("kaleido")
    monkeypatch.undo()
    assert main(["notebooks", "--site", str(tmp_path / "site"), "--only", "01"]) == 0
    (page,) = (tmp_path / "site").glob("01_*.html")
    text = page.read_text()
    pictures = list((tmp_path / "site" / "pictures").glob("*.webp"))
    assert len(pictures) == text.count('class="plot"') == text.count('src="pictures/') >= 3
    assert page.stat().st_size + sum(path.stat().st_size for path in pictures) <= outputs.PAGE_BYTES
    assert str(Path.home()) not in text and "Open the notebook in JupyterLab" in text
