"""Train the demo model: first on the order of frames, then with every head, finally with a mask loss per frame."""

from collections.abc import Iterator
from dataclasses import asdict, replace

import torch
from einops import rearrange
from torch import Tensor, nn

from endofm_lab.data.manifest import Manifest
from endofm_lab.demo.clips import ClipSource, draw_batch, half_size, load_clips
from endofm_lab.demo.config import DemoConfig
from endofm_lab.folders.run_folder import claim
from endofm_lab.model.video_model import VideoModel
from endofm_lab.model.weight_files import state_fingerprint
from endofm_lab.training.checkpoints import Checkpoints


def losses_of(
    model: VideoModel, clip: Tensor, target: dict[str, Tensor], every_frame_alike: bool = False
) -> dict[str, Tensor]:
    """The losses of a batch, whose sum is minimised.

    The mask loss is taken over whole clips; with ``every_frame_alike`` it is also taken over single frames.
    """
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
    """The motion loss of clips (B, 3, T, S, S), each of them played forwards and backwards.

    Features that both directions share cannot tell the motion, and their gradients cancel; only the order remains.
    """
    clips, answers = torch.cat([clip, clip.flip(2)]), torch.cat([motion, 1 - motion])
    head = model.head("motion")
    return {"motion": head.loss(head(model.backbone(clips)), {"target": answers})}


def train_demo(
    model: VideoModel, manifest: Manifest, config: DemoConfig, checkpoints: Checkpoints | None = None
) -> Iterator[dict[str, float]]:
    """Fit the demo model in place on the training patients; yields step, learning rate and losses.

    The first stage trains the order of frames alone, because next to masks and boxes its gradient is too weak: with all
    losses from the start the motion loss stayed at ln 2, and 100 steps of this stage reduced it to 0.3. The second
    stage uses all losses on small pictures, of which four times as many can be processed in the same time; the third
    uses full size. In the last stage the masks of all frames have equal weight, as in the reported Dice: a loss over
    whole clips is already low when the frames with a large finding are right.

    With ``checkpoints`` a training that was stopped can be continued, and reaches the same weights.
    """
    if checkpoints is None:
        yield from _steps(model, manifest, config, None)
        return
    request = {**asdict(config), "manifest": manifest.fingerprint, "start": state_fingerprint(model)}
    with claim(checkpoints.folder, request, "a training of the demo"):
        yield from _steps(model, manifest, config, checkpoints)


def _steps(
    model: VideoModel, manifest: Manifest, config: DemoConfig, checkpoints: Checkpoints | None
) -> Iterator[dict[str, float]]:
    torch.manual_seed(config.seed)
    random = torch.Generator().manual_seed(config.seed)
    optimiser = _adamw(model, config)
    state = checkpoints.load(model, optimiser) if checkpoints else None
    if state:
        random.set_state(torch.frombuffer(bytearray.fromhex(state["random"]), dtype=torch.uint8))
    first = done = int(state["step"]) if state else 0
    stages = _Stages(model, config, load_clips(manifest, "train", model.card.input.size_px), random)

    def save() -> None:
        if checkpoints:
            noise = random.get_state().numpy().tobytes().hex()
            checkpoints.save(done, model.state_dict(), optimiser.state_dict(), {"random": noise})

    model.train()
    try:
        for step in range(first, config.total_steps):
            if step in [begin for begin, _, _ in config.rounds]:
                optimiser = _adamw(model, config)
            rate = config.learning_rate(step)
            for group in optimiser.param_groups:
                group["lr"] = rate
            losses = stages.losses(step)
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
        if first < done < config.total_steps:
            save()
    model.eval()


class _Stages:
    """The losses of every stage: order of frames, all losses on small pictures, at full size, with masks per frame."""

    def __init__(self, model: VideoModel, config: DemoConfig, source: ClipSource, random: torch.Generator) -> None:
        self.model, self.config, self.random = model, config, random
        self.source, self.small = source, half_size(source)

    def losses(self, step: int) -> dict[str, Tensor]:
        """The losses of a new batch, computed in bfloat16 where possible."""
        config = self.config
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if step < config.order_steps:
                clip, target = self._draw(self.small, 2)
                return order_losses(self.model, clip, target["motion"])
            if step < config.order_steps + config.small_steps:
                return losses_of(self.model, *self._draw(self.small, 4))
            by_frame = step >= config.total_steps - sum(config.frame_steps)
            return losses_of(self.model, *self._draw(self.source, 1), by_frame)

    def _draw(self, source: ClipSource, factor: int) -> tuple[Tensor, dict[str, Tensor]]:
        config = replace(self.config, batch=factor * self.config.batch)
        return draw_batch(source, config, self.model.card, self.random)


def _adamw(model: VideoModel, config: DemoConfig) -> torch.optim.AdamW:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.95))
