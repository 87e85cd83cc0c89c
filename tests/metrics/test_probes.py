from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from endofm_lab.metrics.probes import KNN_TEMPERATURE, fit_linear, knn_scores, linear_scores
from endofm_lab.model.card import HeadSpec
from endofm_lab.video.augment import View, draw_view


def made(n=60, width=5, n_classes=3):
    random = np.random.default_rng(0)
    target = random.integers(n_classes, size=n)
    x = random.normal(size=(n, width)) * [1, 10, 0.1, 3, 5] + target[:, None]
    return torch.from_numpy(x).float(), torch.from_numpy(target)


def test_the_linear_probe_is_the_logistic_regression_of_scikit_learn():
    x, target = made()
    l2 = 0.05
    weight, bias = fit_linear(x, target, 3, l2)
    scaled = ((x - x.mean(0)) / x.std(0)).double().numpy()
    reference = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-10, max_iter=5000).fit(scaled, target.numpy())
    scores = linear_scores(x[:, None], weight, bias, HeadSpec("multiclass", ("a", "b", "c")))
    np.testing.assert_allclose(scores, reference.predict_proba(scaled), atol=2e-4)


def test_several_labels_are_as_many_separate_regressions():
    x, target = made()
    labels = torch.nn.functional.one_hot(target, 3)
    weight, bias = fit_linear(x, labels, 3, 0.05)
    scaled = ((x - x.mean(0)) / x.std(0)).double().numpy()
    scores = linear_scores(x[:, None], weight, bias, HeadSpec("multilabel", ("a", "b", "c")))
    for k in range(3):
        # the mean is over rows and labels
        regression = LogisticRegression(C=1 / (3 * 0.05 * len(x)), tol=1e-10, max_iter=5000).fit(
            scaled, labels[:, k].numpy()
        )
        np.testing.assert_allclose(scores[:, k], regression.predict_proba(scaled)[:, 1], atol=2e-4)


def test_scores_of_several_clips_are_averaged_after_the_softmax():
    weight, bias = torch.tensor([[1.0], [0.0]]), torch.zeros(2)
    scores = linear_scores(torch.tensor([[[100.0], [-100.0]]]), weight, bias, HeadSpec("multiclass", ("a", "b")))
    np.testing.assert_allclose(scores, [[0.5, 0.5]])


def test_neighbours_vote_with_the_exponential_of_their_cosine():
    bank = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]], [[-1.0, 0.0]]])
    query = torch.tensor([[[3.0, 3.0]]])
    scores = knn_scores(bank, np.array([0, 1, 1]), query, 2, k=3)
    cosine = np.array([np.sqrt(0.5), np.sqrt(0.5), -np.sqrt(0.5)])
    vote = np.exp(cosine / KNN_TEMPERATURE)
    np.testing.assert_allclose(scores, [[vote[0] / vote.sum(), vote[1:].sum() / vote.sum()]])
    nearest = knn_scores(bank, np.array([0, 1, 1]), torch.tensor([[[0.1, 1.0]]]), 2, k=1)
    np.testing.assert_allclose(nearest, [[0, 1]])
    assert knn_scores(bank, np.array([0, 1, 1]), query, 2, k=50).sum() == pytest.approx(1)


def test_several_labels_of_the_neighbours_are_averaged():
    bank = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])
    scores = knn_scores(bank, np.array([[1, 1, 0], [1, 0, 0]]), bank[:1], 3, k=2)
    np.testing.assert_allclose(scores, [[1.0, 0.5, 0.0]])


@pytest.mark.parametrize("seed", range(5))
def test_a_view_moves_frames_masks_and_boxes_together(seed):
    view = draw_view(np.random.default_rng(seed), 96, 128)
    masks = np.zeros((2, 96, 128), bool)
    masks[0, 40:60, 50:80] = True
    masks[1, 45:65, 55:85] = True
    frames = np.repeat(masks[..., None], 3, axis=-1).astype(np.uint8) * 255
    visible = replace(view, colour=(1.0, 1.0, 1.0)).frames(frames).numpy()[..., 0] > 127
    size = 64
    moved = view.masks(masks, size).numpy()
    shrunk = View(0, 0, view.height, view.width).masks(visible, size).numpy()
    np.testing.assert_allclose(moved, shrunk)
    for t, box in enumerate([[50, 40, 80, 60], [55, 45, 85, 65]]):
        boxes, kept = view.boxes(np.array([box], float))
        rows, columns = np.nonzero(visible[t])
        assert kept.all()
        around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        expected = np.array(around) / [view.width, view.height, view.width, view.height]
        np.testing.assert_allclose(boxes[0], expected)


def test_a_box_that_is_mostly_cut_away_is_not_asked_for():
    view = View(top=0, left=50, height=100, width=50)
    boxes, kept = view.boxes(np.array([[0, 0, 60, 10.0], [40, 0, 60, 10.0], [0, 0, 10, 10.0]]))
    assert kept.tolist() == [False, True, False]
    np.testing.assert_allclose(boxes, [[0, 0, 0.2, 0.1]])


def test_a_view_is_the_same_for_the_same_seed_and_stays_in_the_frame():
    views = [draw_view(np.random.default_rng(seed), 90, 120) for seed in range(200)]
    assert views[:3] == [draw_view(np.random.default_rng(seed), 90, 120) for seed in range(3)]
    assert all(v.top >= 0 and v.left >= 0 and v.top + v.height <= 90 and v.left + v.width <= 120 for v in views)
    assert 0.4 < np.mean([v.mirrored for v in views]) < 0.6
    assert 0.4 < np.mean([v.overturned for v in views]) < 0.6
