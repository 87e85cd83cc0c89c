"""The splits of which only lists are at hand: what their names show, and what a file name alone tells."""

from pathlib import Path

import numpy as np
import pandas as pd

from docs.experiments.leaks.sections import Section, folded, manifest_of, summary, table_of
from endofm_lab.data.audit.audit import audit
from endofm_lab.data.audit.checks import NEAR_FRAMES, percent
from endofm_lab.data.audit.overlap import Rows, frame_gaps, gather, shared
from endofm_lab.metrics.classification import accuracy, balanced_accuracy
from endofm_lab.metrics.intervals import Interval, bootstrap_interval

# CVC-12k as released with Endo-FM and used by later papers: numbers of the sequences of CVC-ClinicDB.
CVC_12K = {
    "train": (6, 26, 22, 2, 17, 9, 21, 10, 7, 13, 18, 29, 12, 4, 23, 11, 5, 24, 3, 28),
    "test": (3, 16, 21, 1, 9, 13, 17, 4, 10),
}


def cvc_12k(data: Path) -> Section:
    """CVC-12k as released: two lists of sequences."""
    frames = pd.read_csv(data / "cvc-clinicdb-masks" / "frame_to_sequence.csv")
    parts = []
    for split, numbers in CVC_12K.items():
        rows = frames[frames["sequence"].isin(numbers)]
        video = "Original/" + rows["frame"].astype(str) + ".tif"
        parts.append(rows.assign(video=video, sequence=rows["sequence"].astype(str), split=split))
    result = audit(manifest_of(pd.concat(parts), "cvc-12k"), progress=False)
    train, test = (set(CVC_12K[split]) for split in ("train", "test"))
    unused = set(frames["sequence"]) - train - test
    count = {name: int(frames["sequence"].isin(part).sum()) for name, part in (("t", test - train), ("u", unused))}
    return Section(
        "CVC-12k as released with Endo-FM",
        summary("CVC-12k", result),
        [
            f"Looked at: the two released lists of sequences, and the {len(frames):,} frames of CVC-ClinicDB in "
            f"{frames['sequence'].nunique()} sequences (`frame_to_sequence.csv`). Pictures are not at hand and not "
            "needed.",
            result.verdict,
            f"{len(train & test)} of the {len(test)} test sequences are also in the training list, with all their "
            "frames: " + ", ".join(map(str, sorted(train & test))) + ". A model that remembers the training masks "
            f"reaches Dice 1 on those frames. Only {count['t']} test frames of {len(test - train)} sequences "
            f"({', '.join(map(str, sorted(test - train)))}) were never learned from, too few sequences for an "
            "interval.",
            f"{len(unused)} sequences ({', '.join(map(str, sorted(unused)))}; {count['u']} frames) are in neither "
            f"list. With them instead of the shared ones, a test set has {len(unused) + len(test - train)} sequences "
            f"and {count['t'] + count['u']} frames, none of them learned from. Patients are not published.",
        ],
    )


def capsule_vision(data: Path) -> Section:
    """Capsule Vision 2024: training and validation lists; the names of the test pictures are random."""
    folder = data / "label-lists" / "capsule-vision-2024"
    parts = []
    for split in ("train", "val"):
        paths = pd.read_csv(folder / f"{split}_image_list.csv")["image_path"]
        cells = paths.str.split("/", expand=True)
        parts.append(pd.DataFrame({"video": paths, "label": cells[1], "dataset": cells[2], "split": split}))
    table = pd.concat(parts, ignore_index=True)
    # `angioectasia-P0-3` names no video: the three values may be grades of a lesion. Each picture is its own sequence.
    table["sequence"] = table["video"].where(table["dataset"] == "KID", "")
    manifest = manifest_of(table)
    result, rows = audit(manifest, progress=False), gather([manifest])
    kvasir = (table["dataset"] == "KVASIR").to_numpy()
    lines = []
    for origin in sorted(set(table["dataset"])):
        inside = (table["dataset"] == origin).to_numpy()
        evaluated, learned = inside & (table["split"] == "val"), inside & (table["split"] == "train")
        overlap = shared(rows.keys["sequence"], learned, evaluated)
        gaps = frame_gaps(rows.keys["sequence"], rows.frame, learned, evaluated)[0]
        adjacent, near = (int((gaps <= limit).sum()) for limit in (1, NEAR_FRAMES))
        known = origin != "KID" and overlap.n_evaluated
        n = int(evaluated.sum())
        cells = [f"{len(overlap.common)} of {overlap.n_evaluated}", percent(adjacent, n), percent(near, n)]
        lines.append([origin, f"{learned.sum():,}", f"{n:,}", *(cells if known else ["not named"] * 3)])
    guess, frequent, n_videos = guessed_from_names(rows, kvasir)
    videos = sorted({rows.names["sequence"][key].split("/")[-1] for key in rows.keys["sequence"][kvasir] if key >= 0})
    confounder = [f.message for f in result.findings if f.check == "class and dataset"]
    n_test = len(pd.read_csv(folder / "test_labels.csv"))
    return Section(
        "Capsule Vision 2024",
        summary("Capsule Vision", result),
        [
            f"Looked at: `train_image_list.csv` ({(table['split'] == 'train').sum():,} frames) and "
            f"`val_image_list.csv` ({(table['split'] == 'val').sum():,}); no pictures. The lists were drawn by frame. "
            "Videos and frame numbers are read from the file names.",
            result.verdict,
            table_of(
                ["source", "train", "validation", "videos on both sides", "adjacent frame in train", "within 5 frames"],
                lines,
            ),
            "What this is worth: a rule that opens no picture and answers with the class of the training frame with "
            f"the nearest number in the same video reaches an accuracy of {guess['accuracy']} and a balanced accuracy "
            f"of {guess['balanced accuracy']} on the validation frames from Kvasir-Capsule ({n_videos} videos). On a "
            "split by video there is no such frame, and the rule answers with the most frequent class: accuracy "
            f"{frequent['accuracy']}, balanced accuracy {frequent['balanced accuracy'].value:.3f}. That is what a "
            "name is worth, not what a published model gained; the latter needs its pictures.",
            *(f"Not a leak, but a shortcut (`dataset` is the source here): {message}" for message in confounder),
            f"Cannot be said: the {n_test:,} test pictures have random names, SEE-AI and KID name no video, and no "
            "source names patients. Names such as `ulcer1_1034` of AIIMS are read as video and frame number.",
            folded(videos, "Videos of Kvasir-Capsule on both sides"),
        ],
    )


def kvasir_capsule(data: Path) -> Section:
    """The two official folds of Kvasir-Capsule, and how much of them is in Capsule Vision's training list."""
    lists = data / "label-lists"
    folds = []
    for fold in (0, 1):
        table = pd.read_csv(lists / "kvasir-capsule" / f"split_{fold}.csv")
        folds.append(pd.DataFrame({"video": table["filename"], "label": table["label"]}).drop_duplicates())
    results = [
        audit(
            manifest_of(
                pd.concat([folds[1 - fold].assign(split="train"), folds[fold].assign(split="test")]), "kvasir-capsule"
            ),
            progress=False,
        )
        for fold in (0, 1)
    ]
    conflicts = folds[0].duplicated("video", keep=False), folds[1].duplicated("video", keep=False)
    two_classes = [set(fold["video"][doubled]) for fold, doubled in zip(folds, conflicts, strict=True)]
    both = pd.concat([fold.assign(fold=number) for number, fold in enumerate(folds)], ignore_index=True)
    rows = gather([manifest_of(both, "kvasir-capsule")])
    both["id"] = [rows.names["sequence"][key] for key in rows.keys["sequence"]]
    gaps = frame_gaps(rows.keys["sequence"], rows.frame, both["fold"] == 0, both["fold"] == 1)[0]
    lines, agree = [], 0
    for video, group in both.assign(gap=gaps).groupby("id"):
        if group["fold"].nunique() < 2:
            continue
        first, second = (set(group["label"][group["fold"] == fold]) for fold in (0, 1))
        agree += bool(first & second)
        cells = [f"{int((group['fold'] == fold).sum()):,}" for fold in (0, 1)]
        lines.append([f"`{video}`", *cells, f"{group['gap'].min():,.0f}", ", ".join(sorted(first & second)) or "none"])
    paths = pd.read_csv(lists / "capsule-vision-2024" / "train_image_list.csv")["image_path"]
    challenge = set(paths[paths.str.contains("/KVASIR/")].str.split("/").str[-1])
    videos = {name.rpartition("_")[0] for name in challenge}
    inside, common = both["video"].isin(challenge), len(set(folds[0]["video"]) & set(folds[1]["video"]))
    return Section(
        "Kvasir-Capsule",
        [row for fold in (0, 1) for row in summary(f"Kvasir-Capsule, test fold {fold}", results[fold])],
        [
            f"Looked at: `split_0.csv` ({len(folds[0]):,} entries) and `split_1.csv` ({len(folds[1]):,}), "
            f"{both['id'].nunique()} videos; no pictures.",
            *(f"Test fold {fold}: {result.verdict}" for fold, result in enumerate(results)),
            table_of(["video", "frames in fold 0", "in fold 1", "nearest frames", "classes in both folds"], lines),
            f"{common} frames are in both folds, and {len(lines)} videos are. {agree} of these videos have a class in "
            "both folds: the lists keep each finding of a video together, but not the video. What this is worth "
            "cannot be measured without pictures; a model that remembers the class of a video would even lose by it.",
            *(
                folded(sorted(names), f"Frames that `split_{fold}.csv` lists with two classes")
                for fold, names in enumerate(two_classes)
                if names
            ),
            f"Kvasir-Capsule inside Capsule Vision 2024: {inside.sum():,} of the {len(both):,} frames of the folds "
            f"({percent(int(inside.sum()), len(both))}) are in the challenge's training list, and "
            f"{both['id'].isin(videos).sum():,} are of a video that is. A result on these folds of a model that "
            "learned from that list also measures what it remembers.",
        ],
    )


def gastrovision(data: Path) -> Section:
    """GastroVision: three lists by picture."""
    folder = data / "label-lists" / "gastrovision"
    parts = [pd.read_csv(folder / f"{n}.csv").assign(split=n) for n in ("train", "validate", "test")]
    table = pd.concat(parts, ignore_index=True)
    sizes = pd.read_csv(folder / "GastroVision_metadata.csv")
    merged = table.merge(sizes, on=["Filename", "Class"])
    several = merged[merged["Filename"].duplicated(keep=False)]
    equal = int(several.duplicated(["Filename", "Width", "Height", "Size (kB)"]).sum())
    video = table["Class"] + "/" + table["Filename"]
    result = audit(
        manifest_of(table.assign(video=video, label=table["Class"])[["video", "label", "split"]], "gastrovision"),
        progress=False,
    )
    other = pd.read_csv(data / "label-lists" / "hyper-kvasir" / "5_fold_split.csv", sep=";")["file-name"]
    return Section(
        "GastroVision",
        summary("GastroVision", result),
        [
            f"Looked at: `train.csv`, `validate.csv` and `test.csv` ({len(table):,} entries) and the metadata of "
            f"{len(sizes):,} pictures; no pictures.",
            result.verdict,
            f"{several['Filename'].nunique()} file names, such as `100H0003.jpg`, occur in several classes and lists. "
            f"They are numbers of a camera: {equal} of these entries agree in width, height and size of the file with "
            "another of the same name, so the lists show no picture twice.",
            "Cannot be said: the lists name neither patient nor video, and were drawn by picture. "
            f"{len(set(other) & set(table['Filename']))} file names are also in the lists of HyperKvasir, which does "
            "not rule out a common picture under another name.",
        ],
    )


def hyper_kvasir(data: Path) -> Section:
    """HyperKvasir's labelled images: two and five folds by picture."""
    summaries, lines = [], []
    for name in ("2_fold_split", "5_fold_split"):
        table = pd.read_csv(data / "label-lists" / "hyper-kvasir" / f"{name}.csv", sep=";")
        held_out = table["split-index"] == 0
        rows = table.assign(video=table["file-name"], split=np.where(held_out, "test", "train"))
        result = audit(manifest_of(rows[["video", "split"]], "hyper-kvasir"), progress=False)
        summaries += summary(f"HyperKvasir, `{name}.csv`, fold 0 as test", result)
        repeated = int(table["file-name"].duplicated().sum())
        lines.append(
            f"`{name}.csv`: {len(table):,} entries, {table['split-index'].nunique()} folds, {repeated} files listed "
            "twice."
        )
    return Section(
        "HyperKvasir, labelled images",
        summaries,
        [
            "Looked at: the two official lists of folds; no pictures. " + " ".join(lines),
            "Cannot be said: the names are random, and no patient, examination or video is named. The folds were "
            "drawn by picture. No leak can be shown from the lists, and none can be excluded.",
        ],
    )


def sun_seg(data: Path) -> Section:
    """SUN-SEG's tables of clips against Endo-FM's list of pre-training clips."""
    lists = data / "label-lists"
    cells = [line.split() for line in (lists / "endo-fm" / "sun_seg_pretrain.txt").read_text().splitlines() if line]
    names = pd.Series([Path(cell[0]).name for cell in cells])
    negative = np.array(["SUN-Negative" in cell[0] for cell in cells])
    names = names.where(negative, names + " (clip)")  # its last number is that of the clip, not that of a frame
    positive = pd.read_csv(lists / "sun-seg" / "positive_cases.csv", dtype=str)["ID"]
    clips = pd.read_csv(lists / "sun-seg" / "negative_cases.csv", dtype=str)["Clip-ID"]
    learned = pd.DataFrame({"video": names[~negative], "patient": names[~negative].str.extract("^(case[0-9]+)")[0]})
    case = positive.str.partition("_")[0]
    video = "case" + positive + " (clip)"
    evaluated = pd.DataFrame({"video": video, "patient": "case" + case, "split": "any test part"})
    result = audit(manifest_of(evaluated, "sun-seg"), pretrain=[manifest_of(learned, "sun-seg")], progress=False)
    per_case = case.value_counts()
    return Section(
        "SUN-SEG and Endo-FM's pre-training",
        summary("SUN-SEG, clips with a polyp", result),
        [
            f"Looked at: the tables of {len(positive)} clips with a polyp ({case.nunique()} cases) and {len(clips)} "
            f"without one, and Endo-FM's list of {len(cells):,} pre-training clips; no pictures. The lists of "
            "SUN-SEG's official training and test parts are not at hand.",
            result.verdict,
            f"{evaluated['video'].isin(learned['video']).sum()} of the {len(positive)} clips with a polyp are in the "
            f"list, and {negative.sum()} clips of the videos without one, of which the table has {len(clips)}. "
            "Endo-FM's weights have therefore seen every clip with a polyp of every test part, without masks, and a "
            "result on SUN-SEG is no result on unseen patients.",
            f"{(per_case > 1).sum()} cases have several clips ({per_case[per_case > 1].sum()} clips). A split by clip "
            "puts the same polyp on both sides. The authors of SUN-SEG call such test clips Seen, and report them "
            "apart from the others.",
            "Cannot be said: which clips those are, because the lists of the parts are not at hand. The audit takes "
            "a case for a patient; by its authors, the data set has 100 polyps of 99 patients.",
        ],
    )


def guessed_from_names(rows: Rows, inside: np.ndarray) -> tuple[dict[str, Interval], dict[str, Interval], int]:
    """How well the number of a frame in its file name tells its class in `val`, if `train` has frames of its video.

    Args:
        rows: with splits `train` and `val`.
        inside: bool (N,), the rows that count.

    Returns:
        Metrics of the class of the training frame with the nearest number in the same sequence; metrics of the most
        frequent training class; the number of sequences, which are resampled.
    """
    split, labels = rows.table["split"].to_numpy(), rows.table["label"].to_numpy(object)
    learned, evaluated = inside & (split == "train"), inside & (split == "val")
    nearest = frame_gaps(rows.keys["sequence"], rows.frame, learned, evaluated)[1][evaluated]
    frequent = pd.Series(labels[learned]).mode()[0]
    guess = np.where(nearest >= 0, labels[nearest], frequent)
    truth, groups = labels[evaluated], rows.keys["sequence"][evaluated]

    def measured(answers: np.ndarray) -> dict[str, Interval]:
        codes, _ = pd.factorize(np.concatenate([truth, answers]), sort=True)
        pair = codes[: len(truth)], codes[len(truth) :]
        metrics = {"accuracy": accuracy, "balanced accuracy": balanced_accuracy}
        return {name: bootstrap_interval(metric, groups, *pair) for name, metric in metrics.items()}

    return measured(guess), measured(np.full(len(truth), frequent, object)), len(np.unique(groups))
