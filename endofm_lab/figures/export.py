"""Figures as files: stand-alone HTML, or PNG."""

from pathlib import Path

import plotly.graph_objects as go

from endofm_lab.errors import UserError
from endofm_lab.figures.style import CONFIG
from endofm_lab.files import atomic_path


def export(figure: go.Figure, path: str | Path) -> Path:
    """Write a figure as HTML that needs no network (about 5 MB, it carries Plotly) or as PNG, by the path's ending.

    Raises:
        UserError: another ending, or PNG where kaleido or its browser is missing.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".png"):
        raise UserError(f"{path}: a figure is written as .html or .png; give one of these endings.")
    with atomic_path(path) as temporary:
        if path.suffix.lower() == ".html":
            figure.write_html(temporary, include_plotlyjs=True, config=CONFIG)
        else:
            try:
                figure.write_image(temporary, scale=2)
            except (ValueError, RuntimeError, ImportError) as error:
                raise UserError(
                    f"{path}: PNG needs kaleido (pip install 'endofm-lab[export]') and Chrome or Chromium "
                    f"({error}); .html needs neither."
                ) from error
    return path
