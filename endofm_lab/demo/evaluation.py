"""Metrics of the demo model on the patients of a split."""

import pandas as pd
import torch
from torch import Tensor

from endofm_lab.data.manifest import Manifest
from endofm_lab.data.units import units
from endofm_lab.demo.clips import read_whole, resized
from endofm_lab.metrics.classification import accuracy, auc, weighted_mean
from endofm_lab.metrics.intervals import Interval, bootstrap_interval
from endofm_lab.model.video_model import VideoModel
from endofm_lab.predict import predict_video
from endofm_lab.video.phantom import FINDINGS, MOTIONS
from endofm_lab.video.transforms import to_input


def evaluate_demo(model: VideoModel, manifest: Manifest, split: str) -> dict[str, Interval]:
    """Metrics of the demo model on the rows of a split, with 95 % intervals over units (patients, where known).

    Polyp AUC is computed over all clips that `predict_video` cuts, polyp against all other findings. Dice is computed
    at the video's own size, for each frame that the model saw and in which a polyp is visible. Motion accuracy is
    computed over the same clips, and over clips that repeat one frame eight times, where it must be at chance.
    """
    clips, dice = [], []
    rows = manifest.rows(split)
    for unit, row in zip(units(rows).ids, rows.to_dict("records"), strict=True):
        prediction = predict_video(manifest.resolve(row["video"]), model, progress=False)
        scores, motions = prediction.scores["finding"], prediction.scores["motion"]
        frames = resized(read_whole(manifest, row["video"]), model.card.input.size_px)
        for clip, (start_s, end_s) in enumerate(prediction.times_s):
            middle = int((start_s + end_s) / 2 * float(prediction.video.fps))
            clips.append(
                {
                    "unit": unit,
                    "is polyp": row["label"] == "polyp",
                    "polyp score": scores[clip, FINDINGS.index("polyp")],
                    "motion": MOTIONS.index(row["motion"]),
                    "predicted motion": motions[clip].argmax(),
                    "motion of one frame": _motion_of_one_frame(model, frames[middle]),
                }
            )
        if row["label"] == "polyp":
            truth = read_whole(manifest, row["masks"])[..., 0].numpy() > 127
            for frame in [f for f in prediction.frames.tolist() if truth[f].any()]:
                mask = prediction.mask(frame)[0]
                overlap = 2 * (mask & truth[frame]).sum() / (mask.sum() + truth[frame].sum())
                dice.append({"unit": unit, "dice": overlap})
    table, masks = pd.DataFrame(clips), pd.DataFrame(dice)
    one_frame = (accuracy, table["unit"], table["motion"], table["motion of one frame"])
    return {
        "polyp AUC": bootstrap_interval(auc, table["unit"], table["is polyp"], table["polyp score"]),
        "polyp mask Dice": bootstrap_interval(weighted_mean, masks["unit"], masks["dice"]),
        "motion accuracy": bootstrap_interval(accuracy, table["unit"], table["motion"], table["predicted motion"]),
        "motion accuracy, one frame repeated": bootstrap_interval(*one_frame),
    }


@torch.inference_mode()
def _motion_of_one_frame(model: VideoModel, frame: Tensor) -> int:
    """The motion that the model predicts for a clip that repeats one frame (S, S, 3) uint8."""
    repeated = frame[None].expand(model.card.clip.n_frames, -1, -1, -1).numpy()
    return int(model.predict(to_input(repeated, model.card.input))["motion"].argmax())
