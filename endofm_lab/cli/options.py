"""Make the options of a command from the fields of a dataclass or the parameters of a function.

A command names its source and adds a few options of its own. An option that several commands share means the same in
all of them: its type and help are in `GRAMMAR`, and a test checks that every command follows it.
"""

import contextlib
import inspect
import io
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

# Option -> type, placeholder and help, in every command.
GRAMMAR: dict[str, tuple[Any, str, str]] = {
    "out": (Path, "FOLDER", "Folder for all results; the same command continues a job that was stopped."),
    "model": (
        str,
        "MODEL",
        'A model: "demo", a folder, a released checkpoint, image weights, timm:NAME, or hf:OWNER/NAME.',
    ),
    "start": (str, "WEIGHTS", 'Initial weights: "scratch", or anything that --model takes.'),
    "batch": (int, "N", "Clips per update in training; otherwise clips, or frames of a study, computed together."),
    "precision": (None, "", "Floating-point precision; auto is bfloat16 if the hardware supports it."),
    "device": (str, "NAME", "Device: cpu, cuda, cuda:1, mps, or auto for the first available of cuda, mps and cpu."),
    "seed": (int, "N", "Seed of every random generator."),
    "seeds": (tuple[int, ...], "N [N ...]", "Seeds, with one training for each; results are means over the seeds."),
    "split": (str, "NAME", 'Split: "manifest" is the column split; any other NAME is the column split_NAME.'),
    "label-column": (str, "COLUMN", "Column of the manifest that contains the class."),
    "workers": (int, "N", "Number of processes or threads that load data."),
    "figures": (Path, "FOLDER", "Folder for the figures as separate files."),
    "figure-format": (None, "", "Format of these files; all formats but html need kaleido and Chrome or Chromium."),
    "allow": (
        tuple[str, ...],
        "PACKAGE [PACKAGE ...]",
        "Your own code that a model or run may name and that is then imported: a package, or MODULE:CLASS.",
    ),
    "metrics": (
        tuple[str, ...],
        "MODULE:CLASS [MODULE:CLASS ...]",
        "Metrics of your own, beside those of the task: classes in a package that --allow names.",
    ),
    "own-task": (str, "MODULE:CLASS", "A task of your own, in place of --task and its options; see --own-encoder."),
    "own-objective": (str, "MODULE:CLASS", "An objective of your own, in place of --objective; see --own-encoder."),
    "own-encoder": (
        str,
        "MODULE:CLASS",
        "An encoder of your own to start from: a class in a package that --allow names, with its default settings.",
    ),
    "json": (bool, "", "Print the result as one JSON value and nothing else."),
    "quiet": (bool, "", "Print nothing but errors."),
}
# Name in the library -> name of the option, in every command.
NAMES = {
    "batch_clips": "batch",
    "split_name": "split",
    "label": "label-column",
    "initialisation": "start",
    "source": "start",
    "table_format": "format",
    "probe_label": "probe-label-column",
}
_METAVARS = {int: "N", float: "NUMBER", str: "TEXT", Path: "FILE"}
_FOLDERS = {"root", "features", "lists", "recipes", "runs", "data", "into"}
_NAMES = {"head", "layout", "dataset", "by", "mapping", "name", "size", "label"}


@dataclass(frozen=True)
class Option:
    """One option or positional argument of a command.

    Attributes:
        key: the parameter or nested field that takes the value.
        name: name of the option without dashes.
        kind: type of the value.
        default: value if the option is not given; `dataclasses.MISSING` if it must be given.
        metavar: placeholder for the value in the help.
        help: one sentence.
        positional: whether it is given by position instead of by name.
        choices: possible values: as typed -> as the library writes them; empty if any value is possible.
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
        """Whether the option must be given."""
        return self.default is MISSING

    @property
    def values(self) -> tuple[int, float]:
        """The smallest and the largest number of values that the option takes."""
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
        """Whether the option is a switch with an opposite: ``--dino.centring`` and ``--dino.no-centring``."""
        return self.kind is bool and (self.default is True or "." in self.name)

    @property
    def spellings(self) -> tuple[str, ...]:
        """All spellings of the option."""
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
        positional: parameters that are given by position.
        names: other names for parameters, in addition to `NAMES`.
        without: parameters that are not options.
        flat: parameters that are dataclasses and whose fields become options without a prefix.
        choices: possible values of parameters whose type does not list them.
        columns: parameters that name columns of a table that is not a manifest yet; `NAMES` and `GRAMMAR`, which are
            about manifests, do not apply to them.
        above: key of the dataclass that contains the parameters.
    """
    descriptions: dict[str, str] = {
        p.arg_name: p.description or "" for p in docstring_parser.parse(source.__doc__ or "").params
    }
    renamed = NAMES | dict(names or {})
    options: list[Option] = []
    for name, kind, default in _parameters(source):
        key = (*above, name)
        if name in without:
            continue
        if name in columns:
            words = " ".join(descriptions[name].split())
            options.append(Option(key, name, _plain_kind(kind), default, "COLUMN", words[:1].upper() + words[1:]))
            continue
        if is_dataclass(_plain_kind(kind)):
            inner = options_of(_plain_kind(kind), names=names, flat=flat, choices=choices, above=key)
            options += inner if name in flat else [_prefixed(option, len(above)) for option in inner]
            continue
        shown = renamed.get(name, name).replace("_", "-")
        if choices and name in choices:
            choice: Any = Literal[tuple(choices[name])]
            kind = tuple[choice, ...] if get_origin(_plain_kind(kind)) is tuple else choice
        options.append(_option(key, shown, kind, default, descriptions.get(name, ""), name in positional))
    return options


def _prefixed(option: Option, depth: int) -> Option:
    """An option of a nested dataclass, such as ``--views.global-px``, whose name is not changed by `NAMES`."""
    shown = ".".join(option.key[depth:]).replace("_", "-")
    return Option(option.key, shown, option.kind, option.default, option.metavar, option.help, False, option.choices)


def _parameters(source: Any) -> list[tuple[str, Any, Any]]:
    """Name, type and default of the fields of a dataclass or the parameters of a function."""
    hints = get_type_hints(source, include_extras=True)
    if is_dataclass(source):
        defaults = [
            (f.name, f.default_factory() if f.default_factory is not MISSING else f.default)
            for f in fields(source)
            if f.init
        ]
        return [(name, hints[name], default) for name, default in defaults]
    parameters = inspect.signature(source).parameters.values()
    return [(p.name, hints[p.name], MISSING if p.default is p.empty else p.default) for p in parameters]


def _option(key: Key, name: str, kind: Any, default: Any, description: str, positional: bool) -> Option:
    kind, choices = _plain_kind(kind), {}
    grammar_kind, metavar, words = GRAMMAR.get(name, (None, "", ""))
    kind = grammar_kind or kind
    listed = get_args(kind)[0] if get_origin(kind) is tuple else kind
    if get_origin(listed) is Literal:
        choices = {str(value).lower().replace(" ", "-").replace("_", "-"): value for value in get_args(listed)}
        metavar = "{" + ",".join(choices) + "}"
        metavar = metavar if listed is kind else f"{metavar} ..."
    words = _words(description, choices) if positional and description else words or _words(description, choices)
    if positional and not metavar:
        word = name.upper()
        metavar = f"{word[:-1]} [{word[:-1]} ...]" if get_origin(kind) is tuple else word
    metavar = metavar or ("" if kind is bool else _metavar(kind, name))
    return Option(key, name, kind, default, metavar, words[:1].upper() + words[1:], positional, choices)


def _words(description: str, choices: Mapping[str, Any]) -> str:
    """A description as the help shows it: without code markup, and with choices as they are typed."""
    words = " ".join(description.replace("``", "").split())
    for word, value in choices.items():
        words = words.replace(f'"{value}"', f'"{word}"')
    return words


def _plain_kind(kind: Any) -> Any:
    """The type of a value on the command line, without None: models and manifests are paths, sequences are tuples."""
    if get_origin(kind) in (Union, types.UnionType):
        kinds = [k for k in get_args(kind) if k is not type(None)]
        return next((k for k in (Path, str) if k in kinds), _plain_kind(kinds[0]))
    if get_origin(kind) is tuple and get_args(kind)[-1] is Ellipsis:
        return tuple[_plain_kind(get_args(kind)[0]), ...]  # type: ignore[misc]
    if get_origin(kind) is not None and get_origin(kind) is not tuple and issubclass_of(get_origin(kind), Sequence):
        return tuple[_plain_kind(get_args(kind)[0]), ...]  # type: ignore[misc]
    return kind


def issubclass_of(kind: Any, of: type) -> bool:
    """Whether a type is a subclass of another."""
    return isinstance(kind, type) and issubclass(kind, of)


def _metavar(kind: Any, name: str) -> str:
    if get_origin(kind) is Annotated:
        return _metavar(get_args(kind)[0], name)
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        element = _metavar(kinds[0], name)
        return f"{element} [{element} ...]" if kinds[-1] is Ellipsis else " ".join([element] * len(kinds))
    if kind is Path and name in _FOLDERS:
        return "FOLDER"
    return "NAME" if kind is str and name in _NAMES else _METAVARS.get(kind, "VALUE")


def parse(options: Sequence[Option], args: Sequence[str], prog: str, description: str) -> dict[Key, Any]:
    """The values of all options by key; if ``args`` contain ``--help``, tyro prints the help and exits.

    The arguments must have passed `endofm_lab.cli.words.check`.

    Raises:
        UserError: tyro refuses the arguments, or a number is out of bounds.
    """
    parser = make_dataclass("Options", [_field(number, option) for number, option in enumerate(options)], kw_only=True)
    box = io.StringIO()
    shown = contextlib.nullcontext() if {"-h", "--help"} & set(args) else contextlib.redirect_stdout(box)
    try:
        with shown, contextlib.redirect_stderr(box):
            parsed: Any = tyro.cli(parser, prog=prog, description=description, args=list(args))
    except SystemExit as end:
        if end.code in (0, None):  # after the help
            raise
        raise UserError(_refused(options, args, prog, box.getvalue())) from None
    values = {option.key: getattr(parsed, f"option_{number}") for number, option in enumerate(options)}
    for option in options:
        if option.choices and values[option.key] is not None:
            value = values[option.key]
            several = isinstance(value, tuple)
            values[option.key] = tuple(map(option.choices.get, value)) if several else option.choices[value]
        _refuse_absurd(option, values[option.key])
    return values


def _refused(options: Sequence[Option], args: Sequence[str], prog: str, box: str) -> str:
    """The sentence in place of the box in which tyro says what it refuses: it names the argument."""
    help_ = f"`{prog} --help` describes all options."
    spellings = {spelling for option in options for spelling in option.spellings}
    dashed = [word for word in args if word[:1] == "-" and word[1:2].isalpha()]
    dashed += [word for word in args if word[:2] == "--" and word.partition("=")[0].replace("_", "-") not in spellings]
    if dashed:
        advice = "If it is a value, write --option=-value, or ./-path for a path."
        return f"{prog} has no option {dashed[0]}. {advice} {help_}"
    sentence = " ".join(box.replace("│", " ").split())
    mentions = [option.typed for option in options if not option.positional and option.typed in sentence]
    mentions += [option.metavar for option in options if option.positional and option.metavar in sentence]
    shown = max(mentions, key=len, default="")
    return f"{prog} cannot read {shown or 'these arguments: ' + ' '.join(args)[:100]}. {help_}"


# Option -> the smallest and the largest number that it takes in every command. Larger numbers would use up the memory,
# or days of time, before another check could refuse them.
_BOUNDS = {
    "batch": (1, 65_536),
    "clips": (1, 10_000),
    "folds": (2, 1000),
    "workers": (0, 1024),
    "threads": (0, 1024),
    "port": (0, 65_535),
    "seed": (0, 2**63 - 1),  # the generators of torch take no more
    "seeds": (0, 2**63 - 1),
}
_LARGEST = 100_000_000


def _refuse_absurd(option: Option, value: Any) -> None:
    """Refuse NaN, infinity and numbers out of bounds.

    Raises:
        UserError: a number is out of bounds; the message names the option and the bounds.
    """
    last = option.name.rpartition(".")[2]
    least, most = _BOUNDS.get(last, (-_LARGEST, _LARGEST))
    for number in value if isinstance(value, tuple | list) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"{option.typed} is {number}. Give a finite number.")
        counted = isinstance(number, int | float) and not isinstance(number, bool)
        if counted and not least <= number <= most:
            raise UserError(f"{option.typed} is {number:,}. Give a number from {least:,} to {most:,}.")


def _field(number: int, option: Option) -> Any:
    """The field of the parser's dataclass from which tyro makes an option."""
    kind, default = option.kind, option.default
    if option.choices:
        choice: Any = Literal[tuple(option.choices)]
        kind = tuple[choice, ...] if get_origin(kind) is tuple else choice  # type: ignore[valid-type]
        words = {value: word for word, value in option.choices.items()}
        default = tuple(map(words.get, default)) if isinstance(default, tuple) else words.get(default, default)
    hint = "(required)" if default is MISSING else "" if default is None or default is False or default == () else None
    argument = tyro.conf.arg(
        name=option.name, metavar=option.metavar or None, help=option.help, help_behavior_hint=hint
    )
    annotated: Any = Annotated[kind | None if default is None else kind, argument]  # type: ignore[valid-type]
    if option.positional:
        annotated = Annotated[annotated, tyro.conf.Positional]
    if option.kind is bool and not option.is_pair:
        annotated = Annotated[annotated, tyro.conf.FlagCreatePairsOff]
    if default is MISSING:
        return f"option_{number}", annotated
    return f"option_{number}", annotated, field(default_factory=lambda: default)


def build(source: Any, values: Mapping[Key, Any], above: Key = ()) -> Any:
    """The dataclass from which the options were made, with the given values."""
    arguments = {}
    for name, kind, _ in _parameters(source):
        key = (*above, name)
        arguments[name] = build(_plain_kind(kind), values, key) if is_dataclass(_plain_kind(kind)) else values[key]
    return source(**arguments)


def value_at(config: Any, key: Key) -> Any:
    """The value of an option in a nested dataclass."""
    for name in key:
        config = getattr(config, name)
    return config
