"""Detection metrics against hand cases and a restatement of COCO's rule in plain Python."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from endofm_lab.metrics import boxes as metrics_boxes
from endofm_lab.metrics.boxes import (
    average_precision_50,
    average_precision_50_95,
    centre_counts,
    centre_metrics,
    detection_metrics,
    frame_boxes,
    frame_presence,
    match_boxes,
)
from endofm_lab.metrics.classification import MetricError
from endofm_lab.metrics.intervals import bootstrap_samples

A, B = [10, 10, 40, 40], [60, 60, 90, 90]


def overlap(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, width) * max(0, height)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def coco_ap(frames, label, threshold):
    """AP of one class from its definition: sort, match greedily, interpolate at 101 recalls."""
    detections, n_truth = [], 0
    for frame in frames:
        truth = [b for b, k in zip(frame.true_xyxy, frame.true_labels, strict=True) if k == label]
        n_truth += len(truth)
        own_boxes = [(s, b) for s, b, k in zip(frame.scores, frame.xyxy, frame.labels, strict=True) if k == label]
        taken = set()
        for s, b in sorted(own_boxes, key=lambda d: -d[0])[:100]:
            free = [(overlap(b, t), -g) for g, t in enumerate(truth) if g not in taken]
            best = max(free, default=(0, 0))
            hit = best[0] >= threshold
            if hit:
                taken.add(-best[1])
            detections.append((s, hit))
    if n_truth == 0:
        return None
    points, hits = [], 0
    for n, (_, hit) in enumerate(sorted(detections, key=lambda d: -d[0]), start=1):
        hits += hit
        points.append((hits / n_truth, hits / n))
    # COCO's recalls are those of linspace: 0.29 there is a little above 29 / 100
    recalls = np.linspace(0, 1, 101)
    return sum(max((p for r, p in points if r >= recall), default=0) for recall in recalls) / 101


def made_frames(seed, n=12, n_classes=2, digits=2):
    """Frames with up to three true boxes, detections near and far from them; few digits give tied scores."""
    draw = np.random.default_rng(seed)
    frames = []
    for _ in range(n):
        truth = draw.uniform(0, 60, (draw.integers(0, 4), 2))
        truth = np.concatenate([truth, truth + draw.uniform(15, 40, truth.shape)], 1)
        near = np.concatenate([truth + draw.normal(0, s, truth.shape) for s in (2, 6)])
        far = draw.uniform(0, 50, (draw.integers(0, 3), 2))
        boxes = np.concatenate([near, np.concatenate([far, far + 20], 1)])
        true_labels = draw.integers(0, n_classes, len(truth))
        labels = np.concatenate([true_labels, true_labels, draw.integers(0, n_classes, len(far))])
        frames.append(frame_boxes(truth, boxes, np.round(draw.random(len(boxes)), digits), true_labels, labels))
    return frames


def test_a_hand_case_of_average_precision():
    # Falling score: hit, miss, hit; two truths. Precision 1 up to recall 0.5 (51 points), 2/3 up to 1 (50 points).
    frames = [frame_boxes([A], [A, B], [0.9, 0.8]), frame_boxes([B], [B], [0.7])]
    assert average_precision_50(match_boxes(frames)) == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)
    # One truth found with an overlap of 0.8: a hit at 0.5 ... 0.8 (7 thresholds) and a miss at the other three.
    frames = [frame_boxes([[0, 0, 10, 10]], [[0, 0, 10, 8]], [0.9])]
    assert average_precision_50_95(match_boxes(frames)) == pytest.approx(0.7)


def test_a_truth_is_found_once_and_its_second_detection_is_false():
    frames = [frame_boxes([A, B], [A, A, B], [0.9, 0.8, 0.7])]
    assert average_precision_50(match_boxes(frames)) == pytest.approx((51 + 50 * 2 / 3) / 101)


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_equals_the_restatement(seed):
    frames = made_frames(seed)
    matches = match_boxes(frames)

    def expected(threshold):
        return np.mean([ap for k in range(2) if (ap := coco_ap(frames, k, threshold)) is not None])

    assert average_precision_50(matches) == pytest.approx(expected(0.5), abs=1e-9)
    thresholds = [0.5 + 0.05 * k for k in range(10)]
    assert average_precision_50_95(matches) == pytest.approx(np.mean([expected(t) for t in thresholds]), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_a_weighted_frame_counts_as_that_many_frames(seed):
    frames = made_frames(seed, digits=12)  # ties go by order, and repeating changes the order
    weights = np.random.default_rng(seed).multinomial(len(frames), np.full(len(frames), 1 / len(frames)), 4)
    measured = detection_metrics(frames)(weights)
    for r, counts in enumerate(weights):
        repeated = [frame for frame, n in zip(frames, counts, strict=True) for _ in range(n)]
        for name, value in detection_metrics(repeated)(None).items():
            assert measured[name][r] == pytest.approx(value, abs=1e-9, nan_ok=True), name


def test_at_most_one_hundred_detections_of_a_frame_take_part():
    crowd = [B] * 100 + [A]
    frames = [frame_boxes([A], crowd, np.linspace(1, 0.5, 101))]
    assert average_precision_50(match_boxes(frames)) == 0
    frames = [frame_boxes([A], crowd[1:], np.linspace(1, 0.5, 100))]
    assert average_precision_50(match_boxes(frames)) == pytest.approx(1 / 100)


def test_empty_cases():
    empty = frame_boxes([], [], [])
    missed, false = frame_boxes([A], [], []), frame_boxes([], [A], [0.9])
    assert all(np.isnan(value) for value in detection_metrics([empty])(None).values())
    assert average_precision_50(match_boxes([missed])) == 0
    assert np.isnan(average_precision_50(match_boxes([false])))
    assert average_precision_50(match_boxes([frame_boxes([A], [A], [0.9]), false])) == 1  # a tie: the hit comes first
    assert average_precision_50(match_boxes([false, frame_boxes([A], [A], [0.9])])) == 0.5
    assert all(np.isnan(value) for value in detection_metrics([])(None).values())
    result = centre_metrics(centre_counts([missed]))
    assert np.isnan(result["centre_precision"])
    assert (result["centre_recall"], result["centre_f1"]) == (0, 0)
    result = centre_metrics(centre_counts([false]))
    assert np.isnan(result["centre_recall"])
    assert (result["centre_precision"], result["centre_f2"]) == (0, 0)


def test_hand_cases_of_localisation_by_centres():
    inside, outside = [20, 20, 30, 30], [35, 35, 65, 65]  # centres (25, 25) and (50, 50)
    assert centre_counts([frame_boxes([A], [inside], [0.5])]).tolist() == [[1, 0, 0]]
    assert centre_counts([frame_boxes([A], [inside], [0.49])]).tolist() == [[0, 0, 1]]
    assert centre_counts([frame_boxes([A], [outside], [0.9])]).tolist() == [[0, 1, 1]]
    assert centre_counts([frame_boxes([A], [inside, inside], [0.9, 0.8])]).tolist() == [[1, 1, 0]]
    assert centre_counts([frame_boxes([], [inside], [0.9])]).tolist() == [[0, 1, 0]]
    assert centre_counts([frame_boxes([A], [inside], [0.9], [1], [2])]).tolist() == [[0, 1, 1]]
    # One detection inside two overlapping truths finds one of them, the nearer.
    assert centre_counts([frame_boxes([A, [15, 15, 45, 45]], [inside], [0.9])]).tolist() == [[1, 0, 1]]
    # It leaves the farther one to a detection that lies in that one only.
    frame = frame_boxes([[15, 15, 45, 45], A], [inside, [40, 40, 44, 44]], [0.9, 0.8])
    assert centre_counts([frame]).tolist() == [[2, 0, 0]]
    counts = np.array([[3, 1, 0], [0, 1, 2]])  # TP 3, FP 2, FN 2
    result = centre_metrics(counts)
    assert (result["centre_precision"], result["centre_recall"], result["centre_f1"]) == pytest.approx((0.6, 0.6, 0.6))
    result = centre_metrics(np.array([[2, 0, 2]]))  # precision 1, recall 1/2
    assert result["centre_f2"] == pytest.approx(5 * 1 * 0.5 / (4 * 1 + 0.5))


def test_presence_does_not_look_at_where():
    frames = [
        frame_boxes([A], [B], [0.9]),
        frame_boxes([A], [], []),
        frame_boxes([], [A], [0.5]),
        frame_boxes([], [], []),
    ]
    truth, present = frame_presence(frames)
    assert truth.tolist() == [True, True, False, False]
    assert present.tolist() == [True, False, True, False]
    assert detection_metrics(frames)(None)["frame_presence_f1"] == f1_score(truth, present)


def test_intervals_of_all_detection_metrics_come_from_one_call():
    frames = made_frames(1, n=20)
    result = bootstrap_samples(detection_metrics(frames), np.repeat(np.arange(5), 4), n=50)
    assert set(result.values) >= {"ap50", "ap50_95", "centre_f1", "centre_f2", "frame_presence_f1"}
    assert all(result.interval(name).low < result.interval(name).high for name in result.values)
    assert result.values["ap50"] == average_precision_50(match_boxes(frames))


def test_bad_boxes_are_named():
    with pytest.raises(MetricError, match=r"true box \[10.0, 10.0, 10.0, 40.0\] has no area"):
        frame_boxes([[10, 10, 10, 40]], [], [])
    with pytest.raises(MetricError, match="1 boxes have 2 scores"):
        frame_boxes([A], [A], [0.9, 0.8])
    with pytest.raises(MetricError, match="NaN"):
        frame_boxes([A], [A], [np.nan])
    assert metrics_boxes.IOU_THRESHOLDS.tolist() == pytest.approx([0.5 + 0.05 * k for k in range(10)])


def test_the_released_toy_frames_show_where_the_rules_part():
    golden = json.loads((Path(__file__).parents[1] / "goldens" / "metrics_toy.json").read_text())
    frames = [frame_boxes(truth, boxes, scores) for truth, _, boxes, scores in golden["frames"]]
    assert 100 * detection_metrics(frames)(None)["frame_presence_f1"] == pytest.approx(
        golden["detection"]["f1"], abs=1e-5
    )
    actual = centre_counts(frames).tolist()
    released = [list(counts) for counts in golden["localization_per_frame_tp_fp_fn"]]
    differ = {k: (a, b) for k, (a, b) in enumerate(zip(actual, released, strict=True)) if a != b}
    # Frame 4 has no lesion and two detections; in frame 6 one detection lies in two overlapping true boxes.
    assert differ == {4: ([0, 2, 0], [0, 0, 0]), 6: ([1, 0, 1], [2, 0, 0])}
