"""Embeddings of a manifest's clips on disk: a vector per row or per instant, computed by a job that can be resumed.

A store is a folder: ``vectors.npy`` (N, D) float32, memory-mapped; ``rows.parquet``, the manifest's rows in the same
order; ``store.json``, which is written last and names the model. While the job runs, ``vectors.part.npy`` grows by the
rows that are done, and ``done.jsonl`` lists them.
"""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypedDict, get_args

import numpy as np
import pandas as pd
import torch

from endofm_lab import __version__
from endofm_lab.brief import Brief, html_of
from endofm_lab.data.manifest import Manifest, read_manifest
from endofm_lab.data.rows import Row
from endofm_lab.errors import UserError, VideoError
from endofm_lab.explain.instants import clips_ending_at, clips_spread, instants_of, spread_rows
from endofm_lab.files import fits, read_object, read_parquet, reading, write_json, write_parquet
from endofm_lab.folders.hashes import refuse_changed
from endofm_lab.folders.provenance import provenance
from endofm_lab.folders.run_folder import claim
from endofm_lab.messages import progress_bar
from endofm_lab.model.encoder import VideoTokens
from endofm_lab.model.inference import for_inference
from endofm_lab.model.loading.load import model_at
from endofm_lab.model.video_model import VideoModel, check_finite
from endofm_lab.model.weight_files import state_fingerprint
from endofm_lab.video.transforms import to_input

STORE, LOG = "store.json", "done.jsonl"
Tokens = Literal["pooled", "mean", "both"]


@dataclass(frozen=True, eq=False, repr=False)
class EmbeddingStore(Brief):
    """Vectors of clips and the rows they belong to.

    Attributes:
        vectors: (N, D) float32, memory-mapped; rows that could not be read are NaN.
        rows: the manifest's rows, with ``time_s``, the start of the clip, and ``error``, the reason if it was not read;
            or a row per instant, with ``time_s``, the instant at which the clip ends.
        about: name and fingerprint of the model, fingerprint of the manifest, versions.
        path: folder of the store.
    """

    vectors: np.ndarray
    rows: pd.DataFrame
    about: dict[str, Any]
    path: Path

    def _repr_html_(self) -> str:
        return html_of(self, self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def usable(self) -> np.ndarray:
        """(N,) bool: whether a row has a vector."""
        return (self.rows["error"] == "").to_numpy()

    def must_be_of(self, model: VideoModel) -> None:
        """Refuse a model other than the one that computed these vectors.

        Raises:
            UserError: it is another model, or another version of the model.
        """
        if self.about["model_fingerprint"] != model.card.fingerprint:
            raise UserError(
                f"{self.path} was made by {self.about['model_name']} ({self.about['model_fingerprint'][:12]}), not by "
                f"{model.card.name} ({model.card.fingerprint[:12]}). Use that model, or embed again into a new folder."
            )


def embed(
    manifest: Manifest | str | Path,
    model: VideoModel | str | Path,
    out: str | Path,
    batch_clips: int = 8,
    device: str = "auto",
    progress: bool = True,
    step_s: float | None = None,
    tokens: Tokens = "pooled",
    clips: int | None = None,
) -> EmbeddingStore:
    """One vector per row of a manifest, saved in a folder: CLS of the clip in the middle of each row's time span.

    With ``step_s``, the vectors are those of instants: one every ``step_s`` seconds of every video, of the clip that
    ends there. Models of time learn from them. They depend on the videos alone, so that manifests with other labels or
    splits of the same videos find them computed.

    With ``clips``, they are those of that many clips, evenly spread over every different stretch of video in the
    manifest. The probes of `endofm_lab.finetune` read them (``features``), whatever labels and splits the rows have.

    Encoders without a CLS token give the mean over all patches; ``vector`` in ``store.json`` records which it is.

    A run that was stopped is resumed by the same call with the same manifest and model; a finished store is read back.
    Rows whose video cannot be read stay in the store with the reason, but have no vector.

    Args:
        manifest: a manifest, or its file.
        model: a model, or what `load_model` takes.
        out: folder of the store.
        batch_clips: clips that go through the model together.
        device: where the model computes, as in `predict_video`.
        progress: show a progress bar.
        step_s: seconds from one instant to the next; None computes one vector per row.
        tokens: "pooled" is the CLS token or what the encoder has in its place, "mean" the mean over all patches, and
            "both" one after the other.
        clips: clips per row, for the probes of `endofm-lab finetune --features`; None computes one vector per row.

    Raises:
        ManifestError: the manifest is malformed.
        UserError: ``out`` contains other files or embeddings of another manifest or model, a video has changed (the
            message names the differences), or another process works there.
    """
    manifest = manifest if isinstance(manifest, Manifest) else read_manifest(manifest)
    if step_s is not None and clips is not None:
        raise UserError("step_s and clips are given; give one of them: vectors of instants, or of clips of rows.")
    if step_s is not None:
        manifest = instants_of(manifest, step_s)
    if clips is not None:
        manifest = spread_rows(manifest, clips)
    steps = embedding_steps(manifest, model_at(model, device), out, batch_clips, step_s, tokens, clips)
    with progress_bar(total=len(manifest), unit="clip", desc="embed", shown=progress) as bar:
        for n_done in steps:
            bar.update(n_done - bar.n)
    return load_store(out)


def embedding_steps(
    manifest: Manifest,
    model: VideoModel,
    out: str | Path,
    batch_clips: int = 8,
    step_s: float | None = None,
    tokens: Tokens = "pooled",
    clips: int | None = None,
) -> Iterator[int]:
    """`embed` in steps, for callers with a progress bar of their own: yields the number of rows done.

    With ``step_s``, ``manifest`` is one of `instants_of`, and with ``clips`` one of `spread_rows`.
    """
    if batch_clips < 1:
        raise UserError(f"batch_clips is {batch_clips}; give at least 1.")
    N, (D, vector) = len(manifest), _vector(model, tokens)
    contents = manifest.contents()
    description: dict[str, Any] = {
        "model_name": model.card.name,
        "model_fingerprint": model.card.fingerprint,
        "manifest_fingerprint": manifest.fingerprint,
        "generated": bool(model.card.data.get("generated")),
        "rows": N,
        "width": D,
        "vector": vector,
    }
    request: dict[str, Any] = {
        "model": model.card.fingerprint,
        "weights": state_fingerprint(model),
        "manifest": manifest.fingerprint,
        "videos": contents,
    }
    if tokens != "pooled":
        request["tokens"] = tokens
    if step_s is not None:
        request["step_s"] = step_s
        description |= {"step_s": step_s, "videos": contents}
    if clips is not None:
        request["clips"] = clips
        description |= {"clips": clips, "videos": contents, "encoder": encoder_fingerprint(model)}
    with claim(out, request, "embeddings") as folder:
        if (folder / STORE).exists():
            (folder / LOG).unlink(missing_ok=True)  # left if the last call was killed at its very end
            yield N
            return
        journal = _Journal.resumed(folder, N, D)
        if not journal.entries:
            _check_room(folder, N, D)
        read = clips_ending_at if step_s is not None else _middle_clips if clips is None else clips_spread
        yield from _embed_rows(manifest, model, journal, batch_clips, read, tokens)
        rows = manifest.table.assign(
            **{name: [entry[name] for entry in journal.entries] for name in ("time_s", "error")}
        )
        rows["time_s"] = rows["time_s"].astype(float)
        write_parquet(folder / "rows.parquet", rows)
        journal.finish()
        origin = provenance(next(model.parameters()).device)
        stored = {**description, "root": str(manifest.root.resolve()), "version": __version__, "provenance": origin}
        write_json(folder / STORE, stored)
        journal.log.unlink()


def encoder_fingerprint(model: VideoModel) -> str:
    """SHA-256 of everything that pooled features depend on besides the video: the encoder, its input and its clips."""
    card = model.card.to_json()
    texts = [state_fingerprint(model.backbone), *(json.dumps(card[name], sort_keys=True) for name in ("input", "clip"))]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


Read = Callable[[Manifest, VideoModel, Sequence[int]], Iterator[tuple[torch.Tensor, float] | VideoError]]


def _embed_rows(
    manifest: Manifest, model: VideoModel, journal: "_Journal", batch_clips: int, read: Read, tokens: Tokens
) -> Iterator[int]:
    """Compute the missing rows; yields the number of rows done."""
    model.eval()
    first, (N, D) = next(model.parameters()), journal.shape
    backbone = for_inference(model.backbone, first.dtype)
    for start in range(len(journal.entries), N, batch_clips):
        rows = range(start, min(start + batch_clips, N))
        vectors = np.full((len(rows), D), np.nan, np.float32)
        entries: list[dict[str, Any]] = []
        clips = []
        for row, result in zip(rows, read(manifest, model, rows), strict=True):
            if isinstance(result, VideoError):
                entries.append({"row": row, "time_s": None, "error": result.reason})
            else:
                clips.append((row - start, result[0]))
                entries.append({"row": row, "time_s": result[1], "error": ""})
        if clips:
            with torch.inference_mode():
                features = _vectors(backbone(torch.cat([pixels for _, pixels in clips]).to(first.device)), tokens)
            names = [f"row {start + index + 1} of the manifest" for index, _ in clips]
            check_finite(features, f"The backbone of {model.card.name}", names)
            vectors[[index for index, _ in clips]] = features.float().cpu().numpy()
        journal.add(vectors, entries)
        yield len(journal.entries)


def _vector(model: VideoModel, tokens: Tokens) -> tuple[int, str]:
    """Length and description of the vectors."""
    if tokens not in get_args(Tokens):
        raise UserError(f"tokens is {tokens!r}; choose one of {', '.join(get_args(Tokens))}.")
    width, has_cls = model.backbone.width, model.backbone.has_cls
    if tokens == "mean":
        return width, "mean over all patches"
    if tokens == "pooled":
        return width, "CLS token" if has_cls else "mean over all patches, as the backbone has no CLS token"
    if not has_cls:
        raise UserError("The encoder has no CLS token, so tokens='both' is not possible. Choose 'mean'.")
    return 2 * width, "CLS token and mean over all patches"


def _vectors(output: VideoTokens, tokens: Tokens) -> torch.Tensor:
    """The vectors (B, D) of clips: CLS, the mean over patches, or both (B, 2 D)."""
    if tokens == "pooled":
        return output.pooled()
    mean = output.patches.mean(dim=(1, 2, 3))
    return mean if tokens == "mean" else torch.cat([output.pooled(), mean], dim=1)


class _Entry(TypedDict):
    """A line of the log about a row."""

    row: int
    time_s: float | None
    error: str


@dataclass
class _Journal:
    """The finished rows of an unfinished store: their vectors in a file that grows, and a log with an entry per row.

    Vectors are written to disk before the log names their rows, so every row in the log has its vector.
    """

    folder: Path
    shape: tuple[int, int]
    entries: list[dict[str, Any]]

    @property
    def vectors(self) -> Path:
        return self.folder / "vectors.part.npy"

    @property
    def log(self) -> Path:
        return self.folder / LOG

    @classmethod
    def resumed(cls, folder: Path, N: int, D: int) -> "_Journal":
        """The rows that an earlier call finished, with log entry and vector; anything after them is cut off."""
        journal = cls(folder, (N, D), [])
        lines = journal.log.read_text(encoding="utf-8").splitlines(keepends=True) if journal.log.exists() else []
        with reading(journal.log, "Delete the folder and embed again."):
            entries = [entry for line in lines if line.endswith("\n") for entry in json.loads(line)]
            if not fits(entries, list[_Entry]):
                raise ValueError("it does not list rows")
        n = next((index for index, entry in enumerate(entries) if entry["row"] != index), len(entries))
        if n == N and (folder / "vectors.npy").exists() and not journal.vectors.exists():  # killed at the very end
            journal.entries = entries
            return journal
        size = journal.vectors.stat().st_size if journal.vectors.exists() else 0
        n = min(n, max(0, size - len(journal._header())) // (4 * D))
        with journal._opened() as file:
            file.write(journal._header())
            file.truncate(len(journal._header()) + n * 4 * D)
        journal.entries = entries[:n]
        journal.log.write_text("".join(json.dumps([entry]) + "\n" for entry in journal.entries), encoding="utf-8")
        return journal

    def add(self, vectors: np.ndarray, entries: list[dict[str, Any]]) -> None:
        """Save the next rows."""
        with self._opened() as file:
            file.seek(len(self._header()) + len(self.entries) * 4 * self.shape[1])
            file.write(vectors.astype("<f4").tobytes())
            file.flush()
            os.fsync(file.fileno())
        with self.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(entries) + "\n")
        self.entries += entries

    def finish(self) -> None:
        """Give the complete file of vectors its final name."""
        if self.vectors.exists():
            self.vectors.replace(self.folder / "vectors.npy")

    def _opened(self) -> BinaryIO:
        return self.vectors.open("r+b" if self.vectors.exists() else "w+b")

    def _header(self) -> bytes:
        """The beginning of a ``.npy`` file of all vectors."""
        header = io.BytesIO()
        header_fields = {"descr": "<f4", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(header, header_fields)
        return header.getvalue()


def _check_room(folder: Path, N: int, D: int) -> None:
    if shutil.disk_usage(folder).free < N * D * 4 * 1.1:
        raise UserError(f"{folder} has no room for {N} vectors of {D} numbers. Choose another disk.")


_STORE_FIELDS = {  # of store.json
    "model_name": str,
    "model_fingerprint": str,
    "manifest_fingerprint": str,
    "generated": bool,
    "rows": int,
    "width": int,
}


def load_store(path: str | Path) -> EmbeddingStore:
    """The finished store in a folder.

    Raises:
        UserError: the folder holds no finished store.
    """
    path = Path(path)
    if not (path / STORE).exists():
        raise UserError(f"{path} holds no finished embeddings. Run `endofm-lab embed MANIFEST --out {path}`.")
    remedy = "Delete the folder and embed again, or copy it again."
    description = read_object(path / STORE, _STORE_FIELDS, remedy)
    refuse_changed(path, STORE, "rows.parquet", "vectors.npy")
    with reading(path, remedy):
        vectors = np.load(path / "vectors.npy", mmap_mode="r", allow_pickle=False)
        rows = read_parquet(path / "rows.parquet")
        if vectors.dtype != np.float32 or not {"video", "time_s", "error"} <= set(rows):
            raise ValueError("its vectors or rows are not in the form that embed writes")
    if vectors.shape != (len(rows), description["width"]):
        raise UserError(
            f"{path} is damaged: it has vectors of shape {vectors.shape} for {len(rows)} rows of width "
            f"{description['width']}. Delete it and embed again."
        )
    return EmbeddingStore(vectors, rows, description, path)


def _middle_clips(
    manifest: Manifest, model: VideoModel, rows: Sequence[int]
) -> Iterator[tuple[torch.Tensor, float] | VideoError]:
    """The clip (1, 3, T, S, S) in the middle of each row's time span and its start in seconds, or the error."""
    for number in rows:
        row = Row.of(manifest, manifest.table.iloc[number])
        try:
            with row.open() as reader:
                index = row.middle(reader, model.card.clip)
                yield to_input(reader.read(index), model.card.input), float(reader.times_s[index[0]])
        except VideoError as error:
            yield error
