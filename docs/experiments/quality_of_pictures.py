"""How well the detectors of blur, darkness, foam and views out of the body work on made faults of real frames.

    python -m docs.experiments.quality_of_pictures DATA [--write]

DATA holds ``kvasir-seg/``, ``laparoscopy-stills/``, ``cholect50/``, ``sinus/`` and ``laparoscopy/``. Half of the units
(pictures of Kvasir-SEG, which names no patients; operations and sequences elsewhere) and generated frames fit the
detectors, the other half tests them; frames as they are count as free of faults, though a few are not. ``--write``
stores the weights of the library's detectors. AUC: the fault against frames as they are, and against all frames without
this fault, with 95 % intervals over units.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

import endofm_lab as lab
from endofm_lab.data.samples import SAMPLES, sample_video
from endofm_lab.familiarity.degradations import DEGRADATIONS
from endofm_lab.familiarity.quality import FAULTS, WEIGHTS, statistics_of
from endofm_lab.metrics.classification import auc
from endofm_lab.metrics.intervals import bootstrap_interval

SEED = 0
FALSE_ALARMS, MISSES = 0.02, 0.02  # the limit of a detector lies between these quantiles, where they do not cross


def frames_of(data: Path) -> list[tuple[str, str, np.ndarray]]:
    """(data set, unit, frame) of real frames, and of the generated samples."""
    found = []
    for dataset, pattern, step in (("kvasir-seg", "kvasir-seg/images/*.jpg", 4), ("stills", "laparoscopy-stills/*", 2)):
        for path in sorted(data.glob(pattern))[::step]:
            unit = path.stem.split("-frame")[0] if dataset == "stills" else path.stem
            found.append((dataset, unit, _frames(path, [0])[0]))
    folders = [path for path in sorted((data / "cholect50").iterdir()) if path.is_dir()]
    videos = [("cholect50", path, 15) for path in folders]
    videos += [("sinus", data / "sinus" / "seq_002603", 10), ("laparoscopy", data / "laparoscopy" / "endo.mp4", 10)]
    videos += [("phantom", Path(sample_video(name)), 8) for name in SAMPLES]
    for dataset, path, n in videos:
        with lab.open_video(path) as reader:
            last = reader.info.n_frames - 1
        found += [(dataset, path.stem, frame) for frame in _frames(path, np.linspace(0, last, n).astype(int).tolist())]
    return found


def _frames(path: Path, numbers: list[int]) -> np.ndarray:
    """Frames with a shorter side of at most 288 px, as the reduced data sets have them."""
    with lab.open_video(path) as reader:
        frames = reader.read(numbers)
    step = max(1, round(min(frames.shape[1:3]) / 288))
    return frames[:, ::step, ::step]


def table_of(frames: list[tuple[str, str, np.ndarray]]) -> tuple[pd.DataFrame, np.ndarray]:
    """One row per frame as it is and per made fault: data set, unit, fault ("" without); and the statistics."""
    rows, values = [], []
    for number, (dataset, unit, frame) in enumerate(frames):
        random = np.random.default_rng([SEED, number])
        for fault in ("", *FAULTS):
            made = DEGRADATIONS[fault](frame, random) if fault else frame
            rows.append((dataset, f"{dataset}/{unit}", fault))
            values.append(statistics_of(made))
    return pd.DataFrame(rows, columns=["dataset", "unit", "fault"]), np.array(values)


def fitted(table: pd.DataFrame, values: np.ndarray) -> dict[str, list]:
    """Weights of one logistic regression per fault; the limit lies midway between frames as they are and faults."""
    mean, scale = values.mean(axis=0), values.std(axis=0) + 1e-9
    x, clean = (values - mean) / scale, (table["fault"] == "").to_numpy()
    weights, bias = [], []
    for fault in FAULTS:
        regression = LogisticRegression(C=1.0, class_weight="balanced", max_iter=2000)
        regression.fit(x, table["fault"] == fault)
        w = regression.coef_[0]
        weights.append(w.round(5).tolist())
        highest = np.quantile(x[clean] @ w, 1 - FALSE_ALARMS)
        lowest = np.quantile(x[table["fault"] == fault] @ w, MISSES)
        bias.append(round(-float(max(highest, (highest + lowest) / 2)), 5))
    return {"mean": mean.round(6).tolist(), "scale": scale.round(6).tolist(), "weights": weights, "bias": bias}


def report(table: pd.DataFrame, logits: np.ndarray) -> None:
    """Print AUC, shares found and false alarms of every fault."""
    clean = (table["fault"] == "").to_numpy()
    for k, fault in enumerate(FAULTS):
        has = (table["fault"] == fault).to_numpy()
        for words, rows in (("frames as they are", clean | has), ("all other frames", np.ones(len(table), bool))):
            value = bootstrap_interval(auc, table["unit"][rows], has[rows], logits[rows, k])
            print(f"{fault:<9} against {words:<19} AUC {value}")
        print(f"{'':<9} found {(logits[has, k] >= 0).mean():.3f}, false alarms {(logits[clean, k] >= 0).mean():.3f}")
        for dataset, own in table.groupby("dataset"):
            of_fault, as_is = (own.index[own["fault"] == name] for name in (fault, ""))
            rows = as_is.union(of_fault)
            value, alarms = auc(has[rows], logits[rows, k]), (logits[as_is, k] >= 0).mean()
            print(f"{'':<9} {dataset:<12} AUC {value:.3f}, false alarms {alarms:.3f}")


def main() -> None:
    """Fit, test and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--write", action="store_true", help="store the weights in the library")
    args = parser.parse_args()
    table, values = table_of(frames_of(args.data))
    names = sorted(table["unit"].unique())
    half = set(np.random.default_rng(SEED).permutation(names)[: len(names) // 2])
    train = table["unit"].isin(half).to_numpy()
    print(table[table["fault"] == ""].groupby(["dataset", train[(table["fault"] == "").to_numpy()]]).size().to_string())
    model = fitted(table[train], values[train])
    if args.write:
        WEIGHTS.write_text(json.dumps(model, indent=1) + "\n", encoding="utf-8")
    x = (values - model["mean"]) / model["scale"]
    logits = x @ np.array(model["weights"]).T + model["bias"]
    report(table[~train].reset_index(drop=True), logits[~train])


if __name__ == "__main__":
    main()
