"""Check that masks belong to the frames of a video, by their names and never by their order alone."""

import re
from pathlib import Path

from PIL import Image

from endofm_lab.errors import VideoError
from endofm_lab.video.reader import VideoReader


def check_masks(video: VideoReader, masks: VideoReader) -> None:
    """Make sure that mask number k belongs to frame k, for every frame of a video.

    Masks of a folder of frames carry their frames' names, or at least the same numbers in them. Masks of a video file
    are numbered without a gap. A single image and a single mask belong together whatever their names are.

    Raises:
        VideoError: A frame has no mask or a mask has no frame, the names do not show which belong together, or the
            orientation tag (EXIF) rotates only one of a picture and its mask, so that the intention is unclear.
    """
    path, n_masks, n_frames = masks.info.path, masks.info.n_frames, video.info.n_frames
    if n_masks != n_frames:
        raise VideoError(
            path,
            f"{_difference(video, masks)}There are {n_masks} masks for {n_frames} frames. Give one mask per frame.",
        )
    if n_frames > 1 or not video.files:
        _check_names(video, masks)
    for frame, mask in zip(video.files, masks.files, strict=False):
        if _turn(frame) != _turn(mask):
            raise VideoError(
                mask,
                f"The orientation tag (EXIF) rotates only one of {frame.name} and its mask. "
                "Save both upright, without the tag.",
            )


def _check_names(video: VideoReader, masks: VideoReader) -> None:
    stems = [file.stem for file in masks.files]
    numbers = [_number(stem) for stem in stems]
    if not video.files:
        first = numbers[0]
        if len(numbers) > 1 and (first is None or numbers != list(range(first, first + len(numbers)))):
            gap = next((n for n, number in enumerate(numbers) if first is None or number != first + n), 0)
            raise VideoError(
                masks.files[gap],
                "Masks of a video file must be numbered frame by frame without a gap; this file breaks the sequence.",
            )
        return
    frames = [file.stem for file in video.files]
    if stems == frames or (None not in numbers and numbers == [_number(stem) for stem in frames]):
        return
    wrong = next(
        n for n, (stem, frame) in enumerate(zip(stems, frames, strict=True)) if _number(stem) != _number(frame)
    )
    raise VideoError(
        masks.info.path,
        f"{_difference(video, masks)}Mask {masks.files[wrong].name} is at the place of frame "
        f"{video.files[wrong].name}. Give every mask the name of its frame.",
    )


def _difference(video: VideoReader, masks: VideoReader) -> str:
    """A sentence that names the first frame without a mask and the first mask without a frame; empty without names."""
    if not video.files or not masks.files:
        return ""
    frames, stems = {_name(f.stem): f.name for f in video.files}, {_name(f.stem): f.name for f in masks.files}
    unmasked = [frames[name] for name in frames if name not in stems]
    extra = [stems[name] for name in stems if name not in frames]
    parts = [f"frame {name} has no mask" for name in unmasked[:1]] + [f"mask {name} has no frame" for name in extra[:1]]
    sentence = " and ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}. " if sentence else ""


def _name(stem: str) -> int | str:
    number = _number(stem)
    return stem if number is None else number


def _number(stem: str) -> int | None:
    """The last number in a name."""
    numbers = re.findall(r"[0-9]+", stem)
    return int(numbers[-1][:4000]) if numbers else None


def _turn(file: Path) -> int:
    """The orientation of a picture (EXIF 2.32, tag 0x0112); 1 means upright."""
    with Image.open(file) as image:
        return int(image.getexif().get(0x0112, 1))
