"""`endofm-lab embed`."""

from pathlib import Path
from typing import Annotated

import tyro


def embed(
    manifest: Annotated[Path, tyro.conf.Positional], out: Path, model: str = "demo", batch_clips: int = 8
) -> None:
    """One vector per row of a manifest, kept in a folder, with neighbours and the shortcut test printed.

    A run that was stopped goes on where it was when the same command is given again.

    Args:
        manifest: a CSV or Parquet manifest.
        out: folder for vectors.npy, rows.parquet, pca.npz and store.json.
        model: "demo", a model's folder, or a released checkpoint.
        batch_clips: clips that go through the model together.
    """
    from endofm_lab.explain.atlas import fit_pca, neighbour_purity, shortcut_test
    from endofm_lab.explain.embeddings import embed as run

    store = run(manifest, model, out, batch_clips)
    usable = store.usable()
    vectors, rows = store.vectors[usable], store.rows[usable].reset_index(drop=True)
    print(f"{len(rows)} clips embedded by {store.about['model_name']}, {int((~usable).sum())} could not be read.")
    for _, row in store.rows[~usable].head(5).iterrows():
        print(f"  {row['video']}: {row['error']}")
    if len(rows) < 2:
        return
    pca = fit_pca(vectors, min(8, vectors.shape[1]))
    pca.save(store.path / "pca.npz")
    print("PCA: " + ", ".join(f"{share:.1%}" for share in pca.explained) + " of the variance.")
    for column in ("label", "dataset"):
        purity = neighbour_purity(vectors, rows, column)
        print(f"Of five neighbours in other videos, {purity:.1%} share the {column}.")
    told = shortcut_test(vectors, rows)
    if len(told):
        print("What a linear probe tells from the vectors:")
        print(told.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    print(f"Written to {out}. For research only: not a medical device, not for diagnosis.")
