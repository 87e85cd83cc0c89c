"""Heavy computations of several sessions: one after the other, in the order in which they came, with a place shown."""

import threading
import time
from pathlib import Path

import pytest
import streamlit as st

from tests.app.addresses import prediction

APP = Path(__file__).resolve().parents[2] / "app"


@pytest.fixture
def turns(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(APP))
    monkeypatch.setenv("ENDOFM_LAB_CACHE", str(tmp_path / "cache"))
    import turns

    monkeypatch.setattr(turns, "ALL", turns.Turns(1))
    monkeypatch.setattr(turns, "LOOK_EVERY_S", 0.01)
    return turns


def until(condition):
    end = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("places", [1, 2])
def test_no_more_jobs_run_than_there_are_places_and_they_run_in_the_order_in_which_they_came(turns, places):
    line, running, most, order, counts = turns.Turns(places), [], [], [], {}

    def job(number):
        with line.turn(lambda before: counts.setdefault(number, []).append(before)):
            running.append(number)
            order.append(number)
            most.append(len(running))
            time.sleep(0.05)
            running.remove(number)

    jobs = [threading.Thread(target=job, args=(number,)) for number in range(6)]
    for number, thread in enumerate(jobs):
        thread.start()
        until(lambda number=number: len(line) + len(order) - len(running) > number or number in order)
    for thread in jobs:
        thread.join()
    assert max(most) == places and len(line) == 0 and sorted(order) == list(range(6))
    assert places > 1 or order == list(range(6))
    for number, places_seen in counts.items():
        assert places_seen == sorted(places_seen, reverse=True) and places <= places_seen[0] <= number


def test_a_job_that_is_cancelled_while_it_waits_or_runs_leaves_the_line(turns):
    line = turns.Turns(1)

    def stop(before):
        raise KeyboardInterrupt

    with line.turn(stop):
        with pytest.raises(KeyboardInterrupt), line.turn(stop):
            raise AssertionError("it never runs")
        assert len(line) == 1
    with pytest.raises(ZeroDivisionError), line.turn(stop):
        raise ZeroDivisionError
    assert len(line) == 0


def test_a_prediction_waits_behind_two_jobs_of_other_sessions_and_says_so(turns, monkeypatch):
    sentences = []
    true = turns.place_in_words
    monkeypatch.setattr(turns, "place_in_words", lambda before: sentences.append(true(before)) or sentences[-1])
    app = prediction(APP / "main.py")
    first, second = turns.ALL.turn(lambda before: None), threading.Event()

    def other():
        with turns.ALL.turn(lambda before: None):
            second.wait(200)

    first.__enter__()
    behind = threading.Thread(target=other)
    behind.start()
    until(lambda: len(turns.ALL) == 2)
    page = threading.Thread(target=app.run)
    page.start()
    until(lambda: "Waiting: 2 jobs before yours." in sentences)
    first.__exit__(None, None, None)
    until(lambda: "Waiting: 1 job before yours." in sentences)
    assert len(turns.ALL) == 2
    second.set()
    page.join(250)
    behind.join()
    assert not app.exception and len(turns.ALL) == 0
    assert "frame" in " ".join(caption.value for caption in app.caption)
    assert "Cancel" not in [button.label for button in app.button]


def test_a_cancelled_prediction_does_not_begin_again_by_itself_and_goes_on_when_asked(turns, monkeypatch):
    app = prediction(APP / "main.py")
    import cache

    begun = []

    def cancelled(video, network, every_frame, out):
        begun.append(out)
        st.session_state["cancelled prediction"] = out.name  # as the button does it
        st.rerun()
        yield 0, 1

    true = cache.prediction_steps
    monkeypatch.setattr(cache, "prediction_steps", cancelled)
    app.run()
    assert len(begun) == 1 and not app.exception and "cancelled" in app.info[0].value
    monkeypatch.setattr(cache, "prediction_steps", true)
    app.run()
    assert "cancelled" in app.info[0].value
    next(button for button in app.button if button.label == "Go on").click().run()
    assert not app.exception and len(turns.ALL) == 0
    assert "frame" in " ".join(caption.value for caption in app.caption)
