"""The overlays of a prediction and its findings, as the viewer in the browser draws them."""

from typing import Any

import numpy as np

from endofm_lab.figures.style import MASK_RGB, color_of
from endofm_lab.prediction import NORMAL, VideoPrediction

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
    frames show those of the nearest.
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
        "findings": findings(prediction),
    }


def overlays(prediction: VideoPrediction, first: int, stop: int) -> dict[str, dict[str, Any]]:
    """Masks and boxes of the seen frames from ``first`` up to, not including, ``stop``, by their numbers, as JSON.

    A mask is its size and its runs row by row: the lengths of background and mask in turn, background first.
    Boxes are in pixels of the video.
    """
    frames = prediction.frames[(prediction.frames >= first) & (prediction.frames < stop)]
    return {
        str(frame): {
            "masks": {head: runs_of(prediction.mask(int(frame), head=head).any(axis=0)) for head in prediction.maps},
            "boxes": [
                {
                    "head": str(box["head"]),
                    "text": f"{box['label']} {box['score']:.2f}",
                    "colour": color_of(str(box["label"]), 1),
                    "xyxy": [round(float(box[corner]), 1) for corner in ("x1", "y1", "x2", "y2")],
                }
                for _, box in prediction.boxes(int(frame)).iterrows()
            ],
        }
        for frame in frames
    }


def runs_of(mask: np.ndarray) -> dict[str, Any]:
    """The runs of a mask (H, W) bool, of which every n-th pixel is taken if it is larger than `MASK_PX`."""
    step = -(-max(mask.shape) // MASK_PX)
    mask = mask[::step, ::step]
    flat = np.concatenate([[False], mask.reshape(-1), [not mask.reshape(-1)[-1]]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    return {"height": mask.shape[0], "width": mask.shape[1], "runs": np.diff(ends, prepend=0).tolist()}


def findings(prediction: VideoPrediction) -> list[dict[str, Any]]:
    """Stretches with a finding, in order: label, colour, highest score, first and last frame, and the best frame.

    A stretch consists of neighbouring clips with the same class on top, unless it means that there is no finding. If no
    head distinguishes findings from normal, a stretch consists of neighbouring frames with a mask or a box.
    """
    heads = [head for head in prediction.scores if NORMAL & set(prediction.classes[head])]
    stretches = (
        [finding for head in heads for finding in _of_scores(prediction, head)] if heads else _of_frames(prediction)
    )
    for finding in stretches:
        finding["colour"] = color_of(finding["label"], 1)
    return sorted(stretches, key=lambda finding: (finding["first"], finding["label"]))


def _of_scores(prediction: VideoPrediction, head: str) -> list[dict[str, Any]]:
    """The stretches of one classification head."""
    scores, names, times = prediction.scores[head], prediction.classes[head], prediction.times_s
    best = prediction.telling_frames(len(times))
    stretches = []
    for rows, top in _runs(scores.argmax(axis=1)):
        if names[top] in NORMAL:
            continue
        inside = (prediction.frame_times_s >= times[rows[0], 0]) & (prediction.frame_times_s < times[rows[-1], 1])
        frames = prediction.frames[inside]
        if not len(frames):
            continue
        first, last = int(frames[0]), int(frames[-1])
        frame = next((frame for frame in best if first <= frame <= last), int(frames[len(frames) // 2]))
        score = float(scores[rows, top].max())
        stretches.append({"label": names[top], "score": score, "first": first, "last": last, "frame": frame})
    return stretches


def _of_frames(prediction: VideoPrediction) -> list[dict[str, Any]]:
    """The stretches of frames with masks or boxes; the best frame has the largest mask or the most certain box."""
    stretches = []
    for head, values in prediction.maps.items():
        covered = (np.asarray(values) >= 128).any(axis=1).mean(axis=(1, 2))
        stretches += [
            (prediction.classes[head][0], rows, covered, None) for rows, positive in _runs(covered > 0) if positive
        ]
    for head in prediction.box_heads:
        boxes = prediction.boxes_xyxy[prediction.boxes_xyxy["head"] == head]
        for label, label_boxes in boxes.groupby("label"):
            scores = label_boxes.groupby("frame")["score"].max().reindex(prediction.frames).fillna(0.0).to_numpy()
            stretches += [(str(label), rows, scores, scores) for rows, positive in _runs(scores > 0) if positive]
    return [
        {
            "label": label,
            "score": None if scores is None else float(scores[rows].max()),
            "first": int(prediction.frames[rows[0]]),
            "last": int(prediction.frames[rows[-1]]),
            "frame": int(prediction.frames[rows[evidence[rows].argmax()]]),
        }
        for label, rows, evidence, scores in stretches
    ]


def _runs(values: np.ndarray) -> list[tuple[np.ndarray, Any]]:
    """Stretches of equal neighbouring values: their rows and the value."""
    borders = np.flatnonzero(values[1:] != values[:-1]) + 1
    return [(rows, values[rows[0]].item()) for rows in np.split(np.arange(len(values)), borders)]
