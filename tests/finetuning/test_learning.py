"""Classes are learned on the phantom within minutes, from the demo weights; `docs.experiments` has all tasks."""

import pytest

from endofm_lab.data.manifest import read_manifest
from endofm_lab.data.phantom_set import write_phantom
from endofm_lab.finetuning.config import FinetuneConfig
from endofm_lab.finetuning.finetune import finetune
from endofm_lab.finetuning.start import Start
from endofm_lab.predict import predict_video

pytestmark = pytest.mark.slow
START = Start("demo", image_px=64, n_frames=2, stride=4)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return write_phantom(tmp_path_factory.mktemp("phantom"), "tiny", seed=7, progress=False)  # not the demo's patients


def test_a_short_fine_tuning_learns_and_predict_opens_the_model(phantom, tmp_path):
    config = FinetuneConfig(phantom, tmp_path / "run", start=START, steps=80, lr=1e-3, validate_every=80)
    *_, last = finetune(config)
    print({name: round(value, 3) for name, value in last["test"].items()})
    assert last["test"]["auc"] > 0.7
    video = phantom.parent / read_manifest(phantom).rows("test").query("label == 'polyp'")["video"].iloc[0]
    prediction = predict_video(video, config.out / "seed-0" / "model", progress=False)
    assert prediction.provenance["training_data"]["fingerprint"] == read_manifest(phantom).fingerprint
