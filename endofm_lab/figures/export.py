"""Write figures as files: stand-alone HTML, or PNG, SVG and PDF for papers."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import plotly.graph_objects as go

from endofm_lab.errors import UserError
from endofm_lab.figures.style import CONFIG
from endofm_lab.files import atomic_path

FigureFormat = Literal["html", "png", "svg", "pdf"]


def export(figure: go.Figure, path: str | Path) -> Path:
    """Write a figure as PNG, SVG, PDF or stand-alone HTML (about 5 MB, since it contains Plotly), by the path's ending.

    Raises:
        UserError: the ending is none of these, or it is not .html and kaleido or its browser is missing.
    """
    path = Path(path)
    ending = path.suffix.lower().removeprefix(".")
    if ending not in get_args(FigureFormat):
        raise UserError(f"{path}: The ending of a figure's file must be one of {', '.join(get_args(FigureFormat))}.")
    with atomic_path(path) as temporary:
        if ending == "html":
            figure.write_html(temporary, include_plotlyjs=True, config=dict(CONFIG))
            return path
        try:
            figure.write_image(temporary, format=ending, scale=2)
        except (ValueError, RuntimeError, ImportError) as error:
            raise UserError(
                f"{path}: The format {ending.upper()} needs kaleido (pip install 'endofm-lab[export]') and Chrome or "
                f"Chromium ({error}). Install them, or use .html, which needs neither."
            ) from error
    return path


def export_all(figures: Mapping[str, go.Figure], folder: str | Path, ending: FigureFormat = "html") -> list[Path]:
    """Write figures into a folder under their names, see `export`; returns their paths.

    Raises:
        UserError: a figure cannot be written, as in `export`.
    """
    names = {name: re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") for name in figures}
    return [export(figure, Path(folder) / f"{names[name]}.{ending}") for name, figure in figures.items()]
