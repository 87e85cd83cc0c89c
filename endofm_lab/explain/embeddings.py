"""Embeddings of a manifest's clips on disk: one vector per row, resumable, and the questions one asks of them.

A store is a folder: ``vectors.npy`` (N, D) float32, memory-mapped; ``rows.parquet``, the manifest's rows in the same
order; ``store.json``, which comes last and says which model made it.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from endofm_lab import __version__
from endofm_lab.data.manifest import Manifest, read_manifest
from endofm_lab.errors import UserError, VideoError
from endofm_lab.files import atomic_path, read_json, write_json
from endofm_lab.model.inference import for_inference
from endofm_lab.model.loading.load import load_model
from endofm_lab.model.video_model import VideoModel
from endofm_lab.video.clips import clip_indices
from endofm_lab.video.transforms import to_input


@dataclass(frozen=True)
class EmbeddingStore:
    """Vectors of clips and the rows they belong to.

    Attributes:
        vectors: (N, D) float32, read from disk where it is touched; rows that could not be read are NaN.
        rows: the manifest's rows, with ``time_s``, the clip's first instant, and ``error``, "" or why it was not read.
        about: model's name and fingerprint, manifest's fingerprint, versions.
        path: its folder.
    """

    vectors: np.ndarray
    rows: pd.DataFrame
    about: dict[str, Any]
    path: Path

    def __len__(self) -> int:
        return len(self.rows)

    def usable(self) -> np.ndarray:
        """(N,) bool: rows with a vector."""
        return (self.rows["error"] == "").to_numpy()

    def must_be_of(self, model: VideoModel) -> None:
        """Refuse a model that did not make these vectors.

        Raises:
            UserError: another model or version of it.
        """
        if self.about["model_fingerprint"] != model.card.fingerprint:
            raise UserError(
                f"{self.path} was made by {self.about['model_name']} ({self.about['model_fingerprint'][:12]}), not by "
                f"{model.card.name} ({model.card.fingerprint[:12]}): use that model, or embed again into a new folder."
            )


def embed(
    manifest: Manifest | str | Path,
    model: VideoModel | str | Path,
    out: str | Path,
    batch_clips: int = 8,
    progress: bool = True,
) -> EmbeddingStore:
    """One vector per row of a manifest, kept in a folder: CLS of the clip in the middle of each row's time.

    Encoders without a CLS token give the mean over all patches; ``vector`` in ``store.json`` says which.

    A run that was stopped goes on where it was when called again with the same manifest and model; a finished one is
    read back. Rows whose video cannot be read are kept, with the reason, and have no vector.

    Raises:
        ManifestError: the manifest is malformed.
        UserError: ``out`` holds something else, or embeddings of another manifest or model version.
    """
    manifest = manifest if isinstance(manifest, Manifest) else read_manifest(manifest)
    model = model if isinstance(model, VideoModel) else load_model(model)
    steps = embedding_steps(manifest, model, out, batch_clips)
    with tqdm(total=len(manifest), unit="clip", desc="embed", disable=not progress) as bar:
        for done in steps:
            bar.update(done - bar.n)
    return load_store(out)


def embedding_steps(manifest: Manifest, model: VideoModel, out: str | Path, batch_clips: int = 8) -> Iterator[int]:
    """`embed` in steps, for callers that draw their own progress: yields how many rows are done."""
    if batch_clips < 1:
        raise UserError(f"batch_clips is {batch_clips}; at least 1 clip must go through the model at a time.")
    out, N, D = Path(out), len(manifest), model.backbone.width
    about = {
        "model_name": model.card.name,
        "model_fingerprint": model.card.fingerprint,
        "manifest_fingerprint": manifest.fingerprint,
        "generated": bool(model.card.data.get("generated")),
        "rows": N,
        "width": D,
        "vector": "CLS token" if model.backbone.has_cls else "mean over all patches, as the backbone has no CLS token",
    }
    _claim(out, about)
    if (out / "store.json").exists():
        yield N
        return
    model.eval()
    vectors = np.lib.format.open_memmap(
        out / "vectors.part.npy", "r+" if (out / "vectors.part.npy").exists() else "w+", np.float32, (N, D)
    )
    log = out / "done.jsonl"  # per finished batch: its rows' times and errors; a torn last line does not count
    told = _finished(log)
    first = next(model.parameters())
    backbone = for_inference(model.backbone, first.dtype)
    while len(told) < N:
        batch, clips = [], []
        for at in range(len(told), min(len(told) + batch_clips, N)):
            try:
                pixels, time_s = _middle_clip(manifest, manifest.table.iloc[at], model)
                clips.append((at, pixels))
                batch.append({"time_s": time_s, "error": ""})
            except VideoError as error:
                vectors[at] = np.nan
                batch.append({"time_s": None, "error": error.reason})
        if clips:
            with torch.inference_mode():
                found = backbone(torch.cat([pixels for _, pixels in clips]).to(first.device)).pooled()
            vectors[[at for at, _ in clips]] = found.float().cpu().numpy()
        vectors.flush()
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(batch) + "\n")
        told += batch
        yield len(told)
    del vectors
    rows = manifest.table.assign(time_s=[t["time_s"] for t in told], error=[t["error"] for t in told])
    rows["time_s"] = rows["time_s"].astype(float)
    with atomic_path(out / "rows.parquet") as temporary:
        rows.to_parquet(temporary, index=False)
    (out / "vectors.part.npy").replace(out / "vectors.npy")
    write_json(out / "store.json", {**about, "root": str(manifest.root.resolve()), "version": __version__})
    log.unlink()


def load_store(path: str | Path) -> EmbeddingStore:
    """The finished store in a folder.

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    if not (path / "store.json").exists():
        raise UserError(f"{path} holds no finished embeddings: run `endofm-lab embed MANIFEST --out {path}` (again).")
    about = read_json(path / "store.json")
    vectors = np.load(path / "vectors.npy", mmap_mode="r", allow_pickle=False)
    rows = pd.read_parquet(path / "rows.parquet")
    if vectors.shape != (len(rows), about["width"]):
        raise UserError(
            f"{path}: {vectors.shape} vectors for {len(rows)} rows of width {about['width']}; the store is damaged, "
            "delete it and embed again."
        )
    return EmbeddingStore(vectors, rows, about, path)


def _middle_clip(manifest: Manifest, row: pd.Series, model: VideoModel) -> tuple[torch.Tensor, float]:
    """The clip (1, 3, T, S, S) in the middle of a row's time, and its first instant in seconds."""
    with manifest.open(row) as reader:
        if row["start_s"] >= reader.info.duration_s:
            reason = f"the row starts at {row['start_s']} s, but the video ends at {float(reader.info.duration_s)} s"
            raise VideoError(row["video"], reason)
        end_s = min(row["end_s"], reader.info.duration_s) if row["end_s"] > 0 else reader.info.duration_s
        spare = end_s - row["start_s"] - model.card.clip.span_s(reader.info)
        start_s = min(row["start_s"] + max(spare, 0.0) / 2, float(reader.times_s[-1]))
        index = clip_indices(model.card.clip, reader.info, start_s, reader.times_s)
        return to_input(reader.read(index), model.card.input), float(reader.times_s[index[0]])


def _finished(log: Path) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        log.write_text("".join(whole), encoding="utf-8")
    for line in whole:
        told += json.loads(line)
    return told


def _claim(out: Path, about: dict[str, Any]) -> None:
    """Make ``out`` ours: new, empty, or of the same manifest and model."""
    mark = out / "job.json"
    if mark.exists():
        before = read_json(mark)
        names = {"model_fingerprint": "model version", "manifest_fingerprint": "manifest"}
        changed = [word for name, word in names.items() if before[name] != about[name]]
        if changed:
            raise UserError(
                f"{out} holds embeddings of another {' and '.join(changed)} (made by {before['model_name']}, "
                f"{before['model_fingerprint'][:12]}): choose another folder or delete this one."
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} holds something else than embeddings: choose a new or an empty folder.")
    out.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(out).free < about["rows"] * about["width"] * 4 * 1.1:
        raise UserError(
            f"{out} has no room for {about['rows']} vectors of {about['width']} numbers; choose another disk."
        )
    write_json(mark, about)
