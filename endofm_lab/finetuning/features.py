"""Features that probes read from a store of `endofm-lab embed --clips`, looked up by the content of the videos."""

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from endofm_lab.data.manifest import Manifest
from endofm_lab.errors import UserError
from endofm_lab.explain.embeddings import EmbeddingStore, encoder_fingerprint
from endofm_lab.files import reading
from endofm_lab.model.video_model import VideoModel
from endofm_lab.tasks.clips import shares_of
from endofm_lab.tasks.examples import Example

_Key = tuple[str, float, float, float, float]  # content of the video, start, end, frames per second, share


def stored_features(
    store: EmbeddingStore, manifest: Manifest, model: VideoModel, examples: Mapping[str, Sequence[Example]], clips: int
) -> dict[str, Tensor]:
    """Split -> features (N, clips, D) float32 of its rows.

    Args:
        store: from `embed` with ``clips``; it may have further videos and rows.
        manifest: the manifest of the rows.
        model: the model whose encoder must have computed the store.
        examples: split -> rows.
        clips: clips per row.

    Raises:
        UserError: the store is of another encoder, of another version of it, or of other clips, lacks rows, or has
            rows that could not be read.
    """
    about, remedy = store.about, f"Run `endofm-lab embed MANIFEST --clips {clips}` into a new folder."
    if about.get("clips") != clips:
        kind = f"{about['clips']} clips per row" if "clips" in about else "other clips"
        raise UserError(f"{store.path} has vectors of {kind}, and this probe reads {clips} clips per row. {remedy}")
    if about.get("encoder") != encoder_fingerprint(model):
        raise UserError(
            f"{store.path} has features of another encoder, another version of it or another input: they are those of "
            f"{about['model_name']}, and the probe starts from {model.card.name}. {remedy}"
        )
    with reading(store.path, remedy):
        numbers = _numbers(store)
    contents, shares = manifest.contents(), shares_of(clips)
    features = {}
    for split, rows in examples.items():
        keys = [_key(contents[r.name], r.start_s, r.end_s, r.fps, share) for r in rows for share in shares]
        if missing := [rows[number // clips].name for number, key in enumerate(keys) if key not in numbers]:
            raise UserError(
                f"{store.path} lacks {len(missing)} clips of {split}, for example of {missing[0]}: they are not in it, "
                f"or the videos have changed. {remedy}"
            )
        chosen = np.array([numbers[key] for key in keys], dtype=np.int64)
        if errors := [text for text in store.rows["error"].to_numpy()[chosen] if text]:
            raise UserError(f"{len(errors)} clips of {split} could not be read: {errors[0]} Remove these rows.")
        vectors = torch.from_numpy(np.array(store.vectors[chosen]))
        features[split] = vectors.unflatten(0, (len(rows), clips))
    return features


def _numbers(store: EmbeddingStore) -> dict[_Key, int]:
    """The row of the store for every clip."""
    table, contents = store.rows, store.about["videos"]
    ends = table["end_s"].fillna(np.inf).to_numpy(float)
    rates = table["fps"].to_numpy(float) if "fps" in table else np.full(len(table), np.nan)
    columns = (table["video"], table["start_s"].to_numpy(float), ends, rates, table["share"].to_numpy(float))
    numbers: dict[_Key, int] = {}
    for number, (cell, start_s, end_s, rate, share) in enumerate(zip(*columns, strict=True)):
        numbers.setdefault(_key(contents[cell], start_s, end_s, None if np.isnan(rate) else rate, share), number)
    return numbers


def _key(content: str, start_s: float, end_s: float, rate: Fraction | float | None, share: float) -> _Key:
    return content, float(start_s), float(end_s), 0.0 if rate is None else float(rate), float(share)
