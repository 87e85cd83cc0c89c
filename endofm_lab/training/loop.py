"""The training loop: a generator that yields a record per step, resumes exactly, and runs in one or many processes.

Hugging Face Accelerate manages device, processes and precision; the code is the same with `accelerate launch`, with
`notebook_launcher` and in a single process.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import FullyShardedDataParallelPlugin, gather_object, send_to_device
from torch import Tensor, nn

from endofm_lab.errors import CheckpointError, UserError
from endofm_lab.files import atomic_path
from endofm_lab.messages import messages
from endofm_lab.model.precision import Precision, dtype_of
from endofm_lab.training.checkpoints import Checkpoints
from endofm_lab.training.draws import Data, Draws, LeftOut, batches, step_seed
from endofm_lab.training.interruption import ctrl_c_held
from endofm_lab.training.optimiser import clip_each
from endofm_lab.training.processes import gathered, processes, shard, sharding_asked_for

LOG, CHECKPOINTS = "log.jsonl", "checkpoints"
Record = dict[str, Any]


class Trainable(nn.Module):
    """A module that the loop can train: forward returns losses, and the state dict is complete for a checkpoint.

    ``forward(batch, part, step)`` returns a dict of scalars. "loss" is minimised, the other scalars are logged. A batch
    can be computed in parts: their losses add up, and the activations of a part are freed before the next part.
    """

    def parts(self, batch: Any) -> list[Any]:
        """The parts that `forward` computes one after the other; one entry per part."""
        return [None]

    def units(self) -> list[nn.Module]:
        """The modules that are gathered one after the other if processes share the weights (FSDP), usually the blocks;
        without such modules, processes cannot share the weights.
        """
        return []

    def before_step(self, step: int) -> None:
        """Called before the first batch of a step."""

    def after_backward(self, step: int) -> None:
        """Called when the gradients of a step are complete, before clipping and update."""

    def after_step(self, step: int) -> dict[str, float]:
        """Called after the update; the returned values are logged."""
        return {}


class DivergenceError(UserError):
    """The loss is no longer a finite number."""


@dataclass(frozen=True)
class LoopConfig:
    """The settings of a training.

    Attributes:
        steps: total number of updates.
        batch: samples per update, in all processes together.
        accumulation: number of pieces in which each process computes its share of a batch: more pieces need less memory
            and give the same gradient.
        precision: "float32", or another precision under autocast, where weights stay float32; "auto" is bfloat16 if
            the hardware supports it.
        clip: largest norm of each parameter tensor's gradient; None does not clip.
        seed: seed of the data order, the samples and all random draws in a step.
        save_every: steps between checkpoints.
        keep: number of checkpoints to keep.
        workers: number of processes that load data for each training process; 0 loads in the training process.
        trackers: Accelerate's names of trackers in addition to the log, for example "tensorboard".
    """

    steps: int
    batch: int
    accumulation: int = 1
    precision: Precision = "float32"
    clip: float | None = None
    seed: int = 0
    save_every: int = 500
    keep: int = 2
    workers: int = 0
    trackers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulation", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; give a whole number above 0.")
        if self.workers < 0 or self.seed < 0:
            raise UserError(f"workers is {self.workers} and seed is {self.seed}; give numbers of 0 or more.")
        dtype_of(self.precision)


_MIXED = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}  # Accelerate's names


def train(
    model: Trainable,
    optimiser: torch.optim.Optimizer,
    schedule: Callable[[int], dict[str, float]],
    data: Data,
    config: LoopConfig,
    out: str | Path,
    measure: Callable[[int], Record] | None = None,
) -> Generator[Record, None, None]:
    """Train, from the newest checkpoint in ``out`` if there is one, and yield the record of every step.

    The same seed gives the same losses whether the run was interrupted or not: bit for bit on CPU in float32. Closing
    the generator, Ctrl-C and errors save a checkpoint before they end the run.

    Args:
        model: the model, which is moved to the device and trained in place.
        optimiser: optimiser whose groups may hold ``lr_scale`` (factor on the learning rate) and ``decays`` (False for
            no weight decay), see `parameter_groups`.
        schedule: step -> "lr" and "weight_decay", which are logged.
        data: the training samples.
        config: settings of the training.
        out: folder of ``log.jsonl`` and ``checkpoints/``.
        measure: step -> further values for the record; called after every step in the main process, or in all
            processes if they share the weights (FSDP).

    Yields:
        "step" (from 0), "loss" and the model's other values (means over batch and processes), "lr", "weight_decay",
        "grad_norm" (of all gradients, before clipping), "left_out" (unreadable videos so far), "data_s", "step_s".

    Raises:
        UserError: the batch cannot be divided among processes and pieces, too many videos are unreadable, or the disk
            is full.
        DivergenceError: the loss is not finite; weights and checkpoints are those of the step before.
    """
    run = _Run(model, optimiser, schedule, data, config, Path(out))
    try:
        run.catch_up(measure)
        waiting = time.perf_counter()
        for step, micro_batches in run.steps():
            begun = time.perf_counter()
            losses = run.gradients(step, micro_batches)
            with ctrl_c_held():  # weights, teacher, optimiser and log must belong to the same step
                record = losses | run.update(step)
                record |= {"left_out": len(run.left_out.names), "data_s": begun - waiting}
                record["step_s"] = time.perf_counter() - begun
                record = run.complete(record, measure)
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                run.save()
            yield record
            waiting = time.perf_counter()
    except (CheckpointError, DivergenceError):
        raise
    except BaseException as end:
        # All processes gather shards together, which is impossible after an error in only one of them.
        if not run.sharded or isinstance(end, GeneratorExit | KeyboardInterrupt):
            run.save()
        raise
    finally:
        run.close()


class _Run:
    """A running training; ``done`` is the number of completed steps, and the weights always belong to that step."""

    def __init__(
        self,
        model: Trainable,
        optimiser: torch.optim.Optimizer,
        schedule: Callable[[int], dict[str, float]],
        data: Data,
        config: LoopConfig,
        out: Path,
    ) -> None:
        processes()
        self.sharded = sharding_asked_for()
        if self.sharded and not model.units():
            raise UserError(
                "Processes cannot share the weights of this training (FSDP); only pre-training supports that. Launch "
                "with --multi_gpu (DDP); a backbone with checkpointing=True needs less memory."
            )
        AcceleratorState._reset_state()  # an earlier run in this process may have had another precision
        self.accelerator = Accelerator(
            mixed_precision=_MIXED[dtype_of(config.precision, "cuda" if torch.cuda.is_available() else "cpu")],
            log_with=_available(config.trackers) or None,
            project_dir=out,
            fsdp_plugin=FullyShardedDataParallelPlugin(fsdp_version=2) if self.sharded else None,
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        self.config, self.schedule, self.data = config, schedule, data
        shares = self.accelerator.num_processes * config.accumulation
        if config.batch % shares:
            raise UserError(
                f"A batch of {config.batch} cannot be shared by {self.accelerator.num_processes} processes in "
                f"{config.accumulation} pieces; give a multiple of {shares}."
            )
        self.piece = config.batch // shares
        self.checkpoints = Checkpoints(out / CHECKPOINTS, config.keep)
        state = self.checkpoints.load(model, optimiser) or {"step": 0, "left_out": {}, "scaler": None}
        self.incomplete: Record | None = state.get("incomplete")  # record of a step that is missing in the log
        self.first = self.done = self.saved = int(state["step"])
        self.left_out = LeftOut(data.n_files, state["left_out"])
        self.inner = model.train()
        if self.sharded:
            shard(model, model.units(), optimiser)
            self.model, self.optimiser = model, self.accelerator.prepare_optimizer(optimiser, device_placement=False)
        else:
            self.model, self.optimiser = self.accelerator.prepare(model, optimiser)
        if state["scaler"] and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.path = out / LOG
        if self.accelerator.is_main_process:
            self.checkpoints.clear_leftovers()
            cut_log(self.path, self.first)
        if config.trackers:
            purge = {"tensorboard": {"purge_step": self.first}} if "tensorboard" in config.trackers else {}
            self.accelerator.init_trackers("tracking", init_kwargs=purge)
        self._resources = contextlib.ExitStack()
        # All processes save their shards after the same step: Ctrl-C is delayed until they have agreed on the step.
        self.signals: list[Any] = self._resources.enter_context(ctrl_c_held()) if self.sharded else []

    def steps(self) -> Iterator[tuple[int, list[Any]]]:
        """The remaining steps, each with this process's pieces of its batch."""
        rank, pieces = self.accelerator.process_index, self.config.accumulation
        first_of_rank = rank * self.piece * pieces

        def numbers() -> Iterator[list[int]]:
            for step in range(self.first, self.config.steps):
                for piece in range(pieces):
                    start = step * self.config.batch + first_of_rank + piece * self.piece
                    yield list(range(start, start + self.piece))

        seed, draws_of = self.config.seed, getattr(self.data, "draws", None)
        draws = Draws(len(self.data), seed) if draws_of is None else draws_of(seed)
        stream = batches(self.data, draws, numbers(), self.config.workers, self.left_out.names)
        for step in range(self.first, self.config.steps):
            pairs = [next(stream) for _ in range(pieces)]
            self._note({name: reason for _, unreadable in pairs for name, reason in unreadable.items()})
            yield step, [batch for batch, _ in pairs]

    def gradients(self, step: int, pieces: list[Any]) -> Record:
        """Compute the gradients of a step; returns its losses, averaged over batch and processes.

        Raises:
            DivergenceError: the loss is not finite.
        """
        accelerator = self.accelerator
        numbers: dict[str, Tensor] = {}
        devices = [accelerator.device] if accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(step_seed(self.config.seed, step, accelerator.process_index))
            self.inner.before_step(step)
            self.optimiser.zero_grad(set_to_none=True)
            for p, piece in enumerate(pieces):
                batch = send_to_device(piece, accelerator.device, non_blocking=True)
                n_parts = len(self.inner.parts(batch))
                for part in range(n_parts):
                    last = p == len(pieces) - 1 and part == n_parts - 1
                    # Processes exchange gradients once per step, after its last part. If they share the weights, they
                    # exchange gradients after every part, because whole gradients would take the memory to be saved.
                    with contextlib.nullcontext() if last or self.sharded else accelerator.no_sync(self.model):
                        with accelerator.autocast():
                            losses = self.model(batch, part, step)
                        accelerator.backward(losses["loss"] / len(pieces))
                    for name, value in losses.items():
                        share = value.detach().float() / len(pieces)
                        numbers[name] = numbers[name] + share if name in numbers else share
        record = self._averaged(numbers)
        if not math.isfinite(record["loss"]):
            self.log({"step": step, **record})
            raise DivergenceError(
                f"The loss is {record['loss']} at step {step}. Lower the learning rate, lengthen its warm-up or clip "
                "gradients more; float16 overflows where bfloat16 and float32 do not."
            )
        return {"step": step, **record}

    def update(self, step: int) -> Record:
        """Update the weights with the gradients of a step; returns the learning rate, weight decay and norm."""
        values = self.schedule(step)
        if self.accelerator.scaler is not None:
            self.accelerator.unscale_gradients(self.optimiser)
        self.inner.after_backward(step)
        norm = clip_each(self.inner, self.config.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = values["lr"] * group.get("lr_scale", 1.0)
            group["weight_decay"] = values["weight_decay"] if group.get("decays", True) else 0.0
        self.optimiser.step()
        model_values = self.inner.after_step(step)
        self.done = step + 1
        return {**values, **model_values, "grad_norm": norm}

    def _averaged(self, numbers: dict[str, Tensor]) -> dict[str, float]:
        stacked = torch.stack([value.reshape(()) for value in numbers.values()])
        return dict(zip(numbers, self.accelerator.reduce(stacked, "mean").tolist(), strict=True))

    def _note(self, unreadable: dict[str, str]) -> None:
        """Exchange the unreadable videos between the processes, and stop all of them if one has to stop."""
        counts = torch.tensor([len(unreadable), len(self.signals)], device=self.accelerator.device)
        if self.accelerator.num_processes > 1:
            counts = self.accelerator.reduce(counts, "sum")
            if counts[0] > 0:
                unreadable = {name: reason for names in gather_object([unreadable]) for name, reason in names.items()}
        if counts[1] > 0:
            self.signals.clear()
            raise KeyboardInterrupt
        for name, reason in self.left_out.add(unreadable).items():
            if self.accelerator.is_main_process:
                messages.warning("This video cannot be read and is left out: %s: %s", name, reason)

    def log(self, record: Record) -> None:
        """Append a record to the log and to the trackers."""
        if self.accelerator.is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_plain(record)) + "\n")
        if self.config.trackers:
            numbers = {k: v for k, v in record.items() if isinstance(v, int | float)}
            self.accelerator.log(numbers, step=record["step"])

    def catch_up(self, measure: Callable[[int], Record] | None) -> None:
        """Measure and log the last step of a run in which an error prevented that."""
        if self.incomplete and self.accelerator.is_main_process:
            cut_log(self.path, self.first - 1)
            self.complete(self.incomplete, measure)
            self.checkpoints.change_state(incomplete=None)

    def complete(self, record: Record, measure: Callable[[int], Record] | None) -> Record:
        """Add the measurements after a step to its record, and log it; after an error, a resumed run repeats both."""
        self.incomplete = record
        if measure and (self.sharded or self.accelerator.is_main_process):
            record = record | measure(record["step"])
        self.log(record)
        self.incomplete = None
        return record

    def save(self) -> None:
        """Write a checkpoint of the completed steps, unless it exists."""
        if self.done == self.saved:
            return
        weights, optimiser = self.inner.state_dict(), self.optimiser.state_dict()
        if self.sharded:
            weights, optimiser = gathered(weights), gathered(optimiser)
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "left_out": self.left_out.names,
                "scaler": scaler.state_dict() if scaler else None,
                "incomplete": self.incomplete and _plain(self.incomplete),
            }
            self.checkpoints.save(self.done, weights, optimiser, state)
        self.saved = self.done

    def close(self) -> None:
        """Let the trackers write their remaining values, and stop delaying Ctrl-C."""
        if self.config.trackers:
            self.accelerator.end_training()
        self._resources.close()


def _available(trackers: Sequence[str]) -> list[Any]:
    """The trackers, each of which must be installed.

    Raises:
        UserError: a tracker is not installed, or Accelerate does not know it.
    """
    available = sorted(str(tracker.value) for tracker in get_available_trackers())
    if missing := [tracker for tracker in trackers if tracker not in available]:
        raise UserError(
            f"The tracker {missing[0]!r} is not available; this installation has {', '.join(available) or 'none'}. "
            "Install its package, or leave it out of trackers."
        )
    return list(trackers)


def read_log(path: str | Path) -> list[Record]:
    """The records of a run's ``log.jsonl``, without an incomplete last line."""
    path = Path(path)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def cut_log(path: Path, steps: int) -> None:
    """Keep the records of the first ``steps`` steps, because steps after the checkpoint are computed again."""
    records = [record for record in read_log(path) if record["step"] < steps]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def _plain(record: Record) -> Record:
    """The record with None for NaN and infinity, which JSON does not have."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
