"""Sharing a model out and putting it together again; one process, whose shards are whole tensors of another kind."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from endofm_lab.errors import UserError
from endofm_lab.pretraining.objective import follow
from endofm_lab.training import loop
from endofm_lab.training.optimiser import clip_each, parameter_groups
from endofm_lab.training.processes import gathered, shard, sharding_asked_for
from tests.training.toy import CONFIG, Toy, start


@pytest.fixture
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def learn(model, optimiser, steps):
    """Updates on fixed numbers, with gradients clipped one by one; returns losses and norms."""
    values = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = model(torch.arange(8.0).view(2, 4)).square().mean()
        loss.backward()
        values += [loss.item(), clip_each(model, 0.1)]
        optimiser.step()
    return values


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 1))
    return model, torch.optim.AdamW(parameter_groups(model), lr=1e-2)


def test_a_model_shared_out_after_some_steps_goes_on_as_it_would_have(group):
    model, optimiser = network()
    whole = learn(model, optimiser, 6)
    weights, moments = copy.deepcopy(model.state_dict()), copy.deepcopy(optimiser.state_dict())
    model, optimiser = network()
    first = learn(model, optimiser, 3)
    shard(model, [model[1]], optimiser)
    assert all(isinstance(p, DTensor) for p in model.parameters())
    assert all(isinstance(state["exp_avg"], DTensor) for state in optimiser.state.values())
    assert first + learn(model, optimiser, 3) == pytest.approx(whole, rel=1e-6)
    torch.testing.assert_close(gathered(model.state_dict()), weights)
    torch.testing.assert_close(gathered(optimiser.state_dict()), moments)


def test_a_teacher_in_shards_follows_a_student_in_shards(group):
    (student, optimiser), (teacher, _) = network(), network()
    with torch.no_grad():
        for p in teacher.parameters():
            p.zero_()
    whole = copy.deepcopy(student.state_dict())
    shard(nn.Sequential(student, teacher.requires_grad_(False)), [student[0], teacher[0]], optimiser)
    follow(teacher, student, 0.75)
    for name, value in gathered(teacher.state_dict()).items():
        torch.testing.assert_close(value, whole[name] * 0.25)


def test_a_training_without_units_cannot_share_its_weights(tmp_path, monkeypatch):
    assert not sharding_asked_for()
    monkeypatch.setattr(loop, "sharding_asked_for", lambda: True)
    with pytest.raises(UserError, match=r"only pre-training supports.*--multi_gpu"):
        next(start(tmp_path, CONFIG, model=Toy()))
