"""Options made from what the library takes: the fields of a dataclass or the arguments of a function.

A command names its source and adds a few options of its own. Names that several commands share mean the same thing
everywhere: their type and help stand in `GRAMMAR`, and a test holds every command to it.
"""

import inspect
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

import docstring_parser
import tyro

from endofm_lab.errors import UserError

Key: TypeAlias = tuple[str, ...]  # where a value belongs: ("start", "source"), ("views", "global_px"), ("preset",)

# Option -> type, placeholder and help, wherever it stands.
GRAMMAR: dict[str, tuple[Any, str, str]] = {
    "out": (Path, "FOLDER", "Folder for everything that is written; the same command continues what was stopped."),
    "model": (str, "MODEL", 'What is loaded: "demo", a folder, a released checkpoint, timm:NAME, hf://OWNER/NAME.'),
    "start": (str, "WEIGHTS", 'What training begins with: "scratch", or whatever --model takes, image weights too.'),
    "batch": (int, "N", "Clips, in a study frames, that are computed together; in training, clips per update."),
    "precision": (None, "", "Arithmetic of the computation; auto is bfloat16 where the hardware multiplies it."),
    "device": (str, "NAME", "What computes: cpu, cuda, cuda:1, mps, or auto for the first of cuda, mps and cpu."),
    "seed": (int, "N", "Seed of every random generator."),
    "seeds": (tuple[int, ...], "N [N ...]", "Seeds: one training for each; results are means over them."),
    "split": (str, "NAME", 'Which split: "manifest" is the column split, any other NAME the column split_NAME.'),
    "label-column": (str, "COLUMN", "Column of the manifest that holds the class."),
    "workers": (int, "N", "Processes or threads that load data."),
    "figures": (Path, "FOLDER", "Folder for the figures as files of their own."),
    "figure-format": (None, "", "Kind of these files; all but html need kaleido and Chrome or Chromium."),
    "allow": (
        tuple[str, ...],
        "PACKAGE [PACKAGE ...]",
        "Code of yours that a model or run may name, and that is imported then: a package, or MODULE:CLASS.",
    ),
    "json": (bool, "", "Print the result as one JSON value and nothing else."),
    "quiet": (bool, "", "Print nothing but errors."),
}
# A library's name -> the option's name, in every command.
NAMES = {
    "batch_clips": "batch",
    "split_name": "split",
    "label": "label-column",
    "initialisation": "start",
    "source": "start",
    "probe_label": "probe-label-column",
}
_METAVARS = {int: "N", float: "NUMBER", str: "TEXT", Path: "FILE"}
_FOLDERS = {"root", "lists", "recipes", "runs", "data", "into"}
_NAMES = {"head", "layout", "dataset", "by", "mapping", "name", "size", "label"}


@dataclass(frozen=True)
class Option:
    """One option or positional argument of a command.

    Attributes:
        key: where its value belongs.
        name: as it is typed, without dashes.
        kind: its type.
        default: its value when it is not given; `dataclasses.MISSING` if it must be given.
        metavar: what stands for its value in the help.
        help: a sentence.
        positional: given by its place instead of its name.
        choices: the possible values: as typed -> as the library writes them; empty if there is no list.
    """

    key: Key
    name: str
    kind: Any
    default: Any
    metavar: str
    help: str
    positional: bool = False
    choices: Mapping[str, Any] = field(default_factory=dict)

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is MISSING

    @property
    def values(self) -> tuple[int, float]:
        """The least and the largest number of values that it takes."""
        if self.kind is bool:
            return 0, 0
        kinds = get_args(self.kind) if get_origin(self.kind) is tuple else ()
        if not kinds:
            return 1, 1
        return (int(self.positional), float("inf")) if kinds[-1] is Ellipsis else (len(kinds), len(kinds))

    @property
    def typed(self) -> str:
        """The option as it is typed: ``--steps``."""
        return f"--{self.name}"

    @property
    def is_pair(self) -> bool:
        """Whether it is a switch with an opposite: ``--dino.centring`` and ``--dino.no-centring``."""
        return self.kind is bool and (self.default is True or "." in self.name)

    @property
    def spellings(self) -> tuple[str, ...]:
        """All ways to type it."""
        *above, last = self.name.split(".")
        return (self.typed, "--" + ".".join([*above, f"no-{last}"])) if self.is_pair else (self.typed,)

    def with_default(self, value: Any) -> "Option":
        """The same option with another default."""
        return Option(self.key, self.name, self.kind, value, self.metavar, self.help, self.positional, self.choices)


def options_of(
    source: Any,
    *,
    positional: Sequence[str] = (),
    names: Mapping[str, str] | None = None,
    without: Sequence[str] = (),
    flat: Sequence[str] = (),
    choices: Mapping[str, Sequence[str]] | None = None,
    columns: Sequence[str] = (),
    above: Key = (),
) -> list[Option]:
    """The options of a dataclass or function.

    Args:
        source: a dataclass or a function, documented in Google's style.
        positional: parameters that are given by their place.
        names: other names for parameters, beside `NAMES`.
        without: parameters that are no options.
        flat: parameters that are dataclasses and whose fields stand beside the others, without a prefix.
        choices: the possible values of parameters whose type does not list them.
        columns: parameters that name columns of a table that is no manifest yet; `NAMES` and `GRAMMAR` speak of
            manifests and do not hold for them.
        above: the key that the parameters belong to.
    """
    told: dict[str, str] = {
        p.arg_name: p.description or "" for p in docstring_parser.parse(source.__doc__ or "").params
    }
    renamed = NAMES | dict(names or {})
    options: list[Option] = []
    for name, kind, default in _parameters(source):
        key = (*above, name)
        if name in without:
            continue
        if name in columns:
            words = " ".join(told[name].split())
            options.append(Option(key, name, _plain_kind(kind), default, "COLUMN", words[:1].upper() + words[1:]))
            continue
        if is_dataclass(_plain_kind(kind)):
            inner = options_of(_plain_kind(kind), names=names, flat=flat, choices=choices, above=key)
            options += inner if name in flat else [_prefixed(option, len(above)) for option in inner]
            continue
        shown = renamed.get(name, name).replace("_", "-")
        if choices and name in choices:
            one: Any = Literal[tuple(choices[name])]
            kind = tuple[one, ...] if get_origin(_plain_kind(kind)) is tuple else one
        options.append(_option(key, shown, kind, default, told.get(name, ""), name in positional))
    return options


def _prefixed(option: Option, depth: int) -> Option:
    """An option of a nested dataclass: ``--views.global-px``. There, `NAMES` does not hold."""
    shown = ".".join(option.key[depth:]).replace("_", "-")
    return Option(option.key, shown, option.kind, option.default, option.metavar, option.help, False, option.choices)


def _parameters(source: Any) -> list[tuple[str, Any, Any]]:
    """Name, type and default of what a dataclass or function takes."""
    hints = get_type_hints(source, include_extras=True)
    if is_dataclass(source):
        made = [
            (f.name, f.default_factory() if f.default_factory is not MISSING else f.default)
            for f in fields(source)
            if f.init
        ]
        return [(name, hints[name], default) for name, default in made]
    parameters = inspect.signature(source).parameters.values()
    return [(p.name, hints[p.name], MISSING if p.default is p.empty else p.default) for p in parameters]


def _option(key: Key, name: str, kind: Any, default: Any, told: str, positional: bool) -> Option:
    kind, choices = _plain_kind(kind), {}
    grammar_kind, metavar, words = GRAMMAR.get(name, (None, "", ""))
    kind = grammar_kind or kind
    listed = get_args(kind)[0] if get_origin(kind) is tuple else kind
    if get_origin(listed) is Literal:
        choices = {str(value).lower().replace(" ", "-").replace("_", "-"): value for value in get_args(listed)}
        metavar = "{" + ",".join(choices) + "}"
        metavar = metavar if listed is kind else f"{metavar} ..."
    words = _words(told, choices) if positional and told else words or _words(told, choices)
    if positional and not metavar:
        word = name.upper()
        metavar = f"{word[:-1]} [{word[:-1]} ...]" if get_origin(kind) is tuple else word
    metavar = metavar or ("" if kind is bool else _metavar(kind, name))
    return Option(key, name, kind, default, metavar, words[:1].upper() + words[1:], positional, choices)


def _words(told: str, choices: Mapping[str, Any]) -> str:
    """A description as the help shows it: without marks of code, choices as they are typed."""
    words = " ".join(told.replace("``", "").split())
    for typed, value in choices.items():
        words = words.replace(f'"{value}"', f'"{typed}"')
    return words


def _plain_kind(kind: Any) -> Any:
    """A type as it is typed on a command line: without None, a model or manifest by its path, a sequence as a tuple."""
    if get_origin(kind) in (Union, types.UnionType):
        kinds = [k for k in get_args(kind) if k is not type(None)]
        return next((k for k in (Path, str) if k in kinds), _plain_kind(kinds[0]))
    if get_origin(kind) is not None and get_origin(kind) is not tuple and issubclass_of(get_origin(kind), Sequence):
        return tuple[_plain_kind(get_args(kind)[0]), ...]  # type: ignore[misc]
    return kind


def issubclass_of(kind: Any, of: type) -> bool:
    """Whether a type is a class below another."""
    return isinstance(kind, type) and issubclass(kind, of)


def _metavar(kind: Any, name: str) -> str:
    if get_origin(kind) is Annotated:
        return _metavar(get_args(kind)[0], name)
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        each = _metavar(kinds[0], name)
        return f"{each} [{each} ...]" if kinds[-1] is Ellipsis else " ".join([each] * len(kinds))
    if kind is Path and name in _FOLDERS:
        return "FOLDER"
    return "NAME" if kind is str and name in _NAMES else _METAVARS.get(kind, "VALUE")


def parse(options: Sequence[Option], args: Sequence[str], prog: str, description: str) -> dict[Key, Any]:
    """The values of all options, by key; tyro prints the help and leaves where ``args`` ask for it.

    The words must have passed `endofm_lab.cli.words.check`.
    """
    made = make_dataclass("Options", [_field(number, option) for number, option in enumerate(options)], kw_only=True)
    told: Any = tyro.cli(made, prog=prog, description=description, args=list(args))
    values = {option.key: getattr(told, f"option_{number}") for number, option in enumerate(options)}
    for option in options:
        if option.choices and values[option.key] is not None:
            value = values[option.key]
            several = isinstance(value, tuple)
            values[option.key] = tuple(map(option.choices.get, value)) if several else option.choices[value]
        _refuse_absurd(option, values[option.key])
    return values


# Option -> the least and the largest number that it takes, wherever it stands: beyond it memory or days would be gone
# before anything else could object. Seeds have no bound here.
_BOUNDS = {
    "batch": (1, 65_536),
    "clips": (1, 10_000),
    "folds": (2, 1000),
    "workers": (0, 1024),
    "threads": (0, 1024),
    "port": (0, 65_535),
}
_LARGEST = 100_000_000


def _refuse_absurd(option: Option, value: Any) -> None:
    """Refuse numbers that are none, and numbers beyond all bounds.

    Raises:
        UserError: the message names the option and its bounds.
    """
    last = option.name.rpartition(".")[2]
    least, most = _BOUNDS.get(last, (-_LARGEST, _LARGEST))
    for number in value if isinstance(value, tuple | list) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"{option.typed} is {number}; give a finite number.")
        counted = isinstance(number, int | float) and not isinstance(number, bool) and not last.startswith("seed")
        if counted and not least <= number <= most:
            raise UserError(f"{option.typed} is {number:,}; give a number from {least:,} to {most:,}.")


def _field(number: int, option: Option) -> Any:
    """What tyro makes an option of."""
    kind, default = option.kind, option.default
    if option.choices:
        one: Any = Literal[tuple(option.choices)]
        kind = tuple[one, ...] if get_origin(kind) is tuple else one  # type: ignore[valid-type]
        typed = {value: word for word, value in option.choices.items()}
        default = tuple(map(typed.get, default)) if isinstance(default, tuple) else typed.get(default, default)
    hint = "(required)" if default is MISSING else "" if default is None or default is False or default == () else None
    about = tyro.conf.arg(name=option.name, metavar=option.metavar or None, help=option.help, help_behavior_hint=hint)
    annotated: Any = Annotated[kind | None if default is None else kind, about]  # type: ignore[valid-type]
    if option.positional:
        annotated = Annotated[annotated, tyro.conf.Positional]
    if option.kind is bool and not option.is_pair:
        annotated = Annotated[annotated, tyro.conf.FlagCreatePairsOff]
    if default is MISSING:
        return f"option_{number}", annotated
    return f"option_{number}", annotated, field(default_factory=lambda: default)


def build(source: Any, values: Mapping[Key, Any], above: Key = ()) -> Any:
    """The dataclass that the options were made from, with the values given."""
    made = {}
    for name, kind, _ in _parameters(source):
        key = (*above, name)
        made[name] = build(_plain_kind(kind), values, key) if is_dataclass(_plain_kind(kind)) else values[key]
    return source(**made)


def value_at(config: Any, key: Key) -> Any:
    """The value of a nested dataclass that belongs to an option."""
    for name in key:
        config = getattr(config, name)
    return config
