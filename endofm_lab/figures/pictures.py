"""Pictures without Plotly, for printed pages: a frame with its mask and boxes, and the mark of generated frames."""

import numpy as np
import pandas as pd
from PIL import Image, ImageColor, ImageDraw, ImageFont

from endofm_lab.figures.prediction import tint
from endofm_lab.figures.style import color_of


def overlaid(frame: np.ndarray, mask: np.ndarray | None, boxes: pd.DataFrame, generated: bool = False) -> np.ndarray:
    """A copy of a frame (H, W, 3) uint8 with its mask (H, W) bool as tint and outline, and its boxes.

    ``boxes`` has the columns of `VideoPrediction.boxes_xyxy`. A ``generated`` frame is marked in its pixels.
    """
    picture = Image.fromarray(frame if mask is None else tint(frame, mask))
    draw = ImageDraw.Draw(picture)
    thick = max(2, picture.height // 200)
    font = ImageFont.load_default(max(10, picture.height // 28))
    for _, box in boxes.iterrows():
        colour = ImageColor.getrgb(color_of(str(box["label"]), 1))
        corners = [float(box[name]) for name in ("x1", "y1", "x2", "y2")]
        draw.rectangle(corners, outline=colour, width=thick)
        text = f"{box['label']} {box['score']:.2f}"
        place = (corners[0] + thick, max(corners[1], 0) + thick)
        draw.rectangle(draw.textbbox(place, text, font=font), fill=colour)
        draw.text(place, text, font=font, fill=(255, 255, 255))
    if generated:
        mark_generated(picture)
    return np.asarray(picture)


def with_mark(frame: np.ndarray) -> np.ndarray:
    """A copy of a generated frame (H, W, 3) uint8 with the mark, see `mark_generated`."""
    picture = Image.fromarray(frame)
    mark_generated(picture)
    return np.asarray(picture)


def mark_generated(picture: Image.Image) -> None:
    """Write the word "Generated" into the upper right corner of a picture."""
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(8, picture.height // 20))
    left, top, right, bottom = draw.textbbox((picture.width - 3, 2), "Generated", font=font, anchor="ra")
    draw.rectangle((left - 3, top - 2, right + 3, bottom + 2), fill=(40, 40, 40))
    draw.text((picture.width - 3, 2), "Generated", font=font, anchor="ra", fill=(255, 255, 255))
