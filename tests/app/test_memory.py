"""Results are kept up to a number of bytes, for all sessions together."""

import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "app"))
    import memory

    return memory


def test_large_results_leave_in_the_order_in_which_they_were_used(memory):
    kept, computed = memory.Kept(limit_mb=2.5), []

    def of(key):
        return kept.get(key, lambda: computed.append(key) or np.zeros(1_000_000, np.uint8))

    for key in "abacab":
        of(key)
    assert computed == list("abcb") and kept.held_mb == 2  # c came while b was unused for longest
    kept.get("large", lambda: np.zeros(9_000_000, np.uint8))
    assert kept.held_mb == 9  # the latest result stays, and it alone
    of("a")
    assert kept.held_mb == 1 and computed == list("abcba")
    assert [kept.get("none", lambda: computed.append("none")) for _ in range(2)] == [None, None]
    assert computed == [*"abcba", "none"]  # None is a result, too


def test_two_sessions_that_ask_for_the_same_compute_it_once_and_an_error_is_not_kept(memory):
    kept, computed = memory.Kept(10), []

    def slowly():
        time.sleep(0.05)
        computed.append(1)
        return object()

    answers = []
    threads = [threading.Thread(target=lambda: answers.append(kept.get("x", slowly))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert len(computed) == 1 and len(set(map(id, answers))) == 1 and len(answers) == 4
    with pytest.raises(ZeroDivisionError):
        kept.get("y", lambda: 1 / 0)
    assert kept.get("y", lambda: 2) == 2


def test_a_page_that_runs_again_finds_what_it_had_kept(memory):
    page = "calls = []\ndef costly(x):\n    calls.append(x)\n    return 2 * x\n"
    first, second = {}, {}
    for space in (first, second):
        exec(compile(page, "screens/page.py", "exec"), space)
        space["costly"] = memory.kept(1)(space["costly"])
    assert first["costly"](4) == second["costly"](4) == 8 and first["calls"] == [4] and second["calls"] == []


def test_the_size_of_a_result_counts_its_arrays_wherever_they_are(memory):
    class Maps:
        def __init__(self):
            self.parts = {"space": torch.zeros(10, dtype=torch.float32), "time": [np.zeros(5), "abc"]}

    assert memory.size_of(Maps()) == 40 + 40 + 3
    assert memory.size_of(pd.DataFrame({"a": np.zeros(1000)})) >= 8000
    assert memory.size_of(None) < 100


@pytest.mark.skipif(sys.platform != "linux", reason="malloc_trim is a function of the C library of GNU")
def test_free_memory_goes_back_but_not_at_every_click(memory, monkeypatch):
    calls = []
    monkeypatch.setattr(memory, "_libc", type("C", (), {"malloc_trim": staticmethod(calls.append)}))
    monkeypatch.setattr(memory, "_trimmed_s", -1e9)
    memory.give_back()
    memory.give_back()
    assert calls == [0]
