"""Commands for models of time: `endofm-lab temporal fit` and `temporal predict`."""

from pathlib import Path
from typing import Any

from endofm_lab.cli.command import Output, command
from endofm_lab.cli.train import record_text, show_run
from endofm_lab.temporal.config import TemporalConfig
from endofm_lab.temporal.fit import fit_temporal
from endofm_lab.temporal.predict import predict_temporal


@command(TemporalConfig, positional=("manifest",), flat=("network", "inputs"))
def fit(config: TemporalConfig, output: Output) -> None:
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
def predict(out: Path, settings: dict[str, Any], output: Output) -> None:
    """Answer at every instant of every recording of a store, and write instants.parquet."""
    table = predict_temporal(out=out, **settings)
    counts = table.groupby("recording", sort=False)["predicted"].value_counts().unstack(fill_value=0)
    output.result({"out": out, "instants": len(table), "recordings": counts.to_dict("index")})
    output.say(counts.to_string(max_rows=24))
    output.written(out)


TEMPORAL = {"fit": fit, "predict": predict}
