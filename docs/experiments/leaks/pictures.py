"""Kvasir-SEG, compared by its pictures, and what its near-duplicates are worth: masks copied from the nearest "
"picture.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

import endofm_lab as lab
from docs.experiments.leaks.sections import Section, manifest_of, summary, table_of
from endofm_lab.data.audit.audit import audit
from endofm_lab.data.audit.duplicates import picture_neighbours
from endofm_lab.data.audit.overlap import gather
from endofm_lab.data.manifest import Manifest
from endofm_lab.metrics.classification import weighted_mean
from endofm_lab.metrics.intervals import Interval, bootstrap_difference, bootstrap_interval
from endofm_lab.metrics.masks import dice
from endofm_lab.model.video_model import build_frame_model

# The display covers a third of the lower left quarter where it is, and 0.004 % of it in all other pictures.
DISPLAY_SHARE = 0.05


def kvasir_seg(data: Path, weights: str | None) -> Section:
    """Kvasir-SEG's lists as distributed with published code, compared by pictures."""
    folder, lists = data / "kvasir-seg" / "images", data / "label-lists" / "kvasir-seg"
    part = {n: split for split in ("train", "val", "test") for n in (lists / f"{split}.txt").read_text().split()}
    stems = sorted(path.stem for path in folder.glob("*.jpg"))
    table = pd.DataFrame({"video": [f"{n}.jpg" for n in stems], "split": [part.get(n, "") for n in stems]})
    manifest = manifest_of(table.assign(label="polyp"), "kvasir-seg", folder)
    result = audit(manifest, pictures=True, progress=False)
    pairs = picture_neighbours(gather([manifest]), progress=False).pairs
    display = {stem: has_position_display(folder / f"{stem}.jpg") for stem in stems}
    lines, overlays, across = [], 0, 0
    for row, other, score in pairs.itertuples(index=False):
        first, second = sorted((stems[row], stems[other]), key=display.__getitem__)
        overlays += display[first] != display[second]
        sides = " / ".join(part.get(n, "-") for n in (first, second))
        across += part.get(first) != part.get(second)
        note = "without and with the green position display" if display[first] != display[second] else "same scene"
        lines.append([f"`{first}`", f"`{second}`", sides, f"{score:.2f}", note])
    n_parts = {split: sum(value == split for value in part.values()) for split in ("train", "val", "test")}
    words = ", ".join(f"{split} {n_parts[split]} (at hand {result.parts.get(split, 0)})" for split in n_parts)
    copies = copied_masks(manifest, pairs, folder.parent / "masks", weights) if weights else None
    return Section(
        "Kvasir-SEG",
        summary("Kvasir-SEG, at hand", result),
        [
            f"Looked at: `train.txt`, `val.txt` and `test.txt` as distributed with published code: {words}; the "
            f"pictures at hand ({len(stems)} of {len(part):,}) were compared with each other.",
            result.verdict,
            f"{len(pairs)} pairs of pictures show the same scene, {across} of them on two sides of the lists. "
            f"{overlays} pairs are one picture published twice: once with the green position display of the "
            "colonoscope, and once with less border and black in place of the display (the highlights agree, and the "
            f"time of day where it can be read). {sum(display.values())} pictures at hand have the display. All pairs "
            "were looked at and show the same scene. A similarity below 0.60 is only reported as possible by the "
            "audit, and does not count as a leak in the table at the top.",
            table_of(["picture", "the other", "lists", "similarity", "what differs"], lines),
            *([copies.in_words()] if copies else []),
            f"Cannot be said: the other {len(part) - len(stems)} pictures are not at hand, no list names patients, "
            "and two pictures of one polyp from different sides are no near-duplicates.",
        ],
    )


@dataclass(frozen=True)
class Copies:
    """Mean Dice of copied masks with the published training list and with a clean one, and their difference."""

    n_test: int
    n_removed: int
    n_touched: int
    published: Interval
    clean: Interval
    difference: float
    low: float
    high: float
    touched_published: float
    touched_clean: float

    def in_words(self) -> str:
        """What a clean split changes, for the page."""
        return (
            f"What a clean split changes: every one of the {self.n_test} test pictures gets the mask of the training "
            "picture that is nearest by frozen features (CLS of a DINOv2-like ViT-S/14 at 224 px, origin unverified; "
            f"cosine). Mean Dice is {self.published} with the training list, and {self.clean} after the "
            f"{self.n_removed} training pictures with a near-duplicate in the test list were left out: "
            f"{self.difference:+.3f} [{self.low:+.3f}, {self.high:+.3f}], resampling test pictures. On the "
            f"{self.n_touched} test pictures with a near-duplicate, Dice falls from {self.touched_published:.3f} to "
            f"{self.touched_clean:.3f}. So few pairs hardly move a mean, but they reward a model that remembers."
        )


def copied_masks(manifest: Manifest, pairs: pd.DataFrame, masks: Path, weights: str) -> Copies:
    """Give every test picture the mask of its nearest training picture, before and after near-duplicates are left out.

    Args:
        manifest: pictures with splits `train` and `test`.
        pairs: rows ``row`` and ``other`` that are near-duplicates.
        masks: folder of masks, `<stem of the picture>.png`.
        weights: file of a timm vit_small_patch14_dinov2.
    """
    model = build_frame_model("vit_small_patch14_dinov2", weights=weights, image_px=224)
    with tempfile.TemporaryDirectory() as folder:
        vectors = lab.embed(manifest, model, Path(folder) / "store", progress=False).vectors  # (N, D)
    paths = [masks / f"{Path(name).stem}.png" for name in manifest.table["video"]]
    return copies_of(vectors, manifest.table["split"].to_numpy(), pairs[["row", "other"]].to_numpy(), paths)


def copies_of(vectors: np.ndarray, split: np.ndarray, links: np.ndarray, masks: list[Path]) -> Copies:
    """As :func:`copied_masks`, from vectors (N, D), splits (N,), near-duplicates (L, 2) and files of masks."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    train, test = np.flatnonzero(split == "train"), np.flatnonzero(split == "test")
    crossing = [(a, b) for pair in links for a, b in (pair, pair[::-1]) if split[a] == "test" and split[b] == "train"]
    removed = {int(b) for _, b in crossing}
    touched = np.isin(test, [a for a, _ in crossing])
    clean = np.array([row for row in train if row not in removed])
    values = {
        name: np.array(
            [_dice_of_copy(masks[row], masks[learned[int((unit[learned] @ unit[row]).argmax())]]) for row in test]
        )
        for name, learned in (("published", train), ("clean", clean))
    }
    before, after = values["published"], values["clean"]
    change = bootstrap_difference(weighted_mean, test, (before,), (after,))
    return Copies(
        len(test), len(removed), int(touched.sum()),
        bootstrap_interval(weighted_mean, test, before), bootstrap_interval(weighted_mean, test, after),
        change.value, change.low, change.high, float(before[touched].mean()), float(after[touched].mean()),
    )  # fmt: skip


def _dice_of_copy(truth: Path, copy: Path) -> float:
    with Image.open(truth) as picture, Image.open(copy) as other:
        same_size = other.convert("1").resize(picture.size, Image.Resampling.NEAREST)
        return dice(np.asarray(picture.convert("1")), np.asarray(same_size))


def has_position_display(path: Path) -> bool:
    """Whether a picture has the green display of the endoscope's position in its lower left quarter."""
    with Image.open(path) as picture:
        red, green, blue = np.asarray(picture.convert("RGB"), int).transpose(2, 0, 1)  # (H, W) each
    h, w = red.shape
    clear = (green > red + 30) & (green > blue + 10)
    return bool(clear[h // 2 :, : w // 2].mean() >= DISPLAY_SHARE)
