"""A data set in Kvasir-SEG's form that is drawn from the phantom, and a micro model recipe for it."""

import numpy as np
import pandas as pd
from PIL import Image

from endofm_lab.data.manifest import read_manifest
from endofm_lab.video.reader import open_video

RECIPE = """
model: micro-segmenter
version: 1
name: Micro segmenter
about: For tests.
task: segmentation
data:
  - recipe: kvasir-seg
    near_duplicates: true
    split: {train: 0.6, val: 0.2, test: 0.2}
unit: Near-duplicate pictures form one case.
training: {steps: 4, batch: 4, validate_every: 2, n_frames: 1, stride: 1, image_px: 32, average: 0.9}
starts:
  - name: image weights
    source: hf:nobody/no-weights
    training: {lr: 3.0e-4}
    expected: []
    minutes: {two_cores: null, gpu: null}
  - name: scratch
    source: scratch
    training: {size: micro}
    expected:
      - {metric: dice, value: 0.1, tolerance: 0.9, measured: made pictures}
    minutes: {two_cores: 0.1, gpu: null}
intended_use: Tests.
limits:
  - Knows made pictures only.
"""


def kvasir_from_phantom(phantom, folder, n=20):
    """Pictures, masks and boxes as in the reduced layout; `again0` is the first picture, a little brighter."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    table = read_manifest(phantom).table
    table = table[table["label"] == "polyp"]
    boxes, n_made = [], 0
    for _, row in pd.concat([table, table]).iterrows():
        with open_video(phantom.parent / row["video"]) as video, open_video(phantom.parent / row["masks"]) as masks:
            frame = 3 if n_made < len(table) else 20
            picture, mask = video.read([frame])[0], masks.read([frame])[0, ..., 0] > 127
        if not mask.any() or n_made == n:
            continue
        boxes.append(_write(folder, f"made{n_made}", picture, mask))
        if n_made == 0:
            brighter = np.clip(picture.astype(int) + 6, 0, 255).astype(np.uint8)
            boxes.append(_write(folder, "again0", brighter, mask))
        n_made += 1
    pd.DataFrame(boxes, columns=["image", "label", "x1", "y1", "x2", "y2"]).to_csv(folder / "boxes.csv", index=False)
    return folder


def _write(folder, name, picture, mask):
    Image.fromarray(picture).resize((96, 96)).save(folder / "images" / f"{name}.jpg", quality=95)
    small = Image.fromarray(mask).resize((96, 96))
    small.save(folder / "masks" / f"{name}.png")
    y, x = np.nonzero(np.asarray(small))
    return [name, "polyp", x.min() / 96, y.min() / 96, (x.max() + 1) / 96, (y.max() + 1) / 96]


def micro_recipe(folder, **changes):
    """The path of the recipe, with some texts in it replaced."""
    text = RECIPE
    for old, new in changes.get("replace", {}).items():
        assert old in text
        text = text.replace(old, new)
    path = folder / "micro-segmenter.yaml"
    path.write_text(text)
    return str(path)
