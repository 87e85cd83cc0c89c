"""Batches for the demo model: augmented clips with four targets, drawn from a phantom data set in memory."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from endofm_lab.brief import Brief
from endofm_lab.data.manifest import Manifest
from endofm_lab.demo.config import DemoConfig
from endofm_lab.model.card import ModelCard
from endofm_lab.video.augment import square_view
from endofm_lab.video.phantom import FINDINGS, MOTIONS
from endofm_lab.video.reader import open_video
from endofm_lab.video.transforms import normalise


@dataclass(frozen=True, eq=False, repr=False)
class ClipSource(Brief):
    """The videos of a manifest in memory, at the model's input size.

    Attributes:
        frames: (T, S, S, 3) uint8 for each video.
        masks: (T, S, S) bool for each video.
        finding: (n,) indices into FINDINGS.
        motion: (n,) indices into MOTIONS.
    """

    frames: list[Tensor]
    masks: list[Tensor]
    finding: Tensor
    motion: Tensor


def load_clips(manifest: Manifest, split: str, size_px: int) -> ClipSource:
    """Decode a split of a phantom data set once and keep it in memory at ``size_px``."""
    rows = manifest.rows(split)
    return ClipSource(
        frames=[resized(read_whole(manifest, video), size_px) for video in rows["video"]],
        masks=[resized(read_whole(manifest, masks), size_px)[..., 0] > 127 for masks in rows["masks"]],
        finding=torch.tensor([FINDINGS.index(label) for label in rows["label"]]),
        motion=torch.tensor([MOTIONS.index(motion) for motion in rows["motion"]]),
    )


def read_whole(manifest: Manifest, cell: str) -> Tensor:
    """All frames (T, H, W, 3) uint8 of a video or folder of masks that a manifest names."""
    with open_video(manifest.resolve(cell)) as reader:
        return torch.from_numpy(reader.read(range(reader.info.n_frames)))


def resized(frames: Tensor, size_px: int) -> Tensor:
    """Resize (T, H, W, 3) uint8 to (T, S, S, 3) uint8 with antialiasing."""
    small = F.interpolate(frames.permute(0, 3, 1, 2).float(), size=(size_px, size_px), mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def draw_batch(
    source: ClipSource, config: DemoConfig, card: ModelCard, random: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """A batch of augmented clips (B, 3, T, S, S) with four targets; the card gives T, S and the normalisation.

    A clip may be mirrored, rotated, zoomed and recoloured. It may also be played backwards, which swaps its motion.
    """
    clips, masks, findings, motions = [], [], [], []
    span = (card.clip.n_frames - 1) * config.stride + 1
    for video in torch.randint(len(source.frames), (config.batch,), generator=random).tolist():
        length = len(source.frames[video])
        start = int(torch.randint(length - span + 1, (1,), generator=random))
        index = slice(start, start + span, config.stride)
        clip = source.frames[video][index].permute(0, 3, 1, 2).float() / 255
        mask = source.masks[video][index, None].float()
        motion = int(source.motion[video])
        if torch.rand((), generator=random) < 0.5:
            clip, mask, motion = clip.flip(0), mask.flip(0), 1 - motion
        clip, mask = square_view(clip, mask, random)
        clips.append(clip)
        masks.append(mask[:, 0] > 0.5)
        findings.append(int(source.finding[video]))
        motions.append(motion)
    batch_masks = torch.stack(masks)
    return normalise(255 * torch.stack(clips).transpose(1, 2), card.input), {
        "finding": torch.tensor(findings),
        "motion": torch.tensor(motions),
        "mask": batch_masks[:, None].float(),
        "box": boxes_of(batch_masks),
    }


def boxes_of(masks: Tensor) -> Tensor:
    """The box (B, T, 1, 4) around each mask (B, T, H, W), in fractions of the frame; NaN where a mask is empty."""
    rows, columns = masks.any(-1), masks.any(-2)
    h, w = masks.shape[-2:]
    y1, y2 = rows.float().argmax(-1), h - rows.flip(-1).float().argmax(-1)
    x1, x2 = columns.float().argmax(-1), w - columns.flip(-1).float().argmax(-1)
    boxes = torch.stack([x1 / w, y1 / h, x2 / w, y2 / h], dim=-1)
    boxes[~rows.any(-1)] = torch.nan
    return boxes[:, :, None]


def half_size(source: ClipSource) -> ClipSource:
    """The same clips at half the side length; a mask covers a pixel if it covered any of the four original pixels."""
    size_px = source.frames[0].shape[1] // 2
    masks = [F.max_pool2d(mask[:, None].float(), 2)[:, 0] > 0.5 for mask in source.masks]
    return replace(source, frames=[resized(frames, size_px) for frames in source.frames], masks=masks)
