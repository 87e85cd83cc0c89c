"""The generated lists in README.md and docs/ follow from the code: `python -m tests.test_docs` writes them again."""

import ast
import json
import re
from pathlib import Path

import pytest

from endofm_lab.cli.main import COMMANDS, find
from endofm_lab.cli.options import Option

ROOT = Path(__file__).resolve().parents[1]


def commands() -> str:
    """A row per command of `endofm-lab`."""
    rows = [f"| `{name}` | {text} |" for name, (_, _, text) in COMMANDS.items()]
    return "\n".join(["| command | |", "|---|---|", *rows])


def options() -> str:
    """Every command with all its options, as the command line has them."""
    parts = []
    for name in COMMANDS:
        found = find(name)
        for part, command in sorted(found.items()) if isinstance(found, dict) else [("", found)]:
            rows = [
                f"| {_spelling(option)} | {_default(option)} | {_cell(option.help)} |" for option in command.options
            ]
            parts.append(
                f"## `endofm-lab {f'{name} {part}'.strip()}`\n\n{command.summary}\n\n"
                + "\n".join(["| option | default | |", "|---|---|---|", *rows])
            )
    return "\n\n".join(parts)


def _spelling(option: Option) -> str:
    return f"`{option.metavar}`" if option.positional else f"`{option.typed} {option.metavar or ''}".rstrip() + "`"


def _default(option: Option) -> str:
    shown = option.default
    if option.required or shown is None or shown is False or shown == ():
        return "required" if option.required else ""
    return f"`{_cell(' '.join(map(str, shown)) if isinstance(shown, tuple) else str(shown))}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def tree() -> str:
    """A line per file: the first sentence of its docstring, title or heading."""
    lines: list[str] = []
    for folder, pattern in (("endofm_lab", "**/*.py"), ("app", "**/*.py"), ("notebooks", "*.ipynb")):
        paths = [path for path in (ROOT / folder).glob(pattern) if path.name != "__init__.py"]
        last = None
        for path in sorted(paths, key=lambda path: (path.parent, path.name)):
            if ".ipynb_checkpoints" in path.parts:
                continue
            if path.parent != last:
                last = path.parent
                lines.append(f"{last.relative_to(ROOT)}/")
            lines.append(f"  {path.name:<30} {_about(path)}")
    return "\n".join(["```", *lines, "```"])


def _about(path: Path) -> str:
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    else:
        text = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]).lstrip("# ")
    return " ".join(text.split("\n\n")[0].split())


# Name of the block -> file and what it holds.
BLOCKS = {
    "commands": (ROOT / "README.md", commands),
    "options": (ROOT / "docs" / "commands.md", options),
    "tree": (ROOT / "docs" / "architecture.md", tree),
}


def block(path: Path, name: str) -> re.Match[str]:
    """What stands between the marks of a generated list."""
    found = re.search(rf"(?<=<!-- {name} -->\n)(.*?)(?=\n<!-- end -->)", path.read_text(encoding="utf-8"), re.S)
    assert found, f"{path.name} has no list {name}"
    return found


@pytest.mark.parametrize("name", BLOCKS)
def test_a_generated_list_is_what_the_code_says(name):
    path, made = BLOCKS[name]
    assert block(path, name).group() == made(), "write it again: python -m tests.test_docs"


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))])
def test_links_to_files_lead_somewhere(path):
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    lost = [target for target in targets if "://" not in target and not (path.parent / target).exists()]
    assert not lost


if __name__ == "__main__":
    for key, (file, make) in BLOCKS.items():
        old, content = block(file, key), file.read_text(encoding="utf-8")
        file.write_text(content[: old.start()] + make() + content[old.end() :], encoding="utf-8")
