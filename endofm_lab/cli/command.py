"""A command of the command line: its options, made from a dataclass or function of the library, and its output."""

import json as json_format
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import docstring_parser
import numpy as np

from endofm_lab import NOTICE
from endofm_lab.cli.options import Key, Option, build, options_of, parse, value_at
from endofm_lab.cli.words import check, given
from endofm_lab.errors import UserError
from endofm_lab.messages import speaking
from endofm_lab.outside import allowing

_NOT_OPTIONS = ("output", "config", "settings")  # parameters of a command that are not options


@dataclass(frozen=True)
class Output:
    """The output of a command: text for people, one JSON value with ``--json``, nothing with ``--quiet``."""

    json: bool = False
    quiet: bool = False

    @property
    def progress(self) -> bool:
        """Whether progress is shown."""
        return not (self.json or self.quiet)

    def say(self, *lines: Any) -> None:
        """Print lines for people; without lines nothing."""
        if self.progress and lines:
            print(*lines, sep="\n", flush=True)

    def result(self, value: Any) -> None:
        """Print the result for programs as JSON, in which undefined values are null."""
        if self.json:
            print(json_format.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False))

    def written(self, *paths: Any) -> None:
        """Print the paths of the result and the notice."""
        self.say(f"Written to {', '.join(map(str, paths))}. {NOTICE}")


def computed_on(provenance: Mapping[str, Any]) -> str:
    """The line that names the device of a result."""
    return f"Device: {provenance.get('device', 'not noted')}."


def plain(value: Any) -> Any:
    """A value in the types of JSON: paths as text, arrays as lists, numbers that are not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        run: the function that runs the command and prints its result. Its parameters are options too, except for
            ``config`` (the dataclass built from the options), ``settings`` (arguments for the library's function) and
            ``output``.
        source: the dataclass or function that the other options come from, or None.
        run_options: options from the parameters of ``run``.
        source_options: options from ``source``.
        presets: takes the values of all options and returns the configuration of the preset, whose values become the
            defaults; None for commands without presets.
        fixed: whether a preset refuses other values of an option.
        explain: takes the name of a preset and returns the lines that ``--explain`` prints; None without that option.
    """

    run: Callable[..., None]
    source: Any
    run_options: tuple[Option, ...]
    source_options: tuple[Option, ...]
    presets: Callable[[Mapping[Key, Any]], Any] | None = None
    fixed: Callable[[Option], bool] = lambda option: False
    explain: Callable[[str | None], list[str]] | None = None

    @property
    def summary(self) -> str:
        """One line that says what the command does."""
        return " ".join((docstring_parser.parse(self.run.__doc__ or "").short_description or "").split())

    @property
    def options(self) -> tuple[Option, ...]:
        """All options: positional ones first, switches for the output last."""
        switches = options_of(_switches)
        together = (*self.run_options, *self.source_options)
        return (*(o for o in together if o.positional), *(o for o in together if not o.positional), *switches)

    def __call__(self, args: Sequence[str], prog: str) -> None:
        """Parse a command line and run.

        Raises:
            UserError: an unknown option or value, or an error of the library.
        """
        options: Sequence[Option] = self.options
        if self.explain is not None and "--explain" in args:
            lines = self.explain(given(args, "--preset"))
            output = Output("--json" in args, "--quiet" in args)
            output.say(*lines)
            output.result(lines)
            return
        check(options, args, prog)
        if self.presets is not None and {"-h", "--help"} & set(args):
            options = self._shown(args)
        values = self._parsed(options, args, prog)
        if self.presets is not None and (preset := self.presets(values)) is not None:
            options = [self._preset(option, preset) for option in options]
            values = self._parsed(options, args, prog)
            self._refuse_contradictions(values, preset)
        arguments: dict[str, Any] = {option.key[0]: values[option.key] for option in self.run_options}
        if is_dataclass(self.source):
            arguments["config"] = build(self.source, values)
        elif self.source is not None:
            arguments["settings"] = {option.key[0]: values[option.key] for option in self.source_options}
        output = Output(values["json",], values["quiet",])
        with allowing(values["allow",]), speaking(output.progress):
            self.run(**arguments, output=output)

    def _parsed(self, options: Sequence[Option], args: Sequence[str], prog: str) -> dict[Key, Any]:
        docstring = docstring_parser.parse(self.run.__doc__ or "")
        text = "\n\n".join(part for part in (docstring.short_description, docstring.long_description) if part)
        return parse(options, args, prog, text)

    def _shown(self, args: Sequence[str]) -> Sequence[Option]:
        """The options for the help, with the values of the preset given on the command line as defaults."""
        values = {option.key: option.default for option in self.options}
        values |= {("preset",): given(args, "--preset") or values["preset",]}
        values |= {("manifest",): Path("MANIFEST"), ("out",): Path("RUN")}
        try:
            preset = self.presets(values) if self.presets else None
        except UserError:  # the preset depends on the manifest, or does not exist
            return self.options
        return self.options if preset is None else [self._preset(option, preset) for option in self.options]

    def _preset(self, option: Option, preset: Any) -> Option:
        unchanged = option.required or option not in self.source_options
        return option if unchanged else option.with_default(value_at(preset, option.key))

    def _refuse_contradictions(self, values: Mapping[Key, Any], preset: Any) -> None:
        for option in self.source_options:
            if not option.required and self.fixed(option) and values[option.key] != value_at(preset, option.key):
                raise UserError(
                    f"The preset sets {option.typed} to {value_at(preset, option.key)}, but {values[option.key]} was "
                    "given. Leave out the option or the preset."
                )


def command(
    source: Any = None,
    *,
    positional: Sequence[str] = (),
    names: Mapping[str, str] | None = None,
    without: Sequence[str] = (),
    flat: Sequence[str] = (),
    choices: Mapping[str, Sequence[str]] | None = None,
    columns: Sequence[str] = (),
    presets: Callable[[Mapping[Key, Any]], Any] | None = None,
    fixed: Callable[[Option], bool] = lambda option: False,
    explain: Callable[[str | None], list[str]] | None = None,
) -> Callable[[Callable[..., None]], Command]:
    """Turn a function into a command; see `Command` and `endofm_lab.cli.options.options_of` for the arguments."""

    def decorate(run: Callable[..., None]) -> Command:
        read = partial(options_of, positional=positional, names=names, flat=flat, choices=choices, columns=columns)
        run_options = read(run, without=_NOT_OPTIONS)
        excluded = [*without, "progress", *(option.key[0] for option in run_options)]
        source_options = [] if source is None else read(source, without=excluded)
        return Command(run, source, tuple(run_options), tuple(source_options), presets, fixed, explain)

    return decorate


def _switches(allow: tuple[str, ...] = (), json: bool = False, quiet: bool = False) -> None:
    """The options of every command."""
