import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from endofm_lab.errors import CheckpointError, UserError
from endofm_lab.familiarity.clips import summary_of, text_of, unfamiliar_frames
from endofm_lab.familiarity.statistics import Familiarity, familiarity_of, limit_of, read_familiarity


def features(n, width=6, seed=0, offset=5.0):
    """Correlated features around a point, as those of similar pictures are."""
    random = np.random.default_rng(seed)
    return random.normal(0, 1, (n, width)) @ random.normal(0, 0.5, (width, width)) + offset * np.eye(width)[0]


@pytest.fixture(scope="module")
def fitted():
    x = features(400)
    return familiarity_of(x[:300], x[300:], np.arange(100), {"train_clips": 300})


def naive(x, train, limit):
    """Mahalanobis distances in loops, with the shrinkage of Ledoit and Wolf as their paper writes it."""
    train, x = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (train, x))
    n, d = train.shape
    centred = train - train.mean(axis=0)
    sample = sum(np.outer(row, row) for row in centred) / n
    mu = np.trace(sample) / d
    spread = ((sample - mu * np.eye(d)) ** 2).sum() / d
    noise = sum(((np.outer(row, row) - sample) ** 2).sum() for row in centred) / n**2 / d
    share = min(noise, spread) / spread
    inverse = np.linalg.inv((1 - share) * sample + share * mu * np.eye(d))
    mean = train.mean(axis=0)
    return np.array([np.sqrt((row - mean) @ inverse @ (row - mean)) for row in x]) / limit


@pytest.mark.parametrize(("n", "width"), [(300, 6), (40, 6), (12, 20)])
def test_distances_are_those_of_mahalanobis_with_the_shrinkage_of_ledoit_and_wolf(n, width):
    x = features(n + 60, width)
    train, val, others = x[:n], x[n : n + 30], x[n + 30 :]
    found = familiarity_of(train, val, np.arange(30))
    assert np.allclose(found.distances(others), naive(others, train, found.limit), rtol=2e-3)


def test_ninety_five_percent_of_validation_units_are_familiar_and_no_smaller_limit_would_do():
    random = np.random.default_rng(1)
    for n_units in (1, 7, 20, 63):
        units = random.integers(0, n_units, 40 * n_units)
        distances = random.gamma(2, 1, len(units))
        limit = limit_of(distances, units)

        def share_of_familiar_units(limit, units=units, distances=distances):
            shares = [(distances[units == unit] <= limit).mean() >= 0.95 for unit in np.unique(units)]
            return np.mean(shares)

        assert share_of_familiar_units(limit) >= 0.95
        assert share_of_familiar_units(np.nextafter(limit, 0)) < 0.95


def test_clips_of_other_features_are_beyond_the_limit_and_those_of_validation_within(fitted):
    inside = fitted.distances(features(400)[300:])
    assert (inside <= 1).mean() >= 0.95 and inside.max() > 1
    assert (fitted.distances(features(50, offset=-5.0)) > 1).all()


def test_statistics_are_the_same_after_they_were_written_and_read(fitted, tmp_path):
    path = tmp_path / "familiarity.safetensors"
    path.write_bytes(fitted.to_bytes())
    again = read_familiarity(path)
    x = features(20, seed=3)
    assert np.array_equal(again.distances(x), fitted.distances(x)) and dict(again.about) == dict(fitted.about)
    assert again.to_bytes() == fitted.to_bytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update(mean=np.full(6, np.nan, np.float32)), "NaN or infinity"),
        (lambda t: t.update(mean=np.zeros(5, np.float32)), "must be"),
        (lambda t: t.update(limit=np.array([0.0])), "limit that is not > 0"),
        (lambda t: t.update(covariance=-t["covariance"]), "not positive definite"),
        (lambda t: t.update(covariance=np.triu(t["covariance"]).copy()), "not symmetric"),
        (lambda t: t.update(limit=np.array([1, 2])), "was altered"),
        (lambda t: t.pop("limit"), "was altered"),
        (lambda t: t.update(other=np.zeros(1)), "was altered"),
    ],
)
def test_statistics_that_cannot_be_are_refused_with_the_remedy(fitted, tmp_path, change, words):
    path = tmp_path / "familiarity.safetensors"
    path.write_bytes(fitted.to_bytes())
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=words) as refusal:
        read_familiarity(path)
    assert "Copy the model folder again" in str(refusal.value)


def test_a_damaged_or_missing_file_is_refused(fitted, tmp_path):
    path = tmp_path / "familiarity.safetensors"
    with pytest.raises(CheckpointError, match="is missing"):
        read_familiarity(path)
    path.write_bytes(fitted.to_bytes()[:-7])
    with pytest.raises(CheckpointError, match="is damaged"):
        read_familiarity(path)


def test_features_that_are_no_numbers_or_of_another_width_are_refused(fitted):
    with pytest.raises(UserError, match="NaN or infinite"):
        fitted.distances(np.full((2, 6), np.nan))
    with pytest.raises(UserError, match=r"shape \(2, 5\), but the model's statistics are of features of width 6"):
        fitted.distances(np.zeros((2, 5)))
    with pytest.raises(UserError, match="1 of 9 clips are NaN"):
        familiarity_of(np.vstack([features(8), np.full(6, np.inf)]), features(3), np.arange(3))
    with pytest.raises(UserError, match="at least 2 training clips and 1 validation clip, but there are 1 and 3"):
        familiarity_of(features(1), features(3), np.arange(3))
    with pytest.raises(UserError, match="the same feature"):
        familiarity_of(np.ones((5, 6)), features(3), np.arange(3))


def test_statistics_whose_arrays_do_not_belong_together_are_refused():
    with pytest.raises(UserError, match=r"must be \(D,\) and \(D, D\)"):
        Familiarity(np.zeros(3, np.float32), np.eye(4, dtype=np.float32), 1.0)


def test_a_frame_is_unfamiliar_if_its_clips_are_beyond_the_limit_on_average():
    times = np.array([[0.0, 2.0], [1.0, 3.0], [2.0, 4.0]])
    frames = np.arange(0, 5, 0.5)
    found = unfamiliar_frames(np.array([0.5, 2.0, 0.5]), times, frames)
    assert found.tolist() == [False, False, True, True, True, True, False, False, False, False]
    assert not unfamiliar_frames(None, times, frames).any()
    assert unfamiliar_frames(np.array([0.5, 0.5, 2.0]), times, frames)[-2:].all(), "in no clip: the nearest one"


@pytest.mark.parametrize(
    ("distance", "words", "far"),
    [
        (None, "Familiarity unknown", None),
        ([0.5, 0.9], "All 2 clips look like what the model learned", 0),
        ([0.5, 1.9, 3.0], "2 of 3 clips look unlike what the model learned", 2),
        ([3.0], "The clip looks unlike what the model learned", 1),
        ([1.0], "The clip looks like what the model learned", 0),
    ],
)
def test_the_sentence_counts_the_clips_beyond_the_limit(distance, words, far):
    values = None if distance is None else np.array(distance)
    assert text_of(values).startswith(words)
    assert summary_of(values, 3)["unfamiliar_clips"] == far
