"""Which mask belongs to which frame: by name, never by place alone."""

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
        VideoError: A frame has no mask or a mask has no frame, the names do not say which belong together, or a
            picture is turned by its camera's note and its mask is not, so that either may be meant.
    """
    path, n_masks, n_frames = masks.info.path, masks.info.n_frames, video.info.n_frames
    if n_masks != n_frames:
        raise VideoError(
            path, f"{_difference(video, masks)}there are {n_masks} masks for {n_frames} frames; give one per frame"
        )
    if n_frames > 1 or not video.files:
        _check_names(video, masks)
    for frame, mask in zip(video.files, masks.files, strict=False):
        if _turn(frame) != _turn(mask):
            raise VideoError(
                mask,
                f"its camera's note turns only one of {frame.name} and its mask; save both upright, without the note",
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
                "masks of a video file are numbered frame by frame without a gap, and this one breaks the row",
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
        f"{_difference(video, masks)}mask {masks.files[wrong].name} stands at the place of frame "
        f"{video.files[wrong].name}; give every mask the name of its frame",
    )


def _difference(video: VideoReader, masks: VideoReader) -> str:
    """The first frame without a mask of its name and the first mask without a frame, as the start of a sentence."""
    if not video.files or not masks.files:
        return ""
    frames, stems = {_name(f.stem): f.name for f in video.files}, {_name(f.stem): f.name for f in masks.files}
    alone = [frames[name] for name in frames if name not in stems]
    extra = [stems[name] for name in stems if name not in frames]
    said = [f"frame {name} has no mask" for name in alone[:1]] + [f"mask {name} has no frame" for name in extra[:1]]
    return " and ".join(said) + "; " if said else ""


def _name(stem: str) -> int | str:
    number = _number(stem)
    return stem if number is None else number


def _number(stem: str) -> int | None:
    """The last number in a name."""
    found = re.findall(r"[0-9]+", stem)
    return int(found[-1][:4000]) if found else None


def _turn(file: Path) -> int:
    """The camera's note on how to turn a picture (EXIF 2.32, tag 0x0112); 1 where it is upright."""
    with Image.open(file) as image:
        return int(image.getexif().get(0x0112, 1))
