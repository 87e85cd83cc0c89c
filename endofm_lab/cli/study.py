"""`endofm-lab study`."""

import json as json_format
from pathlib import Path
from typing import Annotated

import tyro

from endofm_lab import NOTICE


def study(
    video: Annotated[Path, tyro.conf.Positional],
    out: Path,
    model: str,
    skip_near_duplicates: bool = False,
    batch: int = 64,
    fps: float | None = None,
    smooth: int = 9,
    labels: Path | None = None,
    json: bool = False,
) -> None:
    """Scores for every frame of a whole study, and a report to confirm or reject what was found.

    Memory does not grow with the study. A study that was stopped goes on where it was when the same command is given
    again.

    Args:
        video: a video file or a folder of frames.
        out: folder for frames.parquet, study.json, report.html and review.csv; the app opens it too.
        model: folder of a frame model, or timm:NAME.
        skip_near_duplicates: frames that hardly differ from the last scored one take its scores.
        batch: frames that go through the model together.
        fps: frames per second of a folder of frames; 25 if not given.
        smooth: frames of the running median that findings are cut from (odd; 1 does not smooth).
        labels: table of true labels (columns frame, label), to measure what smoothing does.
        json: print the findings and counts as JSON.
    """
    from endofm_lab.reports.study import write_study_report
    from endofm_lab.study.findings import findings
    from endofm_lab.study.study import DUPLICATE, UNREADABLE, run_study

    result = run_study(video, model, out, skip_near_duplicates=skip_near_duplicates, batch=batch, fps=fps)
    report = write_study_report(result, out, smooth, labels)
    found = findings(result, smooth)
    skipped, lost = int((result.state == DUPLICATE).sum()), int((result.state == UNREADABLE).sum())
    if json:
        told = {"out": str(out), "report": str(report), "frames": len(result.state), "near_duplicates": skipped}
        told |= {"unreadable": lost, "findings": json_format.loads(found.to_json(orient="records"))}
        print(json_format.dumps(told, indent=2, ensure_ascii=False))
        return
    print(found.to_string(index=False, max_rows=24) if len(found) else "No finding scores at least 0.5.")
    print(f"\n{len(result.state):,} frames, {skipped:,} near-duplicates not scored, {lost:,} unreadable.")
    print("Confirm or reject them in the app (Prediction, Study), or in review.csv.")
    print(f"Report: {report}. {NOTICE}")
