"""The command `endofm-lab`: run a sub-command, and turn errors of the user into a message and exit code 2."""

import importlib
import signal
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from endofm_lab import NOTICE, __version__
from endofm_lab.cli.words import unknown
from endofm_lab.errors import UserError, storage_sentence

if TYPE_CHECKING:
    from endofm_lab.cli.command import Command

# Command -> (module in endofm_lab.cli, name of the command or of its sub-commands there, one line of help).
COMMANDS: dict[str, tuple[str, str, str]] = {
    "doctor": ("doctor", "doctor", "check the installation: Python, torch, precision, decoders, disk, model"),
    "phantom": ("data", "phantom", "write a data set of generated endoscopy clips"),
    "inspect": ("infer", "inspect", "describe the contents of a weights file"),
    "check": ("data", "check_integrity", "check whether a model, run, store, study, prediction or data set is whole"),
    "data": ("data", "DATA", "use recipes of public data sets; prepare, import, check, map and split manifests"),
    "audit": ("data", "audit", "look for leakage between the splits of manifests"),
    "demo": ("demo", "DEMO", "show the demo, train its model or evaluate it"),
    "models": ("runs", "MODELS", "list, show, build, get and publish models"),
    "pretrain": ("train", "pretrain", "learn from unlabelled video"),
    "predict": ("infer", "predict", "predict scores, masks and boxes for videos"),
    "study": ("infer", "study", "score a whole study frame by frame, with findings to confirm or reject"),
    "explain": ("infer", "explain", "write a report on attention and attribution of a clip"),
    "embed": ("infer", "embed", "compute a vector per row of a manifest, for neighbours, shortcuts and the app's map"),
    "temporal": ("infer", "TEMPORAL", "train models of time on stored vectors, and apply them"),
    "export": ("infer", "export", "write a model as one file for use without this library: ONNX or torch.export"),
    "notebooks": (
        "serve",
        "notebooks",
        "copy the lessons and open them, or write them as a site",
    ),
    "finetune": ("train", "finetune", "train a head or a whole model on a manifest, and test it once"),
    "evaluate": ("train", "evaluate", "test a model on the test rows of a manifest"),
    "compare": ("runs", "compare", "compare finished runs in one table, with intervals and a paired test"),
    "benchmark": ("runs", "benchmark", "compare encoders on tasks with methods and label budgets, from one small file"),
    "paper-table": ("runs", "paper_table", "show the published results next to your own runs"),
    "score": ("runs", "SCORE", "score a submission by the rules of a challenge: capsule-vision"),
    "app": ("serve", "app", "open the app in the browser"),
    "completion": ("doctor", "completion", "print a script with which bash completes commands and options"),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run a sub-command; the exit code is 0, or 2 for an error that the user can correct, or 1 for a defect."""
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if args[0] == "--version":
        print(f"endofm-lab {__version__}")
        return 0
    name, *arguments = args
    if name not in COMMANDS:
        print(f"Error: {unknown('command', name, COMMANDS)}", file=sys.stderr)
        return 2
    if threading.current_thread() is threading.main_thread():
        # Shells disable Ctrl-C in background jobs, so it is enabled again.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _on_stopping(_stop)
    try:
        _call(name, arguments)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. Finished work is saved, and the same command continues from there.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except SystemExit as exit_request:  # tyro: 0 after --help, 2 after a wrong argument
        return int(exit_request.code or 0)
    except Exception as error:
        if isinstance(error, OSError) and (sentence := storage_sentence(error)):
            print(f"Error: {sentence}", file=sys.stderr)
            return 2
        traceback.print_exc()
        print(
            "This is a defect of endofm-lab, not of your input. Please report it with the lines above.", file=sys.stderr
        )
        return 1
    return 0


def _on_stopping(handler: Any) -> None:
    """Set the handler of the signals that schedulers send before they end a job; Windows has only SIGTERM."""
    for name in ("SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), handler)


def _stop(*_: object) -> None:
    """Save and stop as Ctrl-C does; a second signal does not interrupt the saving."""
    _on_stopping(signal.SIG_IGN)
    signal.raise_signal(signal.SIGINT)


def find(name: str) -> "Command | dict[str, Command]":
    """The command with this name, or its sub-commands by name."""
    module, attribute, _ = COMMANDS[name]
    return getattr(importlib.import_module(f"endofm_lab.cli.{module}"), attribute)


def _call(name: str, args: list[str]) -> None:
    entry, prog = find(name), f"endofm-lab {name}"
    if isinstance(entry, dict):
        if not args or args[0] in ("-h", "--help"):
            print(_overview_of(prog, {part: command.summary for part, command in entry.items()}))
            return
        part, *args = args
        if part not in entry:
            raise UserError(unknown("command", f"{name} {part}", [f"{name} {part_name}" for part_name in entry]))
        entry, prog = entry[part], f"{prog} {part}"
    entry(args, prog)


def _overview() -> str:
    lines = {name: text for name, (_, _, text) in COMMANDS.items()}
    return _overview_of("endofm-lab", lines, f"A workbench for Endo-FM. {NOTICE}")


def _overview_of(prog: str, lines: Mapping[str, str], summary: str = "") -> str:
    """The help of a command with sub-commands: one line for each of them."""
    width = max(map(len, lines))
    head = [f"usage: {prog} COMMAND [options]   ({prog} COMMAND --help describes a command)", ""]
    return "\n".join(
        [*head, *([summary, ""] if summary else []), *(f"  {name:<{width}}  {lines[name]}" for name in lines)]
    )


if __name__ == "__main__":
    sys.exit(main())
