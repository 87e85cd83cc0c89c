"""Find out which layout of a recipe is on disk, and which of its patterns each file matches."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from endofm_lab.data.prepare.names import NamePattern
from endofm_lab.data.prepare.recipes import Boxes, Layout, Recipe, Table
from endofm_lab.data.prepare.scan import ARCHIVES, Problem, is_media
from endofm_lab.errors import UserError

DEPTH = 2  # the data set may begin this many folders below the given folder, because archives often add a folder


class LayoutError(UserError):
    """No layout of the recipe fits the folder; the message names the patterns that were tried and the files found."""


@dataclass
class FoundLayout:
    """A layout with the files that match its patterns, as paths relative to ``base`` (a folder within the root)."""

    layout: Layout
    base: str
    media: dict[str, dict[str, str]] = field(default_factory=dict)  # path -> pieces of its name
    masks: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)  # path -> (which pattern, pieces)
    boxes: dict[str, tuple[Boxes, dict[str, str]]] = field(default_factory=dict)
    tables: dict[str, tuple[Table, dict[str, str]]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)  # files that the recipe does not know


def find_layout(recipe: Recipe, files: Sequence[str], name: str | None = None) -> FoundLayout:
    """The layout that fits best, at the given folder or up to two folders below it.

    Args:
        recipe: The recipe with its layouts.
        files: Relative POSIX paths below the given folder.
        name: The name of a layout; no other layout is tried.

    Raises:
        LayoutError: None fits, or several folders fit equally well.
    """
    layouts = [layout for layout in recipe.layouts if name in (None, layout.name)]
    if not layouts:
        names = ", ".join(layout.name for layout in recipe.layouts)
        raise LayoutError(f"{recipe.name} has no layout {name!r}. Choose one of: {names}.")
    for depth in range(DEPTH + 1):
        fitting = {}
        for base, inside in _bases(files, depth).items():
            counts = {layout.name: _count(layout, inside) for layout in layouts}
            if max(counts.values()):
                best = max(layouts, key=lambda layout: (counts[layout.name], _others(layout, inside)))
                fitting[base] = (best, inside)
        if len(fitting) > 1:
            raise LayoutError(
                f"{recipe.name} was found in {len(fitting)} folders: {', '.join(sorted(fitting))}. "
                "Give one of them as --root; two versions are never mixed."
            )
        for base, (layout, inside) in fitting.items():
            return classify(layout, base, inside)
    raise LayoutError(_nothing_fits(recipe, layouts, files))


def classify(layout: Layout, base: str, files: Iterable[str]) -> FoundLayout:
    """Sort files (relative to ``base``) by the patterns of one layout: pictures first, then their annotations."""
    match = FoundLayout(layout, base)
    templates = {media.path.template for media in layout.media}  # a layout of masks without pictures: both are one file
    for path in files:
        if (says := read_name(layout, path)) is not None:
            match.media[path] = says
            for number, masks in enumerate(layout.masks):
                if masks.path.template in templates and (pieces := masks.path.read(path)) is not None:
                    match.masks[path] = (number, pieces)
            continue
        for number, masks in enumerate(layout.masks):
            if (pieces := masks.path.read(path)) is not None:
                match.masks[path] = (number, pieces)
                break
        else:
            for boxes in layout.boxes:
                if (pieces := boxes.path.read(path)) is not None:
                    match.boxes[path] = (boxes, pieces)
            for table in layout.tables:
                if (pieces := table.file.read(path)) is not None:
                    match.tables[path] = (table, pieces)
            is_known = path in match.boxes or path in match.tables
            if not is_known and all(pattern.read(path) is None for pattern in layout.ignore):
                match.unknown.append(path)
    return match


def read_name(layout: Layout, path: str) -> dict[str, str] | None:
    """The facts in the name of a picture or video: the pieces of its path and the constants of its pattern."""
    for media in layout.media:
        if (pieces := media.path.read(path)) is not None:
            return pieces | {name: NamePattern(text, {}).write(pieces) for name, text in media.says.items()}
    return None


def left_over(recipe: Recipe, match: FoundLayout) -> list[Problem]:
    """A problem for every file that the layout does not know: packed archives, other versions, unknown files."""
    other_layouts = [layout for layout in recipe.layouts if layout.name != match.layout.name]
    problems = []
    for path in match.unknown:
        if path.lower().endswith(ARCHIVES):
            problems.append(Problem("still packed", path, "is an archive or an unfinished download", True))
        elif owner := next((layout.name for layout in other_layouts if read_name(layout, path) is not None), None):
            message = f"belongs to the layout {owner!r}, not to {match.layout.name!r}: two versions are mixed here"
            problems.append(Problem("other version", path, message, True))
        elif is_media(path):
            problems.append(Problem("name not recognised", path, "fits no pattern of the layout", True))
        else:
            problems.append(Problem("unknown file", path, "is not used by the recipe", False))
    return problems


def _bases(files: Sequence[str], depth: int) -> Mapping[str, list[str]]:
    """Folder at that depth -> the files below it, relative to it."""
    inside: dict[str, list[str]] = defaultdict(list)
    for path in files:
        parts = path.split("/")
        if len(parts) > depth:
            inside["/".join(parts[:depth])].append("/".join(parts[depth:]))
    return inside


def _count(layout: Layout, files: Iterable[str]) -> int:
    return sum(read_name(layout, path) is not None for path in files)


def _others(layout: Layout, files: Sequence[str]) -> int:
    """Number of files that match patterns of masks, boxes and tables, to choose between layouts with equal pictures."""
    patterns = [masks.path for masks in layout.masks] + [boxes.path for boxes in layout.boxes]
    patterns += [table.file for table in layout.tables]
    return sum(any(pattern.read(path) is not None for pattern in patterns) for path in files)


def _nothing_fits(recipe: Recipe, layouts: Sequence[Layout], files: Sequence[str]) -> str:
    tried = "; ".join(f"{layout.name}: {' or '.join(m.path.template for m in layout.media)}" for layout in layouts)
    if not files:
        return f"The folder is empty. {recipe.name} looks for {tried}."
    kinds = Counter((str(Path(path).parent), Path(path).suffix.lower() or "no ending") for path in files)
    summary = ", ".join(f"{count} x {ending} in {folder}/" for (folder, ending), count in kinds.most_common(5))
    packed = [path for path in files if path.lower().endswith(ARCHIVES)]
    hint = f" Still packed: {', '.join(packed[:5])}." if packed else ""
    return (
        f"No layout of {recipe.name} fits. Tried {tried}. Found {len(files)} files: {summary} (such as {files[0]})."
        f"{hint} "
        "Check that this is the right folder and that the whole archive is unpacked."
    )
