"""Four people on one server: uploads, predictions and pages at the same time; nothing breaks, mixes or piles up.

`ENDOFM_LAB_SESSIONS_S=600 pytest -m browser -n 0 -s tests/browser/test_sessions.py` does so for ten minutes.
"""

import asyncio
import os
import random
import re
import statistics
import time
from collections import Counter
from fractions import Fraction

import psutil
import pytest

from endofm_lab.video.phantom import PhantomSpec, render
from endofm_lab.video.reader import write_video
from tests.browser.serving import FLAGS, served_app

SECONDS = float(os.environ.get("ENDOFM_LAB_SESSIONS_S", "60"))
SESSIONS, PATIENCE_MS = 4, 240_000
PAGES = ("Attention", "Embeddings", "Data", "Views", "Models", "Training", "Comparison")
pytestmark = [pytest.mark.browser, pytest.mark.timeout(1500 + 2 * SECONDS)]
SETTLED = (
    "() => !document.querySelector('[data-testid=stStatusWidget]')"
    " && document.querySelector('[data-testid=stApp]').dataset.testScriptState !== 'running'"
)


def videos_of(session, folder, count):
    """Videos of one session: no other video of any session has as many frames; the caption shows that number."""
    for number in range(count):
        n_frames = 12 + SESSIONS * number + session
        spec = PhantomSpec(100 * session + number, finding="polyp", n_frames=n_frames, size_px=64)
        path = folder / f"session-{session}-{number}.mp4"
        write_video(path, render(spec).frames, Fraction(12))
        yield path, n_frames


class Person:
    """One browser context that works through its own videos."""

    def __init__(self, number, page, url, videos):
        self.page, self.url, self.videos, self.actions = page, url, videos, Counter()
        self.random = random.Random(number)

    async def settled(self):
        await self.page.wait_for_function(SETTLED, timeout=PATIENCE_MS)
        assert await self.page.locator("[data-testid=stException]").count() == 0, await self.page.inner_text("body")

    async def go(self, name):
        link = self.page.locator("[data-testid=stSidebarNavLink]").filter(has_text=re.compile(rf"{name}$"))
        await link.click(delay=100, timeout=PATIENCE_MS)  # as long as a person holds the button
        await self.page.wait_for_selector(f"h1:has-text('{name}')", timeout=PATIENCE_MS)
        await self.settled()
        self.actions["page changes"] += 1

    async def open(self):
        await self.page.goto(f"{self.url}/prediction", timeout=PATIENCE_MS)
        await self.page.get_by_text("Upload", exact=True).first.click(timeout=PATIENCE_MS)
        await self.page.wait_for_selector("[data-testid=stFileUploaderDropzoneInput]", state="attached")

    async def upload(self, path, n_frames):
        await self.page.set_input_files("[data-testid=stFileUploaderDropzoneInput]", str(path))
        await self.shows(n_frames)
        self.actions["uploads and predictions"] += 1

    async def shows(self, n_frames):
        """Wait for the own video; another one's number of frames never is the answer."""
        await self.page.wait_for_selector(f"text=/frame \\d+ of {n_frames - 1} /", timeout=PATIENCE_MS)
        await self.settled()
        text = await self.page.inner_text("body")
        assert set(re.findall(r"frame \d+ of (\d+)", text)) == {str(n_frames - 1)}, text

    async def round(self, number, pages):
        """One video: upload it, step through it, look at other pages, and find it again."""
        path, n_frames = self.videos[number % len(self.videos)]
        await self.upload(path, n_frames)
        await self.page.get_by_role("button", name="One frame forward").click(timeout=PATIENCE_MS)
        await self.shows(n_frames)
        for name in pages:
            await self.go(name)
        await self.go("Prediction")
        await self.shows(n_frames)
        self.actions["rounds"] += 1


def memory_mb(server):
    """What a server and its children hold."""
    return sum(process.memory_info().rss for process in [server, *server.children(recursive=True)]) / 1e6


async def watch(server, memory, until):
    while time.monotonic() < until:
        memory.append(memory_mb(server))
        await asyncio.sleep(1)


async def work(people, server, seconds):
    """All pages once by everybody, to warm up; then rounds for some time. Returns the memory at every second."""
    await asyncio.gather(*(person.open() for person in people))
    await asyncio.gather(*(person.round(0, PAGES) for person in people))
    end, memory = time.monotonic() + seconds, []

    async def go_on(person):
        number = 1
        while time.monotonic() < end:
            await person.round(number, person.random.sample(PAGES, 2))
            number += 1

    await asyncio.gather(watch(server, memory, end), *(go_on(person) for person in people))
    return memory


async def four_people(chromium, url, videos, server, seconds):
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=FLAGS, headless=True)
        contexts = [await browser.new_context(viewport={"width": 1200, "height": 1200}) for _ in videos]
        people = [
            Person(number, await context.new_page(), url, videos[number]) for number, context in enumerate(contexts)
        ]
        memory = await work(people, server, seconds)
        await browser.close()
    return people, memory


def test_four_sessions_on_one_server_neither_break_nor_mix_nor_pile_up(chromium, tmp_path):
    count = 3 + int(SECONDS / 15)
    (tmp_path / "cache").mkdir()
    videos = [list(videos_of(session, tmp_path, count)) for session in range(SESSIONS)]
    serving = served_app(tmp_path / "cache", log=tmp_path / "server.txt")
    url = next(serving)
    try:
        port = url.rpartition(":")[2]
        server = next(p for p in psutil.Process().children() if any(port in word for word in p.cmdline()))
        people, memory = asyncio.run(four_people(chromium, url, videos, server, SECONDS))
    finally:
        serving.close()
    quarter = max(1, len(memory) // 4)
    first, last = statistics.median(memory[:quarter]), statistics.median(memory[-quarter:])
    counts = sum((person.actions for person in people), Counter())
    print(
        f"\n{SESSIONS} sessions, {SECONDS:.0f} s: {dict(counts)}; memory "
        f"{first:.0f} -> {last:.0f} MB ({last / first:.3f})"
    )
    assert "Traceback" not in (tmp_path / "server.txt").read_text(errors="replace")
    assert all(person.actions["rounds"] >= 1 for person in people)
    assert last < 1.15 * first, [round(value) for value in memory[:: max(1, len(memory) // 30)]]
