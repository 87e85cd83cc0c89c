"""`endofm-lab predict`."""

import json as json_format
from pathlib import Path
from typing import Annotated, Literal

import tyro

from endofm_lab import NOTICE


def predict(
    video: Annotated[Path, tyro.conf.Positional],
    out: Path,
    model: str = "demo",
    step_s: float | None = None,
    every_frame: bool = False,
    batch_clips: int = 4,
    precision: Literal["float32", "auto"] = "float32",
    json: bool = False,
) -> None:
    """Scores for sliding clips over a whole video, masks and boxes for the frames in them.

    A run that was stopped goes on where it was when the same command is given again.

    Args:
        video: a video file, a folder of frames, or one image.
        out: folder for clips.parquet, boxes.parquet, masks/ and prediction.json.
        model: "demo", a model's folder, or a released checkpoint.
        step_s: seconds from one clip's start to the next; by default half a clip.
        every_frame: give every frame a mask and boxes, not only those that the sliding clips show (slower).
        batch_clips: clips that go through the model together.
        precision: auto computes in bfloat16 where the processor has it in hardware: faster for large models.
        json: print the scores as JSON instead of a table.
    """
    from endofm_lab.predict import predict_video

    prediction = predict_video(
        video,
        model,
        step_s=step_s,
        every_frame=every_frame,
        batch_clips=batch_clips,
        precision=precision,
        out=out,
        progress=not json,
    )
    table = prediction.table()
    if json:
        print(json_format.dumps({"out": str(out), "clips": table.to_dict("records")}, default=float))
        return
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3f}", max_rows=24))
    print(f"\n{len(table)} clips, {len(prediction.frames)} frames with masks, {len(prediction.boxes_xyxy)} boxes.")
    origin = prediction.provenance
    print(f"Model: {origin['model_name']}. Initialisation: {origin['initialisation']['words']}")
    print(f"Written to {out}. {NOTICE}")
