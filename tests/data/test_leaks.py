"""The register of leaks: planted leaks in small lists, pictures and sequences, and the page beside the real data."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from docs.experiments.leaks.__main__ import page
from docs.experiments.leaks.lists import (
    CVC_12K,
    capsule_vision,
    cvc_12k,
    gastrovision,
    hyper_kvasir,
    kvasir_capsule,
    sun_seg,
)
from docs.experiments.leaks.pictures import copies_of, has_position_display, kvasir_seg
from docs.experiments.leaks.sections import Section, folded
from tests.builders import mucosa

PAGE = Path(__file__).resolve().parents[2] / "docs" / "leaks.md"


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def text_of(section: Section) -> str:
    return "\n\n".join(section.text)


# Sequences -----------------------------------------------------------------------------------------------------------


def test_sequences_in_both_lists_are_counted_with_their_frames_and_unused_ones_are_offered(tmp_path: Path) -> None:
    frames = pd.DataFrame({"sequence": np.repeat(np.arange(1, 30), 2)}).assign(frame=range(1, 59))  # two frames each
    put(tmp_path / "cvc-clinicdb-masks" / "frame_to_sequence.csv", frames[["frame", "sequence"]].to_csv(index=False))
    section = cvc_12k(tmp_path)
    shared = set(CVC_12K["train"]) & set(CVC_12K["test"])
    assert section.rows == [("CVC-12k: train, test", "18", f"{2 * len(shared)} (77.8 %)", section.rows[0][3])]
    assert "7 of the 9 test sequences are also in the training list" in text_of(section)
    assert "a test set has 9 sequences and 18 frames, none of them learned from" in text_of(section)


# Lists only ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lists with one planted leak each; KID and SEE-AI share nothing that their names could show."""
    root = tmp_path_factory.mktemp("lists")
    folder = root / "label-lists"
    frames = [f"{video}_{frame}" for video in ("04a78ef00c5245e0", "1b") for frame in range(10, 20)]
    split = {"train": [*frames[:10:2], *frames[10:]], "val": frames[1:10:2]}
    for part, where in (("train", "training"), ("val", "validation")):
        paths = [f"{where}/{'Polyp' if n.startswith('04') else 'Normal'}/KVASIR/{n}.jpg" for n in split[part]]
        paths += [f"{where}/Polyp/KID/angioectasia-P0-{part == 'val':d}.jpg"]
        paths += [f"{where}/Normal/SEE-AI/image0027{part == 'val':d}.jpg"]
        put(folder / "capsule-vision-2024" / f"{part}_image_list.csv", "\n".join(["image_path", *paths]))
    put(folder / "capsule-vision-2024" / "test_labels.csv", "image,class\nx1.jpg,Polyp\n")
    rows = ["aa11_1.jpg,Polyp", "aa11_2.jpg,Polyp", "bb22_1.jpg,Ulcer"], ["aa11_9.jpg,Ulcer", "cc33_1.jpg,Polyp"]
    for fold, entries in enumerate(rows):
        put(folder / "kvasir-capsule" / f"split_{fold}.csv", "\n".join(["filename,label", *entries]))
    clips = ["SUN-SEG/indexed/case1_1 0 150 -1", "SUN-SEG/SUN-Negative/case2 0 150 -1"]
    put(folder / "endo-fm" / "sun_seg_pretrain.txt", "\n".join(clips))
    put(folder / "sun-seg" / "positive_cases.csv", "ID,Frames\n1_1,150\n1_2,150\n2,90\n")
    put(folder / "sun-seg" / "negative_cases.csv", "Clip-ID,Number of Frames\n1_1,150\n2_1,150\n")
    sizes = ["Filename,Class,Width,Height,Size (kB)"]
    for number, part in enumerate(("train", "validate", "test")):
        names = [f"100H0003.jpg,Class{number}", f"picture{'abc'[number]}.jpg,Cecum"]
        put(folder / "gastrovision" / f"{part}.csv", "\n".join(["Filename,Class", *names]))
        sizes += [f"{name},720,576,{190 + number}.5" for name in names]
    put(folder / "gastrovision" / "GastroVision_metadata.csv", "\n".join(sizes))
    for name, folds in (("2_fold_split", 2), ("5_fold_split", 5)):
        entries = [f"picture{'abcdefghij'[n]}.jpg;polyp;{n % folds}" for n in range(10)]
        put(folder / "hyper-kvasir" / f"{name}.csv", "\n".join(["file-name;class-name;split-index", *entries]))
    return root


def test_a_video_dealt_by_frame_is_a_leak_and_its_file_names_tell_the_class(lists: Path) -> None:
    section = capsule_vision(lists)
    assert section.rows[0][:3] == ("Capsule Vision: train, val", "7", "5 (71.4 %)")
    text = text_of(section)
    assert "| KVASIR | 15 | 5 | 1 of 1 | 100.0 % | 100.0 % |" in text
    assert "| KID | 1 | 1 | not named | not named | not named |" in text  # `angioectasia-P0` is no video
    assert "| SEE-AI | 1 | 1 | not named |" in text
    assert "an accuracy of 1.000" in text and "most frequent class: accuracy 0.000" in text


def test_videos_in_both_folds_are_found_in_both_directions_with_their_classes(lists: Path) -> None:
    section = kvasir_capsule(lists)
    assert [row[1:3] for row in section.rows] == [("3", "2 (66.7 %)"), ("2", "1 (50.0 %)")]
    assert "| `aa11` | 2 | 1 | 7 | none |" in text_of(section)
    assert "0 frames are in both folds, and 1 videos are. 0 of these videos have a class in both" in text_of(section)


def test_pre_training_clips_in_a_table_of_clips_are_counted_and_unlisted_cases_are_not(lists: Path) -> None:
    section = sun_seg(lists)
    assert section.rows[0][1:] == ("3", "2 (66.7 %)", "same patient, same file")  # a clip, and one of the same case
    assert "1 of the 3 clips with a polyp are in the list" in text_of(section)


def test_where_lists_name_nothing_no_leak_is_claimed(lists: Path) -> None:
    for section in (gastrovision(lists), hyper_kvasir(lists)):
        assert {row[2] for row in section.rows} == {"cannot be said"}
    text = text_of(gastrovision(lists))
    assert "1 file names, such as `100H0003.jpg`" in text and "0 of these entries agree" in text
    assert "3 file names are also in the lists of HyperKvasir" in text


def test_a_long_list_is_folded_with_its_count() -> None:
    assert folded(["a", "b"], "Videos") == "Videos: `a`, `b`."
    assert folded([str(n) for n in range(20)], "Videos").startswith("<details><summary>Videos (20)</summary>")


# Pictures ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kvasir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures; `h` of the test list is `a` of the training list with a green display and a black border."""
    root = tmp_path_factory.mktemp("kvasir")
    (root / "kvasir-seg" / "images").mkdir(parents=True)
    for seed, name in enumerate("abcdefg"):
        mucosa(seed).save(root / "kvasir-seg" / "images" / f"{name}.jpg", quality=95)
    copy = Image.new("RGB", (280, 260))
    copy.paste(mucosa(0), (30, 10))
    copy.paste((20, 160, 130), (10, 190, 90, 250))
    copy.save(root / "kvasir-seg" / "images" / "h.jpg", quality=95)
    for split, names in (("train", "abcd"), ("val", "ef"), ("test", "ghi")):
        put(root / "label-lists" / "kvasir-seg" / f"{split}.txt", "\n".join(names))
    return root


def test_a_picture_with_and_without_the_green_display_is_told_as_one(kvasir: Path) -> None:
    section = kvasir_seg(kvasir, None)
    text = text_of(section)
    assert section.rows[1] == ("Kvasir-SEG, at hand: train, test", "2", "1 (50.0 %)", "near-duplicate pictures")
    assert section.rows[0][2:] == ("cannot be said", "-")  # no patient is named
    assert "| `a` | `h` | train / test |" in text and "without and with the green position display |" in text
    assert (
        "1 pairs of pictures show the same scene, 1 of them on two sides of the lists. 1 pairs are one picture" in text
    )
    assert "test 3 (at hand 2)" in text and "the other 1 pictures are not at hand" in text


def test_the_display_is_green_in_the_lower_left_quarter_only(kvasir: Path, tmp_path: Path) -> None:
    images = kvasir / "kvasir-seg" / "images"
    assert [has_position_display(images / f"{name}.jpg") for name in "abh"] == [False, False, True]
    with Image.open(images / "h.jpg") as picture:
        picture.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "turned.jpg")
    assert not has_position_display(tmp_path / "turned.jpg")


def test_masks_are_copied_from_the_nearest_picture_with_and_without_the_near_duplicate(tmp_path: Path) -> None:
    paths = []
    for number, columns in enumerate((4, 8, 2, 4, 8)):  # a mask of the first columns of eight
        mask = np.zeros((8, 8), bool)
        mask[:, :columns] = True
        Image.fromarray(mask).save(tmp_path / f"{number}.png")
        paths.append(tmp_path / f"{number}.png")
    vectors = np.array([[1.0, 0.0], [0.9, 0.4], [0.0, 1.0], [1.0, 0.01], [0.1, 1.0]])
    split = np.array(["train", "train", "train", "test", "test"])
    copies = copies_of(vectors, split, np.array([[0, 3]]), paths)
    # Test 3 (half) copies 0 (half, Dice 1), then 1 (all, 2 * 32 / 96); test 4 (all) copies 2 (a quarter) both times.
    assert (copies.n_test, copies.n_removed, copies.n_touched) == (2, 1, 1)
    assert (copies.touched_published, copies.touched_clean) == (1.0, pytest.approx(2 / 3))
    assert copies.published.value == pytest.approx((1 + 0.4) / 2)
    assert copies.difference == pytest.approx((2 / 3 - 1) / 2)


# The page ------------------------------------------------------------------------------------------------------------


def real_data() -> Path:
    if "ENDOFM_LAB_DATA" not in os.environ:
        pytest.skip("ENDOFM_LAB_DATA is not set: the public lists and pictures are not here.")
    return Path(os.environ["ENDOFM_LAB_DATA"])


@pytest.mark.real_data
@pytest.mark.parametrize(
    "section",
    [
        cvc_12k,
        sun_seg,
        gastrovision,
        pytest.param(hyper_kvasir, marks=pytest.mark.slow),
        pytest.param(kvasir_capsule, marks=pytest.mark.slow),
        pytest.param(capsule_vision, marks=pytest.mark.slow),
        pytest.param(lambda data: kvasir_seg(data, None), marks=pytest.mark.slow, id="kvasir_seg"),
    ],
)
def test_the_page_says_what_the_command_prints(section) -> None:
    made_of = section(real_data())
    text = PAGE.read_text(encoding="utf-8")
    assert f"## {made_of.title}\n" in text
    for row in made_of.rows:
        assert f"| {' | '.join(row)} |" in text
    for paragraph in made_of.text:
        assert paragraph in text


@pytest.mark.slow
@pytest.mark.timeout(1200)  # 800 pictures through a ViT-S
@pytest.mark.real_data
def test_the_whole_page_is_the_output_of_the_command_with_weights() -> None:
    weights = Path(os.environ.get("ENDOFM_LAB_WEIGHTS", ""), "vit_small_patch14_dinov2_224.safetensors")
    if not weights.is_file():
        pytest.skip("ENDOFM_LAB_WEIGHTS does not hold the image weights.")
    assert PAGE.read_text(encoding="utf-8") == page(real_data(), str(weights))
