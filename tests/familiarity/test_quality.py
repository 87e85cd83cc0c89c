"""The detectors of blur, darkness, foam and views out of the body, on made faults of generated and of real frames."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

import endofm_lab as lab
from endofm_lab.data.manifest import read_manifest
from endofm_lab.errors import UserError
from endofm_lab.familiarity.degradations import DEGRADATIONS
from endofm_lab.familiarity.quality import (
    FAULTS,
    STATISTICS,
    WEIGHTS,
    fault_counts,
    fault_text,
    faults_of,
    probabilities,
    statistics_of,
    words_of,
)
from endofm_lab.folders.hashes import HASHES
from endofm_lab.metrics.classification import auc
from endofm_lab.prediction import load_prediction

DATA = Path(os.environ.get("ENDOFM_LAB_DATA", "/nowhere"))


@pytest.fixture(scope="module")
def frames():
    """Frames of eight generated patients and three devices."""
    made = []
    for seed in range(8):
        spec = lab.PhantomSpec(seed, patient=seed, device=seed % 3, n_frames=2, size_px=160)
        made.append(lab.render(spec).frames[1])
    return made


def degraded(frames, fault):
    return [DEGRADATIONS[fault](frame, np.random.default_rng(number)) for number, frame in enumerate(frames)]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_made_fault_of_a_generated_frame_is_told_from_frames_as_they_are(frames, fault):
    column = FAULTS.index(fault)
    faulty = [faults_of(frame)[column] for frame in degraded(frames, fault)]
    clean = [faults_of(frame)[column] for frame in frames]
    assert auc([0] * len(clean) + [1] * len(faulty), clean + faulty) >= 0.95
    assert np.mean(np.array(faulty) >= 0.5) >= 0.75 and np.mean(np.array(clean) >= 0.5) <= 0.25


@pytest.mark.parametrize("fault", FAULTS)
def test_a_made_fault_keeps_size_and_type_and_depends_on_the_seed_only(frames, fault):
    frame = frames[0][:, :120]
    first, again, other = (DEGRADATIONS[fault](frame, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == frame.shape and first.dtype == np.uint8
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_statistics_are_finite_for_every_picture_and_alike_at_two_sizes():
    random = np.random.default_rng(0)
    for frame in (
        np.zeros((64, 64, 3), np.uint8),
        np.full((20, 400, 3), 255, np.uint8),
        random.integers(0, 256, (9, 9, 3)).astype(np.uint8),
    ):
        values = statistics_of(frame)
        assert values.shape == (len(STATISTICS),) and np.isfinite(values).all()
        assert np.isfinite(faults_of(frame)).all()
    assert faults_of(np.zeros((64, 64, 3), np.uint8))[FAULTS.index("darkness")] >= 0.5


def test_probabilities_are_those_of_the_logistic_regressions(frames):

    fitted = json.loads(WEIGHTS.read_text())
    values = statistics_of(frames[0])
    for k in range(len(FAULTS)):
        z = sum(
            w * (v - m) / s
            for w, v, m, s in zip(fitted["weights"][k], values, fitted["mean"], fitted["scale"], strict=True)
        )
        assert probabilities(values[None])[0, k] == pytest.approx(1 / (1 + np.exp(-z - fitted["bias"][k])), rel=1e-4)


def test_the_words_name_the_faults_and_count_the_frames():
    quality = np.array([[0.9, 0.1, 0.1, 0.1], [0.9, 0.7, 0.0, 0.0], [0, 0, 0, 0.2]], np.float32)
    assert words_of(quality) == {0: "blurred", 1: "blurred and too dark"} and words_of(None) == {}
    assert fault_counts(quality) == {"blur": 2, "darkness": 1, "foam": 0, "outside": 0} and fault_counts(None) is None
    assert fault_text(quality) == "Picture quality: of 3 frames, 2 are blurred, 1 is too dark."
    assert fault_text(quality[2:]) == "Picture quality: of 1 frames, none has a fault."
    assert fault_text(None) == "Picture quality was not measured."


def test_every_frame_of_a_prediction_has_its_faults_also_from_disk(phantom, tmp_path):
    manifest = read_manifest(phantom)
    video = manifest.resolve(manifest.table["video"][0])
    whole = lab.predict_video(video, "demo", batch_clips=1, out=tmp_path / "p", progress=False)
    with lab.open_video(video) as reader:
        expected = np.array([faults_of(frame) for frame in reader.read(whole.frames)])
    assert np.allclose(whole.quality, expected, atol=1e-6)
    assert np.array_equal(load_prediction(tmp_path / "p").quality, whole.quality)
    (tmp_path / "p" / "quality.parquet").unlink()
    with pytest.raises(UserError, match="is missing"):
        load_prediction(tmp_path / "p")
    path = tmp_path / "p" / "prediction.json"  # as an older version wrote it
    older = {key: value for key, value in json.loads(path.read_text()).items() if key != "quality"}
    path.write_text(json.dumps(older))
    (tmp_path / "p" / HASHES).unlink()
    old = load_prediction(tmp_path / "p")
    assert old.quality is None and "not measured" in old.quality_text()


@pytest.mark.skipif(not (DATA / "kvasir-seg").is_dir(), reason="ENDOFM_LAB_DATA is not set")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_made_fault_of_a_real_frame_is_told_from_frames_as_they_are(fault):
    frames = []
    for path in [
        *sorted((DATA / "kvasir-seg" / "images").glob("*.jpg"))[3::100],
        *sorted((DATA / "laparoscopy-stills").glob("*.jpg"))[5::50],
    ]:
        with lab.open_video(path) as reader:
            frames.append(reader.read([0])[0])
    column = FAULTS.index(fault)
    faulty = [faults_of(frame)[column] for frame in degraded(frames, fault)]
    clean = [faults_of(frame)[column] for frame in frames]
    assert auc([0] * len(clean) + [1] * len(faulty), clean + faulty) >= 0.95
