"""From a folder of one's own to a table and a figure for a paper; and from single frames to probes per sequence."""

import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

import endofm_lab as lab
from endofm_lab.cli.main import main
from endofm_lab.model.video_model import build_frame_model


@pytest.fixture
def clinic(tmp_path, phantom):
    """Videos with patients in their names, and a table as a spreadsheet program writes it in Germany."""
    rows = lab.read_manifest(phantom)
    table = rows.table.groupby(["label", "patient"]).head(1).reset_index(drop=True)
    (tmp_path / "videos").mkdir()
    lines = ["Datei;Befund"]
    for number, row in table.iterrows():
        name = f"P{row['patient'].split('-')[-1].zfill(2)}_{number}.mp4"
        (tmp_path / "videos" / name).symlink_to(rows.resolve(row["video"]))
        lines.append(f"videos/{name};{'normal' if row['label'] == 'normal' else 'Läsion'}")
    (tmp_path / "labels.csv").write_text("\n".join(lines), encoding="cp1252")
    return tmp_path


def test_a_folder_of_ones_own_becomes_a_table_and_a_figure_for_a_paper(clinic, capsys, monkeypatch):
    monkeypatch.chdir(clinic)
    columns = ["--video", "Datei", "--label", "Befund", "--patient-from", "(P[0-9]+)_"]
    assert main(["data", "import", "labels.csv", *columns, "--out", "own"]) == 0
    assert main(["data", "split", "own/manifest.csv", "--out", "split", "--val", "0.2", "--test", "0.3"]) == 0
    assert main(["audit", "split/manifest.csv"]) == 0
    assert "No leakage" in capsys.readouterr().out or "no leak" in capsys.readouterr().out.lower()
    micro = ["--start", "scratch", "--size", "micro", "--n-frames", "2", "--steps", "2", "--batch", "2", "--clips", "1"]
    for method in ("full", "linear-probe"):
        assert main(["finetune", "split/manifest.csv", "--out", f"runs/{method}", "--method", method, *micro]) == 0
    capsys.readouterr()
    runs = ["runs/full", "runs/linear-probe"]
    assert main(["compare", *runs, "--format", "latex", "--figures", "figures"]) == 0
    output = capsys.readouterr().out
    assert r"\toprule" in output and "patients" in output and re.search(r"full & .* \\\\", output)
    assert len(list((clinic / "figures").glob("*.html"))) >= 2


def test_a_thousand_frames_become_sequences_that_probes_keep_apart(tmp_path):
    draw, rows = np.random.default_rng(0), []
    (tmp_path / "frames").mkdir()
    for sequence in range(25):
        colour = draw.integers(90, 130, 3)
        for frame in range(42 if sequence < 22 else 41):
            name = f"s{sequence:02d}_{frame:03d}.png"
            picture = np.clip(colour + draw.integers(-20, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
            if sequence % 2:
                picture[4:12, 4:12, 0] = 255  # what there is to find
            Image.fromarray(picture).save(tmp_path / "frames" / name)
            rows.append({"file": f"frames/{name}", "finding": ("normal", "red")[sequence % 2]})
    assert len(rows) == 1047
    pd.DataFrame(rows).to_csv(tmp_path / "frames.csv", index=False)
    done = lab.import_table(
        str(tmp_path / "frames.csv"), video="file", label="finding", patient_from="(s[0-9]+)_", out=str(tmp_path)
    )
    assert done.manifest.table["patient"].nunique() == 25
    model = build_frame_model("vit_micro")
    store = lab.embed(str(done.manifest.path), model, str(tmp_path / "store"), batch_clips=64, progress=False)
    assert store.usable().all() and len(store) == 1047

    sequences, truth = store.rows["patient"].to_numpy(), (store.rows["label"] == "red").to_numpy()
    features = np.asarray(store.vectors)
    answers = np.zeros(len(truth))
    for fit, test in GroupKFold(5).split(features, truth, sequences):
        assert not set(sequences[fit]) & set(sequences[test])
        probe = LogisticRegression(max_iter=200).fit(features[fit], truth[fit])
        answers[test] = probe.predict_proba(features[test])[:, 1]
    means = pd.DataFrame({"truth": truth, "answer": answers}).groupby(sequences).mean()
    assert len(means) == 25 and ((means["answer"] > 0.5) == (means["truth"] > 0.5)).mean() > 0.8
