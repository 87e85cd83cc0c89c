"""Spoiled inputs give the true result or a sentence: never a crash, a hang, or another result without a word."""

import pytest

from tests.faults.campaign import SHARES, run, table, wrong


@pytest.mark.parametrize("kind", list(SHARES))
def test_of_spoiled_inputs_none_crashes_hangs_or_is_silently_wrong(kind):
    results = run(200, 1, [kind])
    assert not wrong(results), wrong(results)


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", list(SHARES))
def test_of_three_thousand_spoiled_inputs_none_crashes_hangs_or_is_silently_wrong(kind):
    results = run(3000, 0, [kind])
    print(f"\n{table(results)}")
    assert not wrong(results), wrong(results)
