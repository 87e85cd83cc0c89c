"""A model as one file for use without this library: ONNX, or a program of `torch.export`, compared with the model."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from endofm_lab.errors import UserError
from endofm_lab.files import atomic_path
from endofm_lab.model.loading.load import model_at
from endofm_lab.model.video_model import VideoModel

Output = Literal["scores", "features"]
ENDINGS = (".onnx", ".pt2")
OPSET = 20
TOLERANCE = 1e-3
INSTALL = "pip install 'endofm-lab[export]'"


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
        path: the file.
        outputs: names of the outputs: heads, or "feature" and "patches".
        largest_difference: between an output of the file and of the model, absolute, over all clips that were compared.
        compared: shapes (B, T) of these clips.
        any_batch: whether clips may come in any number, else always as many as ``compared`` says.
        any_length: whether clips may have any length from two tokens on, else always that which ``compared`` says.
        tolerance: the largest difference that was allowed.
    """

    path: Path
    outputs: tuple[str, ...]
    largest_difference: float
    compared: tuple[tuple[int, int], ...]
    any_batch: bool
    any_length: bool
    tolerance: float

    def __str__(self) -> str:
        batch = "any number of clips" if self.any_batch else f"{self.compared[0][0]} clips at a time"
        length = "any length" if self.any_length else f"{self.compared[0][1]} frames"
        return (
            f"{self.path.name}: {', '.join(self.outputs)} of {batch} of {length}; largest difference to the model "
            f"{self.largest_difference:.2g} (limit {self.tolerance:g})."
        )


class Portable(nn.Module):
    """A model whose outputs are tensors by name, as `export` writes it.

    "scores": those of `VideoModel.predict`, by head. "features": "feature" (B, D), the feature of the clip, and
    "patches" (B, T, h, w, D).
    """

    def __init__(self, model: VideoModel, what: Output) -> None:
        super().__init__()
        self.model, self.what = model, what

    def forward(self, clip: Tensor) -> dict[str, Tensor]:
        """Outputs for clips (B, 3, T, H, W) float32, normalised as the card says."""
        if self.what == "features":
            tokens = self.model.backbone(clip)
            return {"feature": tokens.pooled(), "patches": tokens.patches}
        logits = self.model(clip).logits
        return {name: self.model.head(name).scores(logits[name], self.model.card.heads[name]) for name in logits}


def export(
    model: VideoModel | str | Path, path: str | Path, what: Output = "scores", tolerance: float = TOLERANCE
) -> Exported:
    """Write a model as one file that works without this library, and compare it with the model.

    ``.onnx`` is for onnxruntime and others, ``.pt2`` for ``torch.export.load(path).module()``. The input "clip" is
    (B, 3, T, H, W) float32 in the card's size, normalised as the card says; the card stands in the file as JSON (ONNX:
    the metadata "card", pt2: the extra file "card.json"). B and T are free where the model allows that. The file
    becomes visible only if its outputs agree with the model's, also for other numbers and lengths where they are free.

    Args:
        model: a model, or what `load_model` takes.
        path: a name ending in ``.onnx`` or ``.pt2``.
        what: "scores" of all heads, as `VideoModel.predict` gives them, or "features" of the backbone.
        tolerance: the largest absolute difference that is accepted.

    Raises:
        UserError: another ending, a missing package, a model without heads, one that cannot be exported, or outputs
            that differ by more than the tolerance.
    """
    path = Path(path)
    if path.suffix not in ENDINGS:
        raise UserError(f"{path.name} ends in {path.suffix or 'nothing'!r}; choose {' or '.join(ENDINGS)}.")
    if path.suffix == ".onnx":
        _require_onnx()
    source = model_at(model, "cpu")
    if what == "scores" and not source.card.heads:
        raise UserError(f"{source.card.name} has no head, and so no scores; export its features: what='features'.")
    portable = Portable(source, what).eval()
    program, free = _program(portable, source)
    with atomic_path(path) as temporary:
        _write(program, temporary, path.suffix, source, _names(portable))
        return _compared(portable, source, temporary, path, free, tolerance)


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX needs onnx, onnxscript and onnxruntime ({error}): {INSTALL}.") from error


def _clip(model: VideoModel, batch: int, frames: int) -> Tensor:
    """Clips (batch, 3, frames, S, S) of normal noise, the same in every call."""
    size = model.card.input.size_px
    return torch.randn(batch, 3, frames, size, size, generator=torch.Generator().manual_seed(0))


def _program(portable: Portable, model: VideoModel) -> tuple[Any, tuple[str, ...]]:
    """The traced model, and which of "batch" and "length" are free: as many as the model allows."""
    tokens = model.backbone.frames_per_token
    frames = model.card.clip.n_frames
    length = frames + tokens if tokens > 1 else frames  # a length of the example says nothing about others
    problem: Exception | None = None
    for free in (("batch", "length"), ("batch",), ()):
        dims: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=1024)} if "batch" in free else {}
        if "length" in free:
            dims[2] = tokens * torch.export.Dim("frames", min=2, max=1024)
        try:
            with torch.no_grad(), _silent():
                clip = _clip(model, 2, max(length, 2) if "length" in free else frames)
                return torch.export.export(portable, (clip,), dynamic_shapes=({**dims},), strict=False), free
        except Exception as error:  # what torch cannot trace it says in many classes of exception
            problem = error
    raise UserError(f"{model.card.name} cannot be exported ({type(problem).__name__}: {problem}).") from problem


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep what torch prints while it traces from the terminal."""
    level = logging.getLogger("torch").level
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.getLogger("torch").setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logging.getLogger("torch").setLevel(level)


def _write(program: Any, path: Path, ending: str, model: VideoModel, names: list[str]) -> None:
    card = json.dumps(model.card.to_json(), sort_keys=True)
    if ending == ".pt2":
        with path.open("wb") as file:
            torch.export.save(program, file, extra_files={"card.json": card})
        return
    from onnxscript import optimizer

    # Torch's own optimisation also looks for patterns, in a time that grows with the square of the number of nodes.
    # Runtimes do that when they load a file, so that folding the constants is enough here.
    with _silent():
        converted = torch.onnx.export(
            program, output_names=names, dynamo=True, opset_version=OPSET, verbose=False, optimize=False
        )
        assert converted is not None
        optimizer.fold_constants(converted.model)
        optimizer.remove_unused_nodes(converted.model)
    converted.model.metadata_props["card"] = card
    converted.save(str(path), external_data=False)


def _compared(
    portable: Portable, model: VideoModel, temporary: Path, path: Path, free: tuple[str, ...], tolerance: float
) -> Exported:
    """The record of a file whose outputs agree with the model's."""
    frames, tokens = model.card.clip.n_frames, model.backbone.frames_per_token
    shapes = [(2, frames)]
    shapes += [(3, frames)] if "batch" in free else []
    shapes += [(1, frames + 3 * tokens), (1, 2 * tokens)] if "length" in free else []
    run = _runner(temporary, path.suffix)
    difference, names = 0.0, tuple(_names(portable))
    for batch, length in shapes:
        clip = _clip(model, batch, length)
        with torch.no_grad():
            expected = portable(clip)
        for name, output in zip(names, run(clip), strict=True):
            if output.shape != tuple(expected[name].shape):
                raise UserError(f"{path.name} gives {name} of shape {output.shape}, not {tuple(expected[name].shape)}.")
            difference = max(difference, float(np.abs(output - expected[name].numpy()).max()))
    if not difference <= tolerance:
        raise UserError(
            f"{path.name} differs from {model.card.name} by {difference:.3g}, more than {tolerance:g}, and was not "
            "written. Choose the other format, or a larger tolerance if that is enough for you."
        )
    return Exported(path, names, difference, tuple(shapes), "batch" in free, "length" in free, tolerance)


def _names(portable: Portable) -> list[str]:
    return ["feature", "patches"] if portable.what == "features" else list(portable.model.card.heads)


def _runner(path: Path, ending: str) -> Callable[[Tensor], list[np.ndarray]]:
    """What computes the outputs of the written file, in their order."""
    if ending == ".pt2":
        with path.open("rb") as file:
            module = torch.export.load(file).module()
        return lambda clip: [value.detach().numpy() for value in module(clip).values()]
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda clip: [np.asarray(value) for value in session.run(None, {"clip": clip.numpy()})]
