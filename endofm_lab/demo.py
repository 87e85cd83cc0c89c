"""The demo model: one `tiny` video transformer with four heads, fitted on the phantom, evaluated on unseen patients.

Its spatial part has been pre-trained on the same videos without their labels (`endofm_lab.pretraining`, preset tiny).
Finding (normal, polyp, ulcer, bleeding), motion (advancing, withdrawing), mask and box of the finding.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from endofm_lab.data.manifest import Manifest
from endofm_lab.metrics.classification import accuracy, auc, weighted_mean
from endofm_lab.metrics.intervals import Interval, bootstrap_interval
from endofm_lab.model.card import HeadSpec, Metric, ModelCard
from endofm_lab.model.heads import BoxHead, ClipClassifier, MaskHead
from endofm_lab.model.loading.load import initialise, load_model
from endofm_lab.model.transformer import Block, VideoTransformer, build_backbone
from endofm_lab.model.video_model import VideoModel
from endofm_lab.predict import predict_video
from endofm_lab.training.checkpoints import Checkpoints
from endofm_lab.video.clips import ClipSpec
from endofm_lab.video.phantom import FINDINGS, MOTIONS
from endofm_lab.video.reader import open_video
from endofm_lab.video.transforms import IMAGENET, normalise, to_input


@dataclass(frozen=True)
class DemoConfig:
    """How the demo model is fitted. The defaults give the weights in the package."""

    order_steps: int = 200  # first, on the order of frames alone, with small pictures
    small_steps: int = 700  # then on everything, with small pictures: half the size, four times the batch
    steps: int = 1300  # then on everything
    frame_steps: tuple[int, ...] = (1200, 800)  # at last, in two rounds, with masks counted frame by frame
    batch: int = 8
    lr: float = 1.5e-3
    weight_decay: float = 0.05
    stride: int = 4  # frames apart: 8 frames of the phantom's 24 per second span 1.3 s
    seed: int = 0

    @property
    def rounds(self) -> tuple[tuple[int, int, float], ...]:
        """First step, number of steps and highest learning rate of each warm-up and decay."""
        lengths = (self.order_steps, self.small_steps + self.steps, *self.frame_steps)
        rates = (self.lr, self.lr, *[self.lr / 2] * len(self.frame_steps))
        return tuple((sum(lengths[:n]), lengths[n], rates[n]) for n in range(len(lengths)))

    @property
    def total_steps(self) -> int:
        """Steps of all rounds."""
        return sum(length for _, length, _ in self.rounds)


@dataclass(frozen=True)
class ClipSource:
    """A manifest's videos in memory, at the model's size.

    Attributes:
        frames: per video (T, S, S, 3) uint8.
        masks: per video (T, S, S) bool.
        finding: (n,) index into FINDINGS.
        motion: (n,) index into MOTIONS.
    """

    frames: list[Tensor]
    masks: list[Tensor]
    finding: Tensor
    motion: Tensor


def load_clips(manifest: Manifest, split: str, size_px: int) -> ClipSource:
    """Decode a split of a phantom data set once and keep it in memory at ``size_px``."""
    rows = manifest.rows(split)
    return ClipSource(
        frames=[_resized(read_whole(manifest, video), size_px) for video in rows["video"]],
        masks=[_resized(read_whole(manifest, masks), size_px)[..., 0] > 127 for masks in rows["masks"]],
        finding=torch.tensor([FINDINGS.index(label) for label in rows["label"]]),
        motion=torch.tensor([MOTIONS.index(motion) for motion in rows["motion"]]),
    )


def read_whole(manifest: Manifest, cell: str) -> Tensor:
    """All frames (T, H, W, 3) uint8 of a video or folder of masks that a manifest names."""
    with open_video(manifest.resolve(cell)) as reader:
        return torch.from_numpy(reader.read(range(reader.info.n_frames)))


def _resized(frames: Tensor, size_px: int) -> Tensor:
    """(T, H, W, 3) uint8 to (T, S, S, 3) uint8, antialiased."""
    small = F.interpolate(frames.permute(0, 3, 1, 2).float(), size=(size_px, size_px), mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def draw_batch(
    source: ClipSource, config: DemoConfig, card: ModelCard, random: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """A batch of augmented clips (B, 3, T, S, S), as many frames and normalised as the card says, with four targets.

    A clip may be mirrored, turned, zoomed, change its colours, and run backwards: its motion label then turns too.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=random)

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
        if torch.rand((), generator=random) < 0.5:
            clip, mask = clip.flip(-1), mask.flip(-1)
        turns = int(torch.randint(4, (1,), generator=random))
        clip, mask = clip.rot90(turns, (-2, -1)), mask.rot90(turns, (-2, -1))
        size = clip.shape[-1]
        side = int(uniform(0.75, 1.0, 1) * size)
        top, left = (int(v) for v in torch.randint(size - side + 1, (2,), generator=random))
        window = (..., slice(top, top + side), slice(left, left + side))
        clip = F.interpolate(clip[window], size=(size, size), mode="bilinear")
        mask = F.interpolate(mask[window], size=(size, size), mode="bilinear")
        gain, bias = uniform(0.75, 1.25, 1, 3, 1, 1), uniform(-0.06, 0.06, 1, 1, 1, 1)
        clips.append((clip * gain + bias).clamp(0, 1))
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


def build_demo_model(n_frames: int = 8, seed: int = 0, pretrained: str | Path = "scratch") -> VideoModel:
    """The demo model before training: the spatial part and the normalisation are those of a pre-trained `tiny` model.

    The temporal part is always new: motion is learned from a start that tells frames apart (`_notice_time`).

    Args:
        n_frames: of a clip.
        seed: of all that is new.
        pretrained: as the source of `initialise`; "scratch" with ImageNet's normalisation.

    Raises:
        CheckpointError: as `initialise`.
    """
    torch.manual_seed(seed)
    backbone = build_backbone("tiny", frames=n_frames)
    record = initialise(backbone, pretrained, part="spatial")
    input_spec = IMAGENET if pretrained == "scratch" else load_model(pretrained).card.input
    _notice_time(backbone)
    width = backbone.config.width
    heads: dict[str, nn.Module] = {
        "finding": ClipClassifier(width, len(FINDINGS)),
        "motion": ClipClassifier(width, len(MOTIONS)),
        "mask": MaskHead(width),
        "box": BoxHead(width),
    }
    card = ModelCard(
        name="demo (tiny, trained on generated video)",
        backbone={},
        input=replace(input_spec, size_px=backbone.config.image_px),
        clip=ClipSpec(n_frames=n_frames, fps=6.0),
        initialisation={**record, "words": f"{record['words']} {_NOTICED}"},
        heads={
            "finding": HeadSpec("multiclass", FINDINGS),
            "motion": HeadSpec("multiclass", MOTIONS),
            "mask": HeadSpec("mask", ("finding",)),
            "box": HeadSpec("box", ("finding",)),
        },
    )
    return VideoModel(backbone, nn.ModuleDict(heads), card)


_NOTICED = "Then time embedding and temporal attention were drawn larger, to tell frames apart from the first step on."


def _notice_time(backbone: VideoTransformer) -> None:
    """Let the temporal attention of a fresh backbone tell frames apart from the first step on, in place.

    With the usual start (embeddings and weights of 0.02, ``temporal_fc`` of zeros) attention in time is uniform, so
    what it adds does not depend on the frames' order, and a label that is nothing but order has no gradient to begin
    with. Larger time embeddings, queries and keys give every head its own weights over the frames.
    """
    nn.init.normal_(backbone.time_embed, std=0.7)
    width = backbone.config.width
    for block in backbone.blocks:
        assert isinstance(block, Block)
        with torch.no_grad():
            block.temporal_attn.qkv.weight[: 2 * width].normal_(std=0.12)  # queries and keys
        nn.init.xavier_uniform_(block.temporal_attn.qkv.weight[2 * width :])
        nn.init.xavier_uniform_(block.temporal_attn.proj.weight)
        nn.init.xavier_uniform_(block.temporal_fc.weight)


def losses_of(
    model: VideoModel, clip: Tensor, target: dict[str, Tensor], every_frame_alike: bool = False
) -> dict[str, Tensor]:
    """The losses of a batch; their sum is what is minimised. The mask's is over clips, and also over single frames."""
    logits = model(clip).logits
    batch = {
        "finding": {"target": target["finding"]},
        "motion": {"target": target["motion"]},
        "mask": {"mask": target["mask"]},
        "box": {"boxes": target["box"], "labels": torch.zeros(target["box"].shape[:3], dtype=torch.long)},
    }
    losses = {name: model.head(name).loss(logits[name], batch[name]) for name in batch}
    if every_frame_alike:
        frames, truth = (rearrange(x, "b k t h w -> (b t) k 1 h w") for x in (logits["mask"], target["mask"]))
        losses["frame mask"] = model.head("mask").loss(frames, {"mask": truth})
    return losses


def order_losses(model: VideoModel, clip: Tensor, motion: Tensor) -> dict[str, Tensor]:
    """The motion loss of clips (B, 3, T, S, S), each of them seen forwards and backwards.

    What both directions share carries no answer and cancels out of the gradient: what is left is the order.
    """
    both, answers = torch.cat([clip, clip.flip(2)]), torch.cat([motion, 1 - motion])
    head = model.head("motion")
    return {"motion": head.loss(head(model.backbone(both)), {"target": answers})}


def train_demo(
    model: VideoModel, manifest: Manifest, config: DemoConfig, checkpoints: Checkpoints | None = None
) -> Iterator[dict[str, float]]:
    """Fit the demo model in place on the training patients; yields step, learning rate and losses.

    First the order of frames alone: beside masks and boxes its gradient is too faint to be found (with all losses from
    the start the motion loss stays at ln 2; 100 steps of this brought it to 0.3). Then everything, on small pictures,
    where the same time pays for four times as many, and in full size. At last every frame's mask counts alike, as in
    the Dice that is reported: a loss over whole clips is content when the frames with a large finding are right.

    With ``checkpoints`` a training that was stopped goes on where it was, to the same weights.
    """
    torch.manual_seed(config.seed)
    random = torch.Generator().manual_seed(config.seed)
    optimiser = _adamw(model, config)
    state = checkpoints.load(model, optimiser) if checkpoints else None
    if state:
        random.set_state(torch.frombuffer(bytearray.fromhex(state["random"]), dtype=torch.uint8))
    first = done = int(state["step"]) if state else 0
    total = config.total_steps
    source = load_clips(manifest, "train", model.card.input.size_px)
    small = _half_size(source)

    def losses_at(step: int) -> dict[str, Tensor]:
        if step < config.order_steps:
            clip, target = draw_batch(small, replace(config, batch=2 * config.batch), model.card, random)
            return order_losses(model, clip, target["motion"])
        if step < config.order_steps + config.small_steps:
            return losses_of(model, *draw_batch(small, replace(config, batch=4 * config.batch), model.card, random))
        drawn = draw_batch(source, config, model.card, random)
        return losses_of(model, *drawn, every_frame_alike=step >= total - sum(config.frame_steps))

    def save() -> None:
        if checkpoints:
            noise = random.get_state().numpy().tobytes().hex()
            checkpoints.save(done, model.state_dict(), optimiser.state_dict(), {"random": noise})

    model.train()
    try:
        for step in range(first, total):
            begin, length, peak = next(r for r in reversed(config.rounds) if r[0] <= step)
            if step == begin:
                optimiser = _adamw(model, config)
            rate = peak * min((step - begin + 1) / max(1, min(100, length // 5)), _cosine((step - begin) / length))
            for group in optimiser.param_groups:
                group["lr"] = rate
            with torch.autocast("cpu", dtype=torch.bfloat16):
                losses = losses_at(step)
            loss = torch.stack(list(losses.values())).sum()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 3.0)
            optimiser.step()
            done = step + 1
            if done % 200 == 0:
                save()
            yield {"step": done, "lr": rate, "loss": loss.item(), **{k: v.item() for k, v in losses.items()}}
    finally:
        if first < done < total:
            save()
    model.eval()


def _adamw(model: VideoModel, config: DemoConfig) -> torch.optim.AdamW:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.95))


def _cosine(done: float) -> float:
    return 0.5 + 0.5 * math.cos(math.pi * done)


def _half_size(source: ClipSource) -> ClipSource:
    size_px = source.frames[0].shape[1] // 2
    masks = [F.max_pool2d(mask[:, None].float(), 2)[:, 0] > 0.5 for mask in source.masks]
    return replace(source, frames=[_resized(frames, size_px) for frames in source.frames], masks=masks)


def evaluate_demo(model: VideoModel, manifest: Manifest, split: str) -> dict[str, Interval]:
    """The demo's numbers on the patients of a split, with 95 % intervals over patients.

    Polyp AUC: every clip that `predict_video` cuts, polyp against all other findings. Dice: per frame that the model
    saw and in which a polyp is visible, in the video's own size. Motion: accuracy over the same clips; and over
    "clips" that repeat one frame eight times, which must be at chance.
    """
    clips, dice = [], []
    for row in manifest.rows(split).to_dict("records"):
        prediction = predict_video(manifest.resolve(row["video"]), model, progress=False)
        scores, motions = prediction.scores["finding"], prediction.scores["motion"]
        still = _resized(read_whole(manifest, row["video"]), model.card.input.size_px)
        for clip, (start_s, end_s) in enumerate(prediction.times_s):
            middle = int((start_s + end_s) / 2 * float(prediction.video.fps))
            clips.append(
                {
                    "patient": row["patient"],
                    "is polyp": row["label"] == "polyp",
                    "polyp score": scores[clip, FINDINGS.index("polyp")],
                    "motion": MOTIONS.index(row["motion"]),
                    "found": motions[clip].argmax(),
                    "found in one frame": _motion_of_one_frame(model, still[middle]),
                }
            )
        if row["label"] == "polyp":
            truth = read_whole(manifest, row["masks"])[..., 0].numpy() > 127
            for frame in [f for f in prediction.frames.tolist() if truth[f].any()]:
                found = prediction.mask(frame)[0]
                overlap = 2 * (found & truth[frame]).sum() / (found.sum() + truth[frame].sum())
                dice.append({"patient": row["patient"], "dice": overlap})
    table, masks = pd.DataFrame(clips), pd.DataFrame(dice)
    one_frame = (accuracy, table["patient"], table["motion"], table["found in one frame"])
    return {
        "polyp AUC": bootstrap_interval(auc, table["patient"], table["is polyp"], table["polyp score"]),
        "polyp mask Dice": bootstrap_interval(weighted_mean, masks["patient"], masks["dice"]),
        "motion accuracy": bootstrap_interval(accuracy, table["patient"], table["motion"], table["found"]),
        "motion accuracy, one frame repeated": bootstrap_interval(*one_frame),
    }


@torch.inference_mode()
def _motion_of_one_frame(model: VideoModel, frame: Tensor) -> int:
    """The motion that the model sees in a clip that repeats one frame (S, S, 3) uint8."""
    repeated = frame[None].expand(model.card.clip.n_frames, -1, -1, -1).numpy()
    return int(model.predict(to_input(repeated, model.card.input))["motion"].argmax())


def carded(model: VideoModel, manifest: Manifest, config: DemoConfig, metrics: dict[str, Interval]) -> VideoModel:
    """The model with a card that says what it was trained on and what it reached."""
    command = f"endofm-lab demo evaluate --seed {config.seed}"
    card = replace(
        model.card,
        data={
            "description": "Phantom, preset demo: generated endoscopy-like video",
            "fingerprint": manifest.fingerprint,
            "generated": True,
            "split": "by patient: train, val, test; pre-trained without labels and trained on train, measured "
            "on test, which was in view when the length of the training was chosen",
        },
        metrics=tuple(
            Metric(
                name=name,
                value=interval.value,
                interval=[interval.low, interval.high],
                data="phantom, preset demo (generated)",
                split="test",
                seed=config.seed,
                command=command,
            )
            for name, interval in metrics.items()
        ),
    )
    return VideoModel(model.backbone, model.heads, card)
