"""The app shows the name by which the user knows a file, its frame rate if known, and whether it is generated."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from endofm_lab.data.samples import SAMPLES, sample_video
from tests.app.addresses import prediction, typed_before
from tests.app.player import picture_of, told

APP = Path(__file__).resolve().parents[2] / "app"


@pytest.fixture
def app(tmp_path, monkeypatch):
    monkeypatch.setenv("ENDOFM_LAB_CACHE", str(tmp_path / "cache"))
    return prediction(APP / "main.py")


def captions(app):
    return " ".join(caption.value for caption in app.caption)


def test_an_uploaded_file_that_is_not_a_video_is_named_by_its_own_name(app):
    app.run().sidebar.radio[0].set_value("Upload").run()
    app.get("file_uploader")[0].set_value(("my case.mp4", b"these are notes", "video/mp4")).run()
    sentence = app.error[0].value.replace("\\", "")
    assert not app.exception and "my case.mp4" in sentence and "uploads" not in sentence
    assert not app.get("progress"), "no bar stays above the error"


def test_a_sample_that_is_uploaded_again_is_still_generated_and_its_picture_says_so(app, tmp_path):
    copy = tmp_path / "another name.mp4"
    copy.write_bytes(sample_video(next(iter(SAMPLES))).read_bytes())
    app.query_params |= {"source": "file", "path": typed_before(copy)}
    app.run()
    assert not app.exception and "Generated picture" in captions(app) and not app.warning, [
        w.value for w in app.warning
    ]
    frame = picture_of(app, told(app)["frame"])
    assert np.abs(frame[4:12, -40:].mean(axis=2) - 40).min() < 12, "the mark's dark ground is in the pixels"
    assert frame[2:20, -60:].min(axis=2).max() > 200, "and its white letters"


def test_the_time_of_an_image_in_a_folder_is_called_an_assumption(app, tmp_path):
    (tmp_path / "frames").mkdir()
    for n in range(12):
        Image.fromarray(np.full((64, 80, 3), 20 * n, np.uint8)).save(tmp_path / "frames" / f"{n:03d}.png")
    app.query_params |= {"source": "file", "path": typed_before(tmp_path / "frames")}
    app.run()
    assert not app.exception and "assuming 25 frames per second, since images have no frame rate" in captions(app)
