"""Losses for classes of unequal size, against their formulas in plain Python."""

import math

import pytest
import torch
import torch.nn.functional as F

from endofm_lab.errors import UserError
from endofm_lab.tasks.imbalance import (
    adjusted_logits,
    class_balanced_loss,
    effective_number_weights,
    focal_loss,
    inverse_frequency,
    logit_adjusted_loss,
)

COUNTS = (900, 90, 10)
LOGITS = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
TARGET = torch.tensor([0, 1, 2] * 4)


def softmax(row):
    total = sum(math.exp(v) for v in row)
    return [math.exp(v) / total for v in row]


def test_inverse_frequency_by_hand():
    raw = [1 / 900, 1 / 90, 1 / 10]
    assert inverse_frequency(COUNTS).tolist() == pytest.approx([w * 3 / sum(raw) for w in raw])


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
    torch.testing.assert_close(effective_number_weights(COUNTS, 1 - 1e-9), inverse_frequency(COUNTS), rtol=1e-3, atol=0)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
def test_focal_loss_is_that_of_the_formula(gamma):
    p = [softmax(z)[y] for z, y in zip(LOGITS.tolist(), TARGET.tolist(), strict=True)]
    expected = sum(-((1 - v) ** gamma) * math.log(v) for v in p) / len(p)
    assert float(focal_loss(LOGITS, TARGET, gamma)) == pytest.approx(expected, rel=1e-5)
    weights = torch.tensor([0.2, 1.0, 3.0])
    weighted = sum(-weights[y] * (1 - v) ** gamma * math.log(v) for v, y in zip(p, TARGET.tolist(), strict=True))
    assert float(focal_loss(LOGITS, TARGET, gamma, weights)) == pytest.approx(float(weighted) / len(p), rel=1e-5)


def test_focal_loss_without_focus_is_cross_entropy():
    torch.testing.assert_close(focal_loss(LOGITS, TARGET, 0.0), F.cross_entropy(LOGITS, TARGET))


def test_focal_loss_has_finite_gradients_where_the_model_is_certain():
    logits = torch.tensor([[200.0, 0.0], [-200.0, 0.0], [0.0, 0.0]], requires_grad=True)
    focal_loss(logits, torch.tensor([0, 0, 0]), 0.5).backward()
    assert bool(torch.isfinite(logits.grad).all())
    assert logits.grad[1, 0] < 0


def test_adjustment_undoes_the_prior():
    """For p(x | k) known, Bayes' classifier under equal classes is the argmax of p(x | k), whatever the counts."""
    likelihood = torch.rand(50, 3, generator=torch.Generator().manual_seed(1))
    posterior = likelihood * torch.tensor(COUNTS)
    adjusted = adjusted_logits(posterior.log(), COUNTS)
    assert torch.equal(adjusted.argmax(1), likelihood.argmax(1))
    assert not torch.equal(posterior.argmax(1), likelihood.argmax(1))
    assert torch.equal(adjusted_logits(LOGITS, COUNTS, tau=0.0), LOGITS)


def test_adjusted_loss_is_cross_entropy_of_shifted_logits():
    shift = torch.tensor([math.log(n / 1000) for n in COUNTS])
    expected = F.cross_entropy(LOGITS + 0.7 * shift, TARGET)
    torch.testing.assert_close(logit_adjusted_loss(LOGITS, TARGET, COUNTS, tau=0.7), expected)
    torch.testing.assert_close(logit_adjusted_loss(LOGITS, TARGET, (5, 5, 5)), F.cross_entropy(LOGITS, TARGET))


@pytest.mark.parametrize("counts", [(3, 0, 1), (), ((1, 2), (3, 4))])
def test_a_class_without_rows_is_refused(counts):
    with pytest.raises(UserError, match="every class needs at least one training row"):
        inverse_frequency(counts)


def test_parameters_out_of_range_are_refused():
    with pytest.raises(UserError, match=r"beta is 1\.0"):
        effective_number_weights(COUNTS, 1.0)
    with pytest.raises(UserError, match="gamma is -1"):
        focal_loss(LOGITS, TARGET, -1.0)
