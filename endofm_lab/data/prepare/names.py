"""Patterns of file names that a researcher can read: ``labelled_images/{label}/{sequence}_{frame}.jpg``.

``{name}`` stands for a piece of the path and names its meaning, ``*`` for any text within one folder, ``**/`` for any
number of folders, ``(jpg|png)`` for one of both. A pattern becomes a regular expression with named groups.
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from endofm_lab.errors import UserError

ANY_NAME = "[^/]+"  # the meaning of a placeholder if the recipe does not define a more precise one
_TOKEN = re.compile(r"\{(?P<name>[a-z][a-z0-9_]*)\}|(?P<folders>\*\*/)|(?P<any>\*)|\((?P<either>[^()]*\|[^()]*)\)")


@dataclass(frozen=True)
class NamePattern:
    """A pattern of relative POSIX paths with named pieces.

    Args:
        template: The pattern as the recipe writes it.
        pieces: Placeholder -> its regular expression; ``[^/]+`` for placeholders that are not listed.
    """

    template: str
    pieces: Mapping[str, str]

    @cached_property
    def regex(self) -> re.Pattern[str]:
        """The regular expression with one named group per placeholder; a repeated placeholder must repeat its text."""
        out, at, names = [], 0, set()
        for token in _TOKEN.finditer(self.template):
            out.append(re.escape(self.template[at : token.start()]))
            at = token.end()
            if name := token["name"]:
                out.append(f"(?P={name})" if name in names else f"(?P<{name}>{self.pieces.get(name, ANY_NAME)})")
                names.add(name)
            elif token["folders"]:
                out.append("(?:.+/)?")
            elif token["any"]:
                out.append("[^/]*?")
            else:
                out.append("(?:" + "|".join(map(re.escape, token["either"].split("|"))) + ")")
        out.append(re.escape(self.template[at:]))
        try:
            return re.compile("".join(out))
        except re.error as error:
            raise UserError(f"The pattern {self.template!r} is not a valid regular expression: {error}") from error

    @property
    def placeholders(self) -> tuple[str, ...]:
        """The names in the pattern, in order, without repetition."""
        return tuple(dict.fromkeys(token["name"] for token in _TOKEN.finditer(self.template) if token["name"]))

    def read(self, path: str) -> dict[str, str] | None:
        """The named pieces of ``path``, or None if the pattern does not match the whole path."""
        match = self.regex.fullmatch(normal(path))
        return match.groupdict() if match else None

    def write(self, pieces: Mapping[str, object]) -> str:
        """The path with these pieces, the first of several alternatives, and nothing for wild cards."""

        def fill(token: re.Match[str]) -> str:
            if token["name"]:
                return str(pieces[token["name"]])
            return token["either"].split("|")[0] if token["either"] else ""

        return _TOKEN.sub(fill, self.template)


def normal(path: str) -> str:
    """A path in Unicode's composed form (NFC): macOS unpacks the same archive into decomposed names."""
    return unicodedata.normalize("NFC", path)


def patient_finder(expression: str) -> re.Pattern[str]:
    """The compiled expression that finds a patient in a path.

    Raises:
        UserError: it is no regular expression, or has not exactly one group.
    """
    try:
        finder = re.compile(expression)
    except re.error as error:
        raise UserError(f"--patient-from {expression!r} is no regular expression: {error}.") from error
    if finder.groups != 1:
        raise UserError(
            f"--patient-from {expression!r} has {finder.groups} groups in parentheses; give exactly one, around what "
            "names the patient, such as '(P[0-9]+)_'."
        )
    return finder
