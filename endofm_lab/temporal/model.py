"""A model of time: inputs, a network, a smoother, and a card that names the encoder whose vectors it takes."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from endofm_lab import __version__
from endofm_lab.brief import Brief
from endofm_lab.errors import CheckpointError, UserError
from endofm_lab.explain.embeddings import EmbeddingStore
from endofm_lab.files import atomic_path, fits, read_object, sha256_of, write_json
from endofm_lab.metrics.smoothing import hmm_filter, hmm_filter_step, hmm_smooth
from endofm_lab.model.card import RESEARCH_USE
from endofm_lab.model.weight_files import check_fit, read_weights, write_weights
from endofm_lab.temporal.inputs import InputConfig, Inputs
from endofm_lab.temporal.networks import MOST, NetworkConfig, build_network

CARD, WEIGHTS = "temporal.json", "model.safetensors"
_LOWEST = 1e-9  # a score of 0 would rule a class out for good


@dataclass(frozen=True, repr=False)
class TemporalCard(Brief):
    """All facts about a model of time that are not in its tensors.

    Attributes:
        name: name in reports.
        classes: what it answers, in order.
        several: any number of classes may be true at once.
        smooth: its answers are smoothed by the hidden Markov model that it carries.
        width: D of the vectors.
        network: kind and sizes of the network.
        inputs: what the network is shown.
        step_s: seconds between the instants of training.
        encoder: "name", "fingerprint" and "vector" of the encoder's store.
        data: fingerprint of the training manifest, and whether the data are generated.
        metrics: measured numbers by name.
        licence: of the weights.
        version: of this library.
        weights_sha256: of the weights file; None before it is saved.
    """

    name: str
    classes: tuple[str, ...]
    several: bool
    smooth: bool
    width: int
    network: NetworkConfig
    inputs: InputConfig
    step_s: float
    encoder: dict[str, str]
    data: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    licence: str = RESEARCH_USE
    version: str = __version__
    weights_sha256: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) <= MOST["classes"] or not 1 <= self.width <= MOST["inputs"]:
            raise CheckpointError(
                f"A model of time has {len(self.classes)} classes and vectors of {self.width}; give 1 to "
                f"{MOST['classes']:,} classes and vectors of up to {MOST['inputs']:,}."
            )


class TemporalModel(nn.Module):
    """Answers at every instant of a recording, from the vectors of an encoder.

    ``transition`` (K, K) and ``prior`` (K,) are those of the smoother, counted in training.
    """

    transition: Tensor
    prior: Tensor

    def __init__(self, card: TemporalCard) -> None:
        super().__init__()
        self.card = card
        K = len(card.classes)
        self.inputs = Inputs(card.inputs, card.width, card.network.offline)
        self.network = build_network(card.network, self.inputs.n_outputs, K, card.several)
        self.register_buffer("transition", torch.full((K, K), 1 / K, dtype=torch.float64))
        self.register_buffer("prior", torch.full((K,), 1 / K, dtype=torch.float64))

    def __repr__(self) -> str:
        sees = "the whole recording" if self.card.network.offline else "the past"
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        return (
            f"TemporalModel({self.card.name!r}, {self.card.network.kind}, sees {sees}, {len(self.card.classes)} "
            f"classes, {parameters:,} parameters)"
        )

    def forward(self, vectors: Tensor, times_s: Tensor) -> Tensor:
        """Logits (S, T, K) of the stages, from vectors (T, D) and their times (T,)."""
        return self.network(self.inputs(vectors, times_s))

    @torch.inference_mode()
    def scores(self, vectors: ArrayLike, times_s: ArrayLike, smooth: bool | None = None) -> NDArray[np.float64]:
        """Scores (T, K) of a recording in 0..1: exclusive classes sum to one.

        Args:
            vectors: (T, D) of the encoder; NaN where there is none.
            times_s: (T,) seconds from the start, increasing.
            smooth: whether the hidden Markov model smooths the scores; by default as the card says.

        Raises:
            UserError: the vectors have another width, or the scores cannot be smoothed (`smoothed`).
        """
        vectors, times = np.asarray(vectors, np.float32), np.asarray(times_s, np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.card.width or times.shape != vectors.shape[:1]:
            raise UserError(
                f"The vectors have shape {vectors.shape} with {times.shape} times; {self.card.name} takes "
                f"(T, {self.card.width}) of {self.card.encoder['name']}, and T times."
            )
        logits = self.eval()(torch.from_numpy(vectors), torch.from_numpy(times))[-1].double()
        scores = self._probabilities(logits).numpy()
        return self.smoothed(scores) if (self.card.smooth if smooth is None else smooth) else scores

    def smoothed(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores (T, K) after the smoother, which is causal for causal networks.

        Raises:
            UserError: several classes may be true at once, or a class had no instant in training.
        """
        if self.card.several:
            raise UserError(f"{self.card.name} answers with several labels, and the smoother is for exclusive classes.")
        if missing := [name for name, share in zip(self.card.classes, self.prior, strict=True) if share <= 0]:
            raise UserError(
                f"{', '.join(missing)} had no instant in the training of {self.card.name}, so the smoother knows "
                "nothing of it. Leave out smooth, or embed the videos with a shorter step."
            )
        method = hmm_smooth if self.card.network.offline else hmm_filter
        return method(np.clip(scores, _LOWEST, None), self.transition.numpy(), self.prior.numpy())

    @torch.inference_mode()
    def stream(self, instants: Iterator[tuple[NDArray[np.float32], float]]) -> Iterator[NDArray[np.float64]]:
        """Scores (K,) of every instant as it arrives, the same as `scores` gives for the whole recording.

        Args:
            instants: vectors (D,) with their times in seconds.

        Raises:
            UserError: the model sees the whole recording, so it cannot answer before its end.
        """
        if self.card.network.offline:
            raise UserError(f"{self.card.name} sees the whole recording. Train a causal model to answer as it runs.")
        self.eval()
        state, past = self.network.begin(), self.inputs.begin()
        belief: NDArray[np.float64] | None = None
        for vector, time_s in instants:
            x = self.inputs.step(torch.from_numpy(np.asarray(vector, np.float32)), float(np.float32(time_s)), past)
            scores = self._probabilities(self.network.step(x, state).double()).numpy()
            if self.card.smooth:
                floored = np.clip(scores, _LOWEST, None)
                scores = belief = hmm_filter_step(belief, floored, self.transition.numpy(), self.prior.numpy())
            yield scores

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self.card.several else logits.softmax(-1)

    def must_fit(self, store: EmbeddingStore) -> None:
        """Refuse vectors of another encoder, of another version of it, or of other tokens.

        Raises:
            UserError: the message names both.
        """
        about, encoder = store.about, self.card.encoder
        if about["model_fingerprint"] != encoder["fingerprint"] or about["vector"] != encoder["vector"]:
            raise UserError(
                f"{store.path} holds vectors of {about['model_name']} ({about['model_fingerprint'][:12]}, "
                f"{about['vector']}), but {self.card.name} takes those of {encoder['name']} "
                f"({encoder['fingerprint'][:12]}, {encoder['vector']}). Embed the videos with that encoder."
            )


def save_temporal(model: TemporalModel, folder: str | Path) -> Path:
    """Write ``model.safetensors`` and ``temporal.json`` into a folder; either both are written or neither.

    Raises:
        CheckpointError: ``folder`` is a file, or the weights cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file, but a model is saved as a folder. Choose another name.")
    with atomic_path(folder / CARD) as card_part, atomic_path(folder / WEIGHTS) as weights_part:
        try:
            write_weights(model.state_dict(), weights_part)
        except SafetensorError as error:
            raise CheckpointError(f"{folder / WEIGHTS} cannot be written ({error}). Make room.") from error
        card = replace(model.card, weights_sha256=sha256_of(weights_part))
        write_json(card_part, asdict(card))
    model.card = card
    return folder


_TYPES = {name: kind for name, kind in get_type_hints(TemporalCard).items() if name not in ("network", "inputs")}


def load_temporal(folder: str | Path) -> TemporalModel:
    """The model of time in a folder, in evaluation mode.

    Raises:
        CheckpointError: the folder holds none, or card and weights are damaged or do not belong together.
    """
    folder = Path(folder)
    remedy = "Copy the model again, or fit it again."
    if not (folder / CARD).is_file():
        raise CheckpointError(f"{folder} holds no model of time: {CARD} is missing. Give a folder `model` of a run.")
    try:
        value = read_object(folder / CARD, {**_TYPES, "network": dict, "inputs": dict}, remedy)
        for name, kind in (("network", NetworkConfig), ("inputs", InputConfig)):
            value[name] = _config(kind, value[name], f"{folder / CARD}: {name}")
        names = {item.name for item in fields(TemporalCard)}
        card = TemporalCard(**{**{k: v for k, v in value.items() if k in names}, "classes": tuple(value["classes"])})
    except CheckpointError:
        raise
    except UserError as error:
        raise CheckpointError(str(error)) from error
    if {"name", "fingerprint", "vector"} - card.encoder.keys():
        raise CheckpointError(f"{folder / CARD}: The encoder lacks its name, fingerprint or vector. {remedy}")
    if not (folder / WEIGHTS).is_file() or sha256_of(folder / WEIGHTS) != card.weights_sha256:
        raise CheckpointError(f"{folder / WEIGHTS} is not the file of weights that the card describes. {remedy}")
    model, tensors = TemporalModel(card), read_weights(folder / WEIGHTS)
    check_fit(model, tensors, folder / WEIGHTS)
    model.load_state_dict(tensors)
    return model.eval()


def _config(kind: type[Any], value: dict[str, Any], where: str) -> Any:
    """A configuration from JSON values."""
    types = get_type_hints(kind)
    wrong = [name for name, entry in value.items() if name not in types or not fits(entry, types[name])]
    if wrong:
        raise CheckpointError(f"{where} has {wrong[0]} = {value[wrong[0]]!r}, which is not possible. Fit it again.")
    return kind(**value)
