"""How well a model tells pictures of the kind it learned from others, and what abstaining on the others does.

    python -m docs.experiments.familiarity_of_videos DATA OUT --model demo
    python -m docs.experiments.familiarity_of_videos DATA OUT --model polyp-segmenter
    python -m docs.experiments.familiarity_of_videos DATA OUT --weights VIT_S.safetensors

DATA holds ``kvasir-seg/``, ``laparoscopy-stills/``, ``cholect50/``, ``sinus/`` and ``laparoscopy/``. The demo learned
the phantom (seed 0); its held-out clips are those of the 68 patients of seed 1. A polyp model, or frozen image weights
in its place, learns from 70 % of Kvasir-SEG; the limit comes from 10 %, and 20 % are held out (a built model: its own
split, read from its folder). Near-duplicate pictures are in one part. Features in OUT are read back.

Printed for Mahalanobis distances and nearest neighbours, of CLS, the mean patch and the mean token of the
middle block, as they are and at unit length:
AUC of held-out clips against all other data sets with 95 % intervals over units (patients, pictures of Kvasir-SEG,
operations), and against the data set that is told worst; then the library's distance against every data set.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.covariance import ledoit_wolf

import endofm_lab as lab
from endofm_lab.data.manifest import read_manifest
from endofm_lab.data.units import group_ids
from endofm_lab.familiarity.statistics import familiarity_of, unit_length
from endofm_lab.metrics.classification import accuracy, auc
from endofm_lab.metrics.intervals import bootstrap_interval
from endofm_lab.model.encoder import VideoTokens, watching
from endofm_lab.model.video_model import VideoModel, build_frame_model
from endofm_lab.predict import _plan
from endofm_lab.video.phantom import FINDINGS

SEED = 0
CLIPS = 40  # per video
OTHERS = ("stills", "cholect50", "sinus", "laparoscopy", "kvasir-seg", "phantom0")
Clip = tuple[dict[str, str], torch.Tensor]


def clips_of(model: VideoModel, data: Path, out: Path) -> Iterator[Clip]:
    """(facts, clip (1, 3, T, S, S)) of every data set: clips as `predict_video` cuts them."""
    generated = bool(model.card.data.get("generated"))
    for seed in (0, 1) if generated else (0,):
        manifest = read_manifest(lab.write_phantom(out / f"phantom{seed}", "demo", seed, progress=False))
        rows = manifest.table
        if not generated:
            rows = rows[rows["split"] == "test"].groupby("patient").head(1)
        for row in rows.to_dict("records"):
            facts = {"set": f"phantom{seed}", "unit": row["patient"], "split": row["split"], "label": row["label"]}
            yield from _of_video(model, manifest.resolve(row["video"]), facts, CLIPS if generated else 3)
    folders = [("cholect50", path) for path in sorted((data / "cholect50").iterdir()) if path.is_dir()]
    running = [("sinus", data / "sinus" / "seq_002603"), ("laparoscopy", data / "laparoscopy" / "endo.mp4")]
    for dataset, path in [*running, *folders]:
        yield from _of_video(model, path, {"set": dataset, "unit": path.name, "split": "", "label": "normal"}, CLIPS)
    pictures = (("stills", "laparoscopy-stills/*.jpg", 2), ("kvasir-seg", "kvasir-seg/images/*.jpg", 5))
    for dataset, pattern, step in pictures:
        for path in sorted(data.glob(pattern))[:: step if generated else 1]:
            label = "polyp" if dataset == "kvasir-seg" else "normal"
            facts = {"set": dataset, "unit": path.stem.split("-frame")[0], "split": "", "label": label}
            yield from _of_video(model, path, facts, 1)


def _of_video(model: VideoModel, path: Path, facts: dict[str, str], most: int) -> Iterator[Clip]:
    """At most ``most`` of a video's clips, evenly spread."""
    with lab.open_video(path) as reader:
        if model.backbone.takes_video:
            frames = [clip.indices for clip in _plan(model, reader, None, False)]
        else:
            frames = [np.array([number]) for number in range(reader.info.n_frames)]
        places = np.unique(np.linspace(0, len(frames) - 1, min(most, len(frames))).astype(int))
        for place in places:
            yield facts, lab.to_input(reader.read(frames[place]), model.card.input)


@torch.inference_mode()
def features(model: VideoModel, data: Path, out: Path, name: str) -> dict[str, np.ndarray]:
    """``cls``, ``mean`` and ``middle`` (N, D), and ``set``, ``unit``, ``split`` and ``label`` (N,) of all clips."""
    stored = out / f"{name}.npz"
    if not stored.is_file():
        rows, cls, mean, middle = [], [], [], []
        for facts, clip in clips_of(model, data, out):
            with watching(model.backbone) as middle_of:
                tokens = model.backbone(clip)
                middle.append(middle_of(tokens)[0].numpy())
            rows.append(facts)
            cls.append(tokens.pooled()[0].numpy())
            mean.append(tokens.average()[0].numpy())
        columns = {key: column.to_numpy(str) for key, column in pd.DataFrame(rows).items()}
        np.savez(stored, cls=np.stack(cls), mean=np.stack(mean), middle=np.stack(middle), **columns)  # type: ignore[arg-type]
    with np.load(stored) as file:
        return {key: file[key] for key in file.files}


def parts_of(table: pd.DataFrame, model: VideoModel, data: Path, split: Path | None) -> np.ndarray:
    """(N,) "train", "val", "test" for clips of the learned data set, "" for other data sets."""
    if model.card.data.get("generated"):
        own = table["split"].where(table["set"] == "phantom0", "")
        own = own.where(own != "test", "unused")
        return np.where(table["set"] == "phantom1", "test", own)
    kvasir = table["set"] == "kvasir-seg"
    if split is not None:
        rows = read_manifest(split).table
        names = dict(zip(rows["video"].map(lambda cell: Path(cell).stem), rows["split"], strict=True))
        return table["unit"].map(names).where(kvasir, "").fillna("").to_numpy(str)
    pairs = json.loads((data / "kvasir-seg" / "near_duplicate_pairs.json").read_text())
    place = {name: number for number, name in enumerate(table["unit"][kvasir])}
    pairs = pairs["pairs"] if isinstance(pairs, dict) else pairs
    links = np.array([[place[Path(name).stem] for name in pair[:2]] for pair in pairs])
    groups = group_ids(pd.DataFrame({"video": list(place)}), links)
    order = np.random.default_rng(SEED).permutation(groups.max() + 1)
    bounds = np.cumsum([0.7 * len(order), 0.1 * len(order)]).astype(int)
    parts = np.array(["train"] * len(order), dtype="<U5")
    parts[order[bounds[0] : bounds[1]]], parts[order[bounds[1] :]] = "val", "test"
    result = np.full(len(table), "", dtype="<U5")
    result[kvasir.to_numpy()] = parts[groups]
    return result


def mahalanobis(train: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Mahalanobis distances (N,) with the shrunk covariance of ``train``."""
    white = np.linalg.inv(ledoit_wolf(train)[0])
    away = x - train.mean(axis=0)
    return np.sqrt(np.einsum("nd,de,ne->n", away, white, away))


def neighbours(k: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Distances (N,) to the k-th nearest training feature."""

    def distances(train: np.ndarray, x: np.ndarray) -> np.ndarray:
        square = (x**2).sum(1)[:, None] + (train**2).sum(1)[None] - 2 * x @ train.T
        return np.sqrt(np.maximum(np.partition(square, k - 1, axis=1)[:, k - 1], 0))

    return distances


def compare(values: dict[str, np.ndarray], parts: np.ndarray) -> None:
    """Print the AUC of every feature and distance against all other data sets together, and against the worst."""
    test, others = parts == "test", parts == ""
    sets = [name for name in OTHERS if (others & (values["set"] == name)).any()]
    units = np.char.add(np.char.add(values["set"], "/"), values["unit"])
    for feature in ("cls", "mean", "middle"):
        for length in ("as it is", "unit length"):
            x = values[feature].astype(np.float64)
            x = unit_length(x) if length == "unit length" else x
            methods = {"Mahalanobis": mahalanobis, "1st neighbour": neighbours(1), "10th neighbour": neighbours(10)}
            for method, measure in methods.items():
                distance = measure(x[parts == "train"], x)
                rows = test | np.isin(values["set"], sets) & others
                together = bootstrap_interval(auc, units[rows], others[rows], distance[rows])
                single = {name: auc(others[r], distance[r]) for name, r in _against(values, test, others, sets)}
                worst = min(single, key=lambda name: single[name])
                print(f"{feature:<7}{length:<12}{method:<15} all {together}, worst {worst} {single[worst]:.3f}")


def _against(
    values: dict[str, np.ndarray], test: np.ndarray, others: np.ndarray, sets: list[str]
) -> Iterator[tuple[str, np.ndarray]]:
    for name in sets:
        yield name, test | (others & (values["set"] == name))


def report(values: dict[str, np.ndarray], parts: np.ndarray) -> np.ndarray:
    """Print what the library's distance tells, data set by data set; returns the distances (N,)."""
    x, units = values["middle"], np.char.add(np.char.add(values["set"], "/"), values["unit"])
    train, val, test, others = (parts == part for part in ("train", "val", "test", ""))
    distance = familiarity_of(x[train], x[val], units[val]).distances(x)
    print(f"held out: {test.sum()} clips of {len(set(units[test]))} units, {(distance[test] <= 1).mean():.3f} familiar")
    for name, rows in _against(values, test, others, [name for name in OTHERS if (values["set"] == name).any()]):
        own = rows & others
        if own.any():
            value = bootstrap_interval(auc, units[rows], others[rows], distance[rows])
            beyond = (distance[own] > 1).mean()
            n_units = len(set(units[own]))
            print(f"against {name:<12} {own.sum():>4} clips, {n_units:>3} units: AUC {value}; unfamiliar {beyond:.3f}")
    return distance


def abstain(model: VideoModel, values: dict[str, np.ndarray], parts: np.ndarray, distance: np.ndarray) -> None:
    """Print how often "polyp or no polyp" is right with and without the unfamiliar clips; surgery shows no polyp."""
    tokens = VideoTokens(torch.from_numpy(values["cls"]), torch.zeros(len(values["cls"]), 1, 1, 1, 1))
    with torch.inference_mode():
        answers = model.head("finding")(tokens).argmax(dim=1).numpy()
    right, polyp = values["label"] == "polyp", answers == FINDINGS.index("polyp")
    units = np.char.add(np.char.add(values["set"], "/"), values["unit"])
    rows = (parts == "test") | (parts == "") & ~np.char.startswith(values["set"], "phantom")
    for words, kept in (("all clips", rows), ("familiar clips", rows & (distance <= 1))):
        value = bootstrap_interval(accuracy, units[kept], right[kept], polyp[kept])
        print(f"polyp or not, {words:<15} accuracy {value}; {kept.sum()} of {rows.sum()} clips answered")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="demo", help="the demo, or a built polyp model")
    parser.add_argument("--weights", help="of a timm vit_small_patch14_dinov2 at 224 px, frozen")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    name, split = ("image weights", None) if args.weights else (Path(args.model).name, None)
    if args.weights:
        model = build_frame_model("vit_small_patch14_dinov2", weights=args.weights, image_px=224).eval()
    else:
        model = lab.load_model(args.model)
        if not model.card.data.get("generated"):
            folder = Path(args.model) if Path(args.model).is_dir() else lab.models.folder_of(args.model)
            split = folder / "build" / "prepared" / "split.csv"
    values = features(model, args.data, args.out, name)
    table = pd.DataFrame({key: values[key] for key in ("set", "unit", "split")})
    parts = parts_of(table, model, args.data, split)
    print(f"{model.card.name}: {values['mean'].shape[1]} numbers per clip; {pd.Series(parts).value_counts().to_dict()}")
    compare(values, parts)
    distance = report(values, parts)
    if "finding" in model.card.heads:
        abstain(model, values, parts, distance)


if __name__ == "__main__":
    main()
