"""Public objects in a terminal or a notebook: short, escaped, compared without an exception; paths may be text."""

import ast
import logging
import os
import re
from dataclasses import fields, replace
from inspect import isfunction, signature
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import endofm_lab as lab
from endofm_lab import messages
from endofm_lab.brief import Brief
from endofm_lab.data.prepare.prepared import Prepared
from endofm_lab.data.samples import SAMPLES, sample_video
from endofm_lab.data.splits import holdout
from endofm_lab.model.video_model import model_on
from endofm_lab.pretraining.config import tiny
from endofm_lab.pretraining.trainer import pretrain, run_config
from endofm_lab.reports.explanation import explain
from endofm_lab.tasks.classification import Classification
from endofm_lab.temporal.model import TemporalCard, TemporalModel
from tests.builders import frame_model, made_run
from tests.model.weight_layouts import dino_image as image_weights


def learner(config):
    """What the objective of a configuration trains, on a small backbone."""
    objective = config.contrast
    return objective.build(lab.build_backbone("micro"), config, 4, 2)


def over_time():
    """A small model of time."""
    encoder = {"name": "micro", "fingerprint": "f", "vector": "CLS token"}
    card = TemporalCard("a", ("x", "y"), False, False, 8, lab.NetworkConfig(width=4), lab.InputConfig(), 1.0, encoder)
    return TemporalModel(card)


@pytest.fixture(scope="module")
def objects(phantom, tmp_path_factory):
    """An instance of every public class, and a result of every public function."""
    folder, video = tmp_path_factory.mktemp("public"), sample_video(next(iter(SAMPLES)))
    model, manifest = lab.load_model("demo"), lab.read_manifest(phantom)
    clip = lab.read_clip(video, model.card.clip, "centre")
    x = lab.to_input(clip.frames, model.card.input)
    runs = [made_run("a", "classification"), made_run("b", "classification")]
    compared = lab.compare(runs)
    explained = explain(video, model, methods=["gradient x input"])
    table = folder / "own.csv"
    table.write_text("file,finding\n" + f"{video},polyp\n{manifest.resolve(manifest.table['video'][0])},normal\n")
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    still = frame_model(frames)
    (folder / "frames").mkdir()
    for number, picture in enumerate(frames):
        Image.fromarray(picture).save(folder / "frames" / f"{number}.png")
    pretraining = tiny(phantom, folder / "pretraining")
    micro = model_on(lab.build_backbone("micro"), {}, "micro")
    store = lab.embed(manifest, model, folder / "store", progress=False)
    return [
        lab.predict_video(video, model, progress=False), manifest, clip, model(x), model(x).tokens, lab.look(model, x),
        lab.attribute(model, x, "finding", model.card.heads["finding"].classes[0], "gradient x input"),
        store, runs[0], compared, compared.lines[0], explained,
        explained.attributions[0], explained.attributions[0].curves, holdout(manifest.table), model.card.clip,
        lab.FinetuneConfig(phantom, folder, steps=3), lab.Start(), lab.FeatureExtractor(), pretraining, model,
        model.card, model.card.heads["finding"], model.head("finding"), model.backbone, model.card.input,
        lab.audit([manifest], progress=False), lab.PhantomSpec(1), lab.render(lab.PhantomSpec(1, n_frames=2)),
        lab.open_video(video), lab.open_video(video).info,
        lab.Neighbours(store.vectors, store.rows), lab.inspect_checkpoint("demo"), lab.read_mapping("findings-mst"),
        lab.coverage(manifest.table, lab.read_mapping("findings-mst")),
        lab.run_study(folder / "frames", still, folder / "study", progress=False),
        lab.import_table(table, video="file", label="finding", out=folder / "own" / "manifest.csv"), Classification(),
        pretraining.contrast, learner(pretraining), lab.export(micro, folder / "m.pt2", "features"),
        lab.TemporalConfig(phantom, folder / "store", folder), lab.NetworkConfig(), lab.InputConfig(), over_time(),
        model.familiarity, next(iter(lab.kfold(manifest.table))),
        Prepared(folder, "a@1", "b", 0, pd.DataFrame(), [], "no rows"),
    ]  # fmt: skip


def test_every_public_class_and_every_result_of_a_public_function_is_among_the_objects(objects):
    public = [getattr(lab, name) for name in lab.__all__]
    classes = {item for item in public if isinstance(item, type) and not issubclass(item, Exception)}
    results = {get_type_hints(item)["return"] for item in public if isfunction(item)}
    classes |= {kind for kind in results if isinstance(kind, type) and kind.__module__.startswith("endofm_lab.")}
    classes -= {lab.Measure}  # a metric is handed over as its class
    assert not [kind.__name__ for kind in classes if not any(isinstance(item, kind) for item in objects)]


def test_what_a_terminal_shows_of_an_object_is_short(objects):
    for item in objects:
        assert len(repr(item)) < 500, repr(item)[:200]
        assert type(item).__name__ in repr(item) and " object at 0x" not in repr(item)
    assert sum(isinstance(item, Brief) for item in objects) >= 25


def test_a_class_with_arrays_or_tables_shows_sizes_and_is_equal_to_itself_only():
    count = 0
    for path in Path(lab.__file__).parent.rglob("*.py"):
        module = ast.parse(path.read_text(encoding="utf-8"))
        for node in (node for node in ast.walk(module) if isinstance(node, ast.ClassDef) and node.name[0] != "_"):
            decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
            annotations = " ".join(
                ast.unparse(line.annotation) for line in node.body if isinstance(line, ast.AnnAssign)
            )
            if any(text.startswith("dataclass") for text in decorators) and re.search(
                r"\b(ndarray|DataFrame|Tensor)\b", annotations
            ):
                count += 1
                assert "Brief" in map(ast.unparse, node.bases), f"{path}: {node.name}"
                assert any("eq=False" in text and "repr=False" in text for text in decorators), f"{path}: {node.name}"
    assert count > 30


def test_objects_compare_without_an_exception(objects):
    for item in objects:
        equal, equal_to_another = item == item, item == object()
        assert equal is True and equal_to_another is False and hash(type(item)) is not None


def test_what_is_left_out_of_a_short_text_is_the_default():
    config = lab.FinetuneConfig("m.csv", "runs/a", steps=7)
    assert repr(config) == "FinetuneConfig(manifest=m.csv, out=a, steps=7)"
    assert config == lab.FinetuneConfig("m.csv", "runs/a", steps=7) != lab.FinetuneConfig("m.csv", "runs/a")


def test_a_notebook_shows_escaped_text(objects):
    shown = [item for item in objects if hasattr(item, "_repr_html_") and not isinstance(item, lab.FeatureExtractor)]
    tables = {
        "VideoPrediction",
        "Manifest",
        "Comparison",
        "Study",
        "EmbeddingStore",
        "Coverage",
        "Split",
        "Run",
        "Audit",
    }
    assert {type(item).__name__ for item in shown} == tables | {"ImportedTable", "Prepared"}
    for item in shown:
        assert "<table" in item._repr_html_()
    table = pd.DataFrame({"video": ["<script>x</script>"], "label": ["<b>"]})
    html = type(next(t for t in shown if type(t).__name__ == "Manifest"))(table, Path("<i>"))._repr_html_()
    assert "<script>" not in html and "<b>" not in html and "<i>" not in html and "&lt;script&gt;" in html


def test_paths_may_be_text():
    config = lab.FinetuneConfig("m.csv", "runs/a")
    assert config.manifest == Path("m.csv") and config.out == Path("runs/a")
    config = lab.PretrainConfig("m.csv", "runs/a", probe="p.csv")
    assert (config.manifest, config.out, config.probe) == (Path("m.csv"), Path("runs/a"), Path("p.csv"))
    assert {f.name for f in fields(config)} >= {"device", "manifest"}
    for kind in (lab.FinetuneConfig, lab.PretrainConfig):
        for name, hint in get_type_hints(kind).items():
            assert "Path" not in str(hint) or "str" in str(hint), f"{kind.__name__}.{name} says that text is no path"


def test_a_researcher_finds_the_names_in_the_library():
    names = (
        "PretrainConfig",
        "prepare",
        "holdout",
        "kfold",
        "compare",
        "read_run",
        "coverage",
        "Neighbours",
        "METHODS",
    )
    assert {*names, "METHODS", "attribute"} <= set(lab.__all__)
    with pytest.raises(lab.UserError, match="There is no attribution method 'magic'"):
        lab.attribute(lab.load_model("demo"), torch.zeros(1, 3, 8, 128, 128), "finding", "polyp", "magic")


def test_a_pretraining_goes_on_from_another_folder(phantom, tmp_path, monkeypatch):
    monkeypatch.chdir(phantom.parent)
    settings = {"manifest": Path(phantom.name), "out": tmp_path / "run", "steps": 2, "batch": 2, "trackers": ()}
    config = lab.PretrainConfig(**{**vars(tiny(phantom, tmp_path)), **settings})
    steps = pretrain(config)
    next(steps)
    steps.close()
    monkeypatch.chdir(tmp_path)
    loaded = run_config("run")
    assert loaded.manifest.is_absolute() and loaded.manifest.is_file()
    assert list(pretrain(loaded))
    (tmp_path / "later").mkdir()
    monkeypatch.chdir(tmp_path / "later")
    typed = replace(config, manifest=Path(os.path.relpath(phantom)), out=Path("../run"))
    assert not list(pretrain(typed)), "another spelling of the same paths is the same run, which has ended"


def test_a_finetuning_goes_on_and_is_tested_from_another_folder(phantom, tmp_path, monkeypatch):
    (tmp_path / "begun").mkdir()
    (tmp_path / "later").mkdir()
    image_weights(tmp_path / "begun" / "vit.pth")
    monkeypatch.chdir(tmp_path / "begun")
    settings = {"method": "linear probe", "clips": 1, "seeds": (0, 1)}
    steps = lab.finetune(lab.FinetuneConfig(phantom, "run", start=lab.Start("vit.pth", n_frames=1), **settings))
    while "test" not in next(steps):
        pass
    steps.close()
    monkeypatch.chdir(tmp_path / "later")
    run, start = "../begun/run", lab.Start("../begun/vit.pth", n_frames=1)
    assert {r["seed"] for r in lab.finetune(lab.FinetuneConfig(phantom, run, start=start, **settings))} == {1}
    assert lab.evaluate(run, None, "tested").seeds == (0, 1)


def test_tables_have_the_initialisation_as_a_label():
    long = (
        "148 of the backbone's 150 tensors come from endo_fm.pth (Endo-FM's training, teacher); "
        "2 tensors are new: " + ", ".join(["blocks.0.norm"] * 40) + "."
    )
    run = made_run("a", initialisation=long)
    assert run.start == "endo_fm.pth, 148/150 tensors"
    compared = lab.compare([run])
    assert run.start in compared.to_markdown() and long not in compared.to_markdown()
    assert compared.table()["initialisation"].tolist() == [long]
    assert made_run("a", initialisation="Random numbers; nothing was loaded.").start == "Random numbers"
    assert len(made_run("a", initialisation="word " * 100).start) <= 60


def test_a_tracker_that_is_not_installed_is_refused(phantom, tmp_path):
    settings = {"out": tmp_path / "run", "steps": 2, "batch": 2, "trackers": ("trackio-that-is-not-there",)}
    config = lab.PretrainConfig(**{**vars(tiny(phantom, tmp_path)), **settings})
    with pytest.raises(lab.UserError, match="The tracker 'trackio-that-is-not-there' is not available"):
        next(pretrain(config))


def functions():
    """Public functions, and the public methods of public classes, by name."""
    for name in lab.__all__:
        item = getattr(lab, name)
        if isfunction(item):
            yield name, item
        elif isinstance(item, type) and not issubclass(item, Exception):
            for key, member in vars(item).items():
                inner = getattr(member, "__func__", getattr(member, "fget", member))
                if key[0] != "_" and isfunction(inner):
                    yield f"{name}.{key}", inner


def test_public_functions_are_annotated_and_documented_and_take_text_for_a_path():
    names = {"HeadSpec": lab.HeadSpec, "PretrainConfig": lab.PretrainConfig}
    for name, function in functions():
        hints = get_type_hints(function, localns=names)
        parameters = [key for key in signature(function).parameters if key not in ("self", "cls")]
        assert "return" in hints and set(parameters) <= set(hints), name
        assert function.__doc__ or name.split(".")[0] in ("FeatureExtractor",), name
        contract = name.split(".")[0] in ("Encoder", "Objective")  # their configuration is what a subclass says
        assert contract or Any not in hints.values(), name
        for key in parameters:
            kinds = get_args(hints[key]) or (hints[key],)
            assert Path not in kinds or str in kinds, f"{name}: {key}"


def test_text_is_taken_where_a_path_is(phantom, tmp_path):
    model = lab.save_model(lab.load_model("demo"), str(tmp_path / "model"))
    assert lab.load_model(str(model)).card.weights_sha256 == lab.inspect_checkpoint(str(model)).sha256
    manifest = lab.read_manifest(str(phantom))
    lab.write_manifest(manifest.table.head(2), str(tmp_path / "two.csv"))
    assert len(lab.read_manifest(str(tmp_path / "two.csv"))) == 2
    video = str(manifest.resolve(manifest.table["video"][0]))
    with lab.open_video(video) as reader:
        lab.write_video(str(tmp_path / "copy.mkv"), reader.read([0]), reader.info.fps, codec="ffv1")
    assert lab.open_video(str(tmp_path / "copy.mkv")).info.n_frames == 1
    done = lab.predict_video(video, str(model), out=str(tmp_path / "out"), progress=False)
    assert lab.load_prediction(str(tmp_path / "out")).video == done.video


def test_one_switch_silences_messages_and_progress(phantom, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(messages.messages, "level", logging.INFO)
    messages.messages.info("made")
    list(messages.progress_bar(range(3), desc="bar"))
    loud = capsys.readouterr().err
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    messages.messages.info("shown")
    assert "shown" in capsys.readouterr().err and "bar: 100%" in loud
    lab.verbose(False)
    messages.messages.info("hidden")
    list(messages.progress_bar(range(3)))
    assert capsys.readouterr().err == ""
    messages.messages.warning("important")
    assert "important" in capsys.readouterr().err
    lab.verbose()
    with messages.speaking(False):
        assert not messages.messages.isEnabledFor(logging.INFO)
    assert messages.messages.isEnabledFor(logging.INFO)


def test_no_room_of_the_library_prints_or_makes_bars_of_its_own():
    root = Path(lab.__file__).parent
    for path in root.rglob("*.py"):
        if "cli" in path.parts or path.name in ("messages.py", "widgets.py"):
            continue
        calls = [n.func for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
        names = {getattr(call, "id", getattr(call, "attr", "")) for call in calls}
        assert not names & {"print", "tqdm"}, path
