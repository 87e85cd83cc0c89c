"""The generated lists in README.md and docs/ follow from the code: `python -m tests.test_docs` writes them again."""

import ast
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import pytest

import endofm_lab as lab
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
        entry = find(name)
        for part, command in sorted(entry.items()) if isinstance(entry, dict) else [("", entry)]:
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


def interface() -> str:
    """The names of the library: every public class and function with its signature and docstring."""
    parts = []
    for name in sorted(set(lab.__all__) - {"NOTICE", "__version__"}, key=str.lower):
        value = getattr(lab, name)
        if not callable(value):
            words = ", ".join(value) if isinstance(value, Mapping) else inspect.cleandoc(value.__doc__ or "")
            parts.append(f"## {name}\n\n```text\n{words}\n```")
            continue
        parts.append(f"## {name}\n\n{_described(name, value)}")
        members = vars(value).items() if isinstance(value, type) and not issubclass(value, Exception) else ()
        for key, member in members:
            inner = getattr(member, "__func__", getattr(member, "fget", member))
            if key[0] != "_" and inspect.isfunction(inner) and inner.__doc__:
                signed = "" if isinstance(member, property) else None
                parts.append(f"### {name}.{key}\n\n{_described(f'{name}.{key}', inner, signed)}")
    return "\n\n".join(parts)


def _described(name: str, value: object, signed: str | None = None) -> str:
    """Signature and docstring of a class, function or property, as text that Markdown leaves alone."""
    if signed is None:
        kind = f"class {name}" if isinstance(value, type) else name
        signed = "" if isinstance(value, type) and issubclass(value, Exception) else _signature(value)
        signed = f"```python\n{kind}{signed}\n```\n\n"
    text = inspect.cleandoc(value.__doc__ or "")
    first, _, details = text.partition("\n\n")
    return signed + " ".join(first.split()) + (f"\n\n```text\n{details}\n```" if details else "")


def _signature(value: object) -> str:
    """The parameters as they stand in the code, one per line where they are many."""
    signature = inspect.signature(value)
    shown = ", ".join(_parameter(parameter) for parameter in signature.parameters.values() if parameter.name != "self")
    if len(shown) > 100:
        shown = "\n    " + ",\n    ".join(map(_parameter, signature.parameters.values())) + ",\n"
    result = signature.return_annotation
    return f"({shown})" if result in (inspect.Signature.empty, None) else f"({shown}) -> {_kind(result)}"


def _parameter(parameter: inspect.Parameter) -> str:
    """Name, type and default of a parameter."""
    mark = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    kind = "" if parameter.annotation is inspect.Parameter.empty else f": {_kind(parameter.annotation)}"
    default = "" if parameter.default is inspect.Parameter.empty else f" = {_default_of(parameter.default)}"
    return f"{mark}{parameter.name}{kind}{default}"


def _default_of(value: object) -> str:
    return "..." if "<factory>" in repr(value) or " at 0x" in repr(value) else repr(value)


def _kind(annotation: object) -> str:
    """A type without the names of modules."""
    text = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    return re.sub(r"\b(?:[A-Za-z_]+\.)+(?=[A-Za-z_])", "", text).strip("'")


# Name of the block -> file and what it holds.
BLOCKS = {
    "commands": (ROOT / "README.md", commands),
    "options": (ROOT / "docs" / "commands.md", options),
    "interface": (ROOT / "docs" / "api.md", interface),
    "tree": (ROOT / "docs" / "architecture.md", tree),
}


def block(path: Path, name: str) -> re.Match[str]:
    """What stands between the marks of a generated list."""
    match = re.search(rf"(?<=<!-- {name} -->\n)(.*?)(?=\n<!-- end -->)", path.read_text(encoding="utf-8"), re.S)
    assert match, f"{path.name} has no list {name}"
    return match


@pytest.mark.parametrize("name", BLOCKS)
def test_a_generated_list_is_what_the_code_says(name):
    path, generate = BLOCKS[name]
    assert block(path, name).group() == generate(), "write it again: python -m tests.test_docs"


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))])
def test_links_to_files_lead_somewhere(path):
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    lost = [target for target in targets if "://" not in target and not (path.parent / target).exists()]
    assert not lost


if __name__ == "__main__":
    for key, (file, make) in BLOCKS.items():
        old, content = block(file, key), file.read_text(encoding="utf-8")
        file.write_text(content[: old.start()] + make() + content[old.end() :], encoding="utf-8")
