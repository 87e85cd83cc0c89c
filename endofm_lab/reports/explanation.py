"""What a model looked at in one clip: attention, attribution and how far each map can be believed, as a report.

`explain` computes, `write_explanation` writes report.html and maps.npz; app, lessons and command line call both.
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
    "By norms, a step counts by the length of what arrives; by attention alone, a patch that is looked at counts even "
    "if it brings nothing."
)


@dataclass(frozen=True, eq=False, repr=False)
class Explained(Brief):
    """One attribution with its trust figures.

    Attributes:
        attribution: the map (T, h, w) and its target.
        curves: deletion and insertion; their ``gap`` is 0 for a map no better than chance.
        randomised: rank correlation with maps of shuffled weights; near 1, the map ignores the model.
    """

    attribution: Attribution
    curves: Curves
    randomised: float


@dataclass(frozen=True, eq=False, repr=False)
class Explanation(Brief):
    """What a model looked at in one clip.

    Attributes:
        video: the file.
        clip: its frames and their times.
        card: the model's.
        maps: attention; None for a model without.
        rollouts: name -> (words, map (T, h, w)).
        attributions: one per method that could answer.
        refused: method, or "attention", -> why it could not.
        provenance: see `endofm_lab.folders.provenance`.
    """

    video: Path
    clip: Clip
    card: ModelCard
    maps: AttentionMaps | None
    rollouts: dict[str, tuple[str, Tensor]]
    attributions: tuple[Explained, ...]
    refused: dict[str, str]
    provenance: dict[str, Any] = field(default_factory=dict)

    def arrays(self) -> dict[str, np.ndarray]:
        """All maps by name, as ``maps.npz`` holds them, with the frames they belong to."""
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
    """Attention and attribution of one clip, each attribution with its trust figures.

    Args:
        video: a video file, a folder of frames, or one image.
        model: a model, or what `load_model` takes.
        start_s: where the clip starts; by default it is the one in the middle.
        head: which head to explain; by default the first.
        label: which class of it; by default the one with the highest score.
        methods: of attribution (`explain.attribution.METHODS`); the report names those that the model cannot answer.
        device: where the model computes, as in `predict_video`.

    Raises:
        VideoError: the video cannot be read.
        UserError: no such head, class or method.
    """
    _must_be_known(methods)
    network = model_at(model, device)
    place = next(network.parameters()).device
    clip = read_clip(video, network.card.clip, "centre" if start_s is None else start_s)
    x = to_input(clip.frames, network.card.input).to(place)
    refused: dict[str, str] = {}
    maps = None
    try:
        maps = look(network, x, norms=network.backbone.has_video_blocks)
    except UserError as error:
        refused["attention"] = str(error)
    rollouts = {} if maps is None else _rollouts(maps)
    found: list[Explained] = []
    if network.card.heads:
        head, label = _asked(network, x, head, label)
        for name in methods:
            try:
                found.append(_explained(network, x, head, label, name))
            except UserError as error:
                refused[name] = str(error)
    return Explanation(Path(video), clip, network.card, maps, rollouts, tuple(found), refused, provenance(place))


def write_explanation(explanation: Explanation, out: str | Path) -> list[Path]:
    """Write ``report.html`` (stand-alone) and ``maps.npz`` (the numbers) into a folder; returns their paths."""
    out = Path(out)
    title = f"What the model looked at: {explanation.video.name}"
    report = write_report(out / "report.html", title, _sections(explanation))
    with atomic_path(out / "maps.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, **explanation.arrays())  # type: ignore[arg-type]
    return [report, out / "maps.npz"]


def explanation_figures(explanation: Explanation) -> dict[str, go.Figure]:
    """The film strip of every map by name, for files."""
    clip = explanation.clip
    strips = {name: values for name, (_, values) in explanation.rollouts.items()}
    strips |= {entry.attribution.method: entry.attribution.values for entry in explanation.attributions}
    return {name: film_strip(clip.frames, values, clip.times_s, name) for name, values in strips.items()}


def _must_be_known(methods: Sequence[str]) -> None:
    if unknown := [name for name in methods if name not in METHODS]:
        raise UserError(f"There is no attribution method {unknown[0]!r}; there are {', '.join(METHODS)}.")


def _asked(network: VideoModel, x: Tensor, head: str | None, label: str | None) -> tuple[str, str]:
    """The head and class to explain: the first head and its highest score where none is named."""
    heads = network.card.heads
    head = head or next(iter(heads))
    answers = network.predict(x, ["this clip"])
    if label is None and head in heads:
        scores = answers[head]
        label = heads[head].classes[int(scores.argmax()) if scores.ndim == 2 else 0]
    target_of(network, head, label or "")  # refuses a head or class that is not there
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
    found = method(network, x, target)
    tested = deletion_insertion(network, x, target, found.values)
    return Explained(found, tested, randomisation_test(network, x, head, label, method, seeds=2))


def _sections(explanation: Explanation) -> list[Section]:
    clip, card = explanation.clip, explanation.card
    place = f"{len(clip.indices)} frames from {clip.times_s[0]:.2f} s to {clip.times_s[-1]:.2f} s."
    generated = " It was trained on generated video only." if card.data.get("generated") else ""
    origin = f"Model: {card.name}. Initialisation: {card.initialisation['words']}{generated}"
    sections: list[Section] = [("Clip and model", [place, origin])]
    if explanation.maps is not None:
        sections += _attention(explanation, explanation.maps)
    sections += [_attribution(clip, entry) for entry in explanation.attributions]
    if explanation.refused:
        sections.append(("Not shown", [f"{name}: {reason}" for name, reason in explanation.refused.items()]))
    return sections


def _attention(explanation: Explanation, maps: AttentionMaps) -> list[Section]:
    clip = explanation.clip
    strips = [film_strip(clip.frames, values, clip.times_s, words) for words, values in explanation.rollouts.values()]
    first = next(iter(explanation.rollouts.values()))[1]
    items: list[Item] = [_ROLLOUT, *strips, overlay(clip.frames, first, clip.times_s)]
    sections: list[Section] = [("Rollout: what reaches CLS", items)]
    if maps.kind != "space_only":
        last = maps.blocks - 1
        matrices = {f"block {last}": maps.in_time(last), "all blocks": maps.rollout_in_time()}
        sections.append(("Which frame reads which", [temporal_matrices(matrices, clip.times_s)]))
    sections.append(("Heads", [head_statistics(maps.statistics())]))
    return sections


def _attribution(clip: Clip, explained: Explained) -> Section:
    found, tested = explained.attribution, explained.curves
    complete = "" if found.completeness is None else f" Completeness error {found.completeness:.1%}."
    words = " ".join(in_words(tested, explained.randomised, found.completeness))
    trust = (
        f"{words} Insertion less deletion {tested.gap:.2f} (0: no better than chance). Rank correlation with maps of "
        f"shuffled weights {explained.randomised:.2f} (near 1: the map ignores the model).{complete}"
    )
    lines = {
        "deletion": (tested.share, tested.deletion),
        "insertion": (tested.share, tested.insertion),
        "deletion, random order": (tested.share, tested.random_deletion),
    }
    strip = film_strip(clip.frames, found.values, clip.times_s)
    return f"{found.target}, by {found.method}", [strip, trust, curves(lines, "share of patches", "score")]
