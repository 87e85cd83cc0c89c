"""Views: the published recipe, one decode, one draw per view, the same again from a seed."""

from collections import Counter
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from endofm_lab.errors import UserError, VideoError
from endofm_lab.pretraining.views import MultiView, ViewSpec
from endofm_lab.video.augment import recoloured
from endofm_lab.video.reader import VideoReader, write_video

PLAIN = {"flip": 0.0, "jitter": 0.0, "grey": 0.0}
SMALL = ViewSpec(
    clip_s=2.0, global_frames=(4, 8), local_frames=(2, 4), local_window=0.25, global_px=32, local_px=16
)  # fmt: skip


def moving_frames(n, height=60, width=80):
    """Smooth colour gradients that move with time."""
    t, y, x = np.meshgrid(np.arange(n), np.arange(height), np.arange(width), indexing="ij")
    rgb = np.stack([x * 2 + t, y * 3, 255 - x - y + 0 * t], axis=-1)
    return (rgb % 256).astype(np.uint8)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("views") / "clip.mkv"
    write_video(path, moving_frames(40), Fraction(10), codec="ffv1")
    return path


def test_the_default_is_the_published_recipe():
    draws = MultiView(ViewSpec()).draw(150, (256, 320), seed=0)
    assert [len(d.frames) for d in draws] == [8, 16, 2, 2, 4, 4, 8, 8, 16, 16]
    assert [d.size_px for d in draws] == [224] * 2 + [96] * 8
    assert [d.kind for d in draws] == ["global"] * 2 + ["local"] * 8
    assert [d.window for d in draws[:2]] == [(0, 145), (5, 150)]
    assert all(d.window[1] - d.window[0] == 150 // 8 for d in draws[2:])
    assert not any(d.blur_sigma_px or d.solarise for d in draws)


def test_draws_have_the_frequencies_and_ranges_of_the_recipe():
    spec, counts, shares, factors = ViewSpec(), Counter(), {"global": [], "local": []}, []
    for seed in range(300):
        for d in MultiView(spec).draw(150, (256, 320), seed):
            counts += Counter(
                flip=d.flip, grey=d.grey, jitter=(d.brightness, d.contrast, d.saturation) != (1.0, 1.0, 1.0), n=1
            )
            left, top, right, bottom = d.crop_xyxy
            assert 0 <= left < right <= 320 and 0 <= top < bottom <= 256
            assert 0.73 < (right - left) / (bottom - top) < 1.37
            shares[d.kind].append((right - left) * (bottom - top) / (256 * 320))
            factors.append((d.brightness, d.contrast, d.saturation))
            assert d.window[0] >= 0 and d.window[1] <= 150
            assert d.window[0] <= min(d.frames) and max(d.frames) < d.window[1]
    for name, p in [("flip", 0.5), ("grey", 0.2), ("jitter", 0.8)]:
        assert abs(counts[name] / counts["n"] - p) < 4 * (p * (1 - p) / 3000) ** 0.5, name
    assert 0.39 < min(shares["global"]) < 0.42 and 0.95 < max(shares["global"]) <= 1.0
    assert 0.045 < min(shares["local"]) < 0.06 and 0.38 < max(shares["local"]) < 0.41
    low, high = np.min(factors, axis=0), np.max(factors, axis=0)
    np.testing.assert_allclose(low, [0.6, 0.6, 0.8], atol=0.01)
    np.testing.assert_allclose(high, [1.4, 1.4, 1.2], atol=0.01)


def test_local_windows_reach_every_place_of_the_clip():
    starts = [MultiView(ViewSpec()).draw(150, (256, 256), seed)[2].window[0] for seed in range(400)]
    assert min(starts) < 5 and max(starts) > 127 and max(starts) <= 132


def test_a_seed_gives_the_same_views_again_and_another_seed_others(video):
    views = [MultiView(SMALL).of_video(video, seed) for seed in (1, 1, 2)]
    assert views[0].draws == views[1].draws != views[2].draws
    assert all(torch.equal(a, b) for a, b in zip(views[0].tensors, views[1].tensors, strict=True))


def test_another_number_of_views_leaves_the_first_ones_alone():
    longer = replace(SMALL, local_frames=(2, 4, 8))
    assert MultiView(longer).draw(40, (60, 80), 3)[:4] == MultiView(SMALL).draw(40, (60, 80), 3)


def test_one_decode_serves_all_views(video, monkeypatch):
    reads, read = [], VideoReader.read
    monkeypatch.setattr(VideoReader, "read", lambda self, indices: reads.append(len(indices)) or read(self, indices))
    views = MultiView(SMALL).of_video(video, seed=0)
    assert reads == [len({frame for draw in views.draws for frame in draw.frames})]


def test_the_views_of_a_video_are_those_of_its_frames(video):
    frames = moving_frames(40)[:20]
    for seed in range(3):
        a = MultiView(SMALL).of_video(video, seed, 0.0, 2.0)
        b = MultiView(SMALL).of_frames(frames, np.arange(20) / 10, seed)
        assert a.draws == b.draws
        assert all(torch.equal(x, y) for x, y in zip(a.tensors, b.tensors, strict=True))
        np.testing.assert_allclose(a.times_s, b.times_s)


def test_without_augmentation_a_view_is_its_frames_cropped_resized_and_normalised():
    frames, spec = moving_frames(24), replace(SMALL, **PLAIN)
    views = MultiView(spec).of_frames(frames, np.arange(24) / 12, seed=4)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (spec.input.mean, spec.input.std))
    for draw, tensor in zip(views.draws, views.tensors, strict=True):
        left, top, right, bottom = draw.crop_xyxy
        for t, number in enumerate(draw.frames):
            frame = torch.from_numpy(frames[number]).permute(2, 0, 1)
            crop = tv.resized_crop(frame, top, left, bottom - top, right - left, [draw.size_px] * 2, 3, antialias=True)
            torch.testing.assert_close(tensor[:, t], (crop / 255 - mean) / std, atol=0.02, rtol=0)


def test_all_frames_of_a_view_get_the_same_draw():
    still = np.broadcast_to(moving_frames(1), (24, 60, 80, 3))
    spec = replace(SMALL, jitter=1.0, blur=(1.0, 1.0, 1.0), solarise=(0.5, 0.5, 0.5))
    for seed in range(5):
        for tensor in MultiView(spec).of_frames(still, np.arange(24) / 12, seed).tensors:
            torch.testing.assert_close(tensor, tensor[:, :1].expand_as(tensor), atol=1e-5, rtol=0)


@pytest.mark.parametrize("grey", [False, True])
def test_colour_is_torchvisions_where_nothing_is_cut_off(grey):
    draw = replace(MultiView(SMALL).draw(24, (8, 8), 0)[0], brightness=1.2, contrast=0.7, saturation=0.9, grey=grey)
    x = torch.randint(80, 140, (2, 3, 8, 8), dtype=torch.uint8)
    x[1] = x[0]  # torchvision turns contrast around each frame's mean, we around the view's
    y = tv.adjust_brightness(x / 255, 1.2)
    y = tv.adjust_saturation(tv.adjust_contrast(y, 0.7), 0.9)
    y = tv.rgb_to_grayscale(y, num_output_channels=3) if grey else y
    torch.testing.assert_close(recoloured(x, draw), y, atol=2e-3, rtol=0)


def test_blur_smooths_and_solarise_inverts_the_bright_half():
    draw = MultiView(replace(SMALL, **PLAIN)).draw(24, (60, 80), 0)[0]
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    blurred = recoloured(x, replace(draw, blur_sigma_px=2.0))
    assert blurred.std() < 0.3 * recoloured(x, draw).std()
    solarised = recoloured(x, replace(draw, solarise=True))
    expected = torch.where(x >= 128, 255 - x, x) / 255
    torch.testing.assert_close(solarised, expected, atol=1e-6, rtol=0)


def test_describe_gives_times_in_the_video(video):
    views = MultiView(replace(SMALL, clip_s=1.0)).of_video(video, seed=3, start_s=1.0, end_s=4.0)
    start = views.times_s[0]
    assert 1.0 <= start <= 3.0 and len(views.times_s) == 10
    first = views.describe()[0]
    assert first["window_s"] == pytest.approx((start, start + 0.5))
    assert first["times_s"] == pytest.approx([start + f / 10 for f in first["frames"]])
    assert first["crop_xyxy"] == views.draws[0].crop_xyxy and first["name"] == "global 1"


def test_a_clip_rate_thins_the_frames(video):
    views = MultiView(replace(SMALL, clip_s=4.0, clip_fps=5.0)).of_video(video, seed=0)
    np.testing.assert_allclose(np.diff(views.times_s), 0.2)
    assert len(views.times_s) == 20


def test_large_frames_are_brought_to_the_short_side():
    views = MultiView(replace(SMALL, short_side_px=30)).of_frames(moving_frames(24), np.arange(24) / 12, 0)
    assert views.frames.shape[1:3] == (30, 40)


def test_a_clip_shorter_than_the_windows_is_an_error_that_says_what_is_needed(video):
    with pytest.raises(VideoError, match=r"clip\.mkv: The clip has 4 frames, but its windows need 8"):
        MultiView(SMALL).of_video(video, 0, 0.0, 0.4)
    with pytest.raises(UserError, match=r"15 frames.*need 16"):
        MultiView(ViewSpec()).draw(15, (64, 64), 0)
    assert MultiView(ViewSpec()).draw(16, (64, 64), 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"global_frames": (8,)},
        {"local_px": 0},
        {"flip": 1.2},
        {"blur": (0.0, 0.0)},
        {"global_scale": (0.5, 0.4)},
        {"local_frames": (2, 0)},
        {"global_shift": -1},
        {"local_window": 0.0},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        ViewSpec(**wrong)
