"""After a file or folder is overwritten in place, the app shows its new content."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from endofm_lab.model.loading.load import save_model
from tests.app.addresses import prediction, typed_before
from tests.explain.models import small_model

APP = Path(__file__).resolve().parents[2] / "app"


def write_frames(folder, value):
    folder.mkdir(exist_ok=True)
    for n in range(6):
        picture = np.random.default_rng([value, n]).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"{n:03d}.png", compress_level=0)  # the same size for all pictures


def write_model(folder, sure_of):
    model = small_model()
    name = next(name for name, spec in model.card.heads.items() if spec.kind in ("multiclass", "multilabel"))
    model.heads[name].linear.bias.data[sure_of] += 100
    save_model(model, folder)
    return model.card.heads[name].classes


def shown_scores(app):
    assert not app.exception and not app.error, [*app.exception, *app.error]
    return app.dataframe[0].value.set_index("class")["score"]


@pytest.fixture
def app(tmp_path, monkeypatch):
    monkeypatch.setenv("ENDOFM_LAB_CACHE", str(tmp_path / "cache"))
    write_frames(tmp_path / "frames", 0)
    write_model(tmp_path / "model", 0)
    app = prediction(APP / "main.py")
    app.query_params |= {"source": "file", "path": typed_before(tmp_path / "frames")}
    app.query_params["model"] = typed_before(tmp_path / "model")
    return app.run()


def test_a_model_that_was_overwritten_predicts_again(app, tmp_path):
    assert shown_scores(app).iloc[0] > 0.99
    classes = write_model(tmp_path / "model", 1)
    assert shown_scores(app.run())[classes[1]] > 0.99


def test_frames_that_were_overwritten_are_predicted_and_shown_again(app, tmp_path):
    before, picture = shown_scores(app), app.get("plotly_chart")[0].proto.spec
    count = len(list((tmp_path / "cache" / "predictions").iterdir()))
    write_frames(tmp_path / "frames", 1)
    after = shown_scores(app.run())
    assert len(list((tmp_path / "cache" / "predictions").iterdir())) == count + 1
    assert app.get("plotly_chart")[0].proto.spec != picture and len(after) == len(before)


def test_a_typed_folder_without_frames_is_not_searched(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(APP))
    import cache

    (tmp_path / "deep").mkdir()
    write_frames(tmp_path / "deep" / "frames", 0)
    assert cache.video_content(tmp_path).stamp == "" == cache.content_of("a" * 5000).stamp
    assert cache.video_content(tmp_path / "deep" / "frames").stamp
