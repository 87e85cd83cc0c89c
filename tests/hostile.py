"""Files whose every text would make a browser fetch a picture, if it were read as Markdown or HTML."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from endofm_lab.data.manifest import write_manifest
from endofm_lab.explain.embeddings import embed
from endofm_lab.files import write_json
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.loading.load import save_model
from endofm_lab.model.video_model import VideoModel, build_frame_model
from endofm_lab.reports.study import write_study_report
from endofm_lab.runs.run import write_run
from endofm_lab.study.study import run_study
from endofm_lab.video.reader import write_video
from tests.builders import made_run
from tests.explain.models import small_model
from tests.folders.jobs import lost_job

HOSTILE = "![x](http://attacker.invalid/x.png)<img src=http://attacker.invalid/y.png>"
FILE = "![x](\\\\attacker.invalid\\x.png)<img src=\\\\attacker.invalid\\y.png>"  # browsers read \ as / in addresses


def renamed(model: VideoModel) -> VideoModel:
    """The model with a hostile card."""
    heads = {
        name: HeadSpec(head.kind, tuple(f"{HOSTILE} {n}" for n in range(len(head.classes))), head.temperature)
        for name, head in model.card.heads.items()
    }
    words = {**model.card.initialisation, "words": HOSTILE}
    return VideoModel(model.backbone, model.heads, replace(model.card, name=HOSTILE, heads=heads, initialisation=words))


def write_hostile_files(folder: Path) -> dict[str, Path]:
    """A video, a model, a manifest of pictures, an embedding store, a mapping, a study, and runs, below a cache."""
    folder = folder / FILE
    folder.mkdir(parents=True)
    frames = np.random.default_rng(0).integers(0, 255, (12, 48, 64, 3), dtype=np.uint8)
    write_video(folder / f"{FILE}.mp4", frames, Fraction(6))
    save_model(renamed(small_model()), folder / "model")
    texts = {"label": HOSTILE, "dataset": HOSTILE}
    rows = [
        {"video": f"{FILE}.mp4", "start_s": n / 6, "end_s": 1 + n / 6, "patient": f"{n}{HOSTILE}"} for n in range(6)
    ]
    clips = write_manifest(pd.DataFrame(rows).assign(split="train", **texts), folder / "clips.csv")
    embed(clips, renamed(small_model()), folder / "store", progress=False)
    for n in range(8):
        Image.fromarray(frames[n]).save(folder / f"{n}{FILE}.png")
    rows = [{"video": f"{n}{FILE}.png", "patient": f"{n // 2}{HOSTILE}"} for n in range(8)]
    table = pd.DataFrame(rows).assign(start_s=0.0, end_s=0.0, **texts)
    table["split"] = ["train"] * 3 + ["test"] * 5
    table.loc[5:, "label"] = f"another {HOSTILE}"
    write_manifest(table, folder / "manifest.csv")
    mapping = [f'title: "t"\nsource: "s"\ntargets:\n  - "{HOSTILE}"\n  - "empty {HOSTILE}"\ndatasets:\n  "*":']
    mapping += [f'    source: "s"\n    labels:\n      "{HOSTILE}": "{HOSTILE}"\n']
    (folder / "mapping.yaml").write_text("\n".join(mapping))
    heads = {"finding": HeadSpec("multiclass", ("normal", "polyp"), temperature=1.5)}
    study = run_study(
        folder / f"{FILE}.mp4", renamed(build_frame_model("vit_micro", heads)), folder / "study", progress=False
    )
    write_study_report(study, folder / "study", width=1)
    return {path.name: path for path in folder.iterdir()} | {
        "video": folder / f"{FILE}.mp4",
    }


def write_hostile_runs(runs: Path) -> None:
    """Two runs that cannot be ranked, one that cannot be read, and two pre-trainings, one of which failed at once."""
    for name in ("first", "second"):
        changes = {"test": {"fingerprint": f"{name}{HOSTILE}", "split": HOSTILE}, "audit": {"findings": [HOSTILE]}}
        protocol = {"dataset": HOSTILE, "chosen_on": HOSTILE, "input": {"frames": 8}}
        run = made_run(f"{name} {HOSTILE}", method=HOSTILE, initialisation=HOSTILE, protocol=protocol, **changes)
        write_run(runs / name, run)
    write_run(runs / FILE, made_run("broken"))
    (runs / FILE / "report.json").write_text("{}")
    for name in (f"failed {FILE}", f"waits {FILE}"):
        (runs / name).mkdir()
        lost_job(runs / name, HOSTILE, cache=runs.parent)
    described = {"steps": 5, "n_clips": HOSTILE, "n_files": 1, "initialisation": {"words": HOSTILE}, "config": {}}
    write_json(runs / f"waits {FILE}" / "config.json", described)
