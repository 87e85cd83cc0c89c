"""The audit: naive restatements of its searches, planted leaks, clean splits left alone, known answers of real sets."""

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from endofm_lab.cli.main import main
from endofm_lab.data.audit.audit import Audit, audit
from endofm_lab.data.audit.confounding import confounding, cramers_v
from endofm_lab.data.audit.overlap import frame_gaps, gather, time_gaps
from endofm_lab.data.hashing import MAX_RADIUS, SAME_SCENE, fingerprint, hamming, near_pairs, same_colour, same_scene
from endofm_lab.data.manifest import Manifest, checked, write_manifest
from endofm_lab.data.splits import holdout
from endofm_lab.data.units import group_ids
from endofm_lab.errors import UserError
from endofm_lab.reports.audit import write_audit_html
from tests.builders import mucosa


def manifest(root: Path = Path(), **columns: object) -> Manifest:
    """A manifest of the given columns; what is not given is empty, and start and end are 0."""
    table = pd.DataFrame(columns)
    for column in ("label", "patient", "dataset", "split"):
        if column not in table:
            table[column] = ""
    for column in ("start_s", "end_s"):
        if column not in table:
            table[column] = 0.0
    return Manifest(checked(table, "test"), root)


def found(result: Audit, check: str) -> list:
    return [finding for finding in result.findings if finding.check == check]


# The searches, against their definitions -----------------------------------------------------------------------------


def test_frame_gaps_are_the_smallest_distance_within_the_sequence() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = 60
        sequence = rng.integers(-1, 4, n)
        frame = np.where(rng.random(n) < 0.1, np.nan, rng.integers(0, 50, n))
        learned = rng.random(n) < 0.5
        evaluated = ~learned & (rng.random(n) < 0.8)
        gaps, nearest = frame_gaps(sequence, frame, learned, evaluated)
        for i in range(n):
            candidates = [
                j
                for j in range(n)
                if learned[j] and evaluated[i] and sequence[i] == sequence[j] >= 0 and np.isfinite(frame[i] + frame[j])
            ]
            expected = min((abs(frame[i] - frame[j]) for j in candidates), default=np.inf)
            assert gaps[i] == expected
            assert (nearest[i] == -1) if not candidates else abs(frame[i] - frame[nearest[i]]) == expected


def test_time_gaps_are_the_smallest_gap_between_clips_of_one_video() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        n = 60
        video = rng.integers(-1, 5, n)
        start = rng.integers(0, 100, n).astype(float)
        end = np.where(rng.random(n) < 0.1, np.nan, start + rng.integers(0, 20, n))
        learned = rng.random(n) < 0.5
        evaluated = ~learned
        gaps, nearest = time_gaps(video, start, end, learned, evaluated)
        stop = np.where(np.isnan(end), np.inf, end)

        def gap(i: int, j: int, start: np.ndarray = start, stop: np.ndarray = stop) -> float:
            return max(0.0, start[j] - stop[i], start[i] - stop[j])

        for i in np.flatnonzero(evaluated):
            candidates = [j for j in np.flatnonzero(learned) if video[i] == video[j] >= 0]
            expected = min((gap(i, j) for j in candidates), default=np.inf)
            assert gaps[i] == expected
            assert (nearest[i] == -1) if not candidates else gap(i, nearest[i]) == expected


@pytest.mark.parametrize("radius", [3, 7, 12, 15, 20])
def test_the_index_finds_exactly_the_pairs_within_the_radius_each_once(radius: int) -> None:
    rng = np.random.default_rng(2)
    # Clusters of slightly changed copies, and many hashes that agree in most 16-bit words.
    centres = rng.integers(0, 2, (40, 128), dtype=np.uint8)
    bits = centres[rng.integers(0, 40, 2200)]
    bits ^= rng.random(bits.shape) < rng.choice([0.0, 0.02, 0.1], (2200, 1))
    hashes = np.packbits(bits, axis=1).view(np.uint64)
    distance = (bits[:, None].astype(bool) ^ bits[None].astype(bool)).sum(-1, dtype=np.int16)
    expected = {(i, j, distance[i, j]) for i, j in zip(*np.nonzero(distance <= radius), strict=True) if i < j}
    pairs = [tuple(row) for block in near_pairs(hashes, radius) for row in zip(*block, strict=True)]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == expected


def test_hamming_counts_differing_bits() -> None:
    a = np.array([[0, 0], [1, 3]], np.uint64)
    assert hamming(a, np.array([[0, 1], [2**64 - 1, 3]], np.uint64)).tolist() == [1, 63]


# Pictures ------------------------------------------------------------------------------------------------------------


def as_jpeg(picture: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


CHANGES = {
    "compressed hard": lambda p: as_jpeg(p, 30),
    "half the size": lambda p: p.resize((120, 120)),
    "stretched": lambda p: p.resize((320, 240)),
    "black border": lambda p: ImageOps.expand(p, (60, 20, 10, 30), 0),
    "brighter": lambda p: p.point(lambda v: min(255, int(v * 1.25))),
    "moved a little": lambda p: p.transform(p.size, Image.Transform.AFFINE, (1, 0, 8, 0, 1, -6)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_the_same_scene(change: str) -> None:
    for seed in range(3):
        original, copy = fingerprint(mucosa(seed)), fingerprint(CHANGES[change](mucosa(seed)))
        assert hamming(original.hash, copy.hash) <= MAX_RADIUS
        assert same_colour(original.colour[None], copy.colour[None])[0]
        assert same_scene(original.thumb[None], copy.thumb[None])[0] >= SAME_SCENE


def test_different_pictures_are_not_the_same_scene() -> None:
    thumbs = np.stack([fingerprint(mucosa(seed)).thumb for seed in range(20)])
    i, j = np.triu_indices(20, 1)
    scores = same_scene(thumbs[i], thumbs[j])
    assert scores.max() < SAME_SCENE
    np.testing.assert_allclose(same_scene(thumbs, thumbs), 1.0, atol=1e-3)


def test_colours_are_compared_where_both_pictures_are_lit() -> None:
    first = np.full((1, 64, 2), 0.4, np.float16)
    second = first.copy()
    second[0, :32, 0] += 0.014  # red 0.014 more, blue 0.014 less: 0.028 apart
    assert same_colour(first, second)[0]
    second[0, :33, 0] = 0.417
    assert not same_colour(first, second)[0]
    second[0, :2] = np.nan  # of 62 lit places, 31 differ
    assert same_colour(first, second)[0]
    assert not same_colour(first, np.full_like(first, np.nan))[0]


def test_a_black_picture_scores_nothing() -> None:
    black = np.zeros((1, 32, 32), np.uint8)
    assert same_scene(black, black)[0] == 0.0


@pytest.fixture(scope="module")
def picture_set(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manifest]:
    """30 pictures in train, 10 in test; three of test are changed copies, one with another label; two are broken."""
    root = tmp_path_factory.mktemp("pictures")
    rows = []
    for seed in range(40):
        copy_of = {31: 1, 32: 2, 33: 3}.get(seed)
        picture = mucosa(seed) if copy_of is None else CHANGES["black border"](as_jpeg(mucosa(copy_of), 60))
        picture.save(root / f"picture-{chr(97 + seed // 10)}{seed % 10}.png")
        label = "polyp" if seed in (3, 33) or seed % 2 else "normal"
        rows.append((f"picture-{chr(97 + seed // 10)}{seed % 10}.png", "test" if seed >= 30 else "train", label))
    rows[32] = (rows[32][0], "test", "<b>ulcer</b>")
    (root / "torn.png").write_bytes((root / "picture-a0.png").read_bytes()[:500])
    Image.new("RGB", (64, 64)).save(root / "black.png")
    rows += [("torn.png", "test", "normal"), ("black.png", "test", "normal"), ("absent.png", "train", "normal")]
    video, split, label = zip(*rows, strict=True)
    yield manifest(root, video=video, split=split, label=label, dataset="made")


def test_planted_copies_are_found_and_nothing_else(picture_set: Manifest) -> None:
    result = audit(picture_set, pictures=True, progress=False)
    (leak,) = found(result, "near-duplicate pictures")
    pairs = {(Path(e.path).stem, Path(e.other_path).stem) for e in leak.examples}
    assert pairs == {("picture-d1", "picture-a1"), ("picture-d2", "picture-a2"), ("picture-d3", "picture-a3")}
    assert (leak.rows, leak.of_rows) == (3, 12)
    assert result.leaking == {("train", "test"): (3, 12)}
    assert result.compared[-1].startswith("40 pictures, hashes within 24 of 128 bits")
    assert "LEAKAGE: 3 of 12 test rows (25.0 %) are not independent of train" in result.verdict
    (conflict,) = found(result, "label conflict (near-duplicate pictures)")
    assert conflict.numbers["pairs"] == 1 and conflict.examples[0].label != conflict.examples[0].other_label


def test_what_could_not_be_read_is_named_and_counted(picture_set: Manifest) -> None:
    text = " ".join(audit(picture_set, pictures=True, progress=False).unchecked)
    assert "2 files could not be read" in text and "torn.png" in text and "absent.png" in text
    assert "1 pictures are nearly black" in text


def test_the_page_shows_the_pictures_and_escapes_what_others_wrote(picture_set: Manifest, tmp_path: Path) -> None:
    result = audit(picture_set, pictures=True, progress=False)
    write_audit_html(result, tmp_path / "audit.html")
    page = (tmp_path / "audit.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 8  # three leaks and one conflict, two pictures each
    assert "<b>ulcer</b>" not in page and "&lt;b&gt;ulcer&lt;/b&gt;" in page
    assert "http" not in page.replace("data:image", "")
    assert "generated" not in page


def test_the_page_says_which_pictures_are_generated(tmp_path: Path) -> None:
    data = manifest(video=["a.mp4", "b.mp4"], patient=["1", "1"], split=["train", "test"], dataset="phantom")
    result = audit(data)
    write_audit_html(result, tmp_path / "audit.html")
    assert result.datasets == ("phantom",)
    assert "data set phantom are <b>generated</b>" in (tmp_path / "audit.html").read_text()


def test_pictures_of_one_video_are_not_reported_as_duplicates(tmp_path: Path) -> None:
    for frame in range(4):
        mucosa(0).save(tmp_path / f"case1_{frame:04d}.png")
    names = [f"case1_{frame:04d}.png" for frame in range(4)]
    result = audit(
        manifest(tmp_path, video=names, split=["train", "train", "test", "test"]), pictures=True, progress=False
    )
    assert not found(result, "near-duplicate pictures")
    assert found(result, "same sequence")[0].rows == 2


# Ids, frames, moments ------------------------------------------------------------------------------------------------


def test_a_patient_on_both_sides_is_found_with_its_counts() -> None:
    result = audit(
        manifest(
            video=[f"{i}.mp4" for i in range(6)],
            patient=["1", "1", "2", "1", "3", "2"],
            split=["train", "train", "train", "test", "test", "val"],
            dataset="x",
        )
    )
    (leak,) = [f for f in found(result, "same patient") if f.evaluated == "test"]
    assert (leak.rows, leak.of_rows, leak.numbers) == (1, 2, {"common": 1, "of": 2})
    assert leak.message == "1 of 2 patients of test are also in train: 1 of 2 rows."
    assert result.leaking == {("train", "val"): (1, 1), ("train", "test"): (1, 2), ("val", "test"): (0, 2)}
    assert result.parts == {"train": 3, "val": 1, "test": 2}


def test_patient_1_of_two_data_sets_is_no_leak() -> None:
    data = manifest(video=["a.mp4", "b.mp4"], patient=["1", "1"], dataset=["x", "y"], split=["train", "test"])
    assert not audit(data).leaks


def test_clips_of_one_video_are_a_leak_and_the_nearest_are_shown() -> None:
    data = manifest(
        video=["v.mp4"] * 4 + ["w.mp4"],
        start_s=[0.0, 20.0, 4.0, 30.0, 0.0],
        end_s=[5.0, 25.0, 9.0, 35.0, 5.0],
        split=["train", "train", "test", "test", "test"],
        dataset="x",
    )
    result = audit(data)
    assert found(result, "same video")[0].rows == 2
    (near,) = found(result, "near clips")
    assert (near.rows, near.numbers["overlapping"]) == (1, 1)
    assert (near.examples[0].start_s, near.examples[0].other_start_s) == (4.0, 0.0)


def test_sequence_and_frame_are_read_from_names_only_where_there_is_no_doubt() -> None:
    names = {
        "train/Polyp/04a78ef00c5245e0_11602.jpg": ("04a78ef00c5245e0", 11602),
        "worm1_1087.jpg": ("worm1", 1087),
        "case12/frame_0007.png": ("case12", 7),
        "x/video 3/00041.jpg": ("x/video 3", 41),
        "SEE-AI/image00279.jpg": ("", np.nan),
        "images/cju0qkwl35piu0993l0dewei2.jpg": ("", np.nan),
        "Original/51.tif": ("", np.nan),
        "normalcolon105.jpg": ("", np.nan),
    }
    rows = gather([manifest(video=list(names))])
    for i, (sequence, frame) in enumerate(names.values()):
        key = rows.keys["sequence"][i]
        assert (rows.names["sequence"][key] if key >= 0 else "") == sequence
        np.testing.assert_equal(rows.frame[i], frame)


def test_a_sequence_read_from_names_is_dropped_where_it_would_join_two_patients() -> None:
    names = ["ward-0-1.png", "ward-0-2.png", "case7_0001.png", "case7_0002.png"]
    data = manifest(video=names, patient=["a", "b", "c", "c"], split=["train", "test", "train", "test"], dataset="x")
    rows = gather([data])
    assert (rows.keys["sequence"] >= 0).tolist() == [False, False, True, True]
    assert np.isnan(rows.frame[:2]).all() and rows.frame[2:].tolist() == [1.0, 2.0]
    assert found(audit(data), "same sequence")[0].rows == 1


def test_the_manifests_own_sequence_and_frame_win_over_the_name() -> None:
    data = manifest(
        video=["case1_0001.png", "case1_0002.png"], sequence=["a", "b"], frame=[7, 9], split=["train", "test"]
    )
    assert not audit(data).leaks
    assert gather([data]).frame.tolist() == [7.0, 9.0]


def test_pretraining_is_compared_with_what_is_evaluated_and_may_overlap_training() -> None:
    down = manifest(video=["1.mp4", "2.mp4"], patient=["p", "q"], dataset="x", split=["train", "test"])
    before = manifest(video=["3.mp4", "4.mp4"], patient=["p", "q"], dataset="x", split=["train", "train"])
    result = audit(down, pretrain=[before])
    assert result.leaking == {("pretrain", "test"): (1, 1), ("train", "test"): (0, 1)}
    assert "not independent of pretrain (same patient)" in result.verdict
    assert len(result.fingerprints) == 2


def test_embeddings_that_agree_across_the_split_are_found() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30, 16))
    vectors[25] = 3.0 * vectors[4] + 1e-3
    vectors[12] = 0.0
    data = manifest(video=[f"{c}.png" for c in "abcdefghijklmnopqrstuvwxyzABCD"], split=["train"] * 20 + ["test"] * 10)
    (leak,) = found(audit(data, embeddings=vectors), "near-duplicate embeddings")
    assert [(e.path, e.other_path) for e in leak.examples] == [("z.png", "e.png")]
    with pytest.raises(UserError, match="30 rows"):
        audit(data, embeddings=vectors[:5])
    vectors[3, 3] = np.nan
    with pytest.raises(UserError, match="NaN"):
        audit(data, embeddings=vectors)


# Labels and confounding ----------------------------------------------------------------------------------------------


def test_one_picture_with_two_labels_is_a_conflict() -> None:
    data = manifest(video=["a.png", "b.png", "a.png"], label=["polyp", "polyp", "normal"], split="train")
    (conflict,) = found(audit(data), "label conflict (same entry)")
    assert (conflict.rows, conflict.numbers["items"]) == (2, 1)


def test_cramers_v_of_hand_cases() -> None:
    assert cramers_v(np.array([[50.0, 0], [0, 50]])) == pytest.approx(1.0, abs=1e-9)
    assert cramers_v(np.array([[25.0, 25], [25, 25]])) == 0.0
    # phi2 = 0.36, corrected 0.36 - 1/99; rows and columns 2 - 1/99.
    expected = np.sqrt((0.36 - 1 / 99) / (1 - 1 / 99))
    assert cramers_v(np.array([[40.0, 10], [10, 40]])) == pytest.approx(expected, abs=1e-12)
    assert cramers_v(np.array([[40.0, 10]])) == 0.0


def test_the_best_guess_from_the_device_is_the_balanced_accuracy_of_its_rule() -> None:
    device = pd.Series(["A"] * 60 + ["B"] * 40)
    label = pd.Series(["polyp"] * 50 + ["normal"] * 10 + ["normal"] * 35 + ["polyp"] * 5)
    result = confounding("device", device, label, np.arange(100))
    assert result is not None
    rule = np.where(device == "A", "polyp", "normal")
    recalls = [(rule[label == c] == c).mean() for c in ("polyp", "normal")]
    assert result.guess == pytest.approx(np.mean(recalls)) and result.chance == 0.5
    assert result.p_value == pytest.approx(1 / 201)


def test_a_device_that_gives_the_class_away_is_a_warning_and_a_harmless_one_is_not() -> None:
    rng = np.random.default_rng(0)
    label = rng.choice(["polyp", "normal"], 400)
    names = [f"{a}{b}.png" for a in "abcdefghijklmnopqrst" for b in "ABCDEFGHIJKLMNOPQRST"]
    guilty = manifest(video=names, label=label, device=np.where(label == "polyp", "A", "B"), split="train")
    (warning,) = found(audit(guilty), "class and device")
    assert warning.numbers["guess"] == 1.0 and warning.severity == "warning"
    harmless = manifest(video=names, label=label, device=rng.choice(["A", "B"], 400), split="train")
    assert not found(audit(harmless), "class and device")


def test_two_patients_are_too_few_to_blame_the_device() -> None:
    """100 rows, but only two groups: every permutation of two patients gives the same association."""
    label = np.repeat(["polyp", "normal"], 50)
    result = confounding("device", pd.Series(np.repeat(["A", "B"], 50)), pd.Series(label), np.repeat([0, 1], 50))
    assert result is not None and np.isnan(result.p_value) and result.n_groups == 2


def test_below_ten_units_the_audit_gives_no_p_value_and_says_that_it_could_not_test() -> None:
    """Nine patients, each device has one class: by permutation p is 1/126, which so few patients cannot carry."""
    for n, has_finding in ((9, False), (12, True)):
        side = np.repeat(np.arange(n) < n // 2, 10)
        names = [f"v{i}.mp4" for i in range(10 * n)]
        table = {"label": np.where(side, "polyp", "normal"), "device": np.where(side, "A", "B")}
        data = manifest(video=names, patient=np.repeat([f"p{i}" for i in range(n)], 10), split="train", **table)
        result = audit(data)
        assert bool(found(result, "class and device")) == has_finding
        notes = [text for text in result.unchecked if "The device goes with the class" in text]
        assert bool(notes) != has_finding and all(
            "with 9 independent groups there is no test; 10 are" in t for t in notes
        )


# Verdicts and outputs ------------------------------------------------------------------------------------------------


def test_a_patient_wise_split_is_clean() -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "video": [f"v{i // 5}.mp4" for i in range(500)],
            "start_s": np.tile(np.arange(5) * 5.0, 100),
            "end_s": np.tile(np.arange(1, 6) * 5.0, 100),
            "label": rng.choice(["a", "b"], 500),
            "patient": [f"p{i // 25}" for i in range(500)],
            "dataset": "x",
        }
    )
    table["split"] = holdout(table.assign(split="")).parts
    result = audit(Manifest(checked(table, "t"), Path()))
    assert not result.leaks and result.verdict.startswith("No leakage found between train, val, test")
    table["split"] = rng.permutation(table["split"])
    assert audit(Manifest(checked(table, "t"), Path())).leaks


def test_the_verdict_admits_what_ids_cannot_show() -> None:
    result = audit(manifest(video=["a.png", "b.png"], split=["train", "test"], dataset="x"))
    assert result.verdict.startswith("CANNOT TELL for everything: 2 rows (x) name neither patient nor sequence")
    assert "\n" not in result.verdict


def test_a_manifest_without_a_split_is_told_to_split_first() -> None:
    result = audit(manifest(video=["a.png", "b.png"], patient=["1", "2"], dataset="x"))
    assert "Split it first" in result.verdict and "2 rows have no split" in result.text()


def test_the_json_holds_everything_and_reads_back(tmp_path: Path, picture_set: Manifest) -> None:
    result = audit(picture_set, pictures=True, progress=False)
    result.write_json(tmp_path / "audit.json")
    read = json.loads((tmp_path / "audit.json").read_text())
    assert read == json.loads(json.dumps(result.to_json()))
    assert read["verdict"] == result.verdict and read["leaks"] is True
    assert read["leaking"][0] == {"learned": "train", "evaluated": "test", "rows": 3, "of_rows": 12}


def test_no_manifest_is_a_user_error() -> None:
    with pytest.raises(UserError, match="at least one manifest"):
        audit([])


def test_the_command_prints_the_verdict_and_ends_well_even_with_leakage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = manifest(video=["a.mp4", "b.mp4"], patient=["1", "1"], split=["train", "test"], dataset="x")
    write_manifest(data.table, tmp_path / "m.csv")
    assert main(["audit", str(tmp_path / "m.csv"), "--html", str(tmp_path / "a.html")]) == 0
    assert "LEAKAGE: 1 of 1 test rows" in capsys.readouterr().out
    assert "LEAKAGE" in (tmp_path / "a.html").read_text()
    assert main(["audit", str(tmp_path / "m.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["leaks"] is True
    assert main(["audit", str(tmp_path / "none.csv")]) == 2
    assert main(["audit"]) == 2


# Known answers of public sets ----------------------------------------------------------------------------------------

# CVC-12k as released with Endo-FM and carried on by later papers: sequence numbers of CVC-ClinicDB.
CVC_TRAIN = [6, 26, 22, 2, 17, 9, 21, 10, 7, 13, 18, 29, 12, 4, 23, 11, 5, 24, 3, 28]
CVC_TEST = [3, 16, 21, 1, 9, 13, 17, 4, 10]
CVC_FRAMES = [
    25,
    25,
    17,
    11,
    25,
    23,
    25,
    26,
    22,
    6,
    22,
    25,
    25,
    20,
    20,
    25,
    21,
    20,
    25,
    20,
    19,
    19,
    12,
    25,
    25,
    18,
    25,
    20,
    21,
]


def cvc_manifest(root: Path) -> Manifest:
    first = np.concatenate([[1], 1 + np.cumsum(CVC_FRAMES)])
    rows = [
        (f"Original/{frame}.tif", str(number), frame, split)
        for split, numbers in (("train", CVC_TRAIN), ("test", CVC_TEST))
        for number in numbers
        for frame in range(first[number - 1], first[number])
    ]
    video, sequence, frame, split = zip(*rows, strict=True)
    return manifest(
        root, video=video, sequence=sequence, frame=frame, split=split, label="polyp", dataset="cvc-12k"
    )  # fmt: skip


def test_the_released_cvc_12k_lists_share_7_of_9_sequences_and_121_of_171_frames() -> None:
    assert sum(CVC_FRAMES) == 612
    result = audit(cvc_manifest(Path()))
    (sequences,) = found(result, "same sequence")
    assert sequences.numbers == {"common": 7, "of": 9} and (sequences.rows, sequences.of_rows) == (121, 171)
    (frames,) = found(result, "same video")
    assert frames.rows == 121
    assert "121 of 171 test rows (70.8 %) are not independent of train" in result.verdict


def real_data(*parts: str) -> Path:
    if "ENDOFM_LAB_DATA" not in os.environ:
        pytest.skip("ENDOFM_LAB_DATA is not set: the public lists and pictures are not here.")
    return Path(os.environ["ENDOFM_LAB_DATA"]).joinpath(*parts)


@pytest.mark.real_data
def test_the_sequence_lengths_of_cvc_clinicdb_are_the_official_ones() -> None:
    table = pd.read_csv(real_data("cvc-clinicdb-masks", "frame_to_sequence.csv"))
    assert table.groupby("sequence").size().tolist() == CVC_FRAMES


@pytest.mark.real_data
def test_the_capsule_vision_lists_are_split_by_frame() -> None:
    root = real_data("label-lists", "capsule-vision-2024")
    tables = []
    for split in ("train", "val"):
        paths = pd.read_csv(root / f"{split}_image_list.csv")["image_path"]
        where = paths.str.split("/")
        tables.append(pd.DataFrame({"video": paths, "label": where.str[1], "dataset": where.str[2], "split": split}))
    table = pd.concat(tables, ignore_index=True)
    result = audit(manifest(root, **{column: table[column] for column in table}))
    print(result.text())
    (videos,) = [f for f in found(result, "same sequence") if f.dataset == "KVASIR"]
    assert videos.numbers == {"common": 41, "of": 41}
    (near,) = [f for f in found(result, "near frames") if f.dataset == "KVASIR"]
    assert "91.0 % of the val rows" in near.message and "99.8 % lie within 5 frames" in near.message
    assert near.numbers["adjacent"] / near.of_rows == pytest.approx(0.910, abs=5e-4)
    assert near.numbers["near"] / near.of_rows == pytest.approx(0.998, abs=5e-4)
    assert found(result, "class and dataset")


@pytest.mark.real_data
def test_the_ten_known_near_duplicates_of_kvasir_seg_are_found() -> None:
    root = real_data("kvasir-seg")
    names = sorted(path.name for path in (root / "images").glob("*.jpg"))
    result = audit(
        manifest(root / "images", video=names, split="train", dataset="kvasir-seg"), pictures=True, progress=False
    )
    # 17 pairs are found, and by eye all show the same scene: ten are the listed ones, six are the same picture with
    # another border or with the scope-guide overlay, one is the same polyp two seconds later.
    (sure,) = found(result, "duplicates within a part (near-duplicate pictures)")
    (possible,) = found(result, "possible (near-duplicate pictures)")
    assert (sure.numbers["pairs"], possible.numbers["pairs"]) == (14, 3)
    rows = gather([manifest(root / "images", video=names, split="train", dataset="kvasir-seg")])
    from endofm_lab.data.audit.duplicates import picture_neighbours

    pairs = picture_neighbours(rows, progress=False).pairs
    actual = {
        frozenset((Path(names[i]).stem, Path(names[j]).stem)) for i, j in zip(pairs["row"], pairs["other"], strict=True)
    }
    expected = {frozenset(pair) for pair in json.loads((root / "near_duplicate_pairs.json").read_text())}
    assert expected <= actual and len(actual - expected) == 7
    # The split keeps such pairs together when it is told about them.
    table = rows.table.assign(label="polyp")
    groups = group_ids(table, links=pairs[["row", "other"]].to_numpy())
    assert len(set(groups)) == 800 - 17
