"""Phantom examinations: their course, their pictures, and the manifest that they come with."""

from dataclasses import replace

import numpy as np
import pytest

from endofm_lab.data import phantom_set
from endofm_lab.data.manifest import read_manifest
from endofm_lab.data.phantom_set import EXAMINATIONS, write_phantom
from endofm_lab.errors import UserError
from endofm_lab.tasks.phases import Phases
from endofm_lab.video.generated.examination import PHASES, TOOLS, ExaminationSpec, frames_of, plan
from endofm_lab.video.reader import open_video

SHORT = ExaminationSpec(seed=3, patient=3, size_px=32, pace=0.1)


@pytest.fixture(scope="module")
def examinations():
    return [plan(ExaminationSpec(seed=n, patient=n)) for n in range(40)]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_phantom(tmp_path_factory.mktemp("examinations"), "examinations-tiny", progress=False)


def test_phases_come_in_the_order_of_practice_and_last_as_long(examinations):
    minutes = {name: np.array([np.sum(e.phase == k) / 60 for e in examinations]) for k, name in enumerate(PHASES)}
    assert 2.5 < np.median(minutes["insertion"]) < 9 and 5 < np.median(minutes["withdrawal"]) < 9
    assert 8 < np.mean([len(e) for e in examinations]) / 60 < 16
    for examination in examinations:
        order = examination.phase[np.r_[True, np.diff(examination.phase) != 0]].tolist()
        assert order[:3] == [0, 1, 2] and 0 not in order[1:] and order.count(1) == 1
    assert 0.5 < np.mean([4 in e.phase for e in examinations]) < 0.95
    assert any(3 not in e.phase for e in examinations)


def test_only_the_context_tells_insertion_from_withdrawal(examinations):
    """The same places are seen on both ways, at steps to and fro; landmark and tool occur on the way in, too."""
    steps = {0: [], 2: []}
    for examination in examinations:
        for phase, found in steps.items():
            own = examination.camera[examination.phase == phase]
            found += np.diff(own).tolist()
    forward = {phase: np.mean(np.array(found) > 0) for phase, found in steps.items()}
    assert 0.5 < forward[0] < 0.65 and 0.35 < forward[2] < 0.5, "a single step says little about the direction"
    inserting = [e.phase == 0 for e in examinations]
    assert any((e.landmark[own] > 0.6).any() for e, own in zip(examinations, inserting, strict=True))
    assert any(e.tools[own, TOOLS.index("forceps")].any() for e, own in zip(examinations, inserting, strict=True))
    seen = [
        {phase for phase in (0, 2) if (np.abs(lesion.s - 1.2 - e.camera[e.phase == phase]) < 0.5).any()}
        for e in examinations
        for lesion in e.lesions
    ]
    assert np.mean([both == {0, 2} for both in seen]) > 0.8, "findings of the way in are found again on the way out"


def test_equal_specifications_give_equal_frames_and_other_seeds_others():
    first, again = (np.concatenate(list(frames_of(plan(SHORT)))) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (len(plan(SHORT)), 32, 32, 3) and first.dtype == np.uint8
    other = np.concatenate(list(frames_of(plan(replace(SHORT, seed=4)))))
    assert len(other) != len(first) or not np.array_equal(first, other)


def test_tools_and_quality_show_in_the_pictures():
    examination = plan(SHORT)
    plain = replace(examination, tools=np.zeros_like(examination.tools), quality=np.zeros_like(examination.quality))
    clean = np.concatenate(list(frames_of(plain))).astype(int)
    tools, quality = np.zeros_like(examination.tools), np.zeros_like(examination.quality)
    for kind in range(3):
        tools[5 + kind, kind] = True
        quality[15 + kind, kind] = 1
    drawn = np.concatenate(list(frames_of(replace(plain, tools=tools, quality=quality)))).astype(int)
    differences = np.abs(drawn - clean)
    changed = differences.max(axis=(1, 2, 3)) > 0
    assert np.flatnonzero(changed).tolist() == [5, 6, 7, 15, 16, 17]
    assert (differences.max(axis=(1, 2, 3))[5:8] > 40).all() and (differences.mean(axis=(1, 2, 3))[15:18] > 5).all()


def test_the_manifest_has_rows_without_gaps_that_the_task_phases_takes(written):
    manifest = read_manifest(written)
    size = EXAMINATIONS["examinations-tiny"]
    assert manifest.generated and manifest.table["patient"].nunique() == size.train + size.val + size.test
    for video, rows in manifest.table.groupby("video"):
        np.testing.assert_allclose(rows["end_s"].to_numpy()[:-1], rows["start_s"].to_numpy()[1:])
        with open_video(manifest.resolve(video)) as reader:
            assert reader.info.generated and reader.info.duration_s == rows["end_s"].max()
    task = Phases()
    head = task.head(manifest)
    assert set(head.classes) <= set(PHASES) and len(task.examples(manifest, "train", head)) > 10
    assert {tool for cell in manifest.table["tools"] for tool in cell.split("|")} - {""} <= set(TOOLS)


def test_a_stopped_set_goes_on_with_the_same_bytes(written, tmp_path, monkeypatch):
    write = phantom_set._write_examination
    drawn = []

    def until_the_sixth(*job):
        drawn.append(job)
        if len(drawn) == 6:
            raise KeyboardInterrupt
        return write(*job)

    with monkeypatch.context() as stopping, pytest.raises(KeyboardInterrupt):
        stopping.setattr(phantom_set, "_write_examination", until_the_sixth)
        write_phantom(tmp_path, "examinations-tiny", progress=False)
    assert len(list((tmp_path / "videos").iterdir())) == 5 and not (tmp_path / "manifest.csv").exists()
    again = write_phantom(tmp_path, "examinations-tiny", progress=False)
    for path in (written.parent / "videos").iterdir():
        assert (tmp_path / "videos" / path.name).read_bytes() == path.read_bytes()
    assert again.read_bytes() == written.read_bytes()
    with pytest.raises(UserError, match="other settings"):
        write_phantom(again.parent, "examinations-tiny", seed=1, progress=False)


def test_impossible_specifications_are_refused():
    for wrong in ({"device": 3}, {"size_px": 8}, {"pace": 0}, {"fps": 0}):
        with pytest.raises(UserError, match="An examination has"):
            replace(SHORT, **wrong)
