"""The overlays of a prediction and its findings, as the viewer in the browser draws them."""

from typing import Any

import numpy as np
import pandas as pd

from endofm_lab.familiarity.quality import words_of
from endofm_lab.figures.style import MASK_RGB, color_of
from endofm_lab.prediction import VideoPrediction
from endofm_lab.study.stretches import DEFAULT

MASK_PX = 640  # masks are sent with at most so many pixels along their longer side


def overlay_names(prediction: VideoPrediction) -> dict[str, str]:
    """Name of an overlay -> the head that gives it; the name contains the head if there are several of its kind."""
    names = {}
    for word, heads in (("Mask", list(prediction.maps)), ("Boxes", prediction.box_heads)):
        names |= {word if len(heads) == 1 else f"{word}: {head}": head for head in heads}
    return names


def facts(times_s: np.ndarray, prediction: VideoPrediction) -> dict[str, Any]:
    """What the viewer must know about a video before it shows the first frame, as JSON.

    ``times_s`` are the times of all frames. ``seen`` are the frames that have masks and boxes of their own; the other
    frames show those of the nearest. ``unfamiliar`` are the first and last frames of stretches that look unlike what
    the model learned. ``faults`` are words for seen frames whose picture has a fault, by their numbers.
    """
    video = prediction.video
    return {
        "frames": video.n_frames,
        "width": video.width_px,
        "height": video.height_px,
        "times_s": np.round(times_s, 6).tolist(),
        "duration_s": video.duration_s,
        "generated": video.generated,
        "seen": prediction.frames.tolist(),
        "overlays": overlay_names(prediction),
        "mask_rgb": list(MASK_RGB),
        "faults": {str(prediction.frames[row]): words for row, words in words_of(prediction.quality).items()},
        "unfamiliar": [prediction.frames[list(ends)].tolist() for ends in prediction.unfamiliar_stretches()],
    }


def overlays(
    prediction: VideoPrediction, first: int, stop: int, threshold: float = DEFAULT.score, unfamiliar: bool = False
) -> dict[str, dict[str, Any]]:
    """Masks and boxes of the seen frames from ``first`` up to, not including, ``stop``, by their numbers, as JSON.

    A mask contains the pixels whose probability is at least ``threshold``. It is its size and its runs row by row: the
    lengths of background and mask in turn, background first. Boxes are in pixels of the video. Frames that look unlike
    what the model learned have neither, unless ``unfamiliar`` is set.
    """
    inside = (prediction.frames >= first) & (prediction.frames < stop)
    hidden = prediction.unfamiliar_frames() & (not unfamiliar)
    empty: dict[str, Any] = {"masks": {}, "boxes": []}
    return {str(frame): empty for frame in prediction.frames[inside & hidden]} | {
        str(frame): {
            "masks": {
                head: runs_of(prediction.mask(int(frame), threshold, head).any(axis=0)) for head in prediction.maps
            },
            "boxes": [
                {
                    "head": str(box["head"]),
                    "text": f"{box['label']} {box['score']:.2f}",
                    "score": round(float(box["score"]), 4),
                    "colour": color_of(str(box["label"]), 1),
                    "xyxy": [round(float(box[corner]), 1) for corner in ("x1", "y1", "x2", "y2")],
                }
                for _, box in prediction.boxes(int(frame)).iterrows()
            ],
        }
        for frame in prediction.frames[inside & ~hidden]
    }


def runs_of(mask: np.ndarray) -> dict[str, Any]:
    """The runs of a mask (H, W) bool, of which every n-th pixel is taken if it is larger than `MASK_PX`."""
    step = -(-max(mask.shape) // MASK_PX)
    mask = mask[::step, ::step]
    flat = np.concatenate([[False], mask.reshape(-1), [not mask.reshape(-1)[-1]]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    return {"height": mask.shape[0], "width": mask.shape[1], "runs": np.diff(ends, prepend=0).tolist()}


def marks(findings: pd.DataFrame) -> list[dict[str, Any]]:
    """Findings of `video_findings` in order of time, for the marks and buttons of the viewer, as JSON."""
    ordered = findings.sort_values(["first", "finding"], kind="stable")
    return [
        {
            "label": row.finding,
            "score": round(float(row.score), 4),
            "first": int(row.first),
            "last": int(row.last),
            "frame": int(row.frame),
            "colour": color_of(row.finding, 1),
        }
        for row in ordered.itertuples()
    ]
