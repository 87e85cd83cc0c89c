"""Spoiled weights, and finished predictions, stores, runs and studies of which a file was damaged."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from endofm_lab.explain.embeddings import load_store
from endofm_lab.model.loading.load import load_model, load_state
from endofm_lab.model.transformer import build_backbone
from endofm_lab.prediction import load_prediction
from endofm_lab.runs.run import read_run
from endofm_lab.study.study import load_study
from tests.faults.campaign import Case
from tests.faults.jobs import JOBS, Inputs
from tests.faults.tables import spoiled
from tests.faults.videos import mutations

Tensors = dict[str, torch.Tensor]


def checkpoints(folder: Path, seed: int) -> Iterator[Case]:
    """Spoiled weights: of a model folder, in safetensors and torch files without a card, and with odd tensors.

    A file without a card has no hash: of safetensors only damage to the structure can be told, not a changed number.
    """
    rng = np.random.default_rng(seed)
    model = Inputs(folder).model
    whole = dict(load_model(model).state_dict())
    bare = {f"backbone.{name}": tensor for name, tensor in build_backbone("micro").state_dict().items()}
    torch.save(bare, folder / "bare.pth")
    save_file(bare, folder / "bare.safetensors")
    of_model = partial(_model_is_whole, model, folder / "spoiled", whole)
    copies = [
        ("model", mutations(model / "model.safetensors", seed), of_model),
        ("torch", mutations(folder / "bare.pth", seed), partial(_state_is_whole, folder / "spoiled.pth", bare)),
        ("safetensors", _structural(mutations(folder / "bare.safetensors", seed)),
         partial(_state_is_whole, folder / "spoiled.safetensors", bare)),
    ]  # fmt: skip
    for turn, (kind, stream, attempt) in enumerate(cycle(copies)):
        change, data = next(stream)
        yield Case(f"{kind}, {change}", partial(attempt, data))
        if turn % 3 == 2:
            name, tensors = _odd(bare, rng)
            yield Case(name, partial(_odd_is_refused, folder / "odd.safetensors", tensors))


def _structural(copies: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    return (copy for copy in copies if copy[0].startswith(("truncate", "append", "delete", "insert", "repeat")))


def _model_is_whole(model: Path, copy: Path, whole: Tensors, data: bytes) -> bool:
    shutil.copytree(model, copy, dirs_exist_ok=True)
    (copy / "model.safetensors").write_bytes(data)
    tensors = load_model(copy).state_dict()
    return tensors.keys() == whole.keys() and all(torch.equal(tensors[name], whole[name]) for name in whole)


def _state_is_whole(path: Path, bare: Tensors, data: bytes) -> bool:
    path.write_bytes(data)
    tensors = load_state(path).tensors
    return tensors.keys() == bare.keys() and all(torch.equal(tensors[name], bare[name]) for name in bare)


def _odd(bare: Tensors, rng: np.random.Generator) -> tuple[str, Tensors]:
    """Weights with one tensor that cannot be: of another shape, name, kind of number, or not finite."""
    name = str(rng.choice(list(bare)))
    change = str(rng.choice(["nan", "inf", "shape", "gone", "renamed", "integers", "booleans", "complex", "block"]))
    tensors, tensor = dict(bare), bare[name]
    if change in ("nan", "inf"):
        tensors[name] = torch.full_like(tensor, float(change))
    elif change == "shape":
        tensors[name] = torch.zeros((*tensor.shape, 2))
    elif change in ("integers", "booleans", "complex"):
        kind = {"integers": torch.int64, "booleans": torch.bool, "complex": torch.complex64}[change]
        tensors[name] = tensor.to(kind)
    elif change == "block":
        tensors["backbone.blocks.1000000000.norm1.weight"] = torch.zeros(32)
    else:
        tensors[f"{name}s"] = tensors.pop(name)
        if change == "gone":
            del tensors[f"{name}s"]
    return f"{change} {name}", tensors


def _odd_is_refused(path: Path, tensors: Tensors) -> bool:
    from endofm_lab.model.loading.load import initialise

    save_file(tensors, path)
    backbone = build_backbone("micro")
    record = initialise(backbone, path)
    # Not refused: then what was left out is named, and nothing that is no number came in.
    has_record = bool(record.get("new") or record.get("not_taken") or record.get("resized"))
    return has_record and all(bool(torch.isfinite(p).all()) for p in backbone.parameters())


READERS: dict[str, Callable[[Path], Any]] = {
    "predict": load_prediction, "embed": load_store, "evaluate": read_run, "study": load_study,
}  # fmt: skip


def results(folder: Path, seed: int) -> Iterator[Case]:
    """Finished folders with one damaged, changed or missing file: what is read is what was written, or refused."""
    inputs, rng = Inputs(folder / "inputs"), np.random.default_rng(seed)
    streams = []
    for name, read in READERS.items():
        JOBS[name](inputs, folder / name)
        truth = _content(read(folder / name))
        for path in sorted(path for path in (folder / name).rglob("*") if path.is_file() and path.suffix != ".png"):
            streams.append((name, path, mutations(path, seed), read, truth))
    for turn in count():
        name, path, copies, read, truth = streams[turn % len(streams)]
        change, data = next(copies)
        if turn % 7 == 3:
            change, data = "is gone", None
        elif path.suffix == ".json" and turn % 2:
            change, changed = spoiled(json.loads(path.read_text()), rng)
            data = json.dumps(changed).encode()
        relative = path.relative_to(folder / name)
        attempt = partial(_is_read, folder / name, folder / "spoiled" / name, relative, data, read, truth)
        yield Case(f"{name}, {relative}, {change}", attempt)


def _is_read(
    whole: Path, copy: Path, name: Path, data: bytes | None, read: Callable[[Path], Any], truth: list[Any]
) -> bool:
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy)
    (copy / name).unlink() if data is None else (copy / name).write_bytes(data)
    return _content(read(copy)) == truth


def _content(result: Any) -> list[Any]:
    """Everything in a result as values that can be compared; where the folder lies does not count."""
    return [_value(value) for name, value in sorted(vars(result).items()) if name != "path"]


def _value(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.shape, str(value.dtype), value.tobytes()
    if isinstance(value, pd.DataFrame):
        return value.to_json(), list(value.columns)
    if isinstance(value, dict):
        return {key: _value(item) for key, item in value.items()}
    return repr(value)
