"""YAML files of recipes and mappings: small, flat, and checked before anything is built from them.

A reader of YAML goes down into every level by calling itself, so that a file of a hundred thousand brackets ends the
process; and references to references multiply, so that a kilobyte can stand for more than the memory holds.
"""

from pathlib import Path
from typing import Any

import yaml

from endofm_lab.errors import UserError
from endofm_lab.files import read_text

MOST_BYTES = 20_000_000
MOST_LEVELS = 32
MOST_VALUES = 1_000_000  # references replaced by what they stand for

# Ten times as fast where PyYAML was built with libyaml.
_SAFE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Loader(_SAFE):
    """A safe loader that refuses a key that stands twice in one place; others take the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node.

        Raises:
            yaml.YAMLError: a key stands in it twice.
        """
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if repeat := next((name for name in keys if keys.count(name) > 1), None):
            raise yaml.constructor.ConstructorError(
                None, None, f"{repeat!r} stands twice in one place", node.start_mark
            )
        return dict(super().construct_mapping(node, deep=deep))


def read_yaml(path: Path) -> str:
    """The text of a YAML file that can be built from safely.

    Raises:
        UserError: it is too large, too deep, a pipe or a device, or its references multiply beyond `MOST_VALUES`.
        yaml.YAMLError: it is not YAML.
        UnicodeDecodeError: it is not text.
        OSError: it cannot be read.
    """
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes; a recipe or mapping has at most {MOST_BYTES:,}.")
    text = read_text(path)
    open_: list[tuple[str | None, int]] = [(None, 0)]  # of every level: its anchor, values so far
    sizes: dict[str | None, int] = {}
    for event in yaml.parse(text, Loader=Loader):
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append((anchor, 1))
            if len(open_) > MOST_LEVELS:
                raise UserError(f"{path} has values more than {MOST_LEVELS} levels deep; write it flat.")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_.pop()
        elif isinstance(event, yaml.AliasEvent):
            size, anchor = sizes.get(anchor, 1), None
        else:
            size = 1
        sizes[anchor] = size
        above, count = open_.pop()
        open_.append((above, count + size))
        if count + size > MOST_VALUES:
            raise UserError(f"{path} stands for more than {MOST_VALUES:,} values by its references; write them out.")
    return text
