"""Maps, neighbours and comparisons of embeddings with known answers."""

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA

from endofm_lab.errors import UserError
from endofm_lab.explain.atlas import (
    Neighbours,
    clusters,
    fit_pca,
    linear_cka,
    load_pca,
    neighbour_purity,
    outlier_scores,
    patch_colours,
    procrustes,
    shortcut_test,
    tsne,
)


@pytest.fixture
def cloud():
    draw = np.random.default_rng(0)
    return (draw.normal(size=(60, 8)) * np.arange(8, 0, -1)).astype(np.float32)


def turn(D, seed=1):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(D, D)))[0]


def test_pca_is_that_of_scikit_learn_with_its_sign_fixed(cloud, tmp_path):
    pca, reference = fit_pca(cloud, 3), PCA(3).fit(cloud)
    np.testing.assert_allclose(pca.explained, reference.explained_variance_ratio_, rtol=1e-4)
    np.testing.assert_allclose(np.abs(pca.project(cloud)), np.abs(reference.transform(cloud)), atol=1e-3)
    assert all(axis[np.abs(axis).argmax()] > 0 for axis in pca.axes)
    copy = load_pca(pca.save(tmp_path / "pca.npz"))
    np.testing.assert_array_equal(copy.project(cloud), pca.project(cloud))
    order = np.random.default_rng(1).permutation(60)
    np.testing.assert_allclose(fit_pca(cloud[order], 3).project(cloud), pca.project(cloud), atol=1e-3)


def test_equal_tokens_have_equal_colours_in_every_frame():
    draw = np.random.default_rng(0)
    tokens = draw.normal(size=(3, 4, 5, 16))
    tokens[2, 1, 1] = tokens[0, 3, 2]
    colours = patch_colours(tokens)
    assert colours.shape == (3, 4, 5, 3) and colours.dtype == np.uint8
    assert (colours[2, 1, 1] == colours[0, 3, 2]).all()
    assert (patch_colours(tokens[::-1]) == colours[::-1]).all(), "the basis belongs to the clip, not to a frame"


@pytest.mark.parametrize("column", ["patient", "sequence", "video"])
def test_neighbours_by_brute_force_and_not_from_what_was_recorded_together(cloud, column):
    rows = pd.DataFrame({"video": [f"v{n}.png" for n in range(60)], "patient": "", "sequence": ""})
    rows[column] = [f"{n // 6}" for n in range(60)]
    cloud[7] = np.nan
    finder = Neighbours(cloud, rows)
    unit = cloud / np.linalg.norm(cloud, axis=1, keepdims=True)
    for not_same in (None, "recording"):
        allowed = [n for n in range(60) if n not in (7, 20) and (not_same is None or n // 6 != 20 // 6)]
        expected = sorted(allowed, key=lambda n: -float(unit[n] @ unit[20]))[:5]
        neighbours = finder.of(20, 5, not_same)
        assert neighbours["row"].tolist() == expected
        assert neighbours["similarity"].is_monotonic_decreasing
    for call, message in (
        (lambda: finder.of(60), "rows 0 to 59"),
        (lambda: finder.of(7), "no vector"),
        (lambda: finder.of(1, not_same="scope"), "choose 'recording' or None"),
        (lambda: Neighbours(cloud).of(1), "Only the rows say"),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_a_second_later_is_no_neighbour_in_another_recording():
    draw = np.random.default_rng(0)
    times = np.arange(120)
    rows = pd.DataFrame(
        {
            "video": [f"f/{n:04d}.png" for n in times],
            "sequence": [f"VID{n // 30}" for n in times],
            "patient": "",
            "dataset": "d",
            "label": [f"phase {n // 5 % 6}" for n in times],
        }
    )
    smooth = np.cumsum(draw.normal(size=(120, 8)), axis=0) + 50 * draw.normal(size=(4, 8))[times // 30]
    assert neighbour_purity(smooth, rows, "label", not_same=None) > 0.5
    assert neighbour_purity(smooth, rows, "label") < 0.35
    result = shortcut_test(smooth, rows).set_index("target").loc["label"]
    assert result["folds"] == "by sequence" and result["units"] == "4 sequences; patients unknown"
    assert result["accuracy"] < 0.4, "a probe with folds of rows would predict more than half of the phases"
    recording = rows.assign(sequence="VID75")
    assert np.isnan(neighbour_purity(smooth, recording, "label")), "one recording has no neighbours in another"
    result = shortcut_test(smooth, recording).set_index("target").loc["label"]
    assert np.isnan(result["accuracy"]) and "needs at least 3 units, but there are 1" in result["why"]
    assert result["folds"] == "" and result["rows"] == 120 and result["classes"] == 6


def test_the_patient_is_told_from_other_recordings_of_the_same_patient_or_not_at_all():
    draw = np.random.default_rng(0)
    rows = pd.DataFrame({"video": [f"{n // 4}.mp4" for n in range(80)], "patient": [f"p{n // 16}" for n in range(80)]})
    vectors = draw.normal(size=(80, 6)) + 5 * draw.normal(size=(5, 6))[np.arange(80) // 16]
    result = shortcut_test(vectors, rows).set_index("target").loc["patient"]
    assert result["folds"] == "by recording" and result["accuracy"] > 0.9
    once = shortcut_test(vectors, rows.assign(video=rows["patient"])).set_index("target").loc["patient"]
    assert np.isnan(once["accuracy"]) and "fewer than two classes occur in more than one unit" in once["why"]


def test_purity_is_one_for_clusters_and_chance_for_noise():
    draw = np.random.default_rng(0)
    label = np.array(["a", "b"] * 50)
    rows = pd.DataFrame({"video": np.arange(100).astype(str), "label": label})
    apart = draw.normal(size=(100, 4)) * 0.05 + np.where(label == "a", 1, -1)[:, None]
    assert neighbour_purity(apart, rows, "label") == 1.0
    assert abs(neighbour_purity(draw.normal(size=(100, 4)), rows, "label") - 0.5) < 0.1


def test_cka_and_procrustes_see_through_turns_and_scales(cloud):
    turned = 3 * cloud @ turn(8) + 5
    assert linear_cka(cloud, turned) == pytest.approx(1.0, abs=1e-5)
    assert procrustes(cloud, turned) == pytest.approx(0.0, abs=1e-5)
    noise = np.random.default_rng(3).normal(size=(60, 8))
    assert linear_cka(cloud, noise) < 0.3 and procrustes(cloud, noise) > 0.5
    X, Y = cloud - cloud.mean(0), noise - noise.mean(0)
    K, L = X @ X.T, Y @ Y.T
    assert linear_cka(cloud, noise) == pytest.approx((K * L).sum() / np.sqrt((K * K).sum() * (L * L).sum()), abs=1e-5)
    with pytest.raises(UserError, match="60 and 59 vectors"):
        linear_cka(cloud, noise[:59])


def test_clusters_medoids_and_outliers_of_three_heaps():
    draw = np.random.default_rng(0)
    heaps = np.repeat(np.eye(3, 6) * 10, 20, axis=0) + draw.normal(size=(60, 6)) * 0.3
    label, medoids = clusters(heaps, 3)
    assert sorted(len(set(label[n : n + 20])) for n in (0, 20, 40)) == [1, 1, 1]
    assert [label[m] for m in medoids] == [0, 1, 2]
    heaps[5] = [0, 0, 0, 0, 0, -9]
    assert outlier_scores(heaps).argmax() == 5
    with pytest.raises(UserError, match="1 to 60"):
        clusters(heaps, 61)


def test_the_shortcut_test_finds_a_planted_shortcut_and_nothing_in_noise():
    draw = np.random.default_rng(0)
    n = 120
    rows = pd.DataFrame(
        {
            "label": draw.choice(["polyp", "normal"], n),
            "device": [f"d{i // 10 % 2}" for i in range(n)],
            "dataset": "one",
            "patient": [f"p{i // 10}" for i in range(n)],
            "video": [f"{i}.mp4" for i in range(n)],
        }
    )
    vectors = draw.normal(size=(n, 6))
    vectors[:, 0] += np.where(rows["device"] == "d0", 6, -6)
    result = shortcut_test(vectors, rows).set_index("target")
    assert result.loc["device", "accuracy"] > 0.95 and result.loc["device", "folds"] == "by patient"
    assert abs(result.loc["label", "accuracy"] - 0.5) < 0.15
    assert "dataset" not in result.index, "one data set cannot be told from itself"


def test_tsne_is_reproducible_and_keeps_heaps_apart():
    heaps = np.repeat(np.eye(2, 5) * 20, 10, axis=0) + np.random.default_rng(0).normal(size=(20, 5))
    first, second = tsne(heaps), tsne(heaps)
    np.testing.assert_array_equal(first, second)
    assert np.linalg.norm(first[:10].mean(0) - first[10:].mean(0)) > 2 * first[:10].std()


def test_vectors_that_cannot_be_used_are_a_sentence():
    with pytest.raises(UserError, match="not finite"):
        fit_pca(np.full((4, 3), np.nan))
    with pytest.raises(UserError, match="1 to 3"):
        fit_pca(np.zeros((4, 3)), 5)
    with pytest.raises(UserError, match="at least 4"):
        tsne(np.eye(3))
