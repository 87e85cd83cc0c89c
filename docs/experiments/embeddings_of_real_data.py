"""What embeddings of real endoscopy know: neighbours in other videos, surgical phases, and shortcuts.

    python -m docs.experiments.embeddings_of_real_data DATA OUT --weights VIT_S.safetensors

DATA holds ``cholect50/``, ``kvasir-seg/``, ``sinus/``, ``laparoscopy/`` and ``laparoscopy-stills/``. Every labelled
second, image or second of video is a row. The demo model has seen generated video only; an untrained image transformer
and mean colours are the floor; with ``--weights`` an image transformer that was trained joins them. Stores in OUT are
read back, and one that was stopped goes on.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

import endofm_lab as lab
from endofm_lab.data.manifest import Manifest, read_manifest, write_manifest
from endofm_lab.explain.atlas import Neighbours, neighbour_purity, shortcut_test
from endofm_lab.model.video_model import VideoModel, build_frame_model

PICTURES = {"kvasir-seg": "kvasir-seg/images", "stills": "laparoscopy-stills"}
RUNNING = {"sinus": ("sinus/seq_002603", 10.0), "laparoscopy": ("laparoscopy/endo.mp4", 10.0)}  # seconds


def rows_of(data: Path) -> pd.DataFrame:
    """One row per labelled second of CholecT50, per still picture, and per second of the two running videos."""
    rows = []
    for video, frames in pd.read_csv(data / "cholect50" / "frames.csv").groupby("video"):
        place = {path.name: n for n, path in enumerate(sorted((data / "cholect50" / str(video)).glob("*.jpg")))}
        for frame in frames.itertuples():
            start = float(place[Path(str(frame.file)).name])
            path = data / "cholect50" / str(video)
            rows.append((path, start, start + 1, frame.phase, video, "cholect50", 1))
    for dataset, folder in PICTURES.items():
        for path in sorted((data / folder).glob("*.jpg")):
            patient = path.stem.split("-frame")[0] if dataset == "stills" else path.stem
            rows.append((path, 0.0, 1.0, "", patient, dataset, 1))
    for dataset, (name, seconds) in RUNNING.items():
        rows += [(data / name, n, n + 1.0, "", dataset, dataset, 25) for n in np.arange(seconds)]
    columns = ["video", "start_s", "end_s", "label", "patient", "dataset", "fps"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(video=table["video"].map(lambda path: str(path.resolve())), split="train")


def mean_colours(manifest: Manifest) -> np.ndarray:
    """(N, 48) float32: colours of each row's picture on a 4 x 4 grid."""
    vectors = np.zeros((len(manifest), 48), np.float32)
    for name, rows in manifest.table.groupby("video"):
        with lab.open_video(str(name), fps=int(rows["fps"].iloc[0]) if Path(str(name)).is_dir() else None) as video:
            places = [min(int(start * video.info.fps), video.info.n_frames - 1) for start in rows["start_s"]]
            for at, place in zip(rows.index, places, strict=True):
                picture = video.read([place])[0]
                h, w = (side // 4 * 4 for side in picture.shape[:2])
                vectors[at] = picture[:h, :w].reshape(4, h // 4, 4, w // 4, 3).mean(axis=(1, 3)).ravel()
    return vectors


def report(name: str, vectors: np.ndarray, rows: pd.DataFrame) -> None:
    """Print what is known to these vectors."""
    surgery = (rows["dataset"] == "cholect50").to_numpy()
    phases, phase_vectors = rows[surgery].reset_index(drop=True), vectors[surgery]
    chance = float(sum(((phases["label"] == p).mean()) ** 2 for p in phases["label"].unique()))
    within = neighbour_purity(phase_vectors, phases, "label", not_same=None)
    across = neighbour_purity(phase_vectors, phases, "label", not_same="recording")
    print(f"\n{name}: {vectors.shape[1]} numbers per row")
    print(
        f"phase purity of 5 neighbours: {across:.3f} in other operations, {within:.3f} in any "
        f"(chance about {chance:.3f})"
    )
    finder = Neighbours(vectors, rows)
    alike = [
        (rows["dataset"].iloc[finder.of(int(n), 5, "recording")["row"]] == rows["dataset"].iloc[n]).mean()
        for n in np.flatnonzero(surgery)[::5]
    ]
    print(f"neighbours of a CholecT50 frame outside its video: {np.mean(alike):.3f} are CholecT50")
    print(shortcut_test(phase_vectors, phases.drop(columns=["dataset"])).round(3).to_string(index=False))
    print(shortcut_test(vectors, rows.drop(columns=["label"])).round(3).to_string(index=False))


def main() -> None:
    """Embed and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", help="of a timm vit_small_patch14_dinov2 at 224 px")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    manifest = read_manifest(write_manifest(rows_of(args.data), args.out / "manifest.csv").path)
    print(manifest.table["dataset"].value_counts().to_string())
    models: dict[str, VideoModel] = {"demo": lab.load_model("demo")}
    models["untrained"] = build_frame_model("vit_small_patch14_dinov2", image_px=224)
    if args.weights:
        models["trained"] = build_frame_model("vit_small_patch14_dinov2", weights=args.weights, image_px=224)
    report("mean colours", mean_colours(manifest), manifest.table)
    for name, model in models.items():
        store = lab.embed(manifest, model, args.out / name, batch_clips=16)
        report(f"{name} ({model.card.name})", store.vectors, store.rows)


if __name__ == "__main__":
    main()
