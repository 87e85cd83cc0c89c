"""Tables of text as Markdown and as LaTeX, in which every character of a cell is shown as it is."""

import html
import re
from collections.abc import Sequence
from typing import Literal

from endofm_lab.folders.provenance import in_words, provenance

TableFormat = Literal["markdown", "csv", "latex"]

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "−": "$-$",
    "×": r"$\times$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, aligned for reading as plain text."""
    cells = [[markdown(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def latex_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""A ``tabular`` with the rules of the LaTeX package booktabs, to be put into a ``table`` environment."""
    first, *lines = (" & ".join(map(latex, row)) for row in (head, *rows))
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            f"\\begin{{tabular}}{{{'l' * len(head)}}}",
            "  \\toprule",
            f"  {first} \\\\",
            "  \\midrule",
            *(f"  {line} \\\\" for line in lines),
            "  \\bottomrule",
            "\\end{tabular}",
        ]
    )


def latex_comments(notes: Sequence[str]) -> str:
    """Notes as comments of LaTeX, a line each."""
    return "\n".join(f"% {' '.join(note.split())}" for note in notes)


def with_provenance(text: str, table_format: TableFormat) -> str:
    """A table with the provenance of this process in a line below it; CSV, which has no comments, stays as it is."""
    if table_format == "csv":
        return text
    line = in_words(provenance())
    return (
        f"{text.rstrip()}\n{latex_comments([line])}\n"
        if table_format == "latex"
        else f"{text.rstrip()}\n\n{markdown(line)}\n"
    )


def markdown(text: str) -> str:
    """Text that stays text in a Markdown table, even if HTML is allowed there: no links, no pictures to load."""
    escaped = html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")
    return re.sub(r"\](?=[(\[:])", r"]\\", escaped)


def latex(text: str) -> str:
    r"""Text that stays text in a cell of a LaTeX table.

    ``[`` and ``*`` at the beginning of a cell are put into braces; otherwise ``\\`` at the end of the line above, or
    the rule there, would take them as its argument.
    """
    escaped = "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
    return f"{{{escaped[0]}}}{escaped[1:]}" if escaped[:1] in ("[", "*") else escaped
