"""Phases and tools of CholecT50's four open videos over time, from the vectors of a frozen image model.

    python -m docs.experiments.models_of_time_on_cholect50 DATA VIT_S.safetensors OUT

DATA holds ``cholect50/``. Each video is left out in turn and tested once. Settings are chosen by leaving out one of the
other three in turn (two to learn from), by the mean accuracy of phases or the mean average precision of tools; the test
video chooses nothing. With four patients there are no intervals. A call that was stopped continues.
"""

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from endofm_lab.data.manifest import Manifest, read_manifest
from endofm_lab.data.prepare.prepare import prepare
from endofm_lab.explain.embeddings import EmbeddingStore, embed
from endofm_lab.files import write_json
from endofm_lab.metrics.classification import macro_average_precision
from endofm_lab.metrics.phases import phase_metrics
from endofm_lab.metrics.probes import L2
from endofm_lab.model.video_model import build_frame_model
from endofm_lab.tasks.classification import Classification
from endofm_lab.tasks.examples import examples_of
from endofm_lab.tasks.labels import class_head, class_targets
from endofm_lab.tasks.phases import Phases
from endofm_lab.temporal.config import TemporalConfig
from endofm_lab.temporal.inputs import InputConfig
from endofm_lab.temporal.model import TemporalCard, TemporalModel
from endofm_lab.temporal.networks import NetworkConfig
from endofm_lab.temporal.recordings import Recording, labelled_recordings
from endofm_lab.temporal.training import fit_exactly, fit_network
from endofm_lab.temporal.training import prepare as learn_inputs

LINEAR, LINEAR_OFFLINE = NetworkConfig("linear"), NetworkConfig("linear", offline=True)
TCN = NetworkConfig("tcn", layers=6, width=32, dropout=0.5)
STEPS = 120


@dataclass(frozen=True)
class Setting:
    """One way to answer: the network, its inputs, its penalty, and whether the answers are smoothed.

    ``blind``: the network is shown the clock and not the pictures.
    """

    network: NetworkConfig = LINEAR
    inputs: InputConfig = field(default_factory=InputConfig)
    l2: float = 0.1
    smooth: bool = False
    blind: bool = False


class BlindRecording(Recording):
    """A recording whose pictures are not seen."""

    def vectors(self) -> NDArray[np.float32]:
        """(T, D) zeros."""
        return np.zeros_like(super().vectors())


def grid(network: NetworkConfig, **choices: Sequence) -> list[Setting]:
    """All combinations of penalties (of linear networks) and inputs."""
    penalties = L2[:3] if network.kind == "linear" else L2[:1]
    smooths, blinds = choices.pop("smooth", (False,)), choices.pop("blind", (False,))
    inputs = [InputConfig(**dict(zip(choices, values, strict=True))) for values in product(*choices.values())]
    return [Setting(network, *rest) for rest in product(inputs, penalties, smooths, blinds)]


def phase_methods() -> dict[str, list[Setting]]:
    """Name -> the settings to choose among."""
    few, clock = (8, 16, 32), (True,)
    causal, tcn_offline = replace(TCN, offline=False), replace(TCN, offline=True)
    return {
        "linear, one frame": grid(LINEAR),
        "clock alone, causal": grid(LINEAR, clock=clock, blind=(True,)),
        "linear, components and clock, causal": grid(LINEAR, components=few, clock=clock),
        "the same, smoothed, causal": grid(LINEAR, components=few, clock=clock, smooth=(True,)),
        "tcn, causal": grid(causal, components=(32,), clock=(False, True)),
        "linear, smoothed, offline": grid(LINEAR_OFFLINE, smooth=(True,)),
        "linear, mean over seconds, offline": grid(LINEAR_OFFLINE, average_s=(10.0, 120.0)),
        "clock alone, offline": grid(LINEAR_OFFLINE, clock=clock, blind=(True,)),
        "linear, components and clock, offline": grid(LINEAR_OFFLINE, components=few, clock=clock),
        "the same, smoothed or averaged, offline": grid(
            LINEAR_OFFLINE, components=few, clock=clock, average_s=(0.0, 30.0), smooth=(False, True)
        ),
        "tcn, offline": grid(tcn_offline, components=(32,), clock=(False,)),
        "tcn, clock, offline": grid(tcn_offline, components=(32,), clock=clock),
    }


def tool_methods() -> dict[str, list[Setting]]:
    """Name -> the settings to choose among."""
    tcn = replace(TCN, layers=3)
    return {
        "linear, one frame": grid(LINEAR),
        "linear, mean over seconds, causal": grid(LINEAR, average_s=(4.0, 8.0)),
        "linear, mean over seconds, offline": grid(LINEAR_OFFLINE, average_s=(4.0, 8.0, 30.0)),
        "linear, components and mean, offline": grid(LINEAR_OFFLINE, components=(32, 64), average_s=(4.0, 8.0, 30.0)),
        "tcn, causal": grid(tcn, components=(64,)),
        "tcn, offline": grid(replace(tcn, offline=True), components=(64,)),
    }


@dataclass
class Question:
    """Phases or tools: recordings with targets, and the answers that were computed before."""

    name: str
    classes: tuple[str, ...]
    recordings: dict[str, Recording]
    store: EmbeddingStore
    folder: Path

    @property
    def several(self) -> bool:
        """Whether any number of classes may be true at once."""
        return self.name == "tools"

    def scores(self, setting: Setting, training: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """Scores (T, K) of every video that is not learned from."""
        blind = BlindRecording if setting.blind else Recording
        learned = [blind(**vars(self.recordings[name])) for name in training]
        torch.manual_seed(0)
        model = TemporalModel(self._card(setting))
        learn_inputs(model, learned)
        if setting.network.kind == "linear":
            fit_exactly(model, learned, setting.l2)
        else:
            task = Classification("instruments", True) if self.several else Phases()
            config = TemporalConfig(Path(), Path(), Path(), setting.network, steps=STEPS, validate_every=STEPS, lr=2e-3)
            with tempfile.TemporaryDirectory() as folder:
                for _ in fit_network(config, 0, task, model, {"train": learned, "val": []}, Path(folder)):
                    pass
        tested = [name for name in self.recordings if name not in training]
        return {
            name: model.scores(blind(**vars(self.recordings[name])).vectors(), self.recordings[name].times_s)
            for name in tested
        }

    def _card(self, setting: Setting) -> TemporalCard:
        about = self.store.about
        encoder = {"name": "ViT-S", "fingerprint": about["model_fingerprint"], "vector": about["vector"]}
        return TemporalCard(
            self.name,
            self.classes,
            self.several,
            setting.smooth,
            about["width"],
            setting.network,
            setting.inputs,
            1.0,
            encoder,
        )

    def measured(self, name: str, scores: NDArray[np.float64]) -> dict[str, float]:
        """The metrics of one video at its labelled instants."""
        recording = self.recordings[name]
        target, scores = recording.target[recording.labelled], scores[recording.labelled]
        if self.several:
            return {"mean AP": float(macro_average_precision(target, scores))}
        return phase_metrics([name] * len(target), target, scores.argmax(1)).iloc[0].to_dict()

    def values(self, setting: Setting) -> dict[str, dict[str, float]]:
        """The metrics of all tests with two and with three videos to learn from, kept on disk."""
        name = hashlib.sha256(repr(setting).encode()).hexdigest()[:16]
        path = self.folder / self.name / f"{name}.json"
        if not path.exists():
            values = {}
            for number in (2, 3):
                for training in combinations(sorted(self.recordings), number):
                    for video, scores in self.scores(setting, training).items():
                        values[f"{' '.join(training)} -> {video}"] = self.measured(video, scores)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, values)
        return json.loads(path.read_text())

    def tested(self, settings: Sequence[Setting], metric: str) -> pd.DataFrame:
        """The metrics of every video, each with the setting that the other three choose; one row per video."""
        values, rows = [self.values(setting) for setting in settings], {}
        for video in sorted(self.recordings):
            others = [name for name in sorted(self.recordings) if name != video]
            inner = [
                np.mean([v[f"{' '.join(n for n in others if n != held)} -> {held}"][metric] for held in others])
                for v in values
            ]
            best = int(np.argmax(inner))
            rows[video] = {**values[best][f"{' '.join(others)} -> {video}"], "chosen": str(settings[best])}
        return pd.DataFrame.from_dict(rows, orient="index")


def question(name: str, manifest: Manifest, store: EmbeddingStore, folder: Path) -> Question:
    """Phases or tools of all videos."""
    several, column = name == "tools", "instruments" if name == "tools" else "label"
    table = manifest.table.assign(split="train")
    if not several:
        table = table[table["label"] != ""].reset_index(drop=True)
    rows = replace(manifest, table=table)
    head = class_head(rows, column, several)
    examples = examples_of(rows, "train", class_targets(rows, "train", head, column))
    recordings = labelled_recordings(rows, store, examples, len(head.classes) if several else None)
    return Question(name, head.classes, {recording.name: recording for recording in recordings}, store, folder)


def main(arguments: list[str] | None = None) -> None:
    """Print a table of phases and a table of tools."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "weights", "out"):
        parser.add_argument(name, type=Path)
    paths = parser.parse_args(arguments)
    out = paths.out
    prepare("cholect50", paths.data / "cholect50", out / "prepared", kind="csv")
    manifest = read_manifest(out / "prepared" / "manifest.csv")
    model = build_frame_model("vit_small_patch14_dinov2", weights=paths.weights, image_px=224).eval()
    store = embed(manifest, model, out / "features", step_s=1.0, tokens="both")
    for name, methods, metric in (("phases", phase_methods(), "accuracy"), ("tools", tool_methods(), "mean AP")):
        answers, rows = question(name, manifest, store, out / "values"), []
        for method, settings in methods.items():
            started = time.process_time()
            table = answers.tested(settings, metric)
            seconds = time.process_time() - started
            rows.append({"method": method, **table[metric].round(3).to_dict(), "mean": round(table[metric].mean(), 3)})
            rows[-1] |= {key: round(table[key].mean(), 3) for key in ("jaccard", "edit_score") if key in table}
            print(rows[-1], f"{seconds:.0f} s", *table["chosen"], sep="\n    ", flush=True)
        print(pd.DataFrame(rows).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
