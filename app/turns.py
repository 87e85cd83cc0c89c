"""Heavy computations of all sessions take turns: later ones wait in the order in which they came, and see their place.

Two computations at once on the same cores would both take more than twice as long, and twice the memory.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from endofm_lab.machine import cores

CORES_EACH = 4  # a computation gains little from more
LOOK_EVERY_S = 0.3


class Turns:
    """A line of jobs, of which the first ``places`` run."""

    def __init__(self, places: int) -> None:
        self.places = places
        self._line: list[object] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        with self._lock:
            return len(self._line)

    @contextmanager
    def turn(self, waiting: Callable[[int], object]) -> Iterator[None]:
        """Run the block when it is its turn.

        Args:
            waiting: called again and again until then, with the number of jobs before this one, those that run
                included. What it raises, such as Streamlit's request to stop, leaves the line.
        """
        ticket = object()
        with self._lock:
            self._line.append(ticket)
        try:
            while (before := self._before(ticket)) >= self.places:
                waiting(before)
                time.sleep(LOOK_EVERY_S)
            yield
        finally:
            with self._lock:
                self._line.remove(ticket)

    def _before(self, ticket: object) -> int:
        with self._lock:
            return self._line.index(ticket)


ALL = Turns(max(1, cores() // CORES_EACH))  # of this server


@contextmanager
def heavy(name: str, cancel: Callable[[], None], behind: Callable[[], None] | None = None) -> Iterator[DeltaGenerator]:
    """A heavy computation of a page, when it is its turn: the block gets the bar to show its progress in.

    Args:
        name: of the computation, unique on its page.
        cancel: called when the reader clicks "Cancel", while the computation waits or runs; then the page runs anew.
        behind: called in the same way by "Go on in the background"; None if the computation cannot.
    """
    place = st.empty()
    row = place.container(horizontal=True, vertical_alignment="center")
    bar = row.progress(0.0)
    row.button("Cancel", key=f"cancel {name}", on_click=cancel)
    if behind is not None:
        row.button("Go on in the background", key=f"behind {name}", on_click=behind)
    try:
        with ALL.turn(lambda before: bar.progress(0.0, text=place_in_words(before))):
            yield bar
    finally:
        place.empty()


@contextmanager
def soon(words: str) -> Iterator[None]:
    """A computation of some seconds, when it is its turn; a line says what is computed, or the place of it.

    Any change on the page leaves the line, because the page then runs anew.
    """
    place = st.empty()
    try:
        with ALL.turn(lambda before: place.caption(place_in_words(before))), place, st.spinner(words):
            yield
    finally:
        place.empty()


def place_in_words(before: int) -> str:
    """The place in the line."""
    return f"Waiting: {before} {'job' if before == 1 else 'jobs'} before yours."
