"""A store of made vectors whose phases only the context tells, and the manifest that belongs to it."""

import json

import numpy as np
import pandas as pd

from endofm_lab.data.manifest import read_manifest, write_manifest


def made(folder, n_recordings=12, width=6, seed=0, seconds=60):
    """Writes dummy videos, a manifest and a store; a landmark in the vectors separates the phases "in" and "out"."""
    draw, rows, vectors, instants = np.random.default_rng(seed), [], [], []
    folder.mkdir(parents=True, exist_ok=True)
    splits = ["train"] * (n_recordings - 4) + ["val"] * 2 + ["test"] * 2
    for n, split in enumerate(splits):
        name, turn = f"v{n:02d}.mp4", int(draw.integers(15, seconds - 15))
        (folder / name).write_text(f"dummy {n} {seed}")
        tool = turn + 5
        for start, end, label, tools in (
            (0, turn, "in", ""),
            (turn, tool, "out", ""),
            (tool, tool + 5, "out", "snare|forceps" if n % 2 else "snare"),
            (tool + 5, seconds, "out", ""),
        ):
            row = {"video": name, "start_s": start, "end_s": end, "label": label, "patient": f"p{n}", "dataset": "made"}
            rows.append({**row, "split": split, "tools": tools})
        own = draw.normal(0, 1, (seconds, width))
        own[turn : turn + 3, 0] += 8  # the landmark
        own[tool : tool + 5, 1] += 4
        own[tool : tool + 5, 2] += 4 * (n % 2)
        vectors.append(own)
        instants.append(pd.DataFrame({"video": name, "start_s": np.arange(seconds), "patient": f"p{n}"}))
    write_manifest(pd.DataFrame(rows), folder / "manifest.csv")
    manifest, store = read_manifest(folder / "manifest.csv"), folder / "store"
    store.mkdir()
    table = pd.concat(instants, ignore_index=True).astype({"start_s": float})
    table.assign(
        end_s=table["start_s"], dataset="made", label="", split="", time_s=table["start_s"], error=""
    ).to_parquet(store / "rows.parquet")
    np.save(store / "vectors.npy", np.concatenate(vectors).astype(np.float32))
    about = {
        "model_name": "made",
        "model_fingerprint": "f" * 64,
        "manifest_fingerprint": "m",
        "generated": True,
        "rows": len(table),
        "width": width,
        "vector": "CLS token",
        "step_s": 1.0,
        "videos": manifest.contents(),
    }
    (store / "store.json").write_text(json.dumps(about))
    return folder / "manifest.csv", store
