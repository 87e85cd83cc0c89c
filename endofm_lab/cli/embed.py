"""`endofm-lab embed`."""

import json as json_format
import math
from pathlib import Path
from typing import Annotated, Any

import tyro

from endofm_lab import NOTICE


def embed(
    manifest: Annotated[Path, tyro.conf.Positional],
    out: Path,
    model: str = "demo",
    batch_clips: int = 8,
    json: bool = False,
) -> None:
    """One vector per row of a manifest, kept in a folder, with neighbours and the shortcut test printed.

    A run that was stopped goes on where it was when the same command is given again.

    Args:
        manifest: a CSV or Parquet manifest.
        out: folder for vectors.npy, rows.parquet, pca.npz and store.json.
        model: "demo", a model's folder, or a released checkpoint.
        batch_clips: clips that go through the model together.
        json: print the numbers as JSON.
    """
    from endofm_lab.explain.atlas import fit_pca, neighbour_purity, shortcut_test
    from endofm_lab.explain.embeddings import embed as run

    store = run(manifest, model, out, batch_clips)
    usable = store.usable()
    vectors, rows = store.vectors[usable], store.rows[usable].reset_index(drop=True)
    told: dict[str, Any] = {
        "out": str(out),
        "model": store.about["model_name"],
        "clips": len(rows),
        "unreadable": store.rows.loc[~usable, ["video", "error"]].to_dict("records"),
    }
    if len(rows) > 1:
        pca = fit_pca(vectors, min(8, vectors.shape[1]))
        pca.save(store.path / "pca.npz")
        told["pca_explained"] = [float(share) for share in pca.explained]
        told["neighbour_purity"] = {name: float(neighbour_purity(vectors, rows, name)) for name in ("label", "dataset")}
        shortcuts = shortcut_test(vectors, rows)
        told["shortcuts"] = json_format.loads(shortcuts.to_json(orient="records"))
    if json:
        if "neighbour_purity" in told:  # not defined where no row has a value
            told["neighbour_purity"] = {k: None if math.isnan(v) else v for k, v in told["neighbour_purity"].items()}
        print(json_format.dumps(told, indent=2, ensure_ascii=False))
        return
    print(f"{len(rows)} clips embedded by {told['model']}, {len(told['unreadable'])} could not be read.")
    for row in told["unreadable"][:5]:
        print(f"  {row['video']}: {row['error']}")
    if len(rows) < 2:
        return
    print("PCA: " + ", ".join(f"{share:.1%}" for share in told["pca_explained"]) + " of the variance.")
    for column, purity in told["neighbour_purity"].items():
        print(f"Of five neighbours in other videos, {purity:.1%} share the {column}.")
    if len(shortcuts):
        print("What a linear probe tells from the vectors:")
        print(shortcuts.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    print(f"Written to {out}. {NOTICE}")
