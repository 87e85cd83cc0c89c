"""Whole studies: every frame scored once, flat memory, stopped and resumed, damaged and repeated frames."""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

import endofm_lab.study.study as study_module
from endofm_lab.cli.main import main
from endofm_lab.errors import UserError
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.loading.load import save_model
from endofm_lab.model.video_model import build_frame_model
from endofm_lab.reports.study import write_study_report
from endofm_lab.study import stream as study_stream
from endofm_lab.study.findings import findings, segments, smooth_scores, smoothing_metrics, top_frames
from endofm_lab.study.review import read_review
from endofm_lab.study.study import DUPLICATE, SCORED, UNREADABLE, load_study, run_study, study_steps
from endofm_lab.video.reader import open_video, write_video
from endofm_lab.video.transforms import to_input

pytestmark = pytest.mark.slow  # whole studies: run with `pytest -m slow -n 0`

N = 150


def picture(at: int) -> np.ndarray:
    """A smooth pattern that drifts and changes colour; uint8 (48, 64, 3)."""
    y, x = np.mgrid[:48, :64]
    waves = [np.sin((x + 3 * at) / 7 + c) * np.cos((y + at) / (5 + c)) for c in range(3)]
    tint = [np.sin(at / 11 + c) for c in range(3)]
    return (
        np.stack([(wave * 80 + t * 40 + 127) for wave, t in zip(waves, tint, strict=True)], -1)
        .clip(0, 255)
        .astype(np.uint8)
    )


def make_model(name: str = "vit_micro"):
    torch.manual_seed(0)
    heads = {
        "finding": HeadSpec("multiclass", ("normal", "polyp", "ulcer"), temperature=2.0),
        "signs": HeadSpec("multilabel", ("blood", "bubbles")),
    }
    model = build_frame_model(name, heads)
    for parameter in model.parameters():  # nothing may be lost in zeros
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "study.mp4"
    write_video(path, (picture(at) for at in range(N)), Fraction(10))
    return path


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "frames"
    path.mkdir()
    for at in range(40):
        Image.fromarray(picture(at)).save(path / f"{at}.png")
    return path


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(study_module, "PART_FRAMES", 32)


def one_by_one(path, model):
    """The plain loop: decode, transform and infer one frame at a time."""
    with open_video(path) as reader:
        return [model.predict(to_input(reader.read([i]), model.card.input)) for i in range(reader.info.n_frames)]


def test_every_frame_has_the_scores_of_the_plain_loop(video, model, tmp_path):
    study = run_study(video, model, tmp_path / "out", batch=7, progress=False)
    plain = one_by_one(video, model)
    for head in ("finding", "signs"):
        expected = torch.cat([scores[head] for scores in plain]).numpy()
        np.testing.assert_allclose(study.scores[head], expected, atol=1e-5)
        assert expected.std(0).min() > 1e-3
    assert (study.state == SCORED).all() and (study.stands_for == np.arange(N)).all()
    assert not (tmp_path / "out" / "parts").exists()


def test_a_study_survives_the_way_to_disk_and_back(video, model, tmp_path):
    study = run_study(video, model, tmp_path / "out", progress=False)
    copy = load_study(tmp_path / "out")
    for head, values in study.scores.items():
        assert np.array_equal(copy.scores[head], values)
    assert np.array_equal(copy.times_s, study.times_s) and copy.video == study.video
    assert copy.provenance == json.loads(json.dumps(study.provenance)) and copy.classes == study.classes


@pytest.mark.parametrize("skip", [False, True])
def test_a_study_stopped_three_times_equals_one_that_was_not(video, model, tmp_path, skip):
    whole = run_study(video, model, tmp_path / "whole", skip_near_duplicates=skip, batch=5, progress=False)
    done = []
    for _ in range(3):
        steps = study_steps(video, model, tmp_path / "parts", skip, batch=5)
        done.append(next(steps)[0])
        next(steps)
        steps.close()
        (tmp_path / "parts" / "parts" / ".part_000000032.1.part.npz").write_bytes(b"half")  # what a kill leaves behind
    assert done == [0, 32, 64]
    resumed = run_study(video, model, tmp_path / "parts", skip_near_duplicates=skip, batch=5, progress=False)
    for head, values in whole.scores.items():
        assert np.array_equal(resumed.scores[head], values)
    assert np.array_equal(resumed.stands_for, whole.stands_for)


def stopped_after(parts, video, model, out):
    steps = study_steps(video, model, out)
    for _ in range(parts + 1):
        next(steps)
    steps.close()


def test_a_part_that_was_removed_is_scored_again_and_no_frame_is_renumbered(video, model, tmp_path):
    whole = run_study(video, model, tmp_path / "whole", progress=False)
    stopped_after(3, video, model, tmp_path / "out")
    (tmp_path / "out" / "parts" / "part_000000032.npz").unlink()
    with pytest.raises(UserError, match="part with frame 32 is missing"):
        load_study(tmp_path / "out", unfinished=True)
    study = run_study(video, model, tmp_path / "out", progress=False)
    assert len(study.state) == N
    assert np.array_equal(study.scores["finding"], whole.scores["finding"])
    assert np.array_equal(study.times_s, whole.times_s)


def test_a_part_that_disappears_while_the_study_runs_is_no_finished_study(video, model, tmp_path):
    for name, sentence in [("000000064", "part with frame 64 is missing"), (f"{N // 32 * 32:09d}", f"has {N}")]:
        steps = study_steps(video, model, tmp_path / name)
        with pytest.raises(UserError, match=sentence):
            for done, n_frames in steps:
                if done == n_frames:
                    (tmp_path / name / "parts" / f"part_{name}.npz").unlink()
        assert not (tmp_path / name / "study.json").exists()


def test_two_studies_in_one_folder_at_once_are_refused(video, model, tmp_path):
    steps = study_steps(video, model, tmp_path)
    next(steps)
    with pytest.raises(UserError, match="is being worked on by process"):
        run_study(video, model, tmp_path, progress=False)
    steps.close()
    assert len(run_study(video, model, tmp_path, progress=False).state) == N


@pytest.mark.parametrize("moment", ["job.json", "frames.parquet", "study.json"])
def test_a_study_killed_before_or_after_a_file_gets_its_name_goes_on(video, model, tmp_path, monkeypatch, moment):
    whole = run_study(video, model, tmp_path / "whole", progress=False)
    replace = Path.replace
    for side in ("before", "after"):

        def killed(path, target, side=side):
            if side == "after" or Path(target).name != moment:
                replace(path, target)
            if Path(target).name == moment:
                raise KeyboardInterrupt

        with monkeypatch.context() as fault, pytest.raises(KeyboardInterrupt):
            fault.setattr(Path, "replace", killed)
            run_study(video, model, tmp_path / side, progress=False)
        study = run_study(video, model, tmp_path / side, progress=False)
        assert np.array_equal(study.scores["finding"], whole.scores["finding"])
        names = sorted(path.name for path in (tmp_path / side).iterdir())
        assert names == ["frames.parquet", "hashes.json", "job.json", "study.json"]


def test_a_video_or_a_model_that_changed_in_place_is_refused(video, model, tmp_path):
    path = Path(shutil.copy(video, tmp_path / "video.mp4"))
    stopped_after(1, path, model, tmp_path / "out")
    data, times = bytearray(path.read_bytes()), path.stat()
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(UserError, match="other settings: different video"):
        run_study(path, model, tmp_path / "out", progress=False)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.heads["finding"].linear.bias[0] += 1e-3
    stopped_after(1, video, model, tmp_path / "other")
    with pytest.raises(UserError, match="other settings: different weights"):
        run_study(video, changed, tmp_path / "other", progress=False)


def test_a_study_decodes_each_frame_once_and_ahead_of_the_model_by_a_bounded_number(
    video, model, tmp_path, monkeypatch
):
    frames_read, ahead = [], []
    convert = study_stream.resize

    def counted(frames, spec):
        frames_read.extend(range(len(frames)))
        return convert(frames, spec)

    answer, scored = model.answer, []

    def slow(clips, shown=()):
        time.sleep(0.02)
        scored.extend(range(len(clips)))
        ahead.append(len(frames_read) - len(scored))
        return answer(clips, shown)

    monkeypatch.setattr(study_stream, "resize", counted)
    monkeypatch.setattr(model, "answer", slow)
    for name, value in {"THREADS": 2, "CHUNK_FRAMES": 3, "QUEUE_CHUNKS": 2, "SEGMENT_FRAMES": 16}.items():
        monkeypatch.setattr(study_stream, name, value)
    run_study(video, model, tmp_path / "out", batch=4, progress=False)
    assert len(frames_read) == len(scored) == N
    # two decoders, each with its queue, a chunk before it and a chunk after it; and three batches being scored
    assert max(ahead) <= 2 * (2 + 2) * 3 + 3 * 4


@pytest.mark.parametrize("fails", [False, True])
def test_batches_share_the_cores_and_the_caller_gets_its_threads_back(video, model, tmp_path, monkeypatch, fails):
    answer, normalise, scorers, collector = model.answer, study_stream.normalise, set(), set()

    def scored(clips, shown=()):
        scorers.add(torch.get_num_threads())
        if fails:
            raise RuntimeError("the model fails")
        return answer(clips, shown)

    def collected(*of):
        collector.add(torch.get_num_threads())
        return normalise(*of)

    monkeypatch.setattr(study_module, "THREADS", 2)
    monkeypatch.setattr(model, "answer", scored)
    monkeypatch.setattr(study_stream, "normalise", collected)
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    try:
        with pytest.raises(RuntimeError) if fails else nullcontext():
            run_study(video, model, tmp_path / "out", progress=False)
        assert torch.get_num_threads() == 6
    finally:
        torch.set_num_threads(before)
    assert scorers == {3} and collector == {1}


def test_a_stopped_study_decodes_no_further(folder, model, monkeypatch):
    monkeypatch.setattr(study_stream, "SEGMENT_FRAMES", 2)
    monkeypatch.setattr(study_stream, "QUEUE_CHUNKS", 1)
    opened = []
    plain = study_stream._readable_frames
    monkeypatch.setattr(study_stream, "_readable_frames", lambda *a: (opened.append(a[1].start), plain(*a))[1])
    with open_video(folder, check=False) as reader:
        stream = study_stream.Batches(reader, model, 0, 2, 32, None)
        next(stream)
        stream.close()
    assert 0 < len(opened) <= 4 * study_stream.THREADS < 20  # of 20 segments


@pytest.mark.parametrize("first", [0, 5, 96])
def test_the_segments_together_are_the_whole_video(model, tmp_path, first):
    write_video(tmp_path / "v.mkv", [picture(at) for at in range(100)], Fraction(10), codec="ffv1")  # 12 to a key frame
    with open_video(tmp_path / "v.mkv") as reader:
        cut = list(study_stream._segments(reader, first))
        assert cut[0].start == first and cut[-1].stop == 100 and all(len(segment) >= 64 for segment in cut[:-1])
        assert all(a.stop == b.start and reader.next_start(b.start) == b.start for a, b in pairwise(cut))
        for size in (7, 64):
            stream = study_stream.Batches(reader, model, first, size, 32, None)
            batches = [next(stream)]
            while batches[-1].next_frame < 100:
                batches.append(next(stream))
            stream.close()
            assert [frame for batch in batches for frame in batch.frames] == list(range(first, 100))
            assert all(len(batch.frames) <= size for batch in batches)
            expected = to_input(reader.read(range(first, 100))[:, None], model.card.input)
            assert torch.equal(torch.cat([batch.clips for batch in batches]), expected)


def test_repeated_frames_take_the_scores_of_the_first(model, tmp_path):
    still = [picture(0)] * 40 + [picture(at) for at in range(20, 50)] + [picture(90)] * 30
    write_video(tmp_path / "v.mkv", still, Fraction(10), codec="ffv1")
    study = run_study(tmp_path / "v.mkv", model, tmp_path / "out", skip_near_duplicates=True, progress=False)
    assert (study.state[1:40] == DUPLICATE).all() and (study.stands_for[:40] == 0).all()  # beyond a part's end at 32
    assert (study.state[71:] == DUPLICATE).all() and (study.stands_for[70:] == 70).all()
    assert study.state[40] == SCORED and (study.state[40:70] == SCORED).mean() > 0.5
    full = run_study(tmp_path / "v.mkv", model, tmp_path / "full", progress=False)
    np.testing.assert_allclose(study.scores["finding"][:40], full.scores["finding"][:40], atol=1e-6)
    write_study_report(study, tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"{int((study.state == DUPLICATE).sum())} near-duplicates were not scored" in text


def test_damaged_images_are_listed_with_their_time_and_do_not_stop_the_study(folder, model, tmp_path):
    whole = run_study(folder, model, tmp_path / "whole", fps=2, progress=False)
    (folder / "7.png").write_bytes(b"")
    data = (folder / "20.png").read_bytes()
    (folder / "20.png").write_bytes(data[: len(data) // 2])
    Image.fromarray(picture(1)[:20]).save(folder / "33.png")
    study = run_study(folder, model, tmp_path / "out", fps=2, progress=False)
    assert study.unreadable["frame"].tolist() == [7, 20, 33]
    assert study.unreadable["time_s"].tolist() == [3.5, 10.0, 16.5]
    assert np.flatnonzero(study.state == UNREADABLE).tolist() == [7, 20, 33]
    assert np.isnan(study.scores["finding"][[7, 20, 33]]).all()
    good = study.state == SCORED
    np.testing.assert_allclose(study.scores["finding"][good], whole.scores["finding"][good], atol=1e-5)
    text = write_study_report(study, tmp_path / "out").read_text(encoding="utf-8")
    assert "Frames that could not be read" in text and "16.5" in text


def test_a_damaged_video_is_read_again_from_its_next_key_frame(model, tmp_path):
    path = tmp_path / "v.mkv"
    write_video(path, [picture(at) for at in range(60)], Fraction(10), codec="ffv1")  # a key frame every 12
    whole = run_study(path, model, tmp_path / "whole", progress=False)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(range(40))
    path.write_bytes(bytes(data))
    study = run_study(path, model, tmp_path / "out", progress=False)
    lost = study.unreadable["frame"].tolist()
    # A checksum of Matroska covers a whole cluster, all of which may be damaged; reading resumes at the next key frame.
    assert 20 < lost[0] < 40 and lost == list(range(lost[0], lost[-1] + 1)) and (lost[-1] + 1) % 12 == 0
    assert lost[-1] < 48
    good = study.state == SCORED
    np.testing.assert_allclose(study.scores["finding"][good], whole.scores["finding"][good], atol=1e-5)


def test_models_and_folders_that_do_not_fit_a_study_are_refused(video, model, tmp_path):
    with pytest.raises(UserError, match=r"clips of 8 frames.*endofm-lab predict"):
        run_study(video, "demo", tmp_path / "a", progress=False)
    with pytest.raises(UserError, match="no class head"):
        run_study(video, build_frame_model("vit_micro"), tmp_path / "b", progress=False)
    run_study(video, model, tmp_path / "c", progress=False)
    with pytest.raises(UserError, match=r"other settings: skip_near_duplicates is false there, true here\."):
        run_study(video, model, tmp_path / "c", skip_near_duplicates=True, progress=False)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="do not belong to a study"):
        run_study(video, model, tmp_path / "d", progress=False)


def study_with_scores(video, model, tmp_path, finding: np.ndarray):
    """A study whose finding scores are given (N, 3)."""
    study = run_study(video, model, tmp_path / "out", progress=False)
    study.scores["finding"][:] = finding
    return study


def test_segments_top_frames_and_review_by_hand(video, model, tmp_path):
    scores = np.tile([0.9, 0.06, 0.04], (N, 1)).astype(np.float32)
    scores[50:80] = [0.2, 0.7, 0.1]
    scores[60] = [0.05, 0.93, 0.02]
    scores[62] = [0.06, 0.92, 0.02]
    scores[65] = [0.9, 0.05, 0.05]  # one frame lost inside the polyp
    scores[100] = [0.1, 0.1, 0.8]  # one frame of ulcer: noise
    study = study_with_scores(video, model, tmp_path, scores)
    smoothed = segments(study, "finding", width=5)
    assert smoothed["class"].tolist() == ["normal", "polyp", "normal"]
    assert smoothed.loc[1, ["start_s", "end_s", "n_frames", "best_frame"]].tolist() == [5.0, 8.0, 30, 60]
    assert len(segments(study, "finding", width=1)) == 7
    best = top_frames(study, "finding", n=2)
    polyps = best[best["finding"] == "polyp"]
    assert (
        polyps["frame"].iloc[0] == 60
        and polyps["frame"].iloc[1] not in (61, 62)
        and "normal" not in set(best["finding"])
    )
    table = findings(study, width=5)
    table = table[table["head"] == "finding"]
    assert table[["finding", "start_s", "end_s", "frame"]].values.tolist() == [["polyp", 5.0, 8.0, 60]]
    assert table["score"].iloc[0] == pytest.approx(0.93)


def test_smoothing_repairs_single_frames_and_its_effect_is_measured(video, model, tmp_path):
    truth = np.where((np.arange(N) >= 50) & (np.arange(N) < 90), 1, 0)
    scores = np.where(truth[:, None] == [0, 1, 2], 0.8, 0.1).astype(np.float32)
    scores[[10, 30, 60, 75, 120]] = [0.1, 0.1, 0.8]
    study = study_with_scores(video, model, tmp_path, scores)
    assert (smooth_scores(study, "finding", 5).argmax(1) == truth).all()
    names = np.array(["normal", "polyp", "ulcer"])[truth]
    pd.DataFrame({"frame": np.arange(N), "label": names}).to_csv(tmp_path / "labels.csv", index=False)
    effect = smoothing_metrics(study, tmp_path / "labels.csv", width=5).set_index("method")
    assert effect.loc["raw", "accuracy"] == pytest.approx(1 - 5 / N) or effect.loc["raw", "accuracy"] < 1
    assert effect.loc["median 5", "accuracy"] > effect.loc["raw", "accuracy"]
    with pytest.raises(UserError, match="frame 999"):
        pd.DataFrame({"frame": [999], "label": ["polyp"]}).to_csv(tmp_path / "far.csv", index=False)
        smoothing_metrics(study, tmp_path / "far.csv")
    for text, sentence in (
        ("frame,label\n1,polyp\n2,\n", "Row 2 has no label, or its frame is not a whole number"),
        ("frame,label\n,polyp\n", "Row 1 has no label, or its frame is not a whole number"),
        ("frame,label\n1.5,polyp\n", "Row 1 has no label, or its frame is not a whole number"),
        ("frame,label\none,polyp\n", "Row 1 has no label, or its frame is not a whole number"),
        ('frame,label\n"', "is damaged"),
    ):
        (tmp_path / "odd.csv").write_text(text)
        with pytest.raises(UserError, match=sentence):
            smoothing_metrics(study, tmp_path / "odd.csv")


def test_the_command_writes_report_and_review(video, model, tmp_path, capsys):
    sure = copy.deepcopy(model)
    with torch.no_grad():
        sure.heads["finding"].linear.weight.mul_(20)  # raises scores to at least 0.5, as findings need
    save_model(sure, tmp_path / "model")
    args = ["study", str(video), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    assert main(args) == 0
    assert "report.html" in capsys.readouterr().out
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "polyp: best frames" in text and "To confirm or reject" in text and "not a medical device" in text.lower()
    review = read_review(tmp_path / "out")
    assert len(review) and (review["decision"] == "").all()
    assert main(args) == 0, "a finished study is read back"


def test_names_in_reports_are_escaped(video, model, tmp_path):
    bad = shutil.copy(video, tmp_path / "<img src=x onerror=alert(1)>.mp4")
    study = run_study(bad, model, tmp_path / "out", progress=False)
    assert "<img src=x" not in write_study_report(study, tmp_path / "out").read_text(encoding="utf-8")


FRAMES = int(os.environ.get("ENDOFM_LAB_STUDY_FRAMES", "100000"))


def long_study(kind: str, root: Path) -> Path:
    if kind == "video":
        write_video(root / "long.mp4", (picture(at) for at in range(FRAMES)), Fraction(25))
        return root / "long.mp4"
    (root / "long").mkdir()
    for at in range(FRAMES):
        target = root / "long" / f"{at}.jpg"
        if at < 500:
            Image.fromarray(picture(at)).save(target)
        else:
            target.hardlink_to(root / "long" / f"{at % 500}.jpg")
    return root / "long"


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", ["video", "folder"])
def test_a_long_study_stays_in_constant_memory_and_survives_three_kills(kind, tmp_path, monkeypatch):
    """The model is as small as possible, so that the test measures decoding and bookkeeping."""
    monkeypatch.setattr(study_module, "PART_FRAMES", max(64, FRAMES // 48))
    path, model = long_study(kind, tmp_path), make_model()
    memory = []
    steps = study_steps(path, model, tmp_path / "whole")
    while True:
        try:
            next(steps)
        except StopIteration as finished:
            whole = finished.value
            break
        memory.append(resident_mb())
    quarter = len(memory) // 4
    first, last = max(memory[1 : quarter + 1]), max(memory[-quarter:])
    print(f"{kind}: peak of the first quarter {first:.0f} MB, of the last {last:.0f} MB")
    assert last <= 1.05 * first

    save_model(model, tmp_path / "model")
    program = (
        "import sys, endofm_lab.study.study as s\n"
        f"s.PART_FRAMES = {study_module.PART_FRAMES}\n"
        "for done, n in s.study_steps(*sys.argv[1:]): print(done, flush=True)"
    )
    command = [sys.executable, "-c", program, str(path), str(tmp_path / "model"), str(tmp_path / "killed")]
    for kill in range(1, 4):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                if int(line) >= kill * FRAMES // 5:
                    process.send_signal(signal.SIGKILL)
                    break
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    resumed = load_study(tmp_path / "killed")
    for head, values in whole.scores.items():
        assert np.array_equal(resumed.scores[head], values)
    assert np.array_equal(resumed.state, whole.state)


def test_a_model_that_gives_nan_or_infinity_makes_no_study(video, model, tmp_path):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in broken.heads.parameters():
            parameter.fill_(3e38)
    with pytest.raises(UserError, match="gives NaN or infinity for frame 0"):
        run_study(video, broken, tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "study.json").exists()
