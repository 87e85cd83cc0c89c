"""README's lists follow from the code. `python -m tests.test_docs` writes them anew."""

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


BLOCKS = {"commands": commands}


def block(text: str, name: str) -> re.Match[str]:
    found = re.search(rf"(?<=<!-- {name} -->\n)(.*?)(?=\n<!-- end -->)", text, re.S)
    assert found, f"README has no block {name}"
    return found


@pytest.mark.parametrize("name", BLOCKS)
def test_the_lists_of_the_readme_are_those_of_the_code(name):
    assert block(README.read_text(), name).group() == BLOCKS[name](), "write it anew: python -m tests.test_docs"


if __name__ == "__main__":
    content = README.read_text()
    for key, make in BLOCKS.items():
        old = block(content, key)
        content = content[: old.start()] + make() + content[old.end() :]
    README.write_text(content)
