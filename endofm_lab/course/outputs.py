"""The cells of an executed lesson as HTML: cleaned texts, figures as data for Plotly, large pictures re-encoded.

Nothing in the result is loaded from another machine, and no output can carry a script.
"""

import base64
import hashlib
import html
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from PIL import Image

from endofm_lab.errors import UserError
from endofm_lab.figures.style import CONFIG, WIDEST_PX

PAGE_BYTES = 3_000_000  # of one page, without Plotly, which all pages share
FIGURE = "application/vnd.plotly.v1+json"
_WIDGET = "application/vnd.jupyter.widget-view+json"
_LARGE_BYTES = 150_000  # pictures above this size are re-encoded
_TAGS = frozenset(
    re.findall(
        r"\w+",
        "a abbr b blockquote br caption code col colgroup dd del details div dl dt em figcaption figure h1 h2 h3 h4 h5 "
        "h6 hr i img kbd li ol p pre s small span strong sub summary sup table tbody td tfoot th thead tr ul",
    )
)
_ATTRIBUTES = frozenset({"alt", "title", "id", "class", "colspan", "rowspan", "width", "height", "scope"})
_EMBEDDED = re.compile(r"data:image/(?:png|jpe?g|bmp|gif);base64,([A-Za-z0-9+/=\s]+)")
_NEXT_LESSON = re.compile(r"(<strong>Next:</strong>\s+)(lesson (\d+))")
_LESSON_LINK = re.compile(r'<a href="([^":/]+)\.ipynb(#[^"]*)?">(.*?)</a>', re.DOTALL)
MOVING = "Moving this control needs JupyterLab: open the lesson with <code>endofm-lab notebooks</code>."
_TOO_LARGE = (
    "This output of {megabytes:.1f} MB is too large for a page. Open the lesson in JupyterLab with "
    "<code>endofm-lab notebooks</code> to see it."
)


@dataclass
class Part:
    """A piece of a page; an output can be replaced by a sentence if the page would be too large."""

    html: str
    is_output: bool = False


@dataclass(frozen=True)
class Drawing:
    """A figure of Plotly as data, and the name of its still picture."""

    data: dict[str, Any]

    @property
    def name(self) -> str:
        """The name follows from the content: an unchanged figure is not drawn again."""
        text = json.dumps(self.data, sort_keys=True)
        return f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.webp"

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height; figures that are as wide as their place have the width of a lesson's column."""
        layout = self.data["layout"]
        return int(layout.get("width") or WIDEST_PX), int(layout.get("height") or 450)


def drawings(notebook: Any) -> list[Drawing]:
    """All figures in the outputs of a lesson, in their order."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [drawing_of(output.data[FIGURE]) for output in outputs if FIGURE in output.get("data", {})]


def drawing_of(figure: Mapping[str, Any]) -> Drawing:
    """A figure from an output, with smaller pictures in it and without any button that uploads it."""
    smaller = json.loads(_re_encoded(json.dumps(figure)))
    fluid = {} if smaller.get("layout", {}).get("width") else {"responsive": True}
    config = {**smaller.get("config", {}), **CONFIG, **fluid}
    return Drawing({"data": smaller.get("data", []), "layout": smaller.get("layout", {}), "config": config})


def body_of(notebook: Any, page_of: Mapping[str, str], pictures: Mapping[str, str]) -> str:
    """The cells of a lesson as HTML of at most `PAGE_BYTES`; the largest outputs give way to a sentence.

    Args:
        notebook: an executed lesson.
        page_of: name of a lesson without its ending -> its page, for links between lessons.
        pictures: name of a figure's still picture -> its address in the site; figures without one get a sentence.

    Raises:
        UserError: text and code alone exceed the limit.
    """
    parts: list[Part] = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(Part(f'<section class="text">{_linked(markdown(cell.source), page_of)}</section>'))
        elif cell.cell_type == "code":
            parts += _code(cell, pictures)
    return _within(parts, PAGE_BYTES)


def _within(parts: list[Part], limit_bytes: int) -> str:
    """The parts as one text that keeps the limit."""
    while (size := sum(len(part.html.encode()) for part in parts)) > limit_bytes:
        largest = max((part for part in parts if part.is_output), key=lambda part: len(part.html), default=None)
        if largest is None or len(largest.html) <= len(_TOO_LARGE) + 100:
            raise UserError(
                f"The page has {size / 1e6:.1f} MB of text and code, at most {limit_bytes / 1e6:g} MB are possible. "
                "Divide the lesson."
            )
        largest.html = f'<p class="missing">{_TOO_LARGE.format(megabytes=len(largest.html) / 1e6)}</p>'
    return "\n".join(part.html for part in parts)


def _code(cell: Any, pictures: Mapping[str, str]) -> list[Part]:
    """Source and outputs of a code cell; a solution is folded."""
    source = f'<div class="wide" tabindex="0">{_highlighted(cell.source)}</div>'
    outputs = [Part(shown, is_output=True) for output in cell.outputs if (shown := _output(output, pictures))]
    if not cell.metadata.get("jupyter", {}).get("source_hidden"):
        return [Part(source), *outputs]
    return [Part(f'<details class="solution"><summary>Solution</summary>{source}'), *outputs, Part("</details>")]


def _output(output: Any, pictures: Mapping[str, str]) -> str:
    if output.output_type == "stream":
        kind = "output stderr" if output.name == "stderr" else "output"
        return f'<pre class="{kind}" tabindex="0">{_terminal(output.text.rstrip())}</pre>'
    data = output.get("data", {})
    for kind, shown in _SHOWN.items():
        if kind in data:
            return shown(data[kind], pictures)
    return ""


def _figure(figure: Any, pictures: Mapping[str, str]) -> str:
    """A figure that Plotly draws from data; where scripts are off, its still picture or a sentence."""
    drawing = drawing_of(figure)
    width, height = drawing.size_px
    if address := pictures.get(drawing.name):
        still = f'<img alt="{html.escape(_title(drawing))}" width="{width}" height="{height}" src="{address}">'
    else:
        still = '<p class="missing">This figure is drawn by JavaScript, which is off in your browser.</p>'
    data = json.dumps(drawing.data).replace("<", "\\u003c")
    style = f"height:{height}px" + (f";width:{width}px" if drawing.data["layout"].get("width") else "")
    return (
        f'<div class="wide figure" tabindex="0" role="figure" aria-label="{html.escape(_title(drawing))}">'
        f'<div class="plot" style="{style}"><script type="application/json">{data}</script></div>'
        f"<noscript>{still}</noscript></div>"
    )


def _title(drawing: Drawing) -> str:
    title = drawing.data["layout"].get("title") or {}
    text = title.get("text", "") if isinstance(title, dict) else str(title)
    return " ".join(re.sub(r"<[^>]*>", " ", html.unescape(text)).split()) or "Figure"


def _image(kind: str) -> Callable[[Any, Mapping[str, str]], str]:
    def shown(data: str, pictures: Mapping[str, str]) -> str:
        content = base64.b64encode(data.encode()).decode() if kind == "svg+xml" else "".join(data.split())
        source = _re_encoded(f"data:image/{kind};base64,{content}")
        return f'<div class="wide" tabindex="0"><img alt="Picture made by the code above" src="{source}"></div>'

    return shown


# The first kind that an output has is shown.
_SHOWN: dict[str, Callable[[Any, Mapping[str, str]], str]] = {
    FIGURE: _figure,
    "image/svg+xml": _image("svg+xml"),
    "image/png": _image("png"),
    "image/jpeg": _image("jpeg"),
    "text/html": lambda data, pictures: f'<div class="wide html" tabindex="0">{clean(_re_encoded(data))}</div>',
    "text/markdown": lambda data, pictures: f'<div class="wide" tabindex="0">{markdown(data)}</div>',
    _WIDGET: lambda data, pictures: f'<p class="missing">{MOVING}</p>',
    "text/plain": lambda data, pictures: f'<pre class="output" tabindex="0">{_terminal(data)}</pre>',
}


def _re_encoded(text: str) -> str:
    """A text in which large embedded pictures have at most twice the width of a column, as WebP if that is smaller."""

    def smaller(match: re.Match[str]) -> str:
        if len(match[0]) <= _LARGE_BYTES:
            return match[0]
        with Image.open(io.BytesIO(base64.b64decode(match[1]))) as picture:
            picture.thumbnail((2 * WIDEST_PX, 4 * WIDEST_PX))
            buffer = io.BytesIO()
            picture.convert("RGBA" if "A" in picture.mode or "transparency" in picture.info else "RGB").save(
                buffer, "WEBP", quality=85
            )
        result = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        return min(result, match[0], key=len)

    return _EMBEDDED.sub(smaller, text)


def markdown(text: str) -> str:
    """Markdown as HTML without scripts; formulas stay as they were typed."""
    from nbconvert.filters import markdown2html

    return (
        clean(markdown2html(text))
        .replace("<table>", '<div class="wide" tabindex="0"><table>')
        .replace("</table>", "</table></div>")
    )


def clean(text: str) -> str:
    """HTML with the tags of texts, tables and embedded pictures only, without styles, scripts and foreign addresses."""
    import bleach

    without = re.sub(r"<(style|script)\b.*?</\1\s*>", "", text, flags=re.DOTALL | re.IGNORECASE)
    protocols = ("http", "https", "mailto", "data")
    return bleach.clean(without, tags=_TAGS, attributes=_is_allowed, protocols=protocols, strip=True)


def _is_allowed(tag: str, name: str, value: str) -> bool:
    if name == "src":
        return tag == "img" and value.startswith("data:image/")
    if name == "href":
        return tag == "a" and not value.strip().lower().startswith("data:")
    return name in _ATTRIBUTES


def _linked(text: str, page_of: Mapping[str, str]) -> str:
    """Links to other lessons, and "Next: lesson 2", lead to their pages; without a page they are plain text."""

    def replaced(match: re.Match[str]) -> str:
        page = page_of.get(match[1])
        return f'<a href="{page}{match[2] or ""}">{match[3]}</a>' if page else match[3]

    def named(match: re.Match[str]) -> str:
        page = next((page for name, page in page_of.items() if name.startswith(f"{match[3].zfill(2)}_")), None)
        return f'{match[1]}<a href="{page}">{match[2]}</a>' if page else match[0]

    return _NEXT_LESSON.sub(named, _LESSON_LINK.sub(replaced, text))


@cache
def _highlighter() -> Callable[[str], str]:
    from nbconvert.filters import Highlight2HTML

    return Highlight2HTML(pygments_lexer="ipython3")


def _highlighted(source: str) -> str:
    return _highlighter()(source)


def _terminal(text: str) -> str:
    """The text of a terminal, escaped, with its colours as classes."""
    from nbconvert.filters import ansi2html

    return ansi2html(text)
