"""The campaign: spoiled inputs of eleven classes, drawn from a seed, and what the library makes of each.

A case is right if the result is the true one or if the input is refused in a sentence. The oracles stand beside the
cases; what only a checksum could tell, in containers that have none, is not asked for and not drawn.
"""

import contextlib
import io
import os
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from endofm_lab.errors import UserError, storage_sentence

OUTCOMES = ("correct", "refused", "crash", "hang", "silently wrong")
LIMIT_S = 30.0
# Share of the cases of each class, in the order of the table.
SHARES = {
    "videos": 20, "images": 10, "folders": 6, "checkpoints": 8, "cards": 12, "manifests": 12, "recipes": 8,
    "results": 12, "options": 8, "scores": 4, "oddities": 14,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One spoiled input: its name, and a function that tries it and says whether the result is the true one."""

    name: str
    attempt: Callable[[], bool]


Source = Callable[[Path, int], Iterator[Case]]  # folder to work in, seed -> cases without end


class Hang(BaseException):
    """A case took longer than `LIMIT_S`."""


def outcome(case: Case) -> tuple[str, str]:
    """How a case ended, and what was said where the end is none of the good ones."""

    def interrupt(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        with warnings.catch_warnings(action="ignore"):
            true = case.attempt()
        return ("correct", "") if true else ("silently wrong", "")
    except Hang:
        return "hang", traceback.format_exc()
    except UserError as error:
        message = str(error)
        return (
            ("refused", message)
            if message.strip() and len(message) < 1000
            else ("crash", f"no sentence: {message[:300]!r}")
        )
    except OSError as error:
        message = storage_sentence(error) or ""
        return ("refused", message) if message else ("crash", traceback.format_exc())
    except Exception:
        return "crash", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def sources() -> dict[str, Source]:
    """The classes and where their cases come from."""
    from tests.faults import oddities, options, pictures, results, tables, videos

    return {
        "videos": videos.cases,
        "images": pictures.images,
        "folders": pictures.folders,
        "checkpoints": results.checkpoints,
        "cards": tables.cards,
        "manifests": tables.manifests,
        "recipes": tables.recipes,
        "results": results.results,
        "options": options.cases,
        "scores": tables.scores,
        "oddities": oddities.cases,
    }


def run(n_cases: int, seed: int, only: list[str] | None = None) -> list[tuple[str, str, str, str]]:
    """Try about ``n_cases`` cases, shared among the classes: class, name, outcome, what was said."""
    results = []
    with tempfile.TemporaryDirectory() as root:
        for kind, source in sources().items():
            if only and kind not in only:
                continue
            folder = Path(root) / kind
            folder.mkdir()
            n = max(1, round(n_cases * SHARES[kind] / sum(SHARES.values())))
            for case in islice(source(folder, seed), n):
                with _silence():
                    end, message = outcome(case)
                results.append((kind, case.name, end, message))
    return results


def table(results: list[tuple[str, str, str, str]]) -> str:
    """One line per class: how many cases ended how."""
    lines = [f"{'class':<14}" + "".join(f"{name:>16}" for name in (*OUTCOMES, "cases"))]
    for kind in [*SHARES, "all"]:
        ends = [end for of, _, end, _ in results if kind in (of, "all")]
        if ends:
            lines.append(f"{kind:<14}" + "".join(f"{ends.count(name):>16}" for name in OUTCOMES) + f"{len(ends):>16}")
    return "\n".join(lines)


def wrong(results: list[tuple[str, str, str, str]]) -> list[tuple[str, str, str, str]]:
    """The cases that ended in a crash, a hang or a result that is silently wrong."""
    return [result for result in results if result[2] not in ("correct", "refused")]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep what decoders and commands print, also from below Python, away from the table."""
    kept, away = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(away, 2)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(away)
