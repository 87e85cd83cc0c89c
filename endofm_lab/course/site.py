"""The static site of the course: a map and one page per executed lesson, which need no server and no network."""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

from endofm_lab import NOTICE, __version__
from endofm_lab.course.outputs import Drawing, body_of, clean, drawings
from endofm_lab.course.running import EXECUTED, execute, executed, lessons_in
from endofm_lab.errors import UserError, shortened
from endofm_lab.files import atomic_path, sweep
from endofm_lab.messages import messages

PICTURES = "pictures"  # folder of still pictures in a site
_ASSETS = Path(__file__).parent
_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:"
)
_FORMULA = re.compile(r"\$[^$\n]*[\\^_{][^$\n]*\$")


@dataclass(frozen=True)
class Opening:
    """What the first cell of a lesson says: its title, what the reader will be able to do, and what it costs."""

    title: str
    aims: tuple[str, ...]
    cost: str


def opening_of(notebook: Any, name: str) -> Opening:
    """The opening of a lesson; without a heading its title is its name."""
    text = notebook.cells[0].source if notebook.cells else ""
    title = re.search(r"^# +(.+)$", text, re.MULTILINE)
    aims = re.search(r"\*\*After this lesson you can\*\*\s*\n((?:\s*- .+\n?)+)", text)
    cost = re.search(r"\*\*Cost\*\* +([^,.\n]+)", text)
    return Opening(
        title[1].strip() if title else name,
        tuple(line.strip().removeprefix("- ").rstrip(".;") for line in aims[1].splitlines() if line.strip())
        if aims
        else (),
        cost[1].strip() if cost else "",
    )


def write_site(lessons: str | Path, site: str | Path, only: Sequence[str] = ()) -> list[Path]:
    """Execute lessons and write them as a static site; returns the paths of the pages, the map first.

    Every lesson is executed in a copy. Executed lessons are kept in the site, so that a stopped call continues, and a
    lesson is executed again only if it or the library changed. Lessons that ``only`` leaves out have a page if an
    earlier call executed them.

    Args:
        lessons: the folder of the lessons.
        site: the folder of the site.
        only: the numbers of the lessons to execute, such as "01"; by default all.

    Raises:
        UserError: a cell fails, a number is unknown, or ``site`` contains other files.
    """
    lessons, site = Path(lessons), Path(site)
    chosen = lessons_in(lessons, only)
    _check(lessons, site)
    for number, lesson in enumerate(chosen, 1):
        start = monotonic()
        if executed(lesson, site) is not None:
            messages.info("Lesson %s (%d of %d) has not changed.", lesson.stem, number, len(chosen))
            continue
        messages.info("Lesson %s (%d of %d) is being executed.", lesson.stem, number, len(chosen))
        execute(lesson, site)
        messages.info("Lesson %s took %.0f s.", lesson.stem, monotonic() - start)
    all_lessons = lessons_in(lessons)
    notebooks = {lesson.stem: notebook for lesson in all_lessons if (notebook := executed(lesson, site)) is not None}
    pictures = _still_pictures(notebooks, site)
    pages = _pages(all_lessons, notebooks, pictures)
    return _written(pages, site)


def _check(lessons: Path, site: Path) -> None:
    if site.resolve().is_relative_to(lessons.resolve()):
        raise UserError(f"{site} is inside the folder of the lessons. Choose another folder for the site.")
    if site.exists() and (not site.is_dir() or (any(site.iterdir()) and not (site / EXECUTED).is_dir())):
        raise UserError(f"{site} already contains other files. Choose a new folder for the site.")
    (site / EXECUTED).mkdir(parents=True, exist_ok=True)
    sweep(site)


def _pages(lessons: Sequence[Path], notebooks: Mapping[str, Any], pictures: Mapping[str, str]) -> dict[str, str]:
    """Name of a page -> its HTML; the map is the first."""
    import nbformat

    openings = {
        lesson.stem: opening_of(notebooks.get(lesson.stem) or nbformat.read(lesson, as_version=4), lesson.stem)
        for lesson in lessons
    }
    page_of = {name: f"{name}.html" for name in notebooks}
    pages = {"index.html": _map(openings, page_of)}
    names = list(notebooks)
    for place, name in enumerate(names):
        before = names[place - 1] if place else None
        after = names[place + 1] if place + 1 < len(names) else None
        try:
            body = body_of(notebooks[name], page_of, pictures)
        except UserError as error:
            raise UserError(f"Lesson {name}: {error}") from error
        formulas = any(cell.cell_type == "markdown" and _FORMULA.search(cell.source) for cell in notebooks[name].cells)
        pages[page_of[name]] = _lesson_page(openings, name, body, (before, after), formulas)
    return pages


def _lesson_page(
    openings: Mapping[str, Opening], name: str, body: str, beside: tuple[str | None, str | None], formulas: bool
) -> str:
    before, after = (
        f'<a href="{escape(other)}.html" rel="{kind}">{word}: {escape(openings[other].title)}</a>' if other else ""
        for other, kind, word in zip(beside, ("prev", "next"), ("Previous", "Next"), strict=True)
    )
    sentences = ["This page shows a lesson with its results. To run and change it: <code>endofm-lab notebooks</code>."]
    if formulas:
        sentences.append("Formulas are shown as they are typed in TeX.")
    scripts = '<script defer src="plotly.min.js"></script><script defer src="site.js"></script>'
    return _page(
        openings[name].title,
        '<nav aria-label="Course"><a href="index.html">Map of the course</a></nav>'
        f'<p class="notice">{escape(NOTICE)}</p><p class="missing">{" ".join(sentences)}</p>'
        f"<main>{body}</main>"
        f'<nav class="end" aria-label="Lessons">{before}<a href="index.html">Map of the course</a>{after}</nav>',
        scripts if 'class="plot"' in body else "",
    )


def _map(openings: Mapping[str, Opening], page_of: Mapping[str, str]) -> str:
    """The page that lists all lessons with their aims and minutes."""
    from nbconvert.filters import markdown2html

    rows = []
    for name, opening in openings.items():
        title = escape(opening.title)
        heading = f'<a href="{escape(page_of[name])}">{title}</a>' if name in page_of else title
        aims = "".join(f"<li>{clean(markdown2html(aim)).strip()[3:-4]}</li>" for aim in opening.aims)
        cost = f'<p class="minutes">Running it takes {escape(opening.cost)}.</p>' if opening.cost else ""
        missing = "" if name in page_of else '<p class="missing">This site has no page of this lesson.</p>'
        promise = f"<p>After this lesson you can</p><ul>{aims}</ul>" if aims else ""
        rows.append(f"<li><h2>{heading}</h2>{promise}{cost}{missing}</li>")
    return _page(
        "Map of the course",
        f'<h1>Map of the course</h1><p class="notice">{escape(NOTICE)}</p>'
        "<p>The lessons go from a video file to a study of one&rsquo;s own. Each page shows a lesson with the results "
        "of its code; <code>endofm-lab notebooks</code> opens the lessons to run and change them.</p>"
        f'<main><ol class="course">{"".join(rows)}</ol></main>',
        "",
    )


def _page(title: str, body: str, scripts: str) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="stylesheet" href="site.css">{scripts}'
        "<noscript><style>.plot { display: none; }</style></noscript></head>"
        f"<body>{body}<footer>endofm_lab {__version__}</footer></body></html>\n"
    )


def _written(pages: Mapping[str, str], site: Path) -> list[Path]:
    """Write all pages, Plotly, style and script, and remove the pages of lessons that have none any more."""
    from plotly.offline import get_plotlyjs

    texts = {name: (_ASSETS / name).read_text(encoding="utf-8") for name in ("site.css", "site.js")}
    for name, text in {**pages, **texts, "plotly.min.js": get_plotlyjs()}.items():
        with atomic_path(site / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    for page in site.glob("*.html"):
        if page.name not in pages:
            page.unlink()
    return [site / name for name in pages]


def _still_pictures(notebooks: Mapping[str, Any], site: Path) -> dict[str, str]:
    """Name of a figure's still picture -> its address in the site; none where kaleido or its browser is missing."""
    folder = site / PICTURES
    figures = {drawing.name: drawing for notebook in notebooks.values() for drawing in drawings(notebook)}
    missing = {name: drawing for name, drawing in figures.items() if not (folder / name).exists()}
    if missing:
        try:
            _draw(missing, folder)
        except (ImportError, RuntimeError, ValueError, OSError) as error:
            messages.warning(
                "The pages have no still pictures of figures, which need kaleido (pip install 'endofm-lab[export]') "
                "and Chrome or Chromium (%s).",
                shortened(str(error), 120),
            )
    for picture in folder.glob("*.webp"):
        if picture.name not in figures:
            picture.unlink()
    return {name: f"{PICTURES}/{name}" for name in figures if (folder / name).exists()}


def _draw(figures: Mapping[str, Drawing], folder: Path) -> None:
    """Draw still pictures by kaleido in one browser, which loads nothing from the network."""
    import kaleido

    messages.info("%d still pictures are being drawn.", len(figures))
    with TemporaryDirectory() as temporary:
        tasks = []
        for name, drawing in figures.items():
            width, height = drawing.size_px
            figure = {key: drawing.data[key] for key in ("data", "layout")}
            options = {"format": "webp", "width": width, "height": height}
            tasks.append({"fig": figure, "path": Path(temporary) / name, "opts": options})
        kaleido.write_fig_from_object_sync(tasks, kopts={"mathjax": False})
        for picture in Path(temporary).glob("*.webp"):
            with atomic_path(folder / picture.name) as path:
                shutil.copyfile(picture, path)
