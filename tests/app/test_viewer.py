"""What the viewer gets over loopback: true frames, the library's masks and boxes, findings, and sentences."""

import json
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from starlette.requests import Request

import endofm_lab as lab
from endofm_lab.data.samples import SAMPLES, sample_video
from endofm_lab.predict import predict_video
from endofm_lab.study.stretches import video_findings
from tests.app.player import pictures_in
from tests.explain.models import small_model
from tests.video.recordings import encode, number_in

APP = Path(__file__).resolve().parents[2] / "app"


@pytest.fixture
def frames(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(APP))
    monkeypatch.setenv("ENDOFM_LAB_CACHE", str(tmp_path / "cache"))
    from components.viewer import frames

    return frames


@pytest.fixture
def video(frames, tmp_path):
    """A video of 60 numbered frames that a session has opened, and its token."""
    from cache import video_content

    path = encode(tmp_path / "numbered.mp4", 60, g="250")
    prediction = SimpleNamespace(video=lab.open_video(path).info)
    return path, frames.open_for("secret", video_content(path), "a model", prediction)


def asked(frames, kind, token, **span):
    return getattr(frames, kind)(Request({"type": "http", "path_params": {"token": token, **span}, "headers": []}))


@pytest.mark.parametrize(
    "spans",
    [[(0, 25), (25, 50), (50, 60)], [(40, 60), (0, 3), (1, 41)], [(59, 60), (58, 59), (30, 31), (20, 45), (0, 60)]],
)
def test_every_picture_is_the_frame_with_its_number_in_whatever_order_they_are_asked_for(frames, video, spans):
    for first, stop in spans:
        pictures = pictures_in(asked(frames, "of_frames", video[1], first=first, stop=stop).body)
        assert list(pictures) == list(range(first, stop))
        assert [number_in(picture) for picture in pictures.values()] == list(pictures)


def test_playing_decodes_every_frame_once(frames, video, monkeypatch):
    opened, starts = frames._opened[video[1]], []
    plain = lab.open_video
    monkeypatch.setattr(frames.lab, "open_video", lambda path: starts.append(path) or plain(path))
    for first in range(0, 60, 20):
        asked(frames, "of_frames", video[1], first=first, stop=first + 20)
    assert len(starts) == 1 and opened.stream is None, "one decoder went on, and was closed at the end"
    asked(frames, "of_frames", video[1], first=10, stop=50)
    assert len(starts) == 1, "the pictures are kept"


def test_requests_that_cannot_be_answered_get_a_sentence(frames, video, tmp_path):
    path, token = video
    for span in ((-1, 3), (5, 5), (50, 61), (0, 65)):
        reply = asked(frames, "of_frames", token, first=span[0], stop=span[1])
        assert reply.status_code == 400 and b"are not possible" in reply.body
    unknown = asked(frames, "of_video", "0" * 40)
    assert unknown.status_code == 404 and unknown.body.endswith(b"Reload the page.")
    path.unlink()
    for kind, span in (("of_frames", {"first": 0, "stop": 2}), ("of_thumbnail", {"first": 3}), ("of_video", {})):
        answer = asked(frames, kind, token, **span)
        assert answer.status_code == 410 and b"deleted, moved or changed" in answer.body
        assert str(tmp_path).encode() not in answer.body


def test_a_video_that_is_overwritten_is_not_mixed_with_the_one_before(frames, video):
    path, token = video
    asked(frames, "of_frames", token, first=0, stop=5)
    encode(path, 80)
    assert asked(frames, "of_frames", token, first=0, stop=5).status_code == 410


def test_tokens_differ_between_sessions_videos_and_models_and_are_hard_to_guess(frames, video):
    from cache import Content

    prediction = frames._opened[video[1]].prediction
    requests = [("secret", "a", "x"), ("other", "a", "x"), ("secret", "b", "x"), ("secret", "a", "y")]
    tokens = [frames.open_for(secret, Content(path, "1"), about, prediction) for secret, path, about in requests]
    assert len(set(tokens)) == 4 and all(len(token) == 40 for token in tokens)
    assert len(frames.new_secret()) > 40 and frames.new_secret() != frames.new_secret()


def test_large_frames_are_made_smaller_and_only_generated_ones_are_marked(frames):
    frame = np.full((1080, 1920, 3), 128, np.uint8)
    plain, marked = (
        pictures_in(b"\0\0\0\0" + len(body).to_bytes(4, "little") + body)[0]
        for body in (frames.jpeg(frame, 1280, generated) for generated in (False, True))
    )
    assert plain.shape == (720, 1280, 3) and np.abs(plain.astype(int) - 128).max() < 3
    assert (marked[:60, -300:] > 240).any() and (marked[:60, -300:] < 60).any()
    assert np.abs(marked[80:].astype(int) - 128).max() < 3


def test_only_so_many_bytes_of_pictures_are_kept_and_the_latest_ones_stay(frames):
    kept = frames.Kept(100e-6)
    for number in range(10):
        kept.put(("video", number, 1), bytes(30))
        kept.find(("video", 0, 1))
    assert [number for number in range(10) if kept.find(("video", number, 1))] == [0, 8, 9]


@pytest.fixture(scope="module")
def predicted():
    """The prediction of a sample with a polyp and a bleeding by the demo model."""
    return predict_video(sample_video(next(iter(SAMPLES))), lab.load_model("demo"))


def test_runs_give_the_mask_of_the_library_and_boxes_are_in_pixels_of_the_video(frames, predicted):
    overlays = sys.modules["components.viewer.overlays"]
    frame = predicted.opening_frame()
    shown = json.loads(json.dumps(overlays.overlays(predicted, frame - 3, frame + 1)))
    entry = shown[str(frame)]
    assert [int(number) for number in shown] == [n for n in predicted.frames if frame - 3 <= n <= frame]
    for head, mask in entry["masks"].items():
        inside = np.repeat(np.arange(len(mask["runs"])) % 2, mask["runs"]).reshape(mask["height"], mask["width"])
        np.testing.assert_array_equal(inside.astype(bool), predicted.mask(frame, head=head).any(axis=0))
        assert inside.any()
    boxes = predicted.boxes(frame)
    np.testing.assert_allclose([box["xyxy"] for box in entry["boxes"]], boxes[["x1", "y1", "x2", "y2"]], atol=0.051)
    assert all(box["text"].endswith(f"{score:.2f}") for box, score in zip(entry["boxes"], boxes["score"], strict=True))


@pytest.mark.parametrize(
    "mask", [np.zeros((3, 4), bool), np.ones((3, 4), bool), np.eye(4, dtype=bool), ~np.eye(4, dtype=bool)]
)
def test_runs_begin_with_the_background_and_large_masks_are_thinned(frames, mask):
    overlays = sys.modules["components.viewer.overlays"]
    for factor in (1, 400):
        large = np.kron(mask, np.ones((factor, factor), bool))
        sent = overlays.runs_of(large)
        step = -(-max(large.shape) // 640)
        assert (sent["height"], sent["width"]) == large[::step, ::step].shape
        back = np.repeat(np.arange(len(sent["runs"])) % 2, sent["runs"]).reshape(sent["height"], sent["width"])
        np.testing.assert_array_equal(back.astype(bool), large[::step, ::step])


def test_masks_and_boxes_follow_their_thresholds(frames, predicted):
    overlays = sys.modules["components.viewer.overlays"]
    frame = predicted.opening_frame()
    sizes = []
    for threshold in (0.1, 0.5, 0.9):
        (head, mask), *_ = overlays.overlays(predicted, frame, frame + 1, threshold)[str(frame)]["masks"].items()
        sizes.append(sum(mask["runs"][1::2]))
        assert sizes[-1] == predicted.mask(frame, threshold, head).any(axis=0).sum()
    assert sizes[0] > sizes[1] > sizes[2] > 0
    boxes = overlays.overlays(predicted, frame, frame + 1)[str(frame)]["boxes"]
    assert [box["score"] for box in boxes] == pytest.approx(predicted.boxes(frame)["score"].tolist(), abs=1e-4)


def test_an_unfamiliar_stretch_has_no_masks_boxes_and_findings_unless_asked_for(frames, predicted):
    overlays = sys.modules["components.viewer.overlays"]
    strange = replace(predicted, distance=np.where(predicted.times_s[:, 0] < predicted.times_s.mean(), 3.0, 0.5))
    rows = strange.unfamiliar_stretches()
    assert len(rows) == 1 and rows[0][0] == 0
    last = int(predicted.frames[rows[0][1]])
    facts = overlays.facts(predicted.frame_times_s, strange)
    assert facts["unfamiliar"] == [[int(predicted.frames[0]), last]]
    shown = overlays.overlays(strange, 0, predicted.video.n_frames)
    assert all(shown[str(n)] == {"masks": {}, "boxes": []} for n in predicted.frames if n <= last)
    assert any(shown[str(n)]["boxes"] for n in predicted.frames if n > last)
    asked = overlays.overlays(strange, 0, predicted.video.n_frames, unfamiliar=True)
    assert asked == overlays.overlays(replace(predicted, distance=None), 0, predicted.video.n_frames)
    assert set(video_findings(strange)["finding"]) == {"bleeding"}
    assert set(video_findings(strange, unfamiliar=True)["finding"]) == {"polyp", "bleeding"}
    assert strange.opening_frame() > last


def test_faults_of_the_picture_are_named_by_frame(frames, predicted):
    quality = np.zeros((len(predicted.frames), 4), np.float32)
    quality[3] = 1, 0, 0, 0
    facts = sys.modules["components.viewer.overlays"].facts(
        predicted.frame_times_s, replace(predicted, quality=quality)
    )
    assert facts["faults"] == {str(predicted.frames[3]): "blurred"}


def test_marks_are_the_findings_in_order_of_time(frames, predicted):
    marks = sys.modules["components.viewer.overlays"].marks(video_findings(predicted))
    assert [mark["label"] for mark in json.loads(json.dumps(marks))] == ["polyp", "bleeding"]
    assert all(mark["colour"].startswith("#") and mark["frame"] in predicted.frames for mark in marks)


def test_facts_name_times_size_and_seen_frames(frames, tmp_path):
    lab.write_video(tmp_path / "v.mp4", np.zeros((12, 64, 80, 3), np.uint8), Fraction(10))
    prediction = predict_video(tmp_path / "v.mp4", small_model())
    reader = lab.open_video(tmp_path / "v.mp4")
    facts = sys.modules["components.viewer.overlays"].facts(reader.times_s, prediction)
    assert (facts["frames"], facts["width"], facts["height"]) == (12, 80, 64)
    assert facts["times_s"] == pytest.approx(reader.times_s) and facts["seen"] == prediction.frames.tolist()
    assert not facts["generated"]
