"""YAML files of recipes and mappings: small, flat, and checked before anything is built from them.

A reader of YAML goes down into every level by calling itself, so that a file of a hundred thousand brackets ends the
process; and references to references multiply, so that a kilobyte can stand for more than the memory holds.
"""

from pathlib import Path

import yaml

from endofm_lab.errors import UserError

MOST_BYTES = 20_000_000
MOST_LEVELS = 32
MOST_VALUES = 1_000_000  # references replaced by what they stand for

# Ten times as fast where PyYAML was built with libyaml.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> str:
    """The text of a YAML file that can be built from safely.

    Raises:
        UserError: it is too large, too deep, or its references multiply beyond `MOST_VALUES`.
        yaml.YAMLError: it is not YAML.
        UnicodeDecodeError: it is not text.
        OSError: it cannot be read.
    """
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes; a recipe or mapping has at most {MOST_BYTES:,}.")
    text = path.read_text(encoding="utf-8")
    open_: list[tuple[str | None, int]] = [(None, 0)]  # of every level: its anchor, values so far
    sizes: dict[str | None, int] = {}
    for event in yaml.parse(text, Loader=LOADER):
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
        above, before = open_.pop()
        open_.append((above, before + size))
        if before + size > MOST_VALUES:
            raise UserError(f"{path} stands for more than {MOST_VALUES:,} values by its references; write them out.")
    return text
