import json
import os
import shutil
import sys
import unicodedata
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from endofm_lab.cli.main import main
from endofm_lab.data.manifest import read_manifest
from endofm_lab.data.prepare import scan
from endofm_lab.data.prepare.check import check_manifest
from endofm_lab.data.prepare.layouts import LayoutError
from endofm_lab.data.prepare.prepare import prepare
from endofm_lab.data.prepare.recipes import list_recipes, load_recipe, recipes_folder
from endofm_lab.data.units import units
from endofm_lab.errors import UserError
from endofm_lab.folders.hashes import changes
from endofm_lab.folders.run_folder import claim
from endofm_lab.video.reader import open_video, write_video
from tests.data.trees import BOX, HEIGHT, WIDTH, build_tree, mask, picture

LAYOUTS = [(recipe.name, layout.name) for recipe in list_recipes() for layout in recipe.layouts]


def made(name: str, layout: str, root: Path):
    recipe = load_recipe(name)
    return build_tree(recipe, next(item for item in recipe.layouts if item.name == layout), root)


def kinds(done) -> dict[str, list[str]]:
    paths: dict[str, list[str]] = {}
    for problem in done.problems:
        paths.setdefault(problem.kind, []).append(problem.path)
    return paths


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_a_tree_in_the_layout_of_a_recipe_gives_its_counts(name, layout, tmp_path):
    tree = made(name, layout, tmp_path / "disk")
    choice = layout if layout == "stills" else None  # all others are found
    done = prepare(name, tmp_path / "disk", tmp_path / "out", fps=25, workers=1, layout=choice)
    assert done.layout.split(" in ")[0] == layout
    table = read_manifest(done.manifest).table
    if layout != "frames":  # a row per folder
        assert sorted(set(table["source"])) == sorted(tree.files)
    assert int((table["masks"] != "").sum()) == tree.masks
    boxes = pd.read_csv(tmp_path / "out" / "boxes.csv") if tree.boxes else pd.DataFrame()
    assert len(boxes) == tree.boxes
    if tree.boxes:
        corners = boxes[["x1_px", "y1_px", "x2_px", "y2_px"]].to_numpy()
        assert np.allclose(corners, BOX, atol=0.01)
    if "B" not in set(table["label"]) and layout != "frames":
        assert table["label"].value_counts().to_dict() == dict(tree.labels)
    left_out = [problem for problem in done.problems if problem.left_out]
    assert not left_out, left_out
    assert check_manifest(done.manifest, workers=1).problems == []


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_a_damaged_tree_says_which_file_and_why(name, layout, tmp_path):
    tree = made(name, layout, tmp_path / "disk")
    victim = tmp_path / "disk" / tree.files[0]
    victim.write_bytes(victim.read_bytes()[: len(victim.read_bytes()) // 3])
    if len(tree.files) == 1:
        with pytest.raises(LayoutError, match="No file") as error:
            prepare(name, tmp_path / "disk", tmp_path / "out", fps=25, workers=1)
        assert tree.files[0] in str(error.value)
        return
    done = prepare(name, tmp_path / "disk", tmp_path / "out", fps=25, workers=1)
    assert tree.files[0] in kinds(done)["cannot be read"]
    assert done.manifest.parent.joinpath("problems.csv").read_text().count(tree.files[0]) >= 1
    assert json.loads((tmp_path / "out" / "prepare.json").read_text())["left_out"] >= 1


@pytest.mark.parametrize("name", sorted({name for name, _ in LAYOUTS} - {"private-folder"}))
def test_a_wrong_folder_names_what_was_tried_and_what_is_there(name, tmp_path):
    (tmp_path / "disk" / "holiday").mkdir(parents=True)
    (tmp_path / "disk" / "holiday" / "notes.txt").write_text("x")
    with pytest.raises(LayoutError) as error:
        prepare(name, tmp_path / "disk", tmp_path / "out")
    message = str(error.value)
    assert name in message and "holiday/" in message
    for layout in load_recipe(name).layouts:
        assert layout.media[0].path.template in message


def test_a_packed_archive_is_named_in_the_message(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "kvasir-seg.zip").write_bytes(b"PK")
    with pytest.raises(LayoutError, match=r"Still packed: kvasir-seg\.zip"):
        prepare("kvasir-seg", tmp_path / "disk", tmp_path / "out")


def test_the_data_set_may_begin_two_folders_deeper_but_not_in_two_places(tmp_path):
    made("kvasir-seg", "official", tmp_path / "disk" / "down" / "Kvasir-SEG")
    done = prepare("kvasir-seg", tmp_path / "disk", tmp_path / "out")
    assert done.layout == "official in down/Kvasir-SEG/"
    made("kvasir-seg", "official", tmp_path / "disk" / "down" / "copy")
    with pytest.raises(LayoutError, match="was found in 2 folders: down/Kvasir-SEG, down/copy"):
        prepare("kvasir-seg", tmp_path / "disk", tmp_path / "out2")


def kvasir(root: Path, n: int = 4) -> list[str]:
    names = [f"cju{i}" for i in range(n)]
    for i, name in enumerate(names):
        picture(root / "images" / f"{name}.jpg", i)
        mask(root / "masks" / f"{name}.png")
    return names


def test_a_half_unpacked_archive_is_prepared_and_its_gaps_are_counted(tmp_path):
    names = kvasir(tmp_path / "disk")
    (tmp_path / "disk" / "masks" / f"{names[0]}.png").unlink()
    (tmp_path / "disk" / "images" / f"{names[1]}.jpg").unlink()
    (tmp_path / "disk" / "rest.tar.part").write_bytes(b"x")
    done = prepare("kvasir-seg", tmp_path / "disk", tmp_path / "out", layout="reduced")
    paths = kinds(done)
    assert paths["mask is missing"] == [f"images/{names[0]}.jpg"]
    assert paths["mask without a picture"] == [f"masks/{names[1]}.png"]
    assert paths["still packed"] == ["rest.tar.part"]
    counts = done.counts.set_index("what")
    assert counts.loc["files", "found"] == 3 and counts.loc["files", "status"] == "-797"
    assert "-797" in done.text()


def test_links_out_of_the_root_are_refused_by_name(tmp_path):
    names = kvasir(tmp_path / "disk")
    outside = tmp_path / "secret.jpg"
    picture(outside, 9)
    (tmp_path / "disk" / "images" / "leak.jpg").symlink_to(outside)
    (tmp_path / "disk" / "elsewhere").symlink_to(tmp_path)
    (tmp_path / "disk" / "images" / "twin.jpg").symlink_to(tmp_path / "disk" / "images" / f"{names[0]}.jpg")
    mask(tmp_path / "disk" / "masks" / "twin.png")
    done = prepare("kvasir-seg", tmp_path / "disk", tmp_path / "out", layout="reduced")
    assert sorted(kinds(done)["link out of the root"]) == ["elsewhere", "images/leak.jpg"]
    assert done.rows == len(names) + 1  # a link inside the root is a file like others
    assert "secret" not in done.manifest.with_name("problems.csv").read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes in folders")
def test_a_link_to_itself_and_a_pipe_are_named_and_not_waited_for(tmp_path):
    names = kvasir(tmp_path / "disk")
    (tmp_path / "disk" / "images" / "loop.jpg").symlink_to(tmp_path / "disk" / "images" / "loop.jpg")
    os.mkfifo(tmp_path / "disk" / "kavsir_bboxes.json")
    done = prepare("kvasir-seg", tmp_path / "disk", tmp_path / "out", layout="reduced")
    assert kinds(done)["broken link"] == ["images/loop.jpg"]
    assert kinds(done)["not a file"] == ["kavsir_bboxes.json"]
    assert done.rows == len(names)


def test_two_versions_side_by_side_are_not_mixed(tmp_path):
    made("gastrovision", "official", tmp_path / "disk")
    for i in range(9):
        picture(tmp_path / "disk" / "train" / "Ulcer" / f"{i}.jpg", i)
    done = prepare("gastrovision", tmp_path / "disk", tmp_path / "out")
    assert done.layout == "by-split"
    assert len(kinds(done)["other version"]) == 2


def test_names_that_are_not_ascii_survive_in_both_unicode_forms(tmp_path):
    for i, form in enumerate(("NFC", "NFD")):
        folder = unicodedata.normalize(form, "Große Polypen é")
        picture(tmp_path / f"disk{i}" / folder / "bild ü.jpg", i)
        done = prepare("gastrovision", tmp_path / f"disk{i}", tmp_path / f"out{i}", layout="official")
        table = read_manifest(done.manifest).table
        assert table.loc[0, "label"] == unicodedata.normalize("NFC", "Große Polypen é")
        assert check_manifest(done.manifest).problems == []


def test_a_name_in_no_known_code_page_is_reported_not_lost(tmp_path):
    kvasir(tmp_path / "disk")
    raw = os.fsencode(tmp_path / "disk" / "images") + b"/polyp_\xe9.jpg"
    with open(raw, "wb") as file:  # noqa: PTH123  the name is bytes
        file.write(b"x")
    done = prepare("kvasir-seg", tmp_path / "disk", tmp_path / "out", layout="reduced")
    assert kinds(done)["name is not Unicode"] == ["images/polyp_\\udce9.jpg"]


def test_files_that_lie_about_their_ending_are_told_apart_from_those_that_cannot_be_read(tmp_path):
    names = kvasir(tmp_path / "disk")
    images = tmp_path / "disk" / "images"
    picture(images / "x.png", 1)
    (images / "x.png").rename(images / f"{names[0]}.jpg")
    (images / f"{names[1]}.jpg").write_text("<html>404</html>")
    (images / f"{names[2]}.jpg").write_bytes(b"")
    done = prepare("kvasir-seg", tmp_path / "disk", tmp_path / "out", layout="reduced")
    assert kinds(done)["wrong ending"] == [f"images/{names[0]}.jpg"]
    assert kinds(done)["cannot be read"] == [f"images/{names[1]}.jpg", f"images/{names[2]}.jpg"]
    messages = {problem.path: problem.message for problem in done.problems}
    assert messages[f"images/{names[1]}.jpg"] == "is not a picture"
    assert "0 bytes" in messages[f"images/{names[2]}.jpg"]
    assert done.rows == 2


def test_masks_that_do_not_fit_are_left_out_and_named_and_grey_ones_repaired_only_where_the_recipe_says_how(tmp_path):
    names = kvasir(tmp_path / "disk")
    masks = tmp_path / "disk" / "masks"
    mask(masks / f"{names[0]}.png", size=(32, 24))
    grey = np.linspace(0, 255, WIDTH * HEIGHT).astype(np.uint8).reshape(HEIGHT, WIDTH)
    Image.fromarray(grey).save(masks / f"{names[1]}.png")
    Image.fromarray((np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH) % 2).astype(np.uint8)).save(
        masks / f"{names[2]}.png"
    )
    done = prepare("kvasir-seg", tmp_path / "disk", tmp_path / "out", layout="reduced")
    paths = kinds(done)
    assert paths["mask of another size"] == [f"masks/{names[0]}.png"]
    assert paths["mask is not binary"] == [f"masks/{names[1]}.png"]  # this layout does not say what grey means
    assert paths["mask made binary"] == [f"masks/{names[2]}.png"]  # 0 and 1 can only mean black and white
    table = read_manifest(done.manifest).table.set_index("image")
    assert table.loc[names[0], "masks"] == "" and table.loc[names[1], "masks"] == ""
    with Image.open(tmp_path / "out" / table.loc[names[2], "masks"]) as image:
        assert (np.asarray(image) == (np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH) % 2 > 0)).all()

    for path in masks.glob("*.png"):
        Image.open(path).convert("L").resize((WIDTH, HEIGHT)).save(path.with_suffix(".jpg"))
        path.unlink()
    done = prepare("kvasir-seg", tmp_path / "disk", tmp_path / "out2", layout="official")
    assert "mask is not binary" not in kinds(done)
    manifest = read_manifest(done.manifest)
    row = manifest.table.set_index("image").loc[names[1]]
    with Image.open(manifest.resolve(row["masks"])) as image, Image.open(masks / f"{names[1]}.jpg") as source:
        assert (np.asarray(image) == (np.asarray(source.convert("L")) > 127)).all()


def test_boxes_are_moved_to_the_border_within_the_limit_of_the_recipe_and_left_out_beyond_it(tmp_path):
    for i in range(4):
        picture(tmp_path / "disk" / "VID01" / f"{i:06d}.jpg", i)
    lines = [
        "video,second,instrument,verb,target,x1,y1,x2,y2",
        "VID01,0,hook,a,b,0.5,0.5,1.012,0.9",
        "VID01,1,hook,a,b,0.5,0.5,1.05,0.9",
        "VID01,2,hook,a,b,0.5,0.5,0.5,0.9",
        "VID01,9,hook,a,b,0.1,0.1,0.2,0.2",
    ]
    (tmp_path / "disk" / "boxes.csv").write_text("\n".join(lines))
    heading = "video,second,file,labelled,phase,instruments,triplet_ids"
    rows = [f"VID01,{i},VID01/{i:06d}.jpg,1,preparation,hook," for i in range(4)]
    (tmp_path / "disk" / "frames.csv").write_text("\n".join([heading, *rows]))
    done = prepare("cholect50", tmp_path / "disk", tmp_path / "out")
    paths = kinds(done)
    assert paths["box moved to the border"] == ["VID01/000000.jpg"]
    assert paths["box outside"] == ["VID01/000001.jpg"]
    assert paths["box without area"] == ["VID01/000002.jpg"]
    assert paths["boxes without a picture"] == ["boxes.csv"]
    boxes = pd.read_csv(tmp_path / "out" / "boxes.csv")
    assert len(boxes) == 1 and boxes.loc[0, "x2_px"] == WIDTH


def test_a_second_run_reads_nothing_again_and_a_changed_file_is_read_again(tmp_path, monkeypatch):
    names = kvasir(tmp_path / "disk")
    read = []
    true = scan.read_facts
    monkeypatch.setattr(
        "endofm_lab.data.prepare.prepare.read_facts", lambda root, path: read.append(path) or true(root, path)
    )
    first = prepare("kvasir-seg", tmp_path / "disk", tmp_path / "out", layout="reduced")
    assert len(read) == len(names)
    second = prepare("kvasir-seg", tmp_path / "disk", tmp_path / "out", layout="reduced")
    assert len(read) == len(names)
    assert first.manifest.read_bytes() == second.manifest.read_bytes()
    picture(tmp_path / "disk" / "images" / f"{names[2]}.jpg", 77)
    prepare("kvasir-seg", tmp_path / "disk", tmp_path / "out", layout="reduced")
    assert read[len(names) :] == [f"images/{names[2]}.jpg"]


def test_a_folder_with_another_preparation_is_refused_by_naming_what_differs(tmp_path):
    kvasir(tmp_path / "disk", n=3)
    prepare("kvasir-seg", tmp_path / "disk", tmp_path / "out", layout="reduced")
    before = (tmp_path / "out" / "manifest.parquet").read_bytes()
    with pytest.raises(
        UserError, match=r'a preparation with other settings: name is "kvasir-seg" there, "clinic" here'
    ):
        prepare("kvasir-seg", tmp_path / "disk", tmp_path / "out", layout="reduced", name="clinic")
    assert (tmp_path / "out" / "manifest.parquet").read_bytes() == before
    claimed = claim(tmp_path / "elsewhere" / ".prepare", {}, "a preparation")
    with claimed, pytest.raises(UserError, match="is being worked on by process"):
        prepare("kvasir-seg", tmp_path / "disk", tmp_path / "elsewhere", layout="reduced")


def test_a_made_mask_that_was_altered_is_named_and_not_sealed_anew(tmp_path):
    kvasir(tmp_path / "disk", n=3)
    for path in sorted((tmp_path / "disk" / "masks").iterdir()):
        grey = np.asarray(Image.open(path).convert("L"))
        Image.fromarray((grey // 2).astype(np.uint8)).save(path, quality=100)
    result = prepare("kvasir-seg", tmp_path / "disk", tmp_path / "out", layout="reduced")
    masks = sorted((tmp_path / "out" / "masks").rglob("*.png"))
    assert masks and changes(tmp_path / "out").changed == ()
    prepare("kvasir-seg", tmp_path / "disk", tmp_path / "out", layout="reduced")
    assert changes(tmp_path / "out").changed == ()
    whole = masks[0].read_bytes()
    masks[0].write_bytes(whole[:-1])
    with pytest.raises(UserError, match=rf"{masks[0].name} changed since the preparation"):
        prepare("kvasir-seg", tmp_path / "disk", tmp_path / "out", layout="reduced")
    assert len(changes(tmp_path / "out").changed) == 1
    masks[0].unlink()
    assert prepare("kvasir-seg", tmp_path / "disk", tmp_path / "out", layout="reduced").manifest == result.manifest
    assert masks[0].read_bytes() == whole and changes(tmp_path / "out").changed == ()


def test_a_recipe_or_a_list_that_was_edited_is_another_request(tmp_path):
    kvasir(tmp_path / "disk", n=3)
    shutil.copytree(recipes_folder(), tmp_path / "recipes")
    recipe, lists = tmp_path / "recipes" / "kvasir-seg.yaml", tmp_path / "lists"
    lists.mkdir()
    (lists / "notes.txt").write_text("a")
    options = {"layout": "reduced", "recipes": tmp_path / "recipes", "lists": lists}
    first = prepare("kvasir-seg", tmp_path / "disk", tmp_path / "out", **options).manifest.read_bytes()
    recipe.write_text("# a comment changes nothing\n" + recipe.read_text())
    assert prepare("kvasir-seg", tmp_path / "disk", tmp_path / "out", **options).manifest.read_bytes() == first
    (lists / "notes.txt").write_text("b")
    with pytest.raises(UserError, match=r"other settings: different lists"):
        prepare("kvasir-seg", tmp_path / "disk", tmp_path / "out", **options)
    facts = recipe.read_text()
    recipe.write_text(facts.replace("device: colonoscope", "device: gastroscope", 1))
    with pytest.raises(UserError, match=r"other settings: different recipe; "):
        prepare("kvasir-seg", tmp_path / "disk", tmp_path / "out", **options)


def test_a_run_that_is_killed_goes_on_where_it_was_and_ends_like_one_that_was_not(tmp_path, monkeypatch):
    names = kvasir(tmp_path / "disk", n=6)
    true, read = scan.read_facts, []

    def dies(root, path):
        read.append(path)
        if len(read) == 4:
            raise KeyboardInterrupt
        return true(root, path)

    monkeypatch.setattr("endofm_lab.data.prepare.prepare.read_facts", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare("kvasir-seg", tmp_path / "disk", tmp_path / "out", layout="reduced", workers=1)
    assert not (tmp_path / "out" / "manifest.parquet").exists()
    journal = tmp_path / "out" / ".prepare" / "journal.jsonl"
    journal.write_text(journal.read_text() + '{"key": "half a li')  # the crash cut a line
    resumed = prepare("kvasir-seg", tmp_path / "disk", tmp_path / "out", layout="reduced", workers=1)
    assert len(read) < 2 * len(names)
    whole = prepare("kvasir-seg", tmp_path / "disk", tmp_path / "whole", layout="reduced", workers=1)
    assert resumed.manifest.read_bytes() == whole.manifest.read_bytes()


def clock_video(path: Path, seconds: float, fps: int, size=(288, 320)) -> None:
    """A video in which a white bar moves by a column per frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = []
    for i in range(round(seconds * fps)):
        frame = np.zeros((*size, 3), np.uint8)
        frame[:, i % size[1] : i % size[1] + 4] = 255
        frames.append(frame)
    write_video(path, frames, Fraction(fps))


def test_clips_have_the_published_kind_and_show_what_the_video_shows_at_that_moment(tmp_path):
    clock_video(tmp_path / "disk" / "anna" / "long.mp4", 12.0, 25)
    done = prepare("private-folder", tmp_path / "disk", tmp_path / "out", cut="encode", name="clinic")
    manifest = read_manifest(done.manifest)
    table = manifest.table.sort_values("video", ignore_index=True)
    assert table["end_s"].tolist() == [5.0, 7.0]  # the last clip takes the rest, as in the released preparation
    assert table["patient"].tolist() == ["anna", "anna"] and set(table["dataset"]) == {"clinic"}
    assert table["source_start_s"].tolist() == [0.0, 5.0]
    for row in table.itertuples():
        with open_video(manifest.resolve(row.video)) as clip:
            assert clip.info.fps == 30 and (clip.info.height_px, clip.info.width_px) == (256, 284)
            assert clip.info.n_frames == round(row.end_s * 30)
            light = clip.read([0, 29, 100, clip.info.n_frames - 1]).mean(axis=(1, 3))  # per column
        bar = (light * np.arange(light.shape[1])).sum(axis=1) / light.sum(axis=1) / light.shape[1] * 320
        moments = row.source_start_s + np.array([0, 29, 100, round(row.end_s * 30) - 1]) / 30
        shown = np.floor(moments * 25 + 1e-6)  # the number of the frame that is on screen then
        assert np.abs(bar - shown - 1.5).max() < 0.4, (bar, shown)
    assert check_manifest(done.manifest).problems == []


def test_clips_that_are_there_are_not_made_again_and_lost_ones_are(tmp_path):
    clock_video(tmp_path / "disk" / "long.mp4", 10.0, 10, size=(64, 64))
    done = prepare("private-folder", tmp_path / "disk", tmp_path / "out", cut="encode")
    clips = sorted((tmp_path / "out" / "clips").rglob("*.mp4"))
    assert len(clips) == 2
    before = [clip.stat().st_mtime_ns for clip in clips]
    clips[1].unlink()
    second = prepare("private-folder", tmp_path / "disk", tmp_path / "out", cut="encode")
    assert clips[0].stat().st_mtime_ns == before[0]
    assert clips[1].stat().st_mtime_ns > before[1]
    assert read_manifest(done.manifest).table.equals(read_manifest(second.manifest).table)


def test_windows_leave_the_files_where_they_are_and_cover_them_without_gap_or_overlap(tmp_path):
    clock_video(tmp_path / "disk" / "p1" / "a.mp4", 12.0, 10, size=(64, 64))
    clock_video(tmp_path / "disk" / "p1" / "b.mp4", 2.0, 10, size=(64, 64))
    done = prepare("private-folder", tmp_path / "disk", tmp_path / "out", cut="windows", kind="csv")
    table = read_manifest(done.manifest).table
    spans = {
        Path(video).name: list(zip(rows["start_s"], rows["end_s"], strict=True))
        for video, rows in table.groupby("video")
    }
    assert spans == {"a.mp4": [(0.0, 5.0), (5.0, 12.0)], "b.mp4": [(0.0, 2.0)]}
    assert not (tmp_path / "out" / "clips").exists()


def test_folders_of_frames_are_videos_and_gaps_and_unreadable_frames_break_them(tmp_path):
    folder = tmp_path / "disk" / "p1" / "seq1"
    for i in [*range(8, 13), *range(20, 24)]:  # 8 to 12, gap, 20 to 23
        picture(folder / f"frame_{i}.jpg", i)
    (folder / "frame_22.jpg").write_bytes(b"broken")
    with pytest.raises(UserError, match="--fps"):
        prepare("private-folder", tmp_path / "disk", tmp_path / "out")
    done = prepare("private-folder", tmp_path / "disk", tmp_path / "out", fps=10)
    table = read_manifest(done.manifest).table
    assert table["n_frames"].tolist() == [5, 2, 1]
    assert list(zip(table["start_s"].round(3), table["end_s"].round(3), strict=True)) == [
        (0, 0.5),
        (0.5, 0.7),
        (0.8, 0.9),
    ]
    assert table["frame"].tolist() == ["8", "20", "23"] and set(table["fps"]) == {10.0}
    assert kinds(done)["cannot be read"] == ["p1/seq1/frame_22.jpg"]


def test_frames_with_masks_become_sequences_with_a_folder_of_masks_and_boxes_by_frame(tmp_path):
    recipe = load_recipe("cvc-clinicdb")
    for i in range(20, 32):  # sequences 1 (to 25) and 2
        picture(tmp_path / "disk" / "Original" / f"{i}.tif", i)
        mask(tmp_path / "disk" / "Ground Truth" / f"{i}.tif")
    done = prepare(recipe, tmp_path / "disk", tmp_path / "out", cut="windows")
    manifest = read_manifest(done.manifest)
    assert manifest.table["sequence"].tolist() == ["1", "2"] and manifest.table["n_frames"].tolist() == [6, 6]
    with open_video(manifest.resolve(manifest.table.loc[0, "masks"])) as masks:
        assert masks.info.n_frames == 12 and set(np.unique(masks.read([0]))) == {0, 255}


def test_phases_of_a_video_become_rows_with_their_times_and_the_split_of_the_recipe(tmp_path):
    made("cholec80", "official", tmp_path / "disk")
    table = read_manifest(prepare("cholec80", tmp_path / "disk", tmp_path / "out").manifest).table
    first = table[table["sequence"] == "video01"]
    assert first["label"].tolist() == ["A", "B"]
    assert first["start_s"].tolist() == [0.0, 0.4] and first["end_s"].tolist() == [0.4, 1.0]
    assert table.groupby("sequence")["split"].first().to_dict() == {"video01": "train", "video41": "test"}


def test_a_published_split_that_leaks_says_so_in_the_row(tmp_path):
    facts = load_recipe("cholec80").path.read_text().replace("test: [video41,", "test: [video01, video41,")
    (tmp_path / "cholec80.yaml").write_text(facts)
    made("cholec80", "official", tmp_path / "disk")
    table = read_manifest(prepare(str(tmp_path / "cholec80.yaml"), tmp_path / "disk", tmp_path / "out").manifest).table
    sides = table.groupby("sequence")["split_forty_forty"].first().to_dict()
    assert sides == {"video01": "train|test", "video41": "test"}


def test_official_lists_may_lie_in_another_folder(tmp_path):
    names = kvasir(tmp_path / "disk")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train.txt").write_text("\n".join(names[:3]) + "\n")
    (tmp_path / "lists" / "test.txt").write_text(names[3] + "\nnot_there\n")
    done = prepare("kvasir-seg", tmp_path / "disk", tmp_path / "out", layout="reduced", lists=tmp_path / "lists")
    assert read_manifest(done.manifest).table["split"].tolist() == ["train", "train", "train", "test"]
    assert kinds(done)["listed but not on disk"] == ["not_there"]


def test_a_merged_corpus_names_missing_parts_and_takes_parts_from_anywhere(tmp_path):
    made("limuc", "by-patient", tmp_path / "disk" / "limuc")
    made("kid", "kid-1", tmp_path / "far" / "kid_one")
    (tmp_path / "disk" / "crohnipi").symlink_to(tmp_path / "far")
    done = prepare("endoextend24", tmp_path / "disk", tmp_path / "out", parts={"kid-1": tmp_path / "far" / "kid_one"})
    assert set(read_manifest(done.manifest).table["dataset"]) == {"limuc", "kid"}
    assert kinds(done)["link out of the root"] == ["crohnipi"]
    assert sorted(kinds(done)["part is missing"])[:2] == ["ers", "gastrovision"]
    counts = done.counts[done.counts["part"] == "limuc"].set_index("what")
    assert counts.loc["in the corpus: files", "expected"] == 11276
    with pytest.raises(UserError, match="kid-3 is not a part"):
        prepare("endoextend24", tmp_path / "disk", tmp_path / "out2", parts={"kid-3": tmp_path})


def test_endo_fms_corpus_is_cut_from_its_parts_into_one_manifest(tmp_path):
    trees = {
        "colonoscopic": made("colonoscopic", "website", tmp_path / "disk" / "Colonoscopic"),
        "hyper-kvasir-videos": made("hyper-kvasir-videos", "official", tmp_path / "disk" / "Hyper-Kvasir"),
    }
    done = prepare("endo-fm-pretrain", tmp_path / "disk", tmp_path / "out", cut="encode")
    table = read_manifest(done.manifest).table
    assert table.groupby("dataset").size().to_dict() == {name: len(tree.files) for name, tree in trees.items()}
    assert table["video"].is_unique and table["video"].str.startswith("clips/").all()
    assert check_manifest(done.manifest).problems == []


@pytest.mark.parametrize(
    ("name", "layout", "kind"),
    [
        ("cholect50", "challenge-validation", "patient"),
        ("limuc", "by-patient", "patient"),
        ("colonoscopic", "website", "sequence"),
        ("colonoscopic", "flat", "sequence"),
        ("kvasir-capsule", "images", "sequence"),
        ("crohnipi", "official", "image"),
    ],
)
def test_patient_or_sequence_are_filled_as_the_recipe_says_and_the_unit_is_printed(name, layout, kind, tmp_path):
    made(name, layout, tmp_path / "disk")
    done = prepare(name, tmp_path / "disk", tmp_path / "out", layout=layout)
    table = read_manifest(done.manifest).table
    assert units(table).kind == kind and units(table).words in done.text()
    assert ((table["patient"] != "") == (kind == "patient")).all()
    if name == "cholect50":
        assert (table["patient"] == table["sequence"]).all()
    if layout == "website":
        assert units(table).n < len(table), "both videos of a lesion are one unit"


def test_check_finds_what_changed_since(tmp_path):
    names = kvasir(tmp_path / "disk", n=4)
    done = prepare("kvasir-seg", tmp_path / "disk", tmp_path / "out", layout="reduced")
    images = tmp_path / "disk" / "images"
    picture(images / f"{names[0]}.jpg", 99)
    (images / f"{names[1]}.jpg").unlink()
    (images / f"{names[2]}.jpg").write_bytes(b"no")
    mask(tmp_path / "disk" / "masks" / f"{names[3]}.png", size=(8, 8))
    result = check_manifest(done.manifest)
    assert {problem.kind for problem in result.problems} == {
        "file has changed",
        "file is missing",
        "cannot be read",
        "mask of another size",
    }
    assert result.rows == 4 and "4 problems" in result.text()


def test_check_finds_rows_that_outlast_their_video_and_boxes_that_fit_no_picture(tmp_path):
    clock_video(tmp_path / "disk" / "a.mp4", 2.0, 10, size=(64, 64))
    done = prepare("private-folder", tmp_path / "disk", tmp_path / "out", kind="csv")
    text = done.manifest.read_text()
    assert text.count(",2.0,") == 1
    done.manifest.write_text(text.replace(",2.0,", ",2.5,"))
    assert [problem.kind for problem in check_manifest(done.manifest).problems] == ["row ends after its video"]

    made("cholect50", "challenge-validation", tmp_path / "disk2")
    done = prepare("cholect50", tmp_path / "disk2", tmp_path / "out2")
    path = tmp_path / "out2" / "boxes.csv"
    boxes = pd.read_csv(path)
    boxes.loc[0, "x2_px"] = WIDTH + 1
    pd.concat([boxes, boxes.iloc[:1].assign(video="other.jpg")]).to_csv(path, index=False)
    kinds = [problem.kind for problem in check_manifest(done.manifest).problems]
    assert sorted(kinds) == ["box of an unknown video", "box outside"]


def test_nothing_is_written_into_the_root_and_nothing_half_written_stays(tmp_path):
    kvasir(tmp_path / "disk")
    before = sorted(path.name for path in (tmp_path / "disk").rglob("*"))
    prepare("kvasir-seg", tmp_path / "disk", tmp_path / "out", layout="reduced")
    assert sorted(path.name for path in (tmp_path / "disk").rglob("*")) == before
    assert not list((tmp_path / "out").rglob("*.part*"))


def test_the_command_line_lists_shows_prepares_and_checks(tmp_path, capsys):
    names = kvasir(tmp_path / "disk")

    def run(*args: str) -> tuple[int, str]:
        code = main(["data", *args])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    code, text = run("list")
    assert code == 0 and len(text.splitlines()) == len(list_recipes()) and "dead link" in text
    code, text = run("show", "kvasir-seg", "--json")
    assert json.loads(text)["version"] == load_recipe("kvasir-seg").version
    root, out = str(tmp_path / "disk"), str(tmp_path / "out")
    code, text = run("prepare", "kvasir-seg", "--root", root, "--out", out, "--format", "csv", "--json")
    assert code == 0 and json.loads(text)["rows"] == len(names)
    code, text = run("check", f"{out}/manifest.csv")
    assert code == 0 and "no problems" in text
    (tmp_path / "disk" / "images" / f"{names[0]}.jpg").unlink()
    code, text = run("check", f"{out}/manifest.csv")
    assert code == 2 and f"{names[0]}.jpg" in text
    code, text = run("prepare", "kvasir-seg", "--root", str(tmp_path / "nowhere"), "--out", out)
    assert code == 2 and text.startswith("Error: ") and "is not a folder" in text
    code, text = run("show", "kvasir")
    assert code == 2 and "kvasir-seg" in text


DATA = os.environ.get("ENDOFM_LAB_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="set ENDOFM_LAB_DATA to the folder of real data")


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.real_data
@needs_data
@pytest.mark.parametrize(
    ("name", "folder", "options", "rows", "masks", "boxes"),
    [
        ("kvasir-seg", "kvasir-seg", {}, 800, 800, 861),
        ("cholect50", "cholect50", {}, 1047, 0, 1141),
        ("cvc-clinicdb", "cvc-clinicdb-masks", {}, 612, 612, 0),
        slow("cvc-clinicdb", "cvc-clinicdb-masks", {"cut": "windows"}, 29, 29, 0),
        ("private-folder", "sinus", {"fps": 30}, 1, 0, 0),
        ("private-folder", "sinus", {"fps": 30, "cut": "windows"}, 1, 0, 0),
        slow("private-folder", "laparoscopy", {"cut": "encode"}, 2, 0, 0),
        ("private-folder", "laparoscopy-stills", {}, 197, 0, 0),
    ],
)
def test_real_data_is_prepared_by_its_recipe_and_passes_the_check(name, folder, options, rows, masks, boxes, tmp_path):
    done = prepare(name, Path(DATA) / folder, tmp_path, **options)
    table = read_manifest(done.manifest).table
    assert len(table) == rows and int((table["masks"] != "").sum()) == masks
    assert (len(pd.read_csv(tmp_path / "boxes.csv")) if boxes else 0) == boxes
    assert not [problem for problem in done.problems if problem.left_out]
    assert set(done.counts["status"]) <= {"as published"}
    assert check_manifest(done.manifest).problems == []
