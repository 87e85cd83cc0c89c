"""Read weights files without running any code in them, and load tensors into a module strictly."""

import argparse
import hashlib
import json
import pickle
import re
import shutil
import threading
import warnings
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from endofm_lab.errors import CheckpointError, shortened

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # types that weights may be stored in

_ONE_AT_A_TIME = threading.Lock()  # torch's allow-list is global to the process


def read_weights(path: str | Path) -> dict[str, Any]:
    """The content of a safetensors, ``.pth`` or ``.pt`` file, tensors on the CPU; the format is read from its bytes.

    Tensors stay in the file until they are used (memory map), if its format allows it. Pickles are read by torch's
    restricted unpickler. Besides tensors and plain containers exactly one more name is allowed: ``argparse.Namespace``
    (the settings inside DINO-style training checkpoints).

    Raises:
        CheckpointError: the file is missing, empty, truncated, not a weights file, or a pickle that needs any other
            name.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: There is no such file. Give the path of a weights file or a model folder.")
    with path.open("rb") as file:
        start = file.read(9)
    if not start:
        raise CheckpointError(f"{path} is empty; fetch it again.")
    if start[8:9] == b"{":  # 8 bytes of header length, then JSON
        return _read_safetensors(path)
    if start[:2] == b"PK":
        _check_sums(path)
    return _read_pickle(path, mmap=start[:2] == b"PK")


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dictionary)
    except (safetensors.SafetensorError, OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}); fetch it again.") from error


def metadata_of(path: Path) -> dict[str, str]:
    """The text metadata of a safetensors file; empty for other files."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (safetensors.SafetensorError, OSError):
        return {}


def write_weights(tensors: Mapping[str, Tensor], temporary: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a temporary path of `files.atomic_path`; the same tensors and text give the same bytes.

    The writer has a temporary file of its own, which would stay after a kill: it lies in a folder that is swept.

    Raises:
        SafetensorError: the file cannot be written.
    """
    folder = temporary.with_name(f"{temporary.name}.folder")
    folder.mkdir()
    try:
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, folder / temporary.name, metadata=dict(metadata or {}) or None)
        if metadata:
            _order_metadata(folder / temporary.name)
        (folder / temporary.name).replace(temporary)
    finally:
        shutil.rmtree(folder)


def _order_metadata(path: Path) -> None:
    """Sort the text beside the tensors, in place: the writer has it in another order in every process."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length
        file.seek(8)
        file.write(text.ljust(length))


def _check_sums(path: Path) -> None:
    """Hold a file of torch.save against its own checksums, which torch does not look at."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, RuntimeError, EOFError) as error:
        if str(error) == "File is not a zip file":
            raise CheckpointError(
                f"{path} is truncated ({path.stat().st_size:,} bytes, without index); fetch it again."
            ) from error
        raise CheckpointError(f"{path} is damaged ({shortened(str(error), 200)}); fetch it again.") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: {damaged} in it has another checksum; fetch it again.")


def _read_pickle(path: Path, mmap: bool) -> dict[str, Any]:
    try:
        with (
            _ONE_AT_A_TIME,
            torch.serialization.safe_globals([argparse.Namespace]),
            warnings.catch_warnings(action="ignore"),  # about pickle protocols; what cannot be read is an error below
        ):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a foreign file can break the reader anywhere
        refused = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if refused:
            raise CheckpointError(
                f"{path} is an unsafe pickle: it asks for {refused[1].rstrip('.')}, and reading it could run code. "
                "Nothing of it was run. If you trust its source, save its tensors alone as safetensors, and read that."
            ) from error
        if "Unsupported operand" in str(error):
            raise CheckpointError(
                f"{path} is no pickle that can be read safely: torch's restricted reader knows protocols 2 and 3 only. "
                "Nothing of it was run. If you trust its source, save its tensors alone as safetensors, and read that."
            ) from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if reason.startswith("Weights only load failed"):  # followed by advice that would be wrong here
            reason = "torch's restricted reader refuses it"
        raise CheckpointError(
            f"{path} is not a weights file that can be read, or it is damaged ({reason[:200]}); "
            "expected safetensors or a file of torch.save."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors.")
    return content


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Copy ``tensors`` into every parameter and buffer of ``module``; the module is untouched if they do not fit.

    Raises:
        CheckpointError: as `check_fit`.
    """
    check_fit(module, tensors, source)
    module.load_state_dict(dict(tensors))


def check_fit(
    module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path, may_miss: Collection[str] = ()
) -> None:
    """Check that ``tensors`` are exactly the tensors of ``module``, except those in ``may_miss``.

    Raises:
        CheckpointError: a tensor is missing, left over, of another shape, or holds NaN or infinity; it is named.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    wrong = [n for n, t in tensors.items() if n in expected and tuple(t.shape) != expected[n]]
    if wrong:
        name, n_others = wrong[0], len(wrong) - 1
        raise CheckpointError(
            f"{source}: {name} has shape {tuple(tensors[name].shape)}, but the model wants {expected[name]}"
            f"{f' ({n_others} more tensors differ too)' if n_others else ''}. The file is of a network of other "
            "sizes, or damaged: `endofm-lab inspect` shows its sizes, and a backbone can be built with them."
        )
    missing = [name for name in expected if name not in tensors and name not in may_miss]
    unexpected = [name for name in tensors if name not in expected]
    if missing or unexpected:
        parts = [f"{verb} {first_of(names)}" for verb, names in (("lacks", missing), ("also has", unexpected)) if names]
        raise CheckpointError(
            f"{source} {' and '.join(parts)}, so it does not fit the model; `endofm-lab inspect` shows what it holds."
        )
    state = module.state_dict()
    for name, tensor in tensors.items():
        check_numbers(name, tensor, state[name], source)


def check_numbers(name: str, tensor: Tensor, target: Tensor, source: str | Path) -> None:
    """Check that a tensor holds numbers that a model's tensor ``target`` can store.

    Raises:
        CheckpointError: it holds NaN, infinity or numbers beyond the range of ``target``, or is of another kind.
    """
    if tensor.is_complex() or (target.is_floating_point() and tensor.dtype not in FLOATING):
        raise CheckpointError(
            f"{source}: {name} holds numbers of the type {_plain(tensor)}, but the model needs {_plain(target)}; the "
            "file is damaged, or was written by another program. Save the weights as float32."
        )
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor.to(target.dtype)).all()):
        raise CheckpointError(
            f"{source}: {name} holds NaN, infinity or numbers that are too large for {_plain(target)}; the file is "
            "damaged, or training diverged."
        )


def _plain(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def first_of(names: list[str]) -> str:
    """The first three of some names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more tensors" if len(names) > 3 else "")


def state_fingerprint(model: nn.Module) -> str:
    """SHA-256 of a model's tensors in memory with their names; it changes with every change of a weight."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()
