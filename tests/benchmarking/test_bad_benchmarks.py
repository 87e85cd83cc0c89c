"""Benchmark files that cannot be run: a sentence each, before anything is computed or written."""

import pytest

import endofm_lab as lab
from endofm_lab.benchmarking.config import BenchmarkError, read_benchmark
from endofm_lab.benchmarking.plan import Plan
from endofm_lab.cli.main import main
from endofm_lab.data.manifest import absolute_paths, read_manifest, write_manifest
from endofm_lab.errors import UserError
from tests.builders import lively

GOOD = {
    "encoders": {"micro": {"start": "scratch", "size": "micro"}},
    "tasks": {"findings": {"manifest": "m.csv"}},
    "methods": ["knn", "linear probe"],
}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"encoder": {}}, "the file: unknown key 'encoder'; did you mean 'encoders'?"),
        ({"encoders": None}, "encoders: expected at least one `name: value`, found {}"),
        ({"encoders": {"a": {"size": "micro"}}}, "encoders.a: 'start' is missing"),
        (
            {"encoders": {"a": {"start": "demo", "frames": 2}}},
            "encoders.a: unknown key 'frames'; did you mean 'n_frames'",
        ),
        ({"encoders": {"a": {"start": "demo", "n_frames": "8"}}}, "encoders.a.n_frames: '8' has the wrong form"),
        ({"encoders": {"a/b": "demo"}}, "'a/b' is no name; give up to 40 letters"),
        ({"encoders": {"a": {"start": "demo", "methods": ["knm"]}}}, "there is no method 'knm'; did you mean 'knn'?"),
        ({"tasks": {}}, "tasks: expected at least one"),
        ({"tasks": {"a": {"task": "phases"}}}, "tasks.a: 'manifest' is missing"),
        ({"tasks": {"a": {"manifest": "m.csv", "task": "clasification"}}}, "did you mean 'classification'?"),
        ({"tasks": {"a": {"manifest": "m.csv", "step_s": 1.0}}}, "tasks.a: unknown key 'step_s'; choose one of clips"),
        ({"tasks": {"a": {"manifest": "m.csv", "clips": 0}}}, "tasks.a: clips is 0 and crops 1"),
        (
            {"tasks": {"a": {"manifest": "m.csv", "task": "segmentation"}}},
            "'knn' answers none of the tasks; leave it out",
        ),
        ({"methods": ["temporal"]}, "'temporal' answers none of the tasks"),
        ({"methods": ["linear prob"]}, "there is no method 'linear-prob'; did you mean 'linear-probe'?"),
        ({"methods": {"a": {"method": "full", "step": 3}}}, "methods.a: unknown key 'step'; did you mean 'steps'?"),
        (
            {"methods": {"a": {"method": "full", "steps": "3e2"}}},
            "methods.a.steps: '3e2' has the wrong form; a number with",
        ),
        ({"methods": {"a": {"method": "full", "lr": 0.0}}}, "methods.a: lr is 0.0"),
        ({"methods": {"a": {"method": "temporal", "kind": "lstm"}}}, "methods.a.kind: 'lstm' has the wrong form"),
        ({"methods": {"a": {"method": "temporal", "width": 0}}}, "methods.a: width is 0; give a whole number"),
        ({"methods": {"a": {"steps": 3}}}, "methods.a: expected a method, or `method: ...`"),
        ({"training": {"seeds": [1]}}, "training: unknown key 'seeds'"),
        ({"budgets": ["10 percent"]}, "budgets: The label budget is '10 percent'; give 'all', a share"),
        ({"budgets": "all"}, "budgets: expected a list"),
        ({"seeds": [1, 1]}, "seeds: expected a list of different whole numbers"),
        ({"degradations": ["blurr"]}, "there is no degradation 'blurr'; did you mean 'blur'?"),
    ],
)
def test_a_file_with_a_mistake_is_refused_with_the_entry(change, sentence):
    with pytest.raises(BenchmarkError) as error:
        read_benchmark({**GOOD, **change})
    assert sentence in str(error.value)


def test_a_good_file_is_read_with_its_short_forms(tmp_path):
    (tmp_path / "b.yaml").write_text(
        "encoders: {demo: demo}\ntasks: {a: m.csv, b: {manifest: m.csv, task: phases, several_labels: true}}\n"
        "methods: [linear-probe]\n"
    )
    with pytest.raises(BenchmarkError, match=r"tasks.b: no method answers it; its methods are temporal"):
        read_benchmark(tmp_path / "b.yaml")
    config = read_benchmark(
        {**GOOD, "methods": ["knn", "ST-Adapter"], "training": {"steps": 5}, "budgets": ["10%", "10 %"]}
    )
    assert config.budgets == ("10 %",) and [m.name for m in config.methods] == ["knn", "ST-Adapter"]
    assert [m.settings for m in config.methods] == [{}, {"steps": 5}], "a probe has no steps"
    (tmp_path / "c.yaml").write_text("encoders: [1\n")
    with pytest.raises(BenchmarkError, match=r"c\.yaml is not readable YAML"):
        read_benchmark(tmp_path / "c.yaml")
    (tmp_path / "d.yaml").write_text("encoders: {a: demo}\nencoders: {b: demo}\n")
    with pytest.raises(BenchmarkError, match="stands twice"):
        read_benchmark(tmp_path / "d.yaml")


def test_what_the_data_or_the_encoder_lack_is_refused_before_anything_is_computed(phantom, tmp_path):
    table = absolute_paths(read_manifest(phantom))

    def refused(match, table=None, **changes):
        facts = {**GOOD, "tasks": {"findings": {"manifest": str(phantom)}}, **changes}
        if table is not None:
            write_manifest(table, tmp_path / "changed.csv")
            facts["tasks"] = {"findings": {"manifest": str(tmp_path / "changed.csv")}}
        with pytest.raises(UserError, match=match):
            list(lab.benchmark(facts, tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    refused("Task findings: .*There is no such manifest", tasks={"findings": {"manifest": str(tmp_path / "none.csv")}})
    refused("Task findings: .*no split 'other'", tasks={"findings": {"manifest": str(phantom), "split": "other"}})
    refused(
        "Task findings: There is no column|Task findings: .*column 'grade'",
        tasks={"findings": {"manifest": str(phantom), "label": "grade"}},
    )
    refused("Task findings: The label budget is 7 patients, but training has 6 patients", budgets=["7 patients"])
    refused("Task findings: .*patients or recordings are in more than one split", table=table.assign(patient="p"))
    refused("has no rows of val", table=table[table["split"] != "val"])
    gaps = table.assign(label=table["label"].mask(table.index == 3, ""))
    refused("Task findings: 1 row", table=gaps)
    rare = table.assign(label=table["label"].mask(table["patient"] == table["patient"][0], "rare"))
    refused("without a training example: rare", table=rare, budgets=["1 patient", "all"])
    facts = {"a": {"start": "none.pth"}}
    with pytest.raises(UserError, match=r"Encoder a: none\.pth: There is no such file"):
        list(lab.benchmark({**GOOD, "tasks": {"f": str(phantom)}, "encoders": facts}, tmp_path / "out"))
    facts = {"a": {"start": "scratch", "size": "mikro"}}
    with pytest.raises(UserError, match="Encoder a: The size is 'mikro'"):
        list(lab.benchmark({**GOOD, "tasks": {"f": str(phantom)}, "encoders": facts}, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_encoder_without_what_a_method_needs_is_refused_and_can_be_left_out(phantom, tmp_path):
    from endofm_lab.model.video_model import build_frame_model

    frames = build_frame_model("vit_micro", {})
    facts = {"tasks": {"f": {"manifest": str(phantom), "clips": 1}}, "methods": ["knn", "ST-Adapter"]}
    with pytest.raises(UserError, match="Encoder frames: The method ST-Adapter needs a plain video transformer, but"):
        list(lab.benchmark(facts, tmp_path / "out", encoders={"frames": frames}))
    with pytest.raises(BenchmarkError, match=r"encoders.frames: the name is in the file and among the objects"):
        read_benchmark({**facts, "encoders": {"frames": "demo"}}, {"frames": lively("micro")})


def test_the_command_answers_mistakes_with_exit_code_2(tmp_path, capsys):
    (tmp_path / "b.yaml").write_text("encoders: {demo: demo}\ntasks: {a: m.csv}\nmethods: [knm]\n")
    assert main(["benchmark", str(tmp_path / "b.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "Error: b.yaml, methods.knm: there is no method 'knm'; did you mean 'knn'?\n"
    (tmp_path / "b.yaml").write_text("encoders: {demo: demo}\ntasks: {a: m.csv}\nmethods: [knn]\n")
    assert main(["benchmark", str(tmp_path / "b.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert "Error: Task a: " in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_settings_are_held_against_the_method_and_the_task_before_anything_is_computed(phantom, tmp_path):
    facts = {**GOOD, "tasks": {"f": {"manifest": str(phantom)}}}
    with pytest.raises(BenchmarkError, match=r"methods\.a: rank is 4 and alpha 16\.0, but full has none"):
        read_benchmark({**facts, "methods": {"a": {"method": "full", "rank": 4}}})
    config = read_benchmark({**facts, "methods": {"a": {"method": "LoRA", "rank": 4}}})
    assert config.methods[0].settings == {"rank": 4}
    with pytest.raises(BenchmarkError, match=r"methods\.a: 'full' answers none of the tasks"):
        read_benchmark({**facts, "methods": {"a": {"method": "full", "head": "iou"}}})
    probes = {**facts, "tasks": {"f": {"manifest": str(phantom), "loss": "focal"}}, "methods": ["knn", "frozen"]}
    plan = Plan.of(read_benchmark(probes))
    assert [plan.settings(cell, tmp_path).loss for cell in plan.cells] == ["cross-entropy", "focal"]
    bad = {"a": {"method": "frozen", "augmentation": "none", "head": "stft"}}
    boxes = {"b": {"manifest": str(phantom), "task": "detection"}}
    assert read_benchmark({**facts, "tasks": boxes, "methods": bad}).methods[0].settings["head"] == "stft"
