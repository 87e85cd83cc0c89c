"""The explanation of a model's output for one clip: attention, attribution, and how far each map can be trusted.

`explain` computes the maps, and `write_explanation` writes report.html and maps.npz. The app, the lessons and the
command line call both.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from torch import Tensor

from endofm_lab.brief import Brief
from endofm_lab.errors import UserError
from endofm_lab.explain.attention import AttentionMaps, look
from endofm_lab.explain.attribution import METHODS, Attribution
from endofm_lab.explain.targets import target_of
from endofm_lab.explain.trust import Curves, deletion_insertion, in_words, randomisation_test
from endofm_lab.familiarity.clips import text_of
from endofm_lab.figures.attention import curves, film_strip, head_statistics, overlay, temporal_matrices
from endofm_lab.files import atomic_path
from endofm_lab.folders.provenance import provenance
from endofm_lab.model.card import ModelCard
from endofm_lab.model.loading.load import model_at
from endofm_lab.model.video_model import VideoModel
from endofm_lab.reports.html import Item, Section, write_report
from endofm_lab.video.clips import Clip, read_clip
from endofm_lab.video.transforms import to_input

DEFAULT_METHODS = ("attention relevance", "integrated gradients", "Grad-CAM")
_ROLLOUT = (
    "By norms, each step is weighted by the length of the vector that arrives; by attention alone, a patch that is "
    "attended to counts even if it contributes nothing."
)


@dataclass(frozen=True, eq=False, repr=False)
class Explained(Brief):
    """One attribution with measures of how far it can be trusted.

    Attributes:
        attribution: the map (T, h, w) and its target.
        curves: deletion and insertion curves; their ``gap`` is 0 for a map that is no better than chance.
        randomised: rank correlation with maps of the same model with shuffled weights; near 1, the map ignores the
            model.
    """

    attribution: Attribution
    curves: Curves
    randomised: float


@dataclass(frozen=True, eq=False, repr=False)
class Explanation(Brief):
    """Attention and attribution of one clip.

    Attributes:
        video: the video file.
        clip: the frames of the clip and their times.
        card: the card of the model.
        maps: attention; None for a model without attention.
        rollouts: name -> (description, map (T, h, w)).
        attributions: one per method that works with the model.
        refused: method, or "attention" -> the reason why it does not work with the model.
        provenance: see `endofm_lab.folders.provenance`.
        distance: (1,), how far the clip is from what the model learned, as `VideoPrediction.distance`; None if unknown.
    """

    video: Path
    clip: Clip
    card: ModelCard
    maps: AttentionMaps | None
    rollouts: dict[str, tuple[str, Tensor]]
    attributions: tuple[Explained, ...]
    refused: dict[str, str]
    provenance: dict[str, Any] = field(default_factory=dict)
    distance: np.ndarray | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """The content of ``maps.npz``: all maps by name, and the numbers and times of their frames."""
        arrays = {"frames": self.clip.indices, "times_s": self.clip.times_s}
        arrays |= {name: values.numpy() for name, (_, values) in self.rollouts.items()}
        if self.maps is not None:
            blocks = range(self.maps.blocks)
            arrays["cls_in_space"] = np.stack([self.maps.in_space(block).numpy() for block in blocks])
            if self.maps.kind != "space_only":
                arrays["time"] = np.stack([self.maps.in_time(block).numpy() for block in blocks])
                arrays["rollout_in_time"] = self.maps.rollout_in_time().numpy()
        for entry in self.attributions:
            name = entry.attribution.method.replace(" ", "_").replace("-", "_").lower()
            arrays[name] = entry.attribution.values.numpy()
        return arrays


def explain(
    video: str | Path,
    model: VideoModel | str | Path = "demo",
    start_s: float | None = None,
    head: str | None = None,
    label: str | None = None,
    methods: Sequence[str] = DEFAULT_METHODS,
    device: str = "auto",
) -> Explanation:
    """Compute attention and attribution of one clip, and for each attribution how far it can be trusted.

    Args:
        video: a video file, a folder of frames, or one image.
        model: a model, or anything that `load_model` takes.
        start_s: start of the clip in seconds; by default the clip in the middle of the video.
        head: head to explain; by default the first head.
        label: class of that head to explain; by default the class with the highest score.
        methods: attribution methods (`explain.attribution.METHODS`); the report names those that do not work with the
            model.
        device: device that the model runs on, as in `predict_video`.

    Raises:
        VideoError: the video cannot be read.
        UserError: the head, the class or a method does not exist.
    """
    _refuse_unknown(methods)
    network = model_at(model, device)
    network_device = next(network.parameters()).device
    clip = read_clip(video, network.card.clip, "centre" if start_s is None else start_s)
    x = to_input(clip.frames, network.card.input).to(network_device)
    refused: dict[str, str] = {}
    maps = None
    try:
        maps = look(network, x, norms=network.backbone.has_video_blocks)
    except UserError as error:
        refused["attention"] = str(error)
    rollouts = {} if maps is None else _rollouts(maps)
    explained: list[Explained] = []
    if network.card.heads:
        head, label = _head_and_class(network, x, head, label)
        for name in methods:
            try:
                explained.append(_explained(network, x, head, label, name))
            except UserError as error:
                refused[name] = str(error)
    return Explanation(
        Path(video),
        clip,
        network.card,
        maps,
        rollouts,
        tuple(explained),
        refused,
        provenance(network_device),
        _distance(network, x),
    )


def write_explanation(explanation: Explanation, out: str | Path) -> list[Path]:
    """Write ``report.html`` (a stand-alone page) and ``maps.npz`` (the maps) into a folder; returns their paths."""
    out = Path(out)
    title = f"What the model looked at: {explanation.video.name}"
    report = write_report(out / "report.html", title, _sections(explanation), explanation.provenance)
    with atomic_path(out / "maps.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, **explanation.arrays())  # type: ignore[arg-type]
    return [report, out / "maps.npz"]


def explanation_figures(explanation: Explanation) -> dict[str, go.Figure]:
    """The film strip of every map by its name, to be written as files."""
    clip = explanation.clip
    strips = {name: values for name, (_, values) in explanation.rollouts.items()}
    strips |= {entry.attribution.method: entry.attribution.values for entry in explanation.attributions}
    return {name: film_strip(clip.frames, values, clip.times_s, name) for name, values in strips.items()}


def _refuse_unknown(methods: Sequence[str]) -> None:
    if unknown := [name for name in methods if name not in METHODS]:
        raise UserError(f"There is no attribution method {unknown[0]!r}. The methods are {', '.join(METHODS)}.")


def _distance(network: VideoModel, x: Tensor) -> np.ndarray | None:
    """(1,), how far a clip is from what the model learned; None if the model has no statistics."""
    if network.familiarity is None:
        return None
    return network.familiarity.distances(network.answer(x, ["this clip"])[1])


def _head_and_class(network: VideoModel, x: Tensor, head: str | None, label: str | None) -> tuple[str, str]:
    """The head and class to explain; by default the first head and its class with the highest score."""
    heads = network.card.heads
    head = head or next(iter(heads))
    predictions = network.predict(x, ["this clip"])
    if label is None and head in heads:
        scores = predictions[head]
        label = heads[head].classes[int(scores.argmax()) if scores.ndim == 2 else 0]
    target_of(network, head, label or "")  # raises an error if the head or the class does not exist
    return head, label or ""


def _rollouts(maps: AttentionMaps) -> dict[str, tuple[str, Tensor]]:
    late = maps.since(max(-2, -maps.blocks))
    rollouts = {
        "rollout": ("rollout by attention, through all blocks", maps.rollout()),
        "rollout_late": ("rollout by attention, through the last two blocks", late.rollout()),
    }
    if not maps.norms:
        return rollouts
    return {"rollout_by_norms": ("rollout by norms, through all blocks", maps.rollout(by="norms"))} | rollouts


def _explained(network: VideoModel, x: Tensor, head: str, label: str, name: str) -> Explained:
    method, target = METHODS[name], target_of(network, head, label)
    attribution = method(network, x, target)
    tested = deletion_insertion(network, x, target, attribution.values)
    return Explained(attribution, tested, randomisation_test(network, x, head, label, method, seeds=2))


def _sections(explanation: Explanation) -> list[Section]:
    clip, card = explanation.clip, explanation.card
    words = f"{len(clip.indices)} frames from {clip.times_s[0]:.2f} s to {clip.times_s[-1]:.2f} s."
    generated = " It was trained on generated video only." if card.data.get("generated") else ""
    origin = f"Model: {card.name}. Initialisation: {card.initialisation['words']}{generated}"
    sections: list[Section] = [("Clip and model", [words, origin, text_of(explanation.distance)])]
    if explanation.maps is not None:
        sections += _attention(explanation, explanation.maps)
    sections += [attribution_section(clip, entry) for entry in explanation.attributions]
    if explanation.refused:
        sections.append(("Not shown", [f"{name}: {reason}" for name, reason in explanation.refused.items()]))
    return sections


def _attention(explanation: Explanation, maps: AttentionMaps) -> list[Section]:
    clip = explanation.clip
    strips = [film_strip(clip.frames, values, clip.times_s, words) for words, values in explanation.rollouts.values()]
    first = next(iter(explanation.rollouts.values()))[1]
    items: list[Item] = [_ROLLOUT, *strips, overlay(clip.frames, first, clip.times_s)]
    sections: list[Section] = [(f"Rollout: what reaches {maps.reader}", items)]
    if maps.kind != "space_only":
        last = maps.blocks - 1
        matrices = {f"block {last}": maps.in_time(last), "all blocks": maps.rollout_in_time()}
        sections.append(("Which frame reads which", [temporal_matrices(matrices, clip.times_s)]))
    sections.append(("Heads", [head_statistics(maps.statistics())]))
    return sections


def attribution_section(clip: Clip, explained: Explained) -> Section:
    """The section of a report on one map: its film strip, and how far the map can be trusted."""
    attribution, tested = explained.attribution, explained.curves
    complete = "" if attribution.completeness is None else f" Completeness error: {attribution.completeness:.1%}."
    words = " ".join(in_words(tested, explained.randomised, attribution.completeness))
    trust = (
        f"{words} Insertion minus deletion: {tested.gap:.2f} (0: no better than chance). Rank correlation with maps of "
        f"shuffled weights: {explained.randomised:.2f} (near 1: the map ignores the model).{complete}"
    )
    lines = {
        "deletion": (tested.share, tested.deletion),
        "insertion": (tested.share, tested.insertion),
        "deletion, random order": (tested.share, tested.random_deletion),
    }
    strip = film_strip(clip.frames, attribution.values, clip.times_s)
    return f"{attribution.target}, by {attribution.method}", [strip, trust, curves(lines, "share of patches", "score")]
