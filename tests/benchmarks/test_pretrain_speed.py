"""Speed of views and of a training step against the plain way; prints ratios of medians, asserts equal numbers only."""

import copy
import statistics
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torchvision.transforms import v2

from endofm_lab.model.transformer import build_backbone
from endofm_lab.pretrain.dino import Dino, DinoConfig
from endofm_lab.pretrain.views import MultiView, ViewSpec
from endofm_lab.training.loop import clip_each, parameter_groups
from endofm_lab.video.phantom import PhantomSpec, render
from endofm_lab.video.reader import open_video, write_video

pytestmark = pytest.mark.benchmark


def medians(repeats, *actions):
    """Median seconds of each action, taken in turns."""
    seconds = [[] for _ in actions]
    for _ in range(repeats):
        for times, action in zip(seconds, actions, strict=True):
            begun = time.perf_counter()
            action()
            times.append(time.perf_counter() - begun)
    return [statistics.median(times) for times in seconds]


def plain_views(path, draws, spec):
    """Each view opens the video, decodes its frames and augments them one by one."""
    views = []
    for draw in draws:
        left, top, right, bottom = draw.crop_xyxy
        with open_video(path) as video:
            frames = video.read(draw.frames)
        shown = []
        for frame in frames:
            x = v2.functional.to_image(frame)
            x = v2.functional.resized_crop(
                x,
                top,
                left,
                bottom - top,
                right - left,
                [draw.size_px] * 2,
                v2.InterpolationMode.BICUBIC,
                antialias=True,
            )
            if draw.flip:
                x = v2.functional.horizontal_flip(x)
            x = v2.functional.to_dtype(x, torch.float32, scale=True)
            x = v2.functional.adjust_brightness(x, draw.brightness)
            x = v2.functional.adjust_contrast(x, draw.contrast)
            x = v2.functional.adjust_saturation(x, draw.saturation)
            if draw.grey:
                x = v2.functional.rgb_to_grayscale(x, num_output_channels=3)
            shown.append(v2.functional.normalize(x, list(spec.input.mean), list(spec.input.std)))
        views.append(torch.stack(shown, dim=1))
    return views


def test_views_per_second_against_decoding_per_view(tmp_path):
    path, spec = tmp_path / "clip.mp4", ViewSpec()
    clip = render(PhantomSpec(1, finding="polyp", n_frames=150, fps=Fraction(30)))
    write_video(path, clip.frames, Fraction(30))
    multi = MultiView(spec)
    draws = multi.of_video(path, 0).draws
    ours, plain = medians(7, lambda: multi.of_video(path, 0), lambda: plain_views(path, draws, spec))
    print(f"\nviews: {10 / ours:.1f} per second, plain {10 / plain:.1f}: {plain / ours:.1f} times as many")
    for a, b in zip(multi.of_video(path, 0).tensors, plain_views(path, draws, spec), strict=True):
        assert a.shape == b.shape and (a - b).abs().mean() < 0.15  # cuts to 0..1 fall differently


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


class PeakMemory:
    """The largest resident memory above the start, looked at every 5 ms."""

    def __enter__(self):
        self.start = self.peak = resident_bytes()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        return self

    def _look(self):
        while not self.stop.wait(0.005):
            self.peak = max(self.peak, resident_bytes())

    def __exit__(self, *error):
        self.stop.set()
        self.thread.join()


def plain_step(student, teacher, centre, batch):
    """The textbook: every view through the network by itself, log-probabilities written out, one backward pass."""
    targets = [((teacher["head"](teacher["backbone"](v).cls) - centre) / 0.04).softmax(-1).detach() for v in batch[:2]]
    logits = [(student["head"](student["backbone"](v).cls) / 0.1).log_softmax(-1) for v in batch]
    terms = [-(t * q).sum(-1).mean() for i, t in enumerate(targets) for j, q in enumerate(logits) if i != j]
    loss = torch.stack(terms).mean()
    loss.backward()
    return loss.detach()


def test_a_training_step_against_the_textbook():
    torch.manual_seed(0)
    B, config = 1, DinoConfig(frozen_epochs=0)
    backbone = build_backbone("small", drop_path=0.0)
    batch = [torch.randn(B, 3, T, 224, 224) for T in (8, 16)]
    batch += [torch.randn(B, 3, T, 96, 96) for T in (2, 2, 4, 4, 8, 8, 16, 16)]
    model = Dino(backbone, config, steps=100, steps_per_epoch=10)
    plain_student, plain_teacher = copy.deepcopy(model.student), copy.deepcopy(model.teacher)

    ours_optimiser = torch.optim.AdamW(parameter_groups(model.student), lr=1e-6)
    plain_optimiser = torch.optim.AdamW(plain_student.parameters(), lr=1e-6)
    seen: dict[str, float] = {}

    def ours(dtype=torch.bfloat16):
        total = 0.0
        model.before_step(0)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            for part in range(len(model.parts(batch))):
                loss = model(batch, part, 0)["loss"]
                loss.backward()
                total += float(loss.detach())
        clip_each(model, 3.0)
        ours_optimiser.step()
        ours_optimiser.zero_grad(set_to_none=True)
        model.after_step(0)
        seen["ours"] = total

    def plain():
        seen["plain"] = float(plain_step(plain_student, plain_teacher, torch.zeros(config.prototypes), batch))
        for p in plain_student.parameters():
            torch.nn.utils.clip_grad_norm_(p, 3.0)
        plain_optimiser.step()
        plain_optimiser.zero_grad(set_to_none=True)
        for t, p in zip(plain_teacher.parameters(), plain_student.parameters(), strict=True):
            t.data.mul_(0.996).add_(p.detach() * 0.004)

    plain()
    ours(torch.float32)
    assert seen["ours"] == pytest.approx(seen["plain"], rel=1e-4)  # the same loss, in one go and in parts
    peaks = []
    for action in (ours, plain):
        with PeakMemory() as memory:
            action()
        peaks.append(memory.peak)
    ours_s, plain_s = medians(3, ours, plain)
    print(f"\nstep (ten views, small, {B} clips): {ours_s:.1f} s, textbook {plain_s:.1f} s: {plain_s / ours_s:.1f} x")
    print(f"peak memory: {peaks[0] / 1e9:.1f} GB, textbook {peaks[1] / 1e9:.1f} GB: {peaks[0] / peaks[1]:.0%}")
