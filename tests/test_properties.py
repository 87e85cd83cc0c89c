"""Properties for every input that Hypothesis draws: round trips, splits, clips, and metrics against naive ones."""

import json
import tempfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from endofm_lab.data.manifest import checked, read_manifest, write_manifest
from endofm_lab.data.splits import holdout, kfold
from endofm_lab.data.units import group_ids
from endofm_lab.errors import UserError
from endofm_lab.explain.embeddings import _Journal
from endofm_lab.metrics.classification import average_precision, balanced_accuracy
from endofm_lab.metrics.intervals import bootstrap_interval
from endofm_lab.metrics.masks import dice, iou
from endofm_lab.metrics.probes import knn_scores
from endofm_lab.model.card import HeadSpec, ModelCard
from endofm_lab.video.clips import ClipSpec, clip_indices, sliding_clips
from endofm_lab.video.reader import VideoInfo
from endofm_lab.video.transforms import InputSpec

PROPERTY = settings(
    derandomize=True, deadline=None, max_examples=50, database=None, phases=[Phase.explicit, Phase.generate]
)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
NAMES = st.text("abcXYZ äß日-_.0", min_size=1, max_size=8)
SECONDS = st.floats(0, 1e6, allow_nan=False)


def rows(text=TEXT):
    cells = {
        "video": NAMES.map(lambda name: f"v/{name.replace('..', 'x')}.mp4"),
        "start_s": SECONDS,
        "length_s": st.one_of(st.just(np.nan), SECONDS),
        **dict.fromkeys(("label", "patient", "dataset", "split", "sequence"), text),
    }
    return st.lists(st.fixed_dictionaries(cells), min_size=1, max_size=12).map(
        lambda records: (
            pd.DataFrame(records).assign(end_s=lambda t: t["start_s"] + t["length_s"]).drop(columns="length_s")
        )
    )


@PROPERTY
@given(table=rows(), ending=st.sampled_from(["csv", "parquet"]))
def test_a_manifest_that_is_written_is_read_again_cell_by_cell(table, ending):
    with tempfile.TemporaryDirectory() as folder:
        written = write_manifest(table, Path(folder) / f"manifest.{ending}")
        read = read_manifest(written.path)
    pd.testing.assert_frame_equal(read.table, written.table, check_dtype=False)
    pd.testing.assert_frame_equal(read.table, checked(table, "the table"), check_dtype=False)
    assert read.fingerprint == written.fingerprint


@PROPERTY
@given(
    name=TEXT,
    heads=st.dictionaries(NAMES, st.lists(NAMES, min_size=1, max_size=5, unique=True), max_size=3),
    temperature=st.one_of(st.none(), st.floats(1e-4, 1e4)),
    fps=st.fractions(Fraction(1, 100), 240).filter(lambda rate: rate > 0),
    mean=st.tuples(*[st.floats(-1, 2)] * 3),
    size_px=st.integers(1, 512),
)
def test_a_card_that_goes_through_json_is_the_same_card(name, heads, temperature, fps, mean, size_px):
    specs = {head: HeadSpec("multiclass", tuple(classes), temperature=temperature) for head, classes in heads.items()}
    card = ModelCard(name, {"kind": "video_transformer"}, InputSpec(size_px, mean), ClipSpec(8, fps=fps), specs)
    copy = ModelCard.from_json(json.loads(json.dumps(card.to_json())))
    assert copy == card and copy.fingerprint == card.fingerprint
    assert replace(card, name=name + "x").fingerprint != card.fingerprint


@PROPERTY
@given(
    vectors=st.integers(1, 9).flatmap(
        lambda n: st.lists(st.lists(st.floats(width=32), min_size=3, max_size=3), min_size=n, max_size=n)
    ),
    cuts=st.lists(st.integers(1, 4), min_size=9, max_size=9),
    lost=st.lists(st.integers(0, 30), min_size=9, max_size=9),
)
def test_an_embedding_that_is_interrupted_anywhere_ends_with_the_same_vectors(vectors, cuts, lost):
    whole = np.array(vectors, np.float32)
    with tempfile.TemporaryDirectory() as folder:
        for cut, n_bytes in zip(cuts, lost, strict=True):
            journal = _Journal.resumed(Path(folder), *whole.shape)
            start = len(journal.entries)
            entries = [{"row": row, "time_s": 0.0, "error": ""} for row in range(start, min(start + cut, len(whole)))]
            journal.add(whole[start : start + cut], entries)
            log = journal.log.read_bytes()
            journal.log.write_bytes(log[: len(log) - n_bytes])  # the end of the log did not reach the disk
        journal = _Journal.resumed(Path(folder), *whole.shape)
        start = len(journal.entries)
        journal.add(whole[start:], [{"row": row, "time_s": 0.0, "error": ""} for row in range(start, len(whole))])
        journal.finish()
        stored = np.load(Path(folder) / "vectors.npy")
    assert stored.tobytes() == whole.tobytes()
    assert [entry["row"] for entry in journal.entries] == list(range(len(whole)))


@PROPERTY
@given(
    table=rows(st.sampled_from(["", "a", "b", "c", "d", "e"])),
    shares=st.lists(st.integers(1, 8), min_size=2, max_size=3),
    seed=st.integers(0, 2**32),
)
def test_no_patient_sequence_or_video_is_on_two_sides_of_a_split(table, shares, seed):
    table = checked(table, "the table")
    groups, weights = group_ids(table), np.array(shares) / sum(shares)
    parts = dict(zip("abc", weights, strict=False))
    if groups.max() + 1 < len(parts):
        with pytest.raises(UserError):
            holdout(table, parts, seed)
        return
    splits = [holdout(table, parts, seed)]
    assert set(splits[0].parts) == set(parts) and (splits[0].parts == holdout(table, parts, seed).parts).all()
    if groups.max() + 1 >= 3:
        folds = kfold(table, 3, seed)
        assert (sum((fold.parts == "test").astype(int) for fold in folds) == 1).all()  # every row is tested once
        splits += folds
    for split in splits:
        assert split.torn == 0 and split.n_groups == groups.max() + 1
        for column in ("patient", "sequence"):
            filled = table[column] != ""
            whose = table["dataset"] + "/" + table[column]
            assert (pd.Series(split.parts)[filled].groupby(whose[filled]).nunique() == 1).all()
        assert (pd.Series(split.parts).groupby(table["video"]).nunique() == 1).all()


@PROPERTY
@given(n=st.integers(20, 200), seed=st.integers(0, 2**32), share=st.floats(0.2, 0.8))
def test_with_many_groups_of_one_row_a_split_keeps_its_shares(n, seed, share):
    cells = {"video": [f"{i}.mp4" for i in range(n)], "patient": [f"p{i}" for i in range(n)]}
    table = pd.DataFrame({"start_s": 0.0, "end_s": 1.0, "label": "x", "dataset": "d", "split": "", **cells})
    split = holdout(checked(table, "the table"), {"train": share, "test": 1 - share}, seed)
    assert abs((split.parts == "train").mean() - share) <= 1 / n + 1e-9


SPECS = st.one_of(
    st.builds(ClipSpec, st.integers(1, 40), stride=st.integers(1, 20)),
    st.builds(ClipSpec, st.integers(1, 40), fps=st.floats(0.1, 120)),
    st.builds(ClipSpec, st.integers(1, 40), duration_s=st.floats(0.05, 60)),
)


@PROPERTY
@given(
    spec=SPECS,
    gaps_s=st.lists(st.floats(0.005, 1.5), min_size=1, max_size=60),
    at=st.floats(0, 1, exclude_max=True),
    step_s=st.floats(0.1, 30),
)
def test_every_clip_lies_inside_its_video_and_its_times_increase(spec, gaps_s, at, step_s):
    times_s, n = np.concatenate([[0.0], np.cumsum(gaps_s[:-1])]), len(gaps_s)
    duration_s = float(np.sum(gaps_s))
    fps = Fraction(n / duration_s).limit_denominator(10_000)
    info = VideoInfo(Path("v.mp4"), n, fps, 64, 64, duration_s, "h264", "pyav")
    clips = [clip_indices(spec, info, start, times_s) for start in (at * duration_s, "centre")]
    step_s = min(step_s, spec.span_s(info))  # a longer one leaves parts of the video out, and is refused
    sliding = sliding_clips(spec, info, step_s, times_s)
    for indices in (*clips, *(indices for _, _, indices in sliding)):
        assert indices.shape == (spec.n_frames,) and indices.min() >= 0 and indices.max() < n
        assert (np.diff(times_s[indices]) >= 0).all()
    starts = np.array([start for start, _, _ in sliding])
    assert starts[0] == 0 and (np.diff(starts) > 0).all() and (starts < duration_s).all()
    ends = np.array([end for _, end, _ in sliding])
    assert ((starts[:, None] <= times_s + 1e-9) & (times_s < ends[:, None])).any(axis=0).all()  # no frame is left out
    if spec.stride is None:
        assert (np.diff(starts) <= step_s + 1e-6).all()
    else:  # in whole frames, whose times may lie further apart than the step
        step = max(1, round(step_s * fps))
        assert (np.diff(np.searchsorted(times_s, starts - 1e-9)) <= step).all()
    with pytest.raises(UserError):
        clip_indices(spec, info, duration_s, times_s)


def naive_average_precision(target, score):
    """Each threshold among the scores: its gain in recall times its precision (Manning et al., chapter 8)."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(score), reverse=True):
        chosen = [t for t, s in zip(target, score, strict=True) if s >= threshold]
        recall = sum(chosen) / sum(target)
        total, before = total + (recall - before) * sum(chosen) / len(chosen), recall
    return total


@PROPERTY
@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9])), min_size=1, max_size=30))
def test_average_precision_is_the_sum_over_all_thresholds(pairs):
    target, score = [int(t) for t, _ in pairs], [s for _, s in pairs]
    value = average_precision(target, score)
    if not any(target):
        assert np.isnan(value)
    else:
        assert value == pytest.approx(naive_average_precision(target, score), abs=1e-12)


@PROPERTY
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_balanced_accuracy_is_the_mean_recall_of_the_classes_that_occur(pairs):
    recalls = []
    for k in {truth for truth, _ in pairs}:
        answers = [answer for truth, answer in pairs if truth == k]
        recalls.append(answers.count(k) / len(answers))
    assert balanced_accuracy(*np.array(pairs).T) == pytest.approx(np.mean(recalls), abs=1e-12)


@PROPERTY
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_dice_and_iou_count_pixels(pixels):
    truth, answer = (np.array(side)[None] for side in zip(*pixels, strict=True))
    overlap, either = sum(t and a for t, a in pixels), sum(t or a for t, a in pixels)
    if not truth.any():
        assert np.isnan(dice(truth, answer)) and np.isnan(iou(truth, answer))
        return
    assert dice(truth, answer) == pytest.approx(2 * overlap / (truth.sum() + answer.sum()))
    assert iou(truth, answer) == pytest.approx(overlap / either)


@PROPERTY
@given(n=st.integers(1, 12), k=st.integers(1, 15), n_classes=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_the_nearest_neighbours_vote_by_their_cosine(n, k, n_classes, seed):
    draw = np.random.default_rng(seed)
    bank, query = draw.normal(size=(n, 1, 3)), draw.normal(size=(2, 2, 3))
    target = draw.integers(n_classes, size=n)
    result = knn_scores(torch.from_numpy(bank), target, torch.from_numpy(query), n_classes, k)
    for q, clips in enumerate(query):
        scores = np.zeros(n_classes)
        for clip in clips:
            cosine = [float(clip @ b / np.linalg.norm(clip) / np.linalg.norm(b)) for (b,) in bank]
            nearest = sorted(range(n), key=lambda i: -cosine[i])[:k]
            votes = np.array([np.exp(cosine[i] / 0.07) for i in nearest])
            for i, vote in zip(nearest, votes / votes.sum(), strict=True):
                scores[target[i]] += vote / len(clips)
        assert result[q] == pytest.approx(scores, abs=1e-6)


@PROPERTY
@given(
    value=st.floats(-1e6, 1e6),
    groups=st.lists(st.integers(0, 6), min_size=1, max_size=30),
    seed=st.integers(0, 2**31),
)
def test_the_interval_of_constant_data_is_a_point(value, groups, seed):
    def mean(values, weights):
        return weights @ values / weights.sum(axis=-1)

    interval = bootstrap_interval(mean, groups, np.full(len(groups), value), n=50, seed=seed)
    assert interval.value == pytest.approx(value, abs=1e-6) and interval.units == len(set(groups))
    if np.isfinite([interval.low, interval.high]).all():
        assert (interval.low, interval.high) == pytest.approx((value, value), abs=1e-6)
    else:
        assert interval.units < 20  # no interval is given for few units
