"""Dynamic class mapping: every data set keeps its own labels, and a mapping file turns them into common targets.

A mapping is a YAML file (``data_recipes/mappings/``) with a tree of targets and, per data set, the original labels and
the targets they stand for. A label may name a leaf (`polyp`), an inner node (`abnormal`: an unknown leaf below it),
several targets (one of them, or all of them in a multi-label mapping) or no target (left out on purpose). Data sets of
different granularity can therefore be trained on together: each row states which leaves it is compatible with.
The idea follows EndoExtend24 (Roth et al., arXiv 2410.21302); the format and the tree are ours.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from endofm_lab.brief import Brief
from endofm_lab.data.plain_yaml import read_yaml
from endofm_lab.data.prepare.recipes import recipes_folder
from endofm_lab.errors import UserError

MULTI = "|"  # between the labels of one row
ANY_DATASET = "*"  # section for data sets without a section of their own


class MappingError(UserError):
    """A mapping file that cannot be used; the message names the file and the line."""

    def __init__(self, path: str | Path, line: int, reason: str) -> None:
        self.path, self.line, self.reason = str(path), line, reason
        super().__init__(f"{path}, line {line}: {reason}")


def same_name(name: str) -> str:
    """The form in which names are compared: `Ileo-cecal valve`, `ileo_cecal  Valve` and `ileocecal valve` are equal."""
    return "".join(ch for ch in name.casefold() if ch not in " -_\t\xa0")


_NORMAL = frozenset({"normal", "normalcleanmucosa", "background"})  # as `same_name` writes them


def is_finding(name: str) -> bool:
    """Whether a class counts as a finding: all do but normal, normal clean mucosa and background, however spelt."""
    return same_name(name) not in _NORMAL


@dataclass(frozen=True, repr=False)
class LabelMapping(Brief):
    """A tree of targets and the targets of every original label.

    Attributes:
        name: the file's name without its ending.
        title: one line for people.
        multi_label: a list of targets means all of them; otherwise it means one of them, and it is unknown which.
        parents: every target and its parent (None at the top), in the order of the file.
        rules: data set -> original label -> targets, in the spelling of the file; an empty tuple leaves the label out.
        unverified: data sets whose label names could not be checked against an official list.
    """

    name: str
    title: str
    multi_label: bool
    parents: dict[str, str | None]
    rules: dict[str, dict[str, tuple[str, ...]]]
    unverified: frozenset[str] = frozenset()
    _lookup: dict[str, dict[str, tuple[str, ...]]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        lookup = {
            same_name(dataset): {same_name(label): targets for label, targets in labels.items()}
            for dataset, labels in self.rules.items()
        }
        object.__setattr__(self, "_lookup", lookup)

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits that change with the tree, its order or a rule, and not with comments or the title."""
        rules = {dataset: {label: list(to) for label, to in labels.items()} for dataset, labels in self.rules.items()}
        content = json.dumps([self.multi_label, list(self.parents.items()), rules], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:32]

    @property
    def leaves(self) -> tuple[str, ...]:
        """The finest targets, in the order of the file: the classes of a model trained with this mapping."""
        inner = set(self.parents.values())
        return tuple(target for target in self.parents if target not in inner)

    def leaves_below(self, target: str) -> tuple[str, ...]:
        """The leaves that ``target`` may stand for; a leaf stands for itself."""
        return tuple(leaf for leaf in self.leaves if target in self.path_to(leaf))

    def mask(self, targets: Iterable[str]) -> np.ndarray:
        """Bool (K,): the leaves that any of ``targets`` may stand for."""
        below = {leaf for target in targets for leaf in self.leaves_below(target)}
        return np.array([leaf in below for leaf in self.leaves])

    def reach(self, dataset: str) -> np.ndarray:
        """Bool (K,): the leaves that some label of ``dataset`` may stand for; the data set never labels the others."""
        return self.mask(target for targets in self._section(dataset).values() for target in targets)

    def path_to(self, target: str) -> tuple[str, ...]:
        """``target`` and its ancestors, from the top of the tree down."""
        path = [target]
        while (parent := self.parents[path[-1]]) is not None:
            path.append(parent)
        return tuple(reversed(path))

    def targets_of(self, dataset: str, label: str) -> tuple[str, ...] | None:
        """The targets of one original label; empty if it is left out on purpose, None if the file does not list it."""
        return self._section(dataset).get(same_name(label))

    def _section(self, dataset: str) -> dict[str, tuple[str, ...]]:
        return self._lookup.get(same_name(dataset), self._lookup.get(ANY_DATASET, {}))

    def at_depth(self, depth: int) -> "LabelMapping":
        """The same mapping with the tree cut below ``depth`` (0 keeps only the top): a coarser set of classes."""
        if depth < 0:
            raise UserError(
                f"The depth of a mapping is {depth}; it must be at least 0, which keeps the top of the tree."
            )
        kept = {target: parent for target, parent in self.parents.items() if len(self.path_to(target)) <= depth + 1}
        rules = {
            dataset: {
                label: tuple(dict.fromkeys(self.path_to(target)[: depth + 1][-1] for target in targets))
                for label, targets in labels.items()
            }
            for dataset, labels in self.rules.items()
        }
        return LabelMapping(f"{self.name}@{depth}", self.title, self.multi_label, kept, rules, self.unverified)


@dataclass(frozen=True, eq=False, repr=False)
class MappedLabels(Brief):
    """Labels after mapping.

    Attributes:
        leaves: the K classes.
        targets: (N,) str, the targets of each row joined by ``|``; empty when unmapped or left out.
        allowed: bool (N, K), the leaves a row is compatible with (single label) or has for certain (multi-label).
            A row without any True must not be trained on with a single-label loss.
        unknown: bool (N, K), multi-label only: leaves that the row neither has nor lacks for certain, because its label
            is coarser or its data set never labels them. All False in a single-label mapping.
    """

    leaves: tuple[str, ...]
    targets: np.ndarray
    allowed: np.ndarray
    unknown: np.ndarray

    @property
    def usable(self) -> np.ndarray:
        """Bool (N,): rows with at least one compatible leaf."""
        return np.asarray(self.allowed.any(axis=1))

    @property
    def exact(self) -> np.ndarray:
        """Bool (N,): rows with exactly one compatible leaf, as a plain cross-entropy or a metric needs them."""
        return np.asarray(self.allowed.sum(axis=1) == 1)


def list_mappings() -> list[str]:
    """The names of the mapping files that come with the project."""
    return sorted(path.stem for path in (recipes_folder() / "mappings").glob("*.yaml"))


def read_mapping(name_or_path: str | Path) -> LabelMapping:
    """A mapping by the name of a file in ``data_recipes/mappings`` or by path.

    Raises:
        MappingError: when the file is not a proper mapping; the message names the line.
    """
    path = Path(name_or_path)
    if not path.suffix:
        if path.name not in list_mappings():
            names = ", ".join(list_mappings())
            raise UserError(f"There is no mapping called '{name_or_path}'; known are: {names}. A path also works.")
        path = recipes_folder() / "mappings" / f"{path.name}.yaml"
    try:
        root = yaml.compose(read_yaml(path), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The mapping {path} cannot be read: {error}.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise MappingError(path, line, f"Not YAML: {getattr(error, 'problem', error)}.") from error
    return _Reader(path).mapping(root)


class _Reader:
    """Reads the YAML nodes themselves, because nodes know their lines. Keys and names are always read as text."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fail(self, node: yaml.Node | None, reason: str) -> MappingError:
        return MappingError(self.path, node.start_mark.line + 1 if node else 1, reason[:1].upper() + reason[1:])

    def pairs(self, node: yaml.Node | None, subject: str) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            raise self.fail(node, f"{subject} must be a list of 'name: value' lines.")
        first: dict[str, int] = {}
        for key, value in node.value:
            name = self.text(key, f"a name in {subject}")
            if same_name(name) in first:
                raise self.fail(key, f"'{name}' stands twice in {subject}, first in line {first[same_name(name)]}.")
            first[same_name(name)] = key.start_mark.line + 1
            yield name, key, value

    def text(self, node: yaml.Node, subject: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or not node.value.strip():
            raise self.fail(node, f"{subject} must be text.")
        return node.value.strip()

    def mapping(self, root: yaml.Node | None) -> LabelMapping:
        parts = {name: (key, value) for name, key, value in self.pairs(root, "the mapping")}
        part_names = ("title", "source", "multi_label", "targets", "datasets")
        for name, (key, _) in parts.items():
            if name not in part_names:
                raise self.fail(key, f"'{name}' is not a part of a mapping; the parts are {', '.join(part_names)}.")
        for name in ("title", "targets", "datasets"):
            if name not in parts:
                raise self.fail(root, f"the part '{name}' is missing.")
        multi_label = "multi_label" in parts and self.flag(parts["multi_label"][1], "multi_label")
        parents: dict[str, str | None] = {}
        self.tree(parts["targets"][1], None, parents)
        rules, unverified = {}, set()
        for dataset, _, section in self.pairs(parts["datasets"][1], "datasets"):
            fields = {name: (key, value) for name, key, value in self.pairs(section, f"the data set '{dataset}'")}
            for name, (key, _) in fields.items():
                if name not in ("source", "verified", "labels"):
                    raise self.fail(key, f"'{name}' is not a part of a data set; parts are source, verified, labels.")
            if "labels" not in fields:
                raise self.fail(section, f"the data set '{dataset}' has no 'labels'.")
            if "verified" in fields and not self.flag(fields["verified"][1], "verified"):
                unverified.add(dataset)
            rules[dataset] = {
                label: self.targets(value, label, parents)
                for label, _, value in self.pairs(fields["labels"][1], f"the labels of '{dataset}'")
            }
        title = self.text(parts["title"][1], "the title")
        return LabelMapping(self.path.stem, title, multi_label, parents, rules, frozenset(unverified))

    def flag(self, node: yaml.Node, subject: str) -> bool:
        text = self.text(node, subject)
        if text not in ("true", "false"):
            raise self.fail(node, f"{subject} is 'true' or 'false', not '{text}'.")
        return text == "true"

    def tree(self, node: yaml.Node, parent: str | None, parents: dict[str, str | None]) -> None:
        """A list of names; a name with a list below it (``- name: [...]``) is an inner node."""
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            raise self.fail(node, "targets are a list of names, with '- ' before each.")
        for item in node.value:
            branches = item.value if isinstance(item, yaml.MappingNode) else [(item, None)]
            for name_node, below in branches:
                name = self.text(name_node, "a target")
                if MULTI in name:
                    raise self.fail(name_node, f"the target '{name}' contains '{MULTI}', which separates labels.")
                if name in parents:
                    raise self.fail(name_node, f"the target '{name}' stands twice in the tree.")
                parents[name] = parent
                if below is not None:
                    self.tree(below, name, parents)

    def targets(self, node: yaml.Node, label: str, parents: dict[str, str | None]) -> tuple[str, ...]:
        if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null"):
            return ()
        names = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for name_node in names:
            name = self.text(name_node, f"the target of '{label}'")
            if name not in parents:
                close = get_close_matches(name, parents, n=1)
                hint = f"did you mean '{close[0]}'?" if close else f"targets are {', '.join(parents)}."
                raise self.fail(name_node, f"the label '{label}' goes to '{name}', which is not a target; {hint}")
        return tuple(dict.fromkeys(name_node.value.strip() for name_node in names))


def map_labels(table: pd.DataFrame, mapping: LabelMapping) -> MappedLabels:
    """The targets of every row of a manifest's table (columns ``dataset`` and ``label``; several labels by ``|``).

    A row with several labels has, in a multi-label mapping, all their targets. Otherwise it is compatible with what
    its labels agree on, and with nothing when they contradict each other (see ``endofm_lab.data.coverage``).
    """
    leaves = mapping.leaves
    codes, pairs = label_pairs(table)
    targets = np.full(len(pairs), "", dtype=object)
    allowed = np.zeros((len(pairs), len(leaves)), bool)
    unknown = np.full_like(allowed, mapping.multi_label)
    for row, (dataset, text) in enumerate(pairs):
        target_sets = [mapping.targets_of(dataset, label) for label in text.split(MULTI)]
        if None in target_sets:
            continue  # a single label that the file does not list makes the whole row unusable
        mapped_sets = [target for target in target_sets if target]
        if mapping.multi_label:
            below = [mapping.mask([target]) for target_set in mapped_sets for target in target_set]
            sure = [mask for mask in below if mask.sum() == 1]
            allowed[row] = np.any(sure, axis=0) if sure else False
            if below:
                unknown[row] = (~mapping.reach(dataset) | np.any(below, axis=0)) & ~allowed[row]
        elif mapped_sets:
            allowed[row] = np.all([mapping.mask(target_set) for target_set in mapped_sets], axis=0)
        if mapped_sets and (allowed[row].any() or mapping.multi_label):
            targets[row] = MULTI.join(dict.fromkeys(target for target_set in mapped_sets for target in target_set))
    return MappedLabels(leaves, targets[codes], allowed[codes], unknown[codes])


def label_pairs(table: pd.DataFrame) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Codes (N,) into the distinct (dataset, label) pairs: a million rows have only a few hundred pairs."""
    index = pd.MultiIndex.from_arrays([table["dataset"].fillna("").astype(str), table["label"].fillna("").astype(str)])
    codes, unique = index.factorize()
    return codes, list(unique)
