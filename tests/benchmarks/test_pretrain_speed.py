"""Speed of views and of a training step against the plain way; prints ratios of medians, asserts equal numbers only."""

import resource
import statistics
import time
from fractions import Fraction
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torchvision.transforms import v2

from endofm_lab.model.transformer import build_backbone
from endofm_lab.pretraining.dino import Dino, DinoConfig
from endofm_lab.pretraining.views import MultiView, ViewSpec
from endofm_lab.training.optimiser import clip_each, parameter_groups
from endofm_lab.video.phantom import PhantomSpec, render
from endofm_lab.video.reader import open_video, write_video

pytestmark = pytest.mark.benchmark


def medians(repeats, *actions):
    """Median seconds of each action, taken in turns; the first time, which builds kernels, does not count."""
    for action in actions:
        action()
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
    library, plain = medians(7, lambda: multi.of_video(path, 0), lambda: plain_views(path, draws, spec))
    print(f"\nviews: {10 / library:.1f} per second, plain {10 / plain:.1f}: {plain / library:.1f} times as many")
    for a, b in zip(multi.of_video(path, 0).tensors, plain_views(path, draws, spec), strict=True):
        assert a.shape == b.shape and (a - b).abs().mean() < 0.15  # cuts to 0..1 fall differently


def plain_step(student, teacher, centre, batch):
    """The textbook: every view through the network by itself, log-probabilities written out, one backward pass."""
    targets = [((teacher["head"](teacher["backbone"](v).cls) - centre) / 0.04).softmax(-1).detach() for v in batch[:2]]
    logits = [(student["head"](student["backbone"](v).cls) / 0.1).log_softmax(-1) for v in batch]
    terms = [-(t * q).sum(-1).mean() for i, t in enumerate(targets) for j, q in enumerate(logits) if i != j]
    loss = torch.stack(terms).mean()
    loss.backward()
    return float(loss.detach())


def ours(dtype):
    """One whole step of the project: a function that takes it and returns the loss."""
    model, batch = fresh()
    optimiser = torch.optim.AdamW(parameter_groups(model.student), lr=1e-6, fused=True)

    def step():
        total = 0.0
        model.before_step(0)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            for part in range(len(model.parts(batch))):
                loss = model(batch, part, 0)["loss"]
                loss.backward()
                total += float(loss.detach())
        clip_each(model, 3.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        model.after_step(0)
        return total

    return step


def textbook():
    """The same step as one would write it first, eager and in float32."""
    model, batch = fresh()
    student, teacher = model.student, model.teacher
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-6)
    centre = torch.zeros(CONFIG.prototypes)

    def step():
        loss = plain_step(student, teacher, centre, batch)
        for p in student.parameters():
            torch.nn.utils.clip_grad_norm_(p, 3.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        for t, p in zip(teacher.parameters(), student.parameters(), strict=True):
            t.data.mul_(0.996).add_(p.detach() * 0.004)
        return loss

    return step


CONFIG = DinoConfig(frozen_epochs=0)
STEPS = {"ours": partial(ours, torch.bfloat16), "ours in float32": partial(ours, torch.float32), "textbook": textbook}


def fresh(B=1):
    """The network of size `small` with its objective, and ten views of ``B`` clips; the same in every process."""
    torch.manual_seed(0)
    batch = [torch.randn(B, 3, T, 224, 224) for T in (8, 16)]
    batch += [torch.randn(B, 3, T, 96, 96) for T in (2, 2, 4, 4, 8, 8, 16, 16)]
    return Dino(build_backbone("small", drop_path=0.0), CONFIG, steps=100, steps_per_epoch=10), batch


def loss_and_peak(name):
    """In a process of its own: the loss of the first of two steps, and the most memory above that of the imports."""
    before = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    step = STEPS[name]()
    loss = step()
    step()
    return loss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


@pytest.mark.timeout(1800)
def test_a_training_step_against_the_textbook():
    results = {}
    for name in STEPS:
        with get_context("spawn").Pool(1) as process:
            results[name] = process.apply(loss_and_peak, (name,))
    loss, peak = ({name: pair[n] for name, pair in results.items()} for n in (0, 1))
    assert loss["ours in float32"] == pytest.approx(loss["textbook"], rel=1e-4)  # in one go and in parts
    ours_s, plain_s = medians(3, STEPS["ours"](), STEPS["textbook"]())
    print(f"\nstep (ten views, small, 1 clip): {ours_s:.1f} s, textbook {plain_s:.1f} s: {plain_s / ours_s:.1f} x")
    share = peak["ours"] / peak["textbook"]
    print(f"peak memory: {peak['ours'] / 1e9:.1f} GB, textbook {peak['textbook'] / 1e9:.1f} GB: {share:.0%}")
