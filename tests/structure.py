"""The structure of the code in figures: `python -m tests.structure` prints them beside their bounds.

Lengths of files and functions, modules per folder, documentation, circular imports, and tests in proportion to source.
`test_architecture.py` holds the bounds.
"""

import ast
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ("endofm_lab", "app")

# Participles, pronouns and adverbs say nothing about a value; a variable is named by a noun instead.
NO_NOUNS = frozenset(
    re.findall(
        r"\w+",
        """alike alone again anything asked both did drawn each everything few found given gone got have held
        here known lacking made many meant mine named nothing now one ours own said same seen some theirs then there
        these thing those told twice typed wanted which whole""",
    )
)


@dataclass(frozen=True)
class Figure:
    """A measured value and whether it keeps its bound; ``where`` names the place that reaches it."""

    name: str
    value: float
    bound: float
    keeps: bool
    where: str = ""

    def __str__(self) -> str:
        where = f"  {self.where}" if self.where else ""
        return f"{'' if self.keeps else 'BROKEN  '}{self.name}: {self.value:g} (bound {self.bound:g}){where}"


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def sources() -> list[Path]:
    """All Python files of the library and the app."""
    return [path for folder in SOURCE for path in sorted((ROOT / folder).rglob("*.py"))]


def line_count(path: Path) -> int:
    """Lines of a file."""
    return len(path.read_text(encoding="utf-8").splitlines())


def functions() -> list[tuple[int, str]]:
    """Length in lines and place of every function and method."""
    return [
        (node.end_lineno - node.lineno + 1, f"{path.relative_to(ROOT)}:{node.name}")
        for path in sources()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
    ]


def public_functions() -> Iterator[tuple[Path, ast.FunctionDef]]:
    """Functions and methods of the library without a leading underscore in their own or their class's name."""
    for path in sources():
        if path.relative_to(ROOT).parts[0] != "endofm_lab":
            continue
        for node in parsed(path).body:
            methods = node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else [node]
            for method in methods:
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    yield path, method


def undocumented() -> list[str]:
    """Public functions without a docstring; those that only state a protocol's attribute are left out."""
    return [f"{path.relative_to(ROOT)}:{node.name}" for path, node in public_functions() if not documented(node)]


def documented(node: ast.FunctionDef) -> bool:
    """Whether a function has a docstring, or is the bare signature of a protocol or an overload."""
    bare = isinstance(node.body[0], ast.Expr) and getattr(node.body[0].value, "value", None) is ...
    return bare or ast.get_docstring(node) is not None


def unannotated() -> list[str]:
    """Public functions of which an argument or the result has no annotation."""
    return [
        f"{path.relative_to(ROOT)}:{node.name}"
        for path, node in public_functions()
        if node.returns is None
        or any(a.annotation is None for a in [*node.args.args, *node.args.kwonlyargs] if a.arg not in ("self", "cls"))
    ]


def stored_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of every variable, parameter and attribute that is assigned; fields of classes are interfaces."""
    fields = {
        id(statement.target)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in fields:
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def misnamed(paths: Iterable[Path]) -> list[str]:
    """File, line and name of every variable with a name of `NO_NOUNS`."""
    return [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in paths
        for line, name in sorted(stored_names(parsed(path)))
        if name.strip("_").lower() in NO_NOUNS
    ]


def imports() -> dict[str, set[str]]:
    """Module -> modules of the library that it imports when it is loaded."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in sources()
        if path.relative_to(ROOT).parts[0] == "endofm_lab"
    }
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        names = set()
        for node in parsed(path).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        graph[name] = (names & set(modules)) - {name}
    return graph


def circles() -> list[list[str]]:
    """Circular imports, each as the modules along it."""
    graph, state, path, rings = imports(), {}, [], []

    def visit(module: str) -> None:
        state[module] = "open"
        path.append(module)
        for target in sorted(graph[module]):
            if state.get(target) == "open":
                rings.append([*path[path.index(target) :], target])
            elif target not in state:
                visit(target)
        path.pop()
        state[module] = "done"

    for module in graph:
        if module not in state:
            visit(module)
    return rings


def figures() -> list[Figure]:
    """All figures of the structure."""
    files = {path: line_count(path) for path in sources()}
    lengths = sorted(functions())
    counts = [length for length, _ in lengths]
    folders: dict[Path, int] = {}
    for path in files:
        folders[path.parent] = folders.get(path.parent, 0) + (path.name != "__init__.py")
    fullest = max(folders, key=lambda folder: folders[folder])
    longest = max(files, key=lambda path: files[path])
    tests = sum(line_count(path) for path in (ROOT / "tests").rglob("*.py"))
    rings, wrong_names = circles(), misnamed(sources())

    def at_most(name: str, value: float, bound: float, where: Any = "") -> Figure:
        return Figure(name, round(value, 3), bound, value <= bound, str(where))

    ratio = tests / sum(files.values())
    return [
        at_most("median length of a file", statistics.median(files.values()), 200),
        at_most("longest file", files[longest], 400, longest.relative_to(ROOT)),
        at_most("median length of a function", statistics.median(counts), 15),
        at_most("95th percentile of function lengths", counts[int(0.95 * len(counts))], 40),
        at_most("longest function", *_with_bound(lengths[-1], 60)),
        at_most("most modules in a folder", folders[fullest], 12, fullest.relative_to(ROOT)),
        at_most("public functions without a docstring", len(undocumented()), 0, ", ".join(undocumented()[:5])),
        at_most("public functions without annotations", len(unannotated()), 0, ", ".join(unannotated()[:5])),
        at_most("variables that are not named by a noun", len(wrong_names), 0, ", ".join(wrong_names[:5])),
        at_most("circular imports", len(rings), 0, " -> ".join(rings[0]) if rings else ""),
        Figure("lines of tests per line of source", round(ratio, 3), 0.65, ratio >= 0.65),
    ]


def _with_bound(longest: tuple[int, str], bound: float) -> tuple[float, float, str]:
    length, place = longest
    return length, bound, place


def main(show: Callable[[str], None] = print) -> int:
    """Print every figure; the exit code is 1 if one breaks its bound."""
    measured = figures()
    for figure in measured:
        show(str(figure))
    return int(not all(figure.keeps for figure in measured))


if __name__ == "__main__":
    sys.exit(main())
