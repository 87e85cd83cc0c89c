"""Losses for classes of unequal size and for coarse labels, against their formulas in plain Python."""

import math

import pytest
import torch
import torch.nn.functional as F

from endofm_lab.errors import UserError
from endofm_lab.tasks.losses import (
    class_balanced_loss,
    coarse_cross_entropy,
    effective_number_weights,
    focal_loss,
    logit_adjusted_loss,
)

COUNTS = (900, 90, 10)
LOGITS = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
TARGET = torch.tensor([0, 1, 2] * 4)


def softmax(row):
    total = sum(math.exp(v) for v in row)
    return [math.exp(v) / total for v in row]


@pytest.mark.parametrize("beta", [0.9, 0.999])
def test_class_balanced_weights_and_loss_are_those_of_the_formula(beta):
    raw = [(1 - beta) / (1 - beta**n) for n in COUNTS]
    weights = [w * 3 / sum(raw) for w in raw]
    assert effective_number_weights(COUNTS, beta).tolist() == pytest.approx(weights, rel=1e-5)
    rows = [-weights[y] * math.log(softmax(z)[y]) for z, y in zip(LOGITS.tolist(), TARGET.tolist(), strict=True)]
    expected = sum(rows) / sum(weights[y] for y in TARGET.tolist())
    assert float(class_balanced_loss(LOGITS, TARGET, COUNTS, beta)) == pytest.approx(expected, rel=1e-5)


def test_effective_numbers_lie_between_equal_weights_and_inverse_frequency():
    assert effective_number_weights(COUNTS, 0.0).tolist() == pytest.approx([1, 1, 1])
    inverse = 1 / torch.tensor(COUNTS)
    torch.testing.assert_close(effective_number_weights(COUNTS, 1 - 1e-9), inverse / inverse.mean(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
def test_focal_loss_is_that_of_the_formula(gamma):
    p = [softmax(z)[y] for z, y in zip(LOGITS.tolist(), TARGET.tolist(), strict=True)]
    expected = sum(-((1 - v) ** gamma) * math.log(v) for v in p) / len(p)
    assert float(focal_loss(LOGITS, TARGET, gamma)) == pytest.approx(expected, rel=1e-5)


def test_focal_loss_without_focus_is_cross_entropy():
    torch.testing.assert_close(focal_loss(LOGITS, TARGET, 0.0), F.cross_entropy(LOGITS, TARGET))


def test_focal_loss_has_finite_gradients_where_the_model_is_certain():
    logits = torch.tensor([[200.0, 0.0], [-200.0, 0.0], [0.0, 0.0]], requires_grad=True)
    focal_loss(logits, torch.tensor([0, 0, 0]), 0.5).backward()
    assert bool(torch.isfinite(logits.grad).all())
    assert logits.grad[1, 0] < 0


def test_adjusted_loss_is_cross_entropy_of_shifted_logits():
    shift = torch.tensor([math.log(n / 1000) for n in COUNTS])
    expected = F.cross_entropy(LOGITS + 0.7 * shift, TARGET)
    torch.testing.assert_close(logit_adjusted_loss(LOGITS, TARGET, COUNTS, tau=0.7), expected)
    torch.testing.assert_close(logit_adjusted_loss(LOGITS, TARGET, (5, 5, 5)), F.cross_entropy(LOGITS, TARGET))


@pytest.mark.parametrize("counts", [(3, 0, 1), (), ((1, 2), (3, 4))])
def test_a_class_without_rows_is_refused(counts):
    with pytest.raises(UserError, match="every class needs at least one training row"):
        effective_number_weights(counts)


def test_parameters_out_of_range_are_refused():
    with pytest.raises(UserError, match=r"beta is 1\.0"):
        effective_number_weights(COUNTS, 1.0)
    with pytest.raises(UserError, match="gamma is -1"):
        focal_loss(LOGITS, TARGET, -1.0)


def test_one_allowed_leaf_is_the_plain_cross_entropy():
    logits = torch.randn(16, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.arange(16) % 5
    loss = coarse_cross_entropy(logits, F.one_hot(target, 5).bool())
    torch.testing.assert_close(loss, F.cross_entropy(logits, target), atol=1e-12, rtol=0)


def test_a_coarse_label_asks_for_the_summed_probability_of_its_leaves():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)) + 7.0
    pair = coarse_cross_entropy(logits, torch.tensor([[False, True, True]]))
    assert pair.item() == pytest.approx(-math.log(0.5), abs=1e-12)
    total = coarse_cross_entropy(logits, torch.ones(1, 3, dtype=torch.bool))
    assert total.item() == pytest.approx(0.0, abs=1e-12)


def test_the_gradient_does_not_push_between_allowed_leaves_of_equal_logit():
    logits = torch.zeros(1, 3, requires_grad=True)
    coarse_cross_entropy(logits, torch.tensor([[False, True, True]])).backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[1 / 3, -1 / 6, -1 / 6]]))


def test_very_large_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = coarse_cross_entropy(logits, torch.tensor([[False, True]]))
    loss.backward()
    assert loss.item() == pytest.approx(2e4) and torch.isfinite(logits.grad).all()


def test_a_row_without_any_leaf_is_an_error_that_names_it():
    allowed = torch.tensor([[True, False], [False, False]])
    with pytest.raises(ValueError, match=r"Rows \[1\]"):
        coarse_cross_entropy(torch.zeros(2, 2), allowed)
