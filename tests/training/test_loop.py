"""The training loop: resumes bit for bit, leaves out what cannot be read, saves before it ends."""

import errno
import json
import random
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

from endofm_lab.errors import CheckpointError, UserError, VideoError
from endofm_lab.training import checkpoints as checkpoint_module
from endofm_lab.training.checkpoints import Checkpoints
from endofm_lab.training.draws import Draws, MixedDraws
from endofm_lab.training.loop import DivergenceError, read_log
from endofm_lab.training.optimiser import clip_each, parameter_groups
from tests.training.toy import CONFIG, Numbers, Toy, losses, start


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return losses(start(tmp_path_factory.mktemp("whole")))


def test_a_run_killed_at_any_step_goes_on_bit_for_bit(tmp_path, whole):
    """Killed means: nothing is saved after the last checkpoint, the log may be ahead of it and end in half a line."""
    assert len(set(whole)) == 20
    for killed_after in random.Random(0).sample(range(1, 20), 10):
        out = tmp_path / str(killed_after)
        run = start(out)
        for _ in range(killed_after):
            next(run)
        shutil.copytree(out, out.with_suffix(".killed"))  # what a killed process leaves
        run.close()
        out = out.with_suffix(".killed")
        with (out / "log.jsonl").open("a") as log:
            log.write('{"step": 99, "lo')
        remaining = losses(start(out))
        assert remaining == whole[killed_after // 5 * 5 :]
        assert losses(read_log(out / "log.jsonl")) == whole
        assert [record["step"] for record in read_log(out / "log.jsonl")] == list(range(20))


def test_a_closed_run_goes_on_where_it_was(tmp_path, whole):
    run = start(tmp_path)
    first = [next(run)["loss"] for _ in range(7)]
    run.close()
    assert first + losses(start(tmp_path)) == whole


def test_ctrl_c_during_an_update_saves_a_whole_step(tmp_path, whole):
    import os
    import signal

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C
    model = Toy()
    after = model.after_step

    def interrupted(step):
        if step == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return after(step)

    model.after_step = interrupted
    values = []
    try:
        with pytest.raises(KeyboardInterrupt):
            for record in start(tmp_path, model=model):
                values.append(record["loss"])
    finally:
        signal.signal(signal.SIGINT, previous)
    assert Checkpoints(tmp_path / "checkpoints").all()[-1].name == "step-00000007"
    assert values == whole[:6]
    assert losses(read_log(tmp_path / "log.jsonl")) == whole[:7]  # the saved step is logged, though never yielded
    assert losses(start(tmp_path)) == whole[7:]
    assert losses(read_log(tmp_path / "log.jsonl")) == whole


def test_the_loop_leaves_the_callers_random_numbers_alone(tmp_path):
    run = start(tmp_path, model=Toy())
    torch.manual_seed(5)
    before = torch.get_rng_state()
    next(run)
    assert torch.equal(torch.get_rng_state(), before)
    run.close()


def test_workers_see_the_same_samples(tmp_path, whole):
    assert losses(start(tmp_path, replace(CONFIG, workers=2, steps=6))) == whole[:6]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_a_sample_is_the_same_sentence_with_and_without_workers(tmp_path, workers):
    class Unreadable(Numbers):
        def sample(self, index, seed):
            raise VideoError("a.mp4", "It is empty.")

    with pytest.raises(UserError) as error:
        list(start(tmp_path, replace(CONFIG, workers=workers), data=Unreadable()))
    message = str(error.value)
    assert message.startswith("20 draws in a row gave no readable video: ") and "Traceback" not in message
    assert message.endswith("Check the manifest's files.")


def test_pieces_of_a_batch_give_the_gradient_of_the_whole(tmp_path):
    def plain():
        model = Toy()
        model.net[1].p = 0.0
        return model

    runs = [losses(start(tmp_path / str(n), replace(CONFIG, accumulation=n), model=plain())) for n in (1, 2, 4)]
    for run in runs[1:]:  # Adam divides small gradients by small ones: rounding grows over 20 steps
        assert run == pytest.approx(runs[0], rel=1e-5, abs=1e-5)


def test_an_epoch_shows_every_sample_once_and_epochs_differ():
    draws = Draws(7, seed=3)
    epochs = [[draws[e * 7 + k][0] for k in range(7)] for e in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert len({draws[k][1] for k in range(1000)}) == 1000
    assert draws[5] == Draws(7, seed=3)[5] and [Draws(7, 4)[k] for k in range(7)] != [draws[k] for k in range(7)]


def test_sources_with_weights_get_their_share_of_every_stretch_and_all_their_samples():
    draws = MixedDraws((5, 3, 4), (3.0, 1.0, 2.0), seed=1)
    indices = [draws[number][0] for number in range(600)]
    for first in range(0, 600, 60):
        piece = indices[first : first + 60]
        counts = [sum(0 <= index < 5 for index in piece), sum(5 <= i < 8 for i in piece), sum(i >= 8 for i in piece)]
        assert max(abs(count - share) for count, share in zip(counts, (30, 10, 20), strict=True)) <= 2
    first = [index for index in indices if index < 5]
    assert all(sorted(first[epoch : epoch + 5]) == [0, 1, 2, 3, 4] for epoch in range(0, 300, 5))
    assert [draws[number] for number in (599, 3, 77)] == [draws[number] for number in (599, 3, 77)]
    assert indices[77] == MixedDraws((5, 3, 4), (3.0, 1.0, 2.0), 1)[77][0]
    assert indices != [MixedDraws((5, 3, 4), (3.0, 1.0, 2.0), 2)[number][0] for number in range(600)]
    assert all(5 <= draws.instead(number, 0) < 8 for number in range(600) if 5 <= indices[number] < 8)


def test_an_unreadable_video_is_named_counted_and_left_out_for_good(tmp_path):
    data = Numbers(n=12, bad=[3], n_files=200)
    records = list(start(tmp_path, replace(CONFIG, steps=12), data))
    assert records[-1]["left_out"] == 1
    assert Counter(data.read_indices)[3] == 1
    state = json.loads((Checkpoints(tmp_path / "checkpoints").all()[-1] / "state.json").read_text())
    assert state["left_out"] == {"video3.mp4": "it is broken"}
    numbers = Numbers(n=12, bad=[3], n_files=200)
    assert list(start(tmp_path, replace(CONFIG, steps=20), numbers))[-1]["left_out"] == 1
    assert 3 not in numbers.read_indices


def test_a_run_with_an_unreadable_video_resumes_bit_for_bit(tmp_path):
    data = {"n": 12, "bad": [3, 7], "n_files": 300}
    whole = losses(start(tmp_path / "whole", data=Numbers(**data)))
    run = start(tmp_path / "cut", data=Numbers(**data))
    first = [next(run)["loss"] for _ in range(8)]
    run.close()
    assert first + losses(start(tmp_path / "cut", data=Numbers(**data))) == whole


def test_more_than_one_per_cent_of_unreadable_videos_ends_the_run_with_the_list(tmp_path):
    with pytest.raises(UserError, match=r"3 of 200 videos.*video2\.mp4 \(it is broken\).*manifest") as error:
        list(start(tmp_path, data=Numbers(n=12, bad=[2, 5, 8], n_files=200)))
    assert all(f"video{i}.mp4" in str(error.value) for i in (2, 5, 8))


def test_a_full_disk_is_a_clear_error_and_the_last_checkpoint_stays_whole(tmp_path, whole, monkeypatch):
    save, saves = checkpoint_module.save_file, []

    def full(tensors, path):
        saves.append(path)
        if len(saves) == 3:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path)

    monkeypatch.setattr(checkpoint_module, "save_file", full)
    with pytest.raises(CheckpointError, match=r"step 15.*No space left.*last good one is step-00000010.*resume"):
        list(start(tmp_path))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000005", "step-00000010"]
    assert losses(start(tmp_path)) == whole[10:]


def test_the_newest_checkpoints_stay(tmp_path):
    list(start(tmp_path, replace(CONFIG, keep=3)))
    assert [p.name[-2:] for p in Checkpoints(tmp_path / "checkpoints").all()] == ["10", "15", "20"]


def test_what_a_killed_write_left_is_cleared_away(tmp_path, whole):
    list(start(tmp_path, replace(CONFIG, steps=5)))
    (tmp_path / "checkpoints" / ".step-00000010.77.part").mkdir()
    assert losses(start(tmp_path)) == whole[5:]
    assert not list((tmp_path / "checkpoints").glob(".*"))


@pytest.mark.parametrize("name", ["model.safetensors", "optimiser.pt", "state.json"])
@pytest.mark.parametrize("content", [b"", b"nothing", b"[]", b"\x80\x02}q\x00."])
def test_a_damaged_checkpoint_is_an_error_that_names_it(name, content, tmp_path):
    list(start(tmp_path, replace(CONFIG, steps=5)))
    (tmp_path / "checkpoints" / "step-00000005" / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="step-00000005 cannot be loaded"):
        next(start(tmp_path))


def test_a_loss_that_is_no_number_ends_the_run_and_spares_the_weights(tmp_path):
    model = Toy(poison_at=7)
    with pytest.raises(DivergenceError, match="nan at step 7"):
        list(start(tmp_path, model=model))
    assert all(p.isfinite().all() for p in model.parameters())
    assert Checkpoints(tmp_path / "checkpoints").all()[-1].name == "step-00000005"
    assert read_log(tmp_path / "log.jsonl")[-1] == {"step": 7, "loss": None}


def test_each_tensor_is_clipped_by_itself():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    model[0].weight.grad *= 1e-3
    before = [p.grad.clone() for p in model.parameters()]
    norm = clip_each(model, 0.5)
    assert norm == pytest.approx(float(torch.cat([g.flatten() for g in before]).norm()))
    for p, g in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p.grad, g * min(1.0, 0.5 / (float(g.norm()) + 1e-6)))


def test_biases_and_norms_do_not_decay():
    model = nn.ModuleDict({"linear": nn.Linear(3, 2), "norm": nn.LayerNorm(2), "teacher": nn.Linear(3, 2)})
    model["teacher"].requires_grad_(False)
    decaying, no_decay = parameter_groups(model)
    assert [p.shape for p in decaying["params"]] == [(2, 3)] and len(no_decay["params"]) == 3
    assert decaying["decays"] and not no_decay["decays"]


def test_measures_are_logged_with_their_step(tmp_path):
    list(start(tmp_path, replace(CONFIG, steps=3), measure=lambda step: {"probe": step * 2.0}))
    assert [record["probe"] for record in read_log(tmp_path / "log.jsonl")] == [0.0, 2.0, 4.0]


@pytest.mark.parametrize("last", [2, 5])
def test_a_measure_that_fails_is_made_up_for_when_the_run_goes_on(tmp_path, whole, last):
    def fails(step):
        if step == last:
            raise OSError("no space left")
        return {"probe": step * 2.0}

    config = replace(CONFIG, steps=6)
    with pytest.raises(OSError, match="no space"):
        list(start(tmp_path, config, measure=fails))
    list(start(tmp_path, config, measure=lambda step: {"probe": step * 2.0}))
    records = read_log(tmp_path / "log.jsonl")
    assert [record["probe"] for record in records] == [0, 2, 4, 6, 8, 10] and losses(records) == whole[:6]
    states = [json.loads((path / "state.json").read_text()) for path in Checkpoints(tmp_path / "checkpoints").all()]
    assert [state["incomplete"] for state in states] == [None] * len(states)


def test_tensorboard_gets_the_numbers(tmp_path):
    list(start(tmp_path, replace(CONFIG, steps=2, trackers=("tensorboard",))))
    assert list(tmp_path.rglob("events.out.tfevents.*"))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"steps": 0}, "steps"),
        ({"precision": "half"}, "precision"),
        ({"workers": -1}, "workers"),
        ({"batch": 0}, "batch"),
    ],
)
def test_impossible_settings_are_refused(wrong, match):
    with pytest.raises(UserError, match=match):
        replace(CONFIG, **wrong)


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"batch of 5.*multiple of 2"):
        next(start(tmp_path, replace(CONFIG, batch=5)))
