import shutil
import sys
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from joblib.externals.loky import get_reusable_executor

from endofm_lab.data import phantom_set
from endofm_lab.data.manifest import read_manifest
from endofm_lab.data.phantom_set import PRESETS, clips_of, write_phantom
from endofm_lab.errors import UserError
from endofm_lab.video.phantom import render
from endofm_lab.video.reader import open_video


def test_every_row_leads_to_a_video_with_as_many_masks(phantom):
    manifest = read_manifest(phantom)
    size = PRESETS["tiny"]
    assert len(manifest) == 4 * (size.train + size.val + size.test)
    for row in manifest.rows("val").itertuples():
        with open_video(manifest.resolve(row.video)) as video, open_video(manifest.resolve(row.masks)) as masks:
            assert video.info.n_frames == masks.info.n_frames == size.n_frames
            assert float(video.info.fps) == 24


@pytest.mark.slow
def test_the_workers_do_not_run_the_script_that_called(tmp_path, monkeypatch):
    """That script may be a page of the app, which nothing but the app can run."""
    page = ModuleType("__main__")
    page.__file__, page.__spec__ = str(tmp_path / "page.py"), None
    (tmp_path / "page.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise RuntimeError('run again')")
    get_reusable_executor().shutdown(wait=True)  # workers of an earlier test know nothing of this page
    monkeypatch.setitem(sys.modules, "__main__", page)
    monkeypatch.setattr(phantom_set, "_ALONE_PX", 0)
    assert write_phantom(tmp_path / "phantom", "tiny", progress=False).exists()
    assert not (tmp_path / "ran").exists()


def test_what_is_written_is_what_was_drawn(phantom):
    manifest = read_manifest(phantom)
    name, _, spec = next(clip for clip in clips_of(PRESETS["tiny"], 0) if clip[2].finding == "polyp")
    rendering = render(spec)
    with open_video(manifest.root / "masks" / name) as masks:
        np.testing.assert_array_equal(masks.read(range(spec.n_frames))[..., 0] > 127, rendering.masks)
    with open_video(manifest.root / "videos" / f"{name}.mp4") as video:
        error = (video.read(range(spec.n_frames)).astype(int) - rendering.frames) @ np.array([0.299, 0.587, 0.114])
    assert np.abs(error).mean() < 5, "H.264 keeps brightness better than colour and grain"
    boxes = pd.read_csv(manifest.root / "boxes.csv")
    boxes = boxes[boxes["video"] == f"videos/{name}.mp4"]
    has_box = ~np.isnan(rendering.boxes_xyxy).any(1)
    np.testing.assert_allclose(boxes[["x1_px", "y1_px", "x2_px", "y2_px"]], rendering.boxes_xyxy[has_box])


def test_no_patient_is_in_two_splits_and_labels_motions_and_devices_are_balanced():
    for preset in ("tutorial", "demo"):
        plan = clips_of(PRESETS[preset], seed=0)
        table = pd.DataFrame([(split, s.patient, s.finding, s.motion, s.device) for _, split, s in plan])
        table.columns = ["split", "patient", "finding", "motion", "device"]
        assert (table.groupby("patient")["split"].nunique() == 1).all()
        assert (table.groupby("patient")["device"].nunique() == 1).all()
        counts = table.groupby(["split", "finding", "motion"]).size().unstack(["finding", "motion"])
        assert (counts.nunique(axis=1) == 1).all()
        assert (table.groupby("split")["device"].nunique() == 3).all()


def test_the_same_seed_writes_the_same_data_and_another_seed_other_patients(phantom, tmp_path):
    second = write_phantom(tmp_path / "again", "tiny", progress=False)
    assert read_manifest(second).fingerprint == read_manifest(phantom).fingerprint
    assert (second.parent / "boxes.csv").read_text() == (phantom.parent / "boxes.csv").read_text()
    assert not {s.patient for *_, s in clips_of(PRESETS["demo"], 0)} & {
        s.patient for *_, s in clips_of(PRESETS["demo"], 1)
    }


def test_a_stopped_run_goes_on_and_keeps_what_was_written(phantom, tmp_path):
    shutil.copytree(phantom.parent, tmp_path / "p")
    kept = tmp_path / "p" / phantom.name
    video = sorted((tmp_path / "p" / "videos").iterdir())[0]
    stamp = video.stat().st_mtime_ns
    kept.unlink()
    last = sorted((tmp_path / "p" / "clips").iterdir())[-1]
    last.unlink()
    write_phantom(tmp_path / "p", "tiny", progress=False)
    assert video.stat().st_mtime_ns == stamp
    assert last.exists()
    assert read_manifest(kept).fingerprint == read_manifest(phantom).fingerprint


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="do not belong to"):
        write_phantom(tmp_path, "tiny", progress=False)
    with pytest.raises(UserError, match="tiny, tutorial, demo"):
        write_phantom(tmp_path / "x", "huge", progress=False)


def test_a_phantom_of_another_seed_is_refused_by_naming_it(phantom):
    with pytest.raises(UserError, match=r"holds a phantom with other settings: seed is \d+ there, 99 here"):
        write_phantom(phantom.parent, "tiny", seed=99, progress=False)
