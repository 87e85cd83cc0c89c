"""Files of version 0.1.0 as its first programs wrote them, without hashes, seals and the fields that came later.

tests/goldens/version_1 holds a run of two seeds, a prediction with masks and boxes, a store, a study, and the record of
a pre-training. The videos are phantoms; the demo model made the prediction, networks of the size "micro" the others.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from endofm_lab.cli.main import main
from endofm_lab.errors import UserError
from endofm_lab.explain.embeddings import load_store
from endofm_lab.files import read_json, write_json
from endofm_lab.finetuning.config import FinetuneConfig
from endofm_lab.finetuning.finetune import finetune
from endofm_lab.finetuning.start import Start
from endofm_lab.integrity import check_folder
from endofm_lab.model.loading.load import load_model, save_model
from endofm_lab.prediction import load_prediction
from endofm_lab.pretraining.trainer import run_config
from endofm_lab.reports.pretraining import health_of, report_run
from endofm_lab.runs.run import read_run, write_run
from endofm_lab.study.study import load_study
from endofm_lab.training.loop import read_log
from tests.explain.models import small_clip, small_model

VERSION_1 = Path(__file__).parent / "goldens" / "version_1"


@pytest.mark.parametrize("kind", ["run", "prediction", "store", "study"])
def test_they_are_whole_as_far_as_can_be_told(kind):
    check = check_folder(VERSION_1 / kind)
    assert check.whole and check.kind == kind and check.hashes is None


def test_a_run_has_the_metrics_that_were_written_beside_it(tmp_path, capsys):
    run, written = read_run(VERSION_1 / "run"), read_json(VERSION_1 / "run" / "report.json")
    assert run.unit["kind"] == "patient" and run.n_units == 2
    write_run(tmp_path / "again", run)
    second = read_json(tmp_path / "again" / "report.json")
    for name, metric in written["metrics"].items():
        for number in ("value", "seed_std"):
            assert second["metrics"][name][number] == pytest.approx(metric[number], rel=1e-12, nan_ok=True), name
    assert main(["compare", str(VERSION_1 / "run")]) == 0
    assert "full fine-tuning" in capsys.readouterr().out


def test_a_prediction_has_its_masks_and_its_boxes_belong_to_the_one_box_head():
    prediction = load_prediction(VERSION_1 / "prediction")
    assert len(prediction.boxes_xyxy) == 10 and set(prediction.boxes_xyxy["head"]) == {"box"}
    for frame in prediction.frames.tolist():
        picture = np.asarray(Image.open(VERSION_1 / "prediction" / "masks" / f"{frame:06d}.png"))
        assert np.array_equal(prediction.mask(frame)[0], picture > 0)


def test_a_store_and_a_study_have_their_rows():
    store, study = load_store(VERSION_1 / "store"), load_study(VERSION_1 / "study")
    assert store.vectors.shape == (40, 32) and store.usable().all()
    assert study.finished and len(study.table()) == 32 and set(study.scores) == {"finding", "signs"}


def test_a_pre_training_has_a_configuration_a_log_and_a_report(tmp_path):
    folder = shutil.copytree(VERSION_1 / "pretraining", tmp_path / "run")
    config = run_config(folder)
    assert (config.steps, config.batch, config.dino.prototypes) == (4, 4, 32)
    assert len(read_log(folder / "log.jsonl")) == 4 and health_of(folder).state == "too early to say"
    assert report_run(folder).is_file()
    assert "not finished" in check_folder(folder).text()


def test_a_model_without_a_seal_answers_as_before(tmp_path):
    """The card says nothing that the weights repeat, and the file of weights has no copy of the card."""
    model, clip = small_model(), small_clip()
    save_model(model, tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    save_file(load_file(weights), weights, {"format": "pt"})
    card = read_json(tmp_path / "m" / "card.json")
    card.pop("weights_sha256")
    write_json(tmp_path / "m" / "card.json", card)
    with safe_open(weights, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    loaded = load_model(tmp_path / "m").eval()
    for name, logits in model.eval()(clip).logits.items():
        assert torch.equal(loaded(clip).logits[name], logits)


def test_a_run_is_not_trained_again_in_its_folder_and_the_sentence_names_what_its_record_lacks(phantom, tmp_path):
    folder = shutil.copytree(VERSION_1 / "run", tmp_path / "run")
    before = json.loads((folder / "config.json").read_text())
    start = Start("scratch", size="micro", image_px=32, n_frames=2, stride=4)
    config = FinetuneConfig(phantom, folder, start=start, steps=6, validate_every=3, seeds=(0, 1), clips=1)
    with pytest.raises(UserError) as refusal:
        next(finetune(config))
    assert "start_weights is not recorded there; files is not recorded there. Choose another" in str(refusal.value)
    assert "milestones" not in str(refusal.value) and "encoders" not in str(refusal.value)
    assert json.loads((folder / "config.json").read_text()) == before
