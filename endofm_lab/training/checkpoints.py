"""Checkpoints of a training: written atomically, only the newest ones kept, read without unpickling objects."""

import pickle
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from endofm_lab.errors import CheckpointError
from endofm_lab.files import atomic_path, read_json, write_json

WEIGHTS, OPTIMISER, STATE = "model.safetensors", "optimiser.pt", "state.json"

# Errors that the readers of the three files raise for damaged content.
_DAMAGE: tuple[type[Exception], ...] = (
    OSError,
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
)
_DAMAGE += (SafetensorError, pickle.UnpicklingError)


@dataclass(frozen=True)
class Checkpoints:
    """The folders ``step-00000120, ...`` of a run, of which the newest ``keep`` are kept.

    The number counts the completed steps. All random draws follow from the run's seed and the number of the step, so
    no state of random generators or of the order of the data has to be stored.
    """

    folder: Path
    keep: int = 2

    def all(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted(p for p in self.folder.glob("step-*") if re.fullmatch(r"step-\d{8}", p.name))

    def save(
        self, step: int, weights: dict[str, torch.Tensor], optimiser: dict[str, Any], state: dict[str, Any]
    ) -> Path:
        """Write a checkpoint after ``step`` steps, then delete the oldest.

        Raises:
            CheckpointError: the checkpoint cannot be written, for example because the disk is full; earlier checkpoints
                are untouched.
        """
        target = self.folder / f"step-{step:08d}"
        try:
            with atomic_path(target) as part:
                part.mkdir()
                save_file({name: t.detach().cpu().contiguous() for name, t in weights.items()}, part / WEIGHTS)
                torch.save(optimiser, part / OPTIMISER)
                write_json(part / STATE, {"step": step, **state})
        except (OSError, SafetensorError, RuntimeError) as error:
            existing = self.all()
            last = f"the last good one is {existing[-1].name}" if existing else "there is none before it"
            raise CheckpointError(
                f"The checkpoint after step {step} cannot be written to {self.folder} ({error}); {last}. "
                "Make room, then resume."
            ) from error
        for old in self.all()[: -self.keep]:
            shutil.rmtree(old)
        return target

    def change_state(self, **entries: Any) -> None:
        """Change entries in the state of the newest checkpoint."""
        path = self.all()[-1] / STATE
        write_json(path, {**read_json(path), **entries})

    def clear_leftovers(self) -> None:
        """Delete the remains of an interrupted write."""
        for part in self.folder.glob(".step-*"):
            shutil.rmtree(part)

    def load(self, model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Fill model and optimiser from the newest checkpoint; returns its state, or None without a checkpoint.

        Raises:
            CheckpointError: the checkpoint cannot be read or does not fit.
        """
        existing = self.all()
        if not existing:
            return None
        try:
            model.load_state_dict(load_file(existing[-1] / WEIGHTS))
            optimiser.load_state_dict(torch.load(existing[-1] / OPTIMISER, map_location="cpu", weights_only=True))
            state = read_json(existing[-1] / STATE)
            if not isinstance(state, dict):
                raise ValueError(f"{STATE} holds no object")
            return state
        except _DAMAGE as error:
            raise CheckpointError(
                f"{existing[-1]} cannot be loaded ({error}). Remove this folder to continue from the one before it."
            ) from error
