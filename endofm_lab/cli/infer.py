"""Commands that apply a model: `inspect`, `predict`, `study`, `explain`, `embed`, `temporal` and `export`."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from endofm_lab import portable as exporting
from endofm_lab.cli.command import Output, command, computed_on
from endofm_lab.cli.train import record_text, show_run
from endofm_lab.data.manifest import read_manifest
from endofm_lab.data.units import units
from endofm_lab.errors import UserError
from endofm_lab.explain import embeddings
from endofm_lab.explain.atlas import fit_pca, neighbour_purity, shortcut_test
from endofm_lab.familiarity.clips import summary_of
from endofm_lab.familiarity.quality import fault_counts
from endofm_lab.figures.export import FigureFormat, export_all
from endofm_lab.figures.study import study_timeline
from endofm_lab.model.loading.load import inspect_checkpoint, load_model
from endofm_lab.predict import predict_video
from endofm_lab.prediction import VideoPrediction
from endofm_lab.reports import explanation
from endofm_lab.reports.study import write_study_report
from endofm_lab.reports.video import write_video_report
from endofm_lab.study.findings import findings
from endofm_lab.study.study import DUPLICATE, UNREADABLE, run_study
from endofm_lab.study.tracks import track_table, tracked
from endofm_lab.temporal.config import TemporalConfig
from endofm_lab.temporal.fit import fit_temporal
from endofm_lab.temporal.predict import predict_temporal
from endofm_lab.video.images import IMAGE_SUFFIXES

VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".m4v", ".webm", ".mpg", ".mpeg", ".wmv", ".ts"}


@command(positional=("file",))
def inspect(file: str, output: Output) -> None:
    """Describe a weights file: its kind and architecture, missing and unexpected tensors, normalisation and SHA-256.

    No code in the file is executed.

    Args:
        file: a weights file, a model folder, "demo", or a Hugging Face Hub id as hf:owner/name.
    """
    report = inspect_checkpoint(file)
    output.say(report)
    output.result(report.to_json())


@command(predict_video, positional=("videos",), without=("path",))
def predict(
    videos: tuple[Path, ...],
    out: Path,
    settings: dict[str, Any],
    output: Output,
    report: Path | None = None,
    title: str = "",
) -> None:
    """Predict scores for clips that slide over whole videos, and masks and boxes for the frames of these clips.

    The folder contains clips.parquet, boxes.parquet, quality.parquet, masks/ and prediction.json; for several videos
    it contains one such folder per video.

    Args:
        videos: video files, images, folders of frames, folders of videos, or manifests.
        report: HTML file for a report that can be printed, with the decisions made in the app; of several videos a
            folder with a report of each. It names no file.
        title: heading of the report, such as the number of a case.
    """
    card = load_model(settings["model"]).card if report is not None else None
    paths = _videos(videos)
    several = len(videos) > 1 or paths != list(videos)
    names = [path.stem if several else "" for path in paths]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"Several videos are called {repeated[0]!r}. Predict them one by one, each with its own --out.")
    summary = []
    for video, name in zip(paths, names, strict=True):
        prediction = predict_video(video, **settings, out=out / name, progress=output.progress)
        summary.append(
            {
                "out": out / name,
                "familiarity": summary_of(prediction.distance, len(prediction.times_s)),
                "quality": fault_counts(prediction.quality),
                "clips": prediction.table().to_dict("records"),
                "tracks": track_table(tracked(prediction)).to_dict("records"),
            }
        )
        if report is not None and card is not None:
            path = report / f"{name}.html" if several else report
            summary[-1]["report"] = write_video_report(prediction, card, path, title)
        output.say(f"\n{video}" if several else "", *_prediction_text(prediction))
    origin = prediction.provenance  # the same model and device for all videos
    output.say(
        f"Model: {origin['model_name']}. Initialisation: {origin['initialisation']['words']}", computed_on(origin)
    )
    output.result({"out": out, "videos": summary} if several else summary[0])
    output.written(out, *([report] if report is not None else []))


def _videos(paths: Sequence[Path]) -> list[Path]:
    """The videos in files, folders and manifests, without repetitions.

    Raises:
        UserError: a folder contains neither videos nor images.
    """
    videos: list[Path] = []
    for path in paths:
        if path.suffix.lower() in (".csv", ".parquet"):
            manifest = read_manifest(path)
            videos += [manifest.root / name for name in manifest.table["video"].unique()]
        elif path.is_dir() and not any(inner.suffix.lower() in IMAGE_SUFFIXES for inner in path.iterdir()):
            inside = sorted(inner for inner in path.iterdir() if inner.suffix.lower() in VIDEOS)
            if not inside:
                raise UserError(f"The folder {path} contains neither videos nor images. Give a folder that does.")
            videos += inside
        else:
            videos.append(path)
    return list(dict.fromkeys(videos))


def _prediction_text(prediction: VideoPrediction) -> list[str]:
    """A prediction as lines for people."""
    table, heads = prediction.table(), []
    if prediction.maps:
        names = f" of {', '.join(prediction.maps)}" if len(prediction.maps) > 1 else ""
        heads.append(f"{_counted(len(prediction.frames), 'frame')} with masks{names}")
    if len(prediction.boxes_xyxy):
        heads.append(f"{len(prediction.boxes_xyxy)} box{'' if len(prediction.boxes_xyxy) == 1 else 'es'}")
    if not (prediction.scores or heads):
        heads = ["the model has no head, so there are no scores, masks or boxes; `endofm-lab finetune` trains a head"]
    return [
        table.to_string(index=False, float_format=lambda value: f"{value:.3f}", max_rows=24),
        f"\n{', '.join([_counted(len(table), 'clip'), *heads])}.",
        prediction.familiarity_text(),
        prediction.quality_text(),
    ]


def _counted(n: int, word: str) -> str:
    """A number with its word: "1 clip", "2 clips"."""
    return f"{n} {word}{'' if n == 1 else 's'}"


@command(run_study, positional=("video",), without=("path",))
def study(
    video: Path,
    out: Path,
    settings: dict[str, Any],
    output: Output,
    smooth: int = 9,
    labels: Path | None = None,
    title: str = "",
    figures: Path | None = None,
    figure_format: FigureFormat = "html",
) -> None:
    """Score every frame of a whole study, and write a report whose findings can be confirmed or rejected.

    Memory does not grow with the length of the study. The folder contains frames.parquet, study.json, report.html and
    review.csv; the app can open it.

    Args:
        video: a video file or a folder of frames.
        smooth: width in frames of the running median from which findings are made (odd; 1 does not smooth).
        labels: table of true labels (columns frame, label), to measure the effect of smoothing.
        title: heading of the report, such as the number of a case; the report names no file.
    """
    result = run_study(video, out=out, **settings, progress=output.progress)
    report = write_study_report(result, out, smooth, labels, title)
    table = findings(result, smooth)
    skipped, failed = int((result.state == DUPLICATE).sum()), int((result.state == UNREADABLE).sum())
    exported = [] if figures is None else export_all({"time line": study_timeline(result)}, figures, figure_format)
    output.say(
        table.to_string(index=False, max_rows=24) if len(table) else "No finding scores at least 0.5.",
        f"\n{len(result.state):,} frames, of which {skipped:,} near-duplicates were not scored and {failed:,} could "
        "not be read.",
        result.familiarity_text(),
        computed_on(result.provenance),
        "Confirm or reject the findings in the app (page Prediction, view Study), or in review.csv.",
    )
    summary = {
        "out": out,
        "report": report,
        "frames": len(result.state),
        "near_duplicates": skipped,
        "unreadable": failed,
        "familiarity": result.familiarity_summary(),
    }
    output.result({**summary, "findings": table.to_dict("records"), "figures": exported})
    output.written(report, *exported)


@command(
    explanation.explain,
    positional=("video",),
    names={"label": "label"},
    choices={"methods": tuple(explanation.METHODS)},
)
def explain(
    video: Path,
    out: Path,
    settings: dict[str, Any],
    output: Output,
    figures: Path | None = None,
    figure_format: FigureFormat = "html",
) -> None:
    """Compute attention and attribution of one clip, and write report.html (stand-alone) and maps.npz (the maps).

    Args:
        video: a video file, a folder of frames, or one image.
    """
    result = explanation.explain(video, **settings)
    paths = explanation.write_explanation(result, out)
    if figures is not None:
        paths += export_all(explanation.explanation_figures(result), figures, figure_format)
    trust = {
        entry.attribution.method: {
            "target": entry.attribution.target,
            "gap": entry.curves.gap,
            "randomised": entry.randomised,
        }
        for entry in result.attributions
    }
    summary = {"out": out, "written": paths, "trust": trust, "refused": result.refused}
    output.result({**summary, "provenance": result.provenance})
    output.say(computed_on(result.provenance))
    for name, numbers in trust.items():
        output.say(
            f"{numbers['target']}, by {name}: insertion minus deletion {numbers['gap']:.2f}, correlation with shuffled "
            f"weights {numbers['randomised']:.2f}"
        )
    output.written(*paths)


@command(embeddings.embed, positional=("manifest",))
def embed(manifest: Path, out: Path, settings: dict[str, Any], output: Output, model: str = "demo") -> None:
    """Compute one vector per row of a manifest, and print a test of neighbours and of shortcuts.

    The folder, called an embedding store, contains vectors.npy, rows.parquet, pca.npz and store.json. With --step-s it
    contains one vector per instant instead, for `endofm-lab temporal`, with --clips those of several clips per row, for
    the probes of `endofm-lab finetune`, and no test is made.

    Args:
        manifest: a manifest (CSV or Parquet).
    """
    store = embeddings.embed(manifest, model, out, **settings, progress=output.progress)
    summary = {"out": out, "model": store.about["model_name"], **_summary_of(store)}
    output.result(summary)
    output.say(*_embedding_text(summary), computed_on(store.about.get("provenance", {})))
    output.written(out)


def _summary_of(store: embeddings.EmbeddingStore) -> dict[str, Any]:
    """Counts, variance of the first axes, purity of neighbourhoods and the shortcut test; writes pca.npz."""
    usable = store.usable()
    vectors, rows = store.vectors[usable], store.rows[usable].reset_index(drop=True)
    summary: dict[str, Any] = {
        "clips": len(rows),
        "units": units(rows).described(),
        "unreadable": store.rows.loc[~usable, ["video", "error"]].to_dict("records"),
    }
    if len(rows) < 2 or {"step_s", "clips"} & set(store.about):  # neighbours in time are alike, whatever they show
        return summary
    pca = fit_pca(vectors, min(8, vectors.shape[1]))
    pca.save(store.path / "pca.npz")
    purity = {name: neighbour_purity(vectors, rows, name) for name in ("label", "dataset")}
    shortcuts = shortcut_test(vectors, rows).to_dict("records")
    return summary | {
        "pca_explained": pca.explained,
        "neighbour_purity": purity,
        "shortcuts": shortcuts,
    }


def _embedding_text(summary: dict[str, Any]) -> list[str]:
    """The summary of an embedding store as lines for people."""
    clips = f"{summary['clips']} clips ({summary['units']['words']})"
    lines = [f"{clips} embedded by {summary['model']}; {len(summary['unreadable'])} could not be read."]
    lines += [f"  {row['video']}: {row['error']}" for row in summary["unreadable"][:5]]
    if "pca_explained" not in summary:
        return lines
    lines.append("PCA: " + ", ".join(f"{share:.1%}" for share in summary["pca_explained"]) + " of the variance.")
    for column, purity in summary["neighbour_purity"].items():
        lines.append(
            f"No clip has a neighbour from another recording, so the {column} of neighbours cannot be compared."
            if math.isnan(purity)
            else f"Of the five nearest neighbours from other recordings, {purity:.1%} share the {column} of the clip."
        )
    if summary["shortcuts"]:
        lines.append("What a linear probe can predict from the vectors:")
        table = pd.DataFrame(summary["shortcuts"])
        lines.append(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    return lines


@command(exporting.export, positional=("model", "path"), names={"path": "file"})
def export(settings: dict[str, Any], output: Output) -> None:
    """Write a model as one file for use without this library, and compare its outputs with the model's.

    FILE.onnx is for onnxruntime, FILE.pt2 for torch.export.load. A file that differs too much is not written.
    """
    exported = exporting.export(**settings)
    output.result(asdict(exported))
    output.say(exported)
    output.written(exported.path)


@command(TemporalConfig, positional=("manifest",), flat=("network", "inputs"))
def fit_over_time(config: TemporalConfig, output: Output) -> None:
    """Train a model of time on the vectors of `endofm-lab embed --step-s`, choose on val, and test once on test.

    The result is a run like those of `endofm-lab finetune`; `endofm-lab compare` compares them.
    """
    for record in fit_temporal(config):
        if "test" in record:
            continue
        if "step" in record:
            if lines := record_text(record):
                output.say(*lines)
        else:
            output.say(f"Split {record['split']}", f"Audit: {record['audit']}")
    show_run(config.out, output)


@command(predict_temporal, positional=("model",))
def predict_over_time(out: Path, settings: dict[str, Any], output: Output) -> None:
    """Answer at every instant of every recording of a store, and write instants.parquet."""
    table = predict_temporal(out=out, **settings)
    counts = table.groupby("recording", sort=False)["predicted"].value_counts().unstack(fill_value=0)
    output.result({"out": out, "instants": len(table), "recordings": counts.to_dict("index")})
    output.say(counts.to_string(max_rows=24))
    output.written(out)


TEMPORAL = {"fit": fit_over_time, "predict": predict_over_time}
