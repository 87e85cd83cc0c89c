"""Features of videos in the manner of scikit-learn, for pipelines, cross-validation and grids."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from endofm_lab.errors import UserError
from endofm_lab.model.inference import for_inference
from endofm_lab.model.loading.load import model_at
from endofm_lab.model.video_model import VideoModel, check_finite
from endofm_lab.video.clips import read_clip
from endofm_lab.video.transforms import to_input

Video = str | Path | NDArray[np.uint8]


class FeatureExtractor(TransformerMixin, BaseEstimator):
    """A frozen model as a transformer of scikit-learn: a list of videos becomes an array of features.

    >>> from sklearn.pipeline import make_pipeline
    >>> probe = make_pipeline(FeatureExtractor("demo"), LogisticRegression())  # doctest: +SKIP

    Args:
        model: a model, or what `load_model` takes.
        batch: clips that go through the model together.
        device: where the model computes, as in `predict_video`.
    """

    def __init__(self, model: VideoModel | str | Path = "demo", batch: int = 8, device: str = "auto") -> None:
        self.model = model
        self.batch = batch
        self.device = device

    def fit(self, videos: Sequence[Video], y: object = None) -> "FeatureExtractor":
        """Load the model; nothing is learned."""
        self.model_ = model_at(self.model, self.device)
        self.n_features_out_ = self.model_.backbone.width
        return self

    @torch.inference_mode()
    def transform(self, videos: Sequence[Video]) -> NDArray[np.float32]:
        """Features (N, D) float32 of the clips in the middle of N videos: CLS, or the mean over all patches.

        Args:
            videos: files or folders of frames, or arrays (T, H, W, 3) uint8 RGB that are taken as whole clips, all of
                one length.

        Raises:
            VideoError: a video cannot be read.
            UserError: an array has another form, or features are NaN or infinite.
        """
        check_is_fitted(self, "model_")
        if isinstance(videos, str | Path):
            raise UserError(f"{videos} is one video; give a list of them.")
        if self.batch < 1:
            raise UserError(f"batch is {self.batch}; at least 1 clip must go through the model at a time.")
        network = for_inference(self.model_.backbone, torch.float32)
        device = next(self.model_.parameters()).device
        blocks = [np.zeros((0, self.n_features_out_), np.float32)]
        for at in range(0, len(videos), self.batch):
            batch = videos[at : at + self.batch]
            clips = torch.cat([to_input(self._frames(video), self.model_.card.input) for video in batch])
            features = network(clips.to(device)).pooled()
            names = [str(video) if isinstance(video, str | Path) else "an array" for video in batch]
            check_finite(features, f"The backbone of {self.model_.card.name}", names)
            blocks.append(features.float().cpu().numpy())
        return np.concatenate(blocks)

    def get_feature_names_out(self, input_features: object = None) -> NDArray[np.object_]:
        """Names of the columns: "feature0" and so on."""
        return np.array([f"feature{number}" for number in range(self.n_features_out_)], dtype=object)

    def _frames(self, video: Video) -> NDArray[np.uint8]:
        if isinstance(video, str | Path):
            return read_clip(video, self.model_.card.clip, "centre").frames
        if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3:
            raise UserError(f"A video is {video.dtype} of shape {video.shape}; give uint8 RGB frames (T, H, W, 3).")
        return video
