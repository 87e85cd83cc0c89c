"""Check the arguments of a command line before they are parsed, and answer every mistake with a plain sentence."""

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from endofm_lab.cli.options import Option
from endofm_lab.errors import UserError

# Earlier name of an option -> its current name.
_RENAMED = {
    "--batch-clips": "--batch",
    "--initialisation": "--start",
    "--label": "--label-column",
    "--probe-label": "--probe-label-column",
    "--split-name": "--split",
}
_REMOVED = {
    "--resume": "--resume is not needed: the same command continues a run that was stopped.",
    "--set": "--set is not needed: every setting is an option of its own, such as --views.global-px 112.",
}
_NUMBERS: dict[Any, str] = {int: "a whole number", float: "a number"}


def check(options: Sequence[Option], args: Sequence[str], prog: str) -> None:
    """Refuse arguments that do not fit the options of the command.

    Raises:
        UserError: an unknown option or choice, a value that is missing or not a number, or a missing required option;
            the message names it and, if possible, what was probably meant.
    """
    if {"-h", "--help"} & set(args):
        return
    by_name = {name: option for option in options if not option.positional for name in option.spellings}
    places = [option for option in options if option.positional]
    free: list[str] = []
    names = set()
    for option, values in _read(by_name, args, prog, free):
        names.add(option.name)
        _check_values(option, option.typed, values)
    _check_places(places, free, prog)
    for option in by_name.values():
        if option.required and option.name not in names:
            raise UserError(f"{prog} needs {option.typed} {option.metavar} ({_lower(option.help)}).")


def unknown(kind: str, word: str, possible: Iterable[str]) -> str:
    """The sentences for an unknown word: what was probably meant, or all possible words."""
    possible = list(possible)
    close = get_close_matches(word, possible, n=1, cutoff=0.5)
    remedy = f"Did you mean {close[0]}?" if close else f"Choose one of {', '.join(possible)}."
    return f"There is no {kind} {word!r}. {remedy}"


def given(args: Sequence[str], name: str) -> str | None:
    """The value that follows an option on the command line, or None."""
    for at, word in enumerate(args):
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
        if word == name and at + 1 < len(args):
            return args[at + 1]
    return None


def _read(
    by_name: dict[str, Option], args: Sequence[str], prog: str, free: list[str]
) -> Iterator[tuple[Option, list[str]]]:
    """Yield the options with their values, and add all other words to ``free``."""
    at = 0
    while at < len(args):
        word, sign, value = args[at].partition("=")
        at += 1
        if not word.startswith("--"):
            free.append(args[at - 1])
            continue
        name = word.replace("_", "-")
        if name not in by_name:
            raise UserError(_unknown_option(name, by_name, prog))
        option, values = by_name[name], [value] * bool(sign)
        while not sign and at < len(args) and len(values) < option.values[1] and not args[at].startswith("--"):
            values.append(args[at])
            at += 1
        yield option, values


def _unknown_option(name: str, by_name: dict[str, Option], prog: str) -> str:
    renamed = _RENAMED.get(name)
    if renamed in by_name:
        return f"{name} is now written {renamed}."
    if name in _REMOVED:
        return _REMOVED[name]
    close = get_close_matches(name, by_name, n=1, cutoff=0.6)
    remedy = f"Did you mean {close[0]}?" if close else f"`{prog} --help` lists its options."
    return f"{prog} has no option {name}. {remedy}"


def _check_values(option: Option, shown: str, values: Sequence[str]) -> None:
    least, most = option.values
    if not least <= len(values) <= most:
        raise UserError(f"{shown} takes {option.metavar or 'no value'}, but {len(values)} values were given.")
    kinds = get_args(option.kind) if get_origin(option.kind) is tuple else (option.kind,)
    for number, value in enumerate(values):
        if value == "None" and option.default is None:
            continue
        if option.choices and value not in option.choices:
            spelled = next((word for word, old in option.choices.items() if value == old), None)
            if spelled:
                raise UserError(f"{shown} {value!r} is now written {spelled}.")
            raise UserError(unknown(f"{shown} value", value, option.choices))
        kind = kinds[min(number, len(kinds) - 1 - (kinds[-1] is Ellipsis))]
        if kind in _NUMBERS and not _is_number(value, kind):
            raise UserError(f"{shown} is {value!r}, but it must be {_NUMBERS[kind]}.")


def _is_number(text: str, kind: Any) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True


def _check_places(places: Sequence[Option], free: Sequence[str], prog: str) -> None:
    """Check the positional arguments: their number and their values."""
    least = sum(option.values[0] for option in places if option.required)
    if len(free) < least:
        missing = [option for option in places if option.required][len(free)]
        raise UserError(f"{prog} needs {missing.metavar} ({_lower(missing.help)}).")
    if len(free) > sum(option.values[1] for option in places):
        shown = " ".join(option.metavar for option in places) or "no positional argument"
        raise UserError(f"{prog} takes {shown} and options. Leave out {free[-1]!r}.")
    if len(places) == 1 and places[0].choices:
        _check_values(places[0], places[0].metavar, free)


def _lower(text: str) -> str:
    """A help text as a part of another sentence: in lower case and without its full stop."""
    return (text if text[:2].isupper() else text[:1].lower() + text[1:]).removesuffix(".")
