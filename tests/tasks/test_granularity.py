"""Losses over the classes a data set can tell apart."""

import math

import pytest
import torch
import torch.nn.functional as F

from endofm_lab.tasks.granularity import granular_binary_cross_entropy, granular_cross_entropy


def test_one_allowed_leaf_is_the_plain_cross_entropy() -> None:
    logits = torch.randn(16, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.arange(16) % 5
    ours = granular_cross_entropy(logits, F.one_hot(target, 5).bool())
    torch.testing.assert_close(ours, F.cross_entropy(logits, target), atol=1e-12, rtol=0)


def test_a_coarse_label_asks_for_the_summed_probability_of_its_leaves() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)) + 7.0
    two = granular_cross_entropy(logits, torch.tensor([[False, True, True]]))
    assert two.item() == pytest.approx(-math.log(0.5), abs=1e-12)
    everything = granular_cross_entropy(logits, torch.ones(1, 3, dtype=torch.bool))
    assert everything.item() == pytest.approx(0.0, abs=1e-12)


def test_the_gradient_does_not_push_between_allowed_leaves_of_equal_logit() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)
    granular_cross_entropy(logits, torch.tensor([[False, True, True]])).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([[1 / 3, -1 / 6, -1 / 6]]))


def test_very_large_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = granular_cross_entropy(logits, torch.tensor([[False, True]]))
    loss.backward()
    assert loss.item() == pytest.approx(2e4) and torch.isfinite(logits.grad).all()


def test_a_row_without_any_leaf_is_an_error_that_names_it() -> None:
    allowed = torch.tensor([[True, False], [False, False]])
    with pytest.raises(ValueError, match=r"Rows \[1\]"):
        granular_cross_entropy(torch.zeros(2, 2), allowed)


def test_unknown_leaves_do_not_count_in_the_multi_label_loss() -> None:
    logits = torch.tensor([[0.0, 2.0, -1.0]], dtype=torch.float64)
    present = torch.tensor([[True, False, False]])
    unknown = torch.tensor([[False, False, True]])
    expected = (math.log(2) + math.log1p(math.exp(2.0))) / 2
    assert granular_binary_cross_entropy(logits, present, unknown).item() == pytest.approx(expected, abs=1e-12)
    plain = F.binary_cross_entropy_with_logits(logits, present.double())
    torch.testing.assert_close(granular_binary_cross_entropy(logits, present), plain)
    assert granular_binary_cross_entropy(logits, present, torch.ones_like(present)).item() == 0.0
