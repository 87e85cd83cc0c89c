"""The command `endofm-lab`: finds the sub-command, turns user errors into one sentence and exit code 2."""

import importlib
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence

import tyro

from endofm_lab import NOTICE, __version__
from endofm_lab.errors import UserError, storage_sentence

# Command -> (module in endofm_lab.cli, what it holds: a function or a dict of functions, one line of help).
COMMANDS: dict[str, tuple[str, str, str]] = {
    "doctor": ("doctor", "doctor", "what this machine has: Python, torch, precision, decoders, disk, model"),
    "phantom": ("phantom", "phantom", "write a data set of generated endoscopy clips"),
    "inspect": ("inspect", "inspect", "say what a checkpoint file holds"),
    "data": ("data", "DATA", "recipes of public data sets: list, show, prepare a manifest, check, map and split it"),
    "audit": ("audit", "audit", "look for leakage between the splits of manifests"),
    "demo": ("demo", "DEMO", "show the demo; train its model"),
    "pretrain": ("pretrain", "pretrain", "learn from unlabelled video; resume a run"),
    "predict": ("predict", "predict", "scores, masks and boxes for a video"),
    "study": ("study", "study", "a whole study, frame by frame, with a report to confirm or reject"),
    "explain": ("explain", "explain", "attention and attribution of a clip: a report and the numbers"),
    "embed": ("embed", "embed", "a vector per row of a manifest: neighbours, shortcuts, the app's map"),
    "notebooks": ("notebooks", "notebooks", "open the lessons in JupyterLab"),
    "finetune": ("finetune", "finetune", "train a head or a whole model on a manifest, and test it once"),
    "evaluate": ("evaluate", "evaluate", "test a model on a manifest's test rows"),
    "compare": ("compare", "compare", "finished runs in one table, with intervals and a paired test"),
    "paper-table": ("compare", "paper_table", "the published results beside the runs at hand"),
    "score": ("score", "SCORE", "score a submission by the rules of a challenge: capsule-vision"),
    "app": ("app", "app", "open the app in the browser"),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run a sub-command; the exit code is 0, 2 for something the user can put right, 1 for a defect of ours."""
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if args[0] == "--version":
        print(f"endofm-lab {__version__}")
        return 0
    name, *rest = args
    if name not in COMMANDS:
        print(f"Error: there is no command {name!r}; there are {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    if threading.current_thread() is threading.main_thread():
        # A stopped job saves as Ctrl-C does, also where Ctrl-C was switched off (a background job of a shell).
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        _call(name, rest)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. What was finished is kept; the same command goes on from there.", file=sys.stderr)
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
            "This is a defect of endofm-lab, not of your input: please report it with the lines above.", file=sys.stderr
        )
        return 1
    return 0


def _call(name: str, args: list[str]) -> None:
    module, attribute, _ = COMMANDS[name]
    action: Callable | dict[str, Callable] = getattr(importlib.import_module(f"endofm_lab.cli.{module}"), attribute)
    prog = f"endofm-lab {name}"
    if isinstance(action, dict):
        tyro.extras.subcommand_cli_from_dict(action, prog=prog, args=args, config=(tyro.conf.FlagCreatePairsOff,))
    else:
        tyro.cli(action, prog=prog, args=args, config=(tyro.conf.FlagCreatePairsOff,))


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, _, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: endofm-lab COMMAND [options]   (endofm-lab COMMAND --help says more)",
            "",
            f"A workbench for Endo-FM. {NOTICE}",
            "",
            *lines,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
