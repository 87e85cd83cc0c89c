"""The objective: goldens of the released code, a naive restatement, invariances."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from endofm_lab.errors import UserError
from endofm_lab.model.transformer import build_backbone
from endofm_lab.pretraining.dino import Centre, Dino, DinoConfig, ProjectionHead, dino_loss
from endofm_lab.pretraining.objective import follow, make_teacher
from endofm_lab.training.schedules import cosine, linear
from tests.goldens.weights_from_names import input_for, state_dict_for

GOLDENS = Path(__file__).parents[1] / "goldens"
CONFIG = DinoConfig(prototypes=16, hidden=24, bottleneck=8)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


def test_the_loss_its_gradient_and_the_centre_are_those_of_the_released_code():
    golden = load_file(GOLDENS / "dino_loss_ten_views.safetensors")
    centre = Centre(64, 0.9)
    for step in range(3):
        student = input_for(f"ten_views/student/{step}", (40, 64)).requires_grad_()
        teacher = input_for(f"ten_views/teacher/{step}", (8, 64)).unflatten(0, (2, 4))
        loss = dino_loss(student.unflatten(0, (10, 4)), teacher, centre.value, 0.1, 0.04)["loss"]
        loss.backward()
        centre.collect(teacher)
        centre.update()
        close(loss.detach(), golden[f"loss_{step}"])
        close(student.grad, golden[f"student_grad_{step}"])
        close(centre.value[None], golden[f"center_{step}"])


def test_the_projection_head_is_that_of_the_released_code():
    shapes = json.loads((GOLDENS / "dino_head_shapes.json").read_text())
    weights = state_dict_for({name: tuple(shape) for name, shape in shapes.items()})
    head = ProjectionHead(768, 1024)
    assert weights.pop("last_layer.weight_g").eq(1).all()
    weights["last_layer.weight"] = weights.pop("last_layer.weight_v")
    head.load_state_dict(weights)
    close(head(input_for("dino_head_a", (5, 768))).detach(), load_file(GOLDENS / "dino_head_a.safetensors")["out"])


def test_the_schedules_are_those_of_the_released_code():
    golden = json.loads((GOLDENS / "schedules.json").read_text())
    for i, step in enumerate(range(0, 5000, 500)):
        assert cosine(step, 5e-4 * 12 / 256, 1e-6, 5000, warmup=500) == pytest.approx(golden["lr"][i], rel=1e-5)
        assert cosine(step, 0.04, 0.4, 5000) == pytest.approx(golden["weight_decay"][i], rel=1e-5)
        assert cosine(step, 0.996, 1.0, 5000) == pytest.approx(golden["teacher_momentum"][i], rel=1e-5)


def test_warm_up_ends_at_its_value_and_a_schedule_stays_at_its_end():
    assert [cosine(k, 1.0, 0.0, 10, warmup=3) for k in range(4)] == [0.0, 0.5, 1.0, 1.0]
    assert cosine(10, 1.0, 0.25, 10) == cosine(99, 1.0, 0.25, 10) == 0.25
    assert [linear(k, 0.0, 1.0, 3) for k in range(5)] == [0.0, 0.5, 1.0, 1.0, 1.0]
    assert linear(0, 0.0, 1.0, 0) == 1.0


@pytest.mark.parametrize("n_local", [0, 1, 8])
@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize(("ts", "tt"), [(0.1, 0.04), (0.2, 0.07), (1.0, 1.0)])
def test_the_loss_is_the_mean_over_all_pairs_of_different_views(n_local, B, ts, tt):
    torch.manual_seed(0)
    V, K = 2 + n_local, 7
    student, teacher, centre = torch.randn(V, B, K), torch.randn(2, B, K), torch.randn(K)
    dm, cv = [], []
    for v, g in itertools.product(range(V), range(2)):
        if v == g:
            continue
        for b in range(B):
            p = ((teacher[g, b].double() - centre.double()) / tt).softmax(-1)
            q = (student[v, b].double() / ts).softmax(-1)
            (dm if v < 2 else cv).append(-(p * q.log()).sum())
    losses = dino_loss(student, teacher, centre, ts, tt)
    assert len(dm) + len(cv) == B * (2 + 2 * n_local)
    close(losses["loss"].double(), torch.stack(dm + cv).mean())
    close(losses["L_dm"].double(), torch.stack(dm).mean())
    assert float(losses["L_cv"]) == pytest.approx(float(torch.stack(cv).mean()) if cv else 0.0, rel=1e-5)


def model_and_batch(n_views=4, B=2, config=CONFIG):
    torch.manual_seed(0)
    model = Dino(build_backbone("micro"), config, steps=10, steps_per_epoch=2)
    sizes = [(4, 32), (4, 32), (2, 16), (2, 16), (4, 16)][:n_views]
    return model, [torch.randn(B, 3, T, px, px) for T, px in sizes]


def test_the_parts_of_a_batch_add_up_to_the_whole_loss():
    model, batch = model_and_batch(5)
    parts = model.parts(batch)
    assert parts == [[4, 0], [2, 3, 1]]  # 5120 pixels per channel each
    total = sum(model(batch, part, 0)["loss"] for part in range(len(parts)))
    student = torch.stack([model.student["head"](model.student["backbone"](view).cls) for view in batch])
    teacher = torch.stack([model.teacher["head"](model.teacher["backbone"](view).cls) for view in batch[:2]])
    close(total.detach(), dino_loss(student, teacher, torch.zeros(16), 0.1, 0.04)["loss"].detach())


def test_the_ten_published_views_make_two_parts_of_equal_weight():
    model, _ = model_and_batch()
    batch = [torch.empty(1, 3, T, 224, 224) for T in (8, 16)]
    batch += [torch.empty(1, 3, T, 96, 96) for T in (2, 2, 4, 4, 8, 8, 16, 16)]
    assert model.parts(batch) == [[4, 5, 1], [2, 3, 6, 7, 0, 8, 9]]


def test_gradients_reach_every_tensor_of_the_student_and_none_of_the_teacher():
    model, batch = model_and_batch()
    for block in model.student["backbone"].blocks:
        torch.nn.init.normal_(block.temporal_fc.weight, std=0.02)  # zero at the start: nothing flows behind it
    for part in range(len(model.parts(batch))):
        model(batch, part, 0)["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())
    silent = [n for n, p in model.student.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    # a key's bias shifts all logits of a query alike, so that its gradient is rounding noise, but the tensor is joint
    assert not silent


def test_constant_input_gives_no_gradient_to_the_teacher_and_no_nan():
    model, batch = model_and_batch()
    batch = [torch.full_like(view, 0.5) for view in batch]
    for part in range(len(model.parts(batch))):
        model(batch, part, 0)["loss"].backward()
    assert all(p.grad is None for p in model.teacher.parameters())
    assert all(p.grad.isfinite().all() for p in model.student.parameters() if p.grad is not None)


def test_the_teacher_is_the_moving_average_of_the_student():
    model, _ = model_and_batch()
    before = {n: p.clone() for n, p in model.teacher.named_parameters()}
    for p in model.student.parameters():
        p.data.add_(torch.randn_like(p))
    follow(model.teacher, model.student, 0.75)
    for (name, p), s in zip(model.teacher.named_parameters(), model.student.parameters(), strict=True):
        close(p, 0.75 * before[name] + 0.25 * s.detach())


def test_the_teacher_drops_no_paths_while_the_student_does():
    model = Dino(build_backbone("micro", drop_path=0.5), CONFIG, 10, 2).train()
    assert model.student.training and not model.teacher.training
    clip = torch.randn(4, 3, 4, 32, 32)
    assert torch.equal(model.teacher["backbone"](clip).cls, model.teacher["backbone"](clip).cls)


def test_prototypes_are_frozen_for_the_first_epoch_only():
    model, batch = model_and_batch()
    for step, frozen in [(0, True), (1, True), (2, False)]:
        model(batch, 0, step)["loss"].backward()
        model.after_backward(step)
        assert (model.student["head"].last_layer.weight.grad is None) == frozen


def test_without_centring_the_centre_stays_zero():
    model, batch = model_and_batch(config=DinoConfig(prototypes=16, hidden=24, bottleneck=8, centring=False))
    model(batch, 0, 0)
    assert model.after_step(0)["centre_norm"] == 0
    model, batch = model_and_batch()
    model(batch, 0, 0)
    assert model.after_step(0)["centre_norm"] > 0


def test_a_centre_collected_in_pieces_is_that_of_the_whole():
    logits = torch.randn(2, 6, 5)
    whole, pieces = Centre(5, 0.9), Centre(5, 0.9)
    whole.collect(logits)
    pieces.collect(logits[:, :2])
    pieces.collect(logits[:, 2:])
    whole.update(), pieces.update()
    close(pieces.value, whole.value)
    close(whole.value, 0.1 * logits.mean(dim=(0, 1)))


def test_the_temperature_of_the_teacher_warms_up():
    config = DinoConfig(
        prototypes=16, hidden=8, bottleneck=8,
        teacher_temperature=0.07, teacher_temperature_start=0.04, teacher_temperature_epochs=2,
    )  # fmt: skip
    model = Dino(build_backbone("micro"), config, steps=10, steps_per_epoch=2)
    assert [model.temperature(step) for step in (0, 3, 9)] == pytest.approx([0.04, 0.07, 0.07])
    assert model.temperature(1) == pytest.approx(0.05)


@pytest.mark.parametrize(
    "wrong",
    [
        {"student_temperature": 0},
        {"teacher_temperature": -1},
        {"momentum": 1.5},
        {"prototypes": 1},
        {"hidden": 0},
        {"bottleneck": -1},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        DinoConfig(**wrong)


def test_a_teacher_starts_as_a_copy_that_shares_no_memory():
    student = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2)})
    teacher = make_teacher(student)
    assert torch.equal(teacher["a"].weight, student["a"].weight)
    assert teacher["a"].weight.data_ptr() != student["a"].weight.data_ptr()
