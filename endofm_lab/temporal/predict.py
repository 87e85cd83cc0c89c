"""Answers of a model of time at every instant of the recordings in a store."""

from pathlib import Path

import numpy as np
import pandas as pd

from endofm_lab.explain.embeddings import load_store
from endofm_lab.files import write_parquet
from endofm_lab.folders.run_folder import claim
from endofm_lab.temporal.model import CARD, load_temporal
from endofm_lab.temporal.recordings import recordings_of

ANSWERS = "instants.parquet"


def predict_temporal(model: str | Path, features: str | Path, out: str | Path, smooth: bool = False) -> pd.DataFrame:
    """Answer at every instant, and write ``instants.parquet`` into a folder.

    Args:
        model: folder of a model of time, or of a run of `fit_temporal`, of which the first seed answers.
        features: store of the encoder that the model was trained with, from `embed` with ``step_s``.
        out: folder of the result.
        smooth: smooth the answers by the model's hidden Markov model, even if the model does not.

    Returns:
        One row per instant: ``recording``, ``time_s``, ``predicted`` (the class, or classes of at least 0.5 joined by
        ``|``), and ``score_<class>``.

    Raises:
        UserError: the store is of another encoder, or ``out`` holds other files.
    """
    folder, store = Path(model), load_store(features)
    if not (folder / CARD).is_file():
        folder = next(iter(sorted(folder.glob(f"seed-*/model/{CARD}"))), folder / CARD).parent
    network = load_temporal(folder)
    network.must_fit(store)
    classes, tables = np.array(network.card.classes), []
    for name, (rows, times) in recordings_of(store).items():
        scores = network.scores(np.array(store.vectors[rows]), times, smooth or None)
        table = pd.DataFrame({"recording": name, "time_s": times})
        if network.card.several:
            table["predicted"] = ["|".join(classes[row >= 0.5]) for row in scores]
        else:
            table["predicted"] = classes[scores.argmax(1)]
        table[[f"score_{name}" for name in classes]] = scores
        tables.append(table)
    result = pd.concat(tables, ignore_index=True)
    request = {"model": network.card.weights_sha256, "store": store.about["videos"], "smooth": smooth}
    with claim(out, request, "answers over time") as target:
        write_parquet(target / ANSWERS, result)
    return result
