"""README's lists follow from the code. `python -m tests.test_readme` writes them anew."""

import ast
import json
import re
from pathlib import Path

import pytest

from endofm_lab.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


def commands() -> str:
    """A row per command of `endofm-lab`."""
    rows = [f"| `{name}` | {text} |" for name, (_, _, text) in COMMANDS.items()]
    return "\n".join(["| command | |", "|---|---|", *rows])


def tree() -> str:
    """A line per file: the first sentence of its docstring, title or heading."""
    paths = [
        path
        for folder, pattern in (
            ("endofm_lab", "**/*.py"),
            ("app", "**/*.py"),
            ("data_recipes", "**/*.yaml"),
            ("notebooks", "*.ipynb"),
        )
        for path in sorted((ROOT / folder).glob(pattern), key=lambda path: (path.parent, path.name))
        if path.name != "__init__.py" and ".ipynb_checkpoints" not in path.parts
    ]
    lines, last = ["```"], None
    for path in paths:
        folder = path.parent.relative_to(ROOT)
        if folder != last:
            lines.append(f"{folder}/")
            last = folder
        lines.append(f"  {path.name:<30} {about(path)}")
    return "\n".join([*lines, "```"])


def about(path: Path) -> str:
    """One line on a file."""
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
    elif path.suffix == ".ipynb":
        text = "".join(json.loads(path.read_text())["cells"][0]["source"]).lstrip("# ")
    else:
        names = re.findall(r"^(?:full_name|title|name|about|description): *['\"]?(.+?)['\"]?$", path.read_text(), re.M)
        text = names[0] if names else path.read_text().splitlines()[0].lstrip("# ")
    return " ".join(text.split("\n\n")[0].split())


BLOCKS = {"commands": commands, "tree": tree}


def block(text: str, name: str) -> re.Match[str]:
    found = re.search(rf"(?<=<!-- {name} -->\n)(.*?)(?=\n<!-- end -->)", text, re.S)
    assert found, f"README has no block {name}"
    return found


@pytest.mark.parametrize("name", BLOCKS)
def test_the_lists_of_the_readme_are_those_of_the_code(name):
    assert block(README.read_text(), name).group() == BLOCKS[name](), "write it anew: python -m tests.test_readme"


if __name__ == "__main__":
    content = README.read_text()
    for key, make in BLOCKS.items():
        old = block(content, key)
        content = content[: old.start()] + make() + content[old.end() :]
    README.write_text(content)
