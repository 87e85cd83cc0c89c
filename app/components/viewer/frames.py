"""What the viewer in the browser asks for over loopback: frames, overlays, thumbnails and the facts of a video.

An address contains a token that only the session which opened the video knows. `guard.Guard` checks every request
before it arrives here. A frame is found by its number in the project's own reader, and its number travels with it.
"""

import hashlib
import hmac
import io
import secrets
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from components.viewer.overlays import facts, overlays
from memory import Kept
from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

import endofm_lab as lab
from endofm_lab.errors import UserError
from endofm_lab.figures.pictures import mark_generated
from endofm_lab.prediction import VideoPrediction

if TYPE_CHECKING:
    from cache import Content

LONGEST_SIDE_PX = 1280
THUMBNAIL_PX = 160
MOST_FRAMES = 64  # per request
KEPT_MB = 128.0  # of JPEG, in all sessions together
OPEN_VIDEOS = 60
OPEN_STREAMS = 4
AHEAD = 100  # frames that a running decoder may skip; beyond that, it starts anew at a key frame
_HEADERS = {"cache-control": "no-store", "cross-origin-resource-policy": "same-origin"}


@dataclass
class Opened:
    """A video and its prediction as one session sees them, and the decoder that plays the video."""

    video: "Content"
    prediction: VideoPrediction
    unfamiliar: bool = False  # whether masks and boxes are shown where the video looks unlike what the model learned
    lock: threading.Lock = field(default_factory=threading.Lock)
    stream: Iterator[tuple[int, np.ndarray]] | None = None
    next: int = 0  # the frame that the stream yields next


_opened: OrderedDict[str, Opened] = OrderedDict()
_lock = threading.Lock()
_decoding = threading.BoundedSemaphore(2)  # requests that decode at a time
_kept = Kept(KEPT_MB)  # JPEG pictures by video, number and longest side


def open_for(secret: str, video: "Content", about: str, prediction: VideoPrediction, unfamiliar: bool = False) -> str:
    """The token under which a session with a secret of its own asks for a video and for its prediction ``about``.

    ``unfamiliar`` shows masks and boxes also where the video looks unlike what the model learned.
    """
    token = hmac.new(secret.encode(), f"{video} {about} {unfamiliar}".encode(), hashlib.sha256).hexdigest()[:40]
    with _lock:
        if token not in _opened:
            _opened[token] = Opened(video, prediction, unfamiliar)
        _opened.move_to_end(token)
        while len(_opened) > OPEN_VIDEOS:
            _opened.popitem(last=False)
    return token


def new_secret() -> str:
    """The secret of a session."""
    return secrets.token_urlsafe(32)


def jpeg(frame: np.ndarray, longest_px: int, generated: bool) -> bytes:
    """A frame (H, W, 3) uint8 as JPEG, made smaller if needed; generated frames carry the mark in their pixels."""
    picture = Image.fromarray(frame)
    picture.thumbnail((longest_px, longest_px), Image.Resampling.BILINEAR)
    if generated:
        mark_generated(picture)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()


def pictures(opened: Opened, first: int, stop: int) -> bytes:
    """Frames ``first`` to ``stop`` (exclusive): for each its number and its length as uint32, and its JPEG."""
    frames = {number: _kept.find((opened.video, number, LONGEST_SIDE_PX)) for number in range(first, stop)}
    missing = [number for number, picture in frames.items() if picture is None]
    if missing:
        with opened.lock, _decoding:
            try:
                for number, frame in decoded(opened, missing):
                    frames[number] = jpeg(frame, LONGEST_SIDE_PX, opened.prediction.video.generated)
                    _kept.put((opened.video, number, LONGEST_SIDE_PX), frames[number])
            except BaseException:
                opened.stream = None
                raise
    return b"".join(struct.pack("<II", number, len(picture)) + picture for number, picture in frames.items() if picture)


def decoded(opened: Opened, missing: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Frames by ascending number; the decoder of the last request goes on, if it stopped shortly before the first."""
    if opened.stream is None or not opened.next <= missing[0] <= opened.next + AHEAD:
        with lab.open_video(opened.video.path) as reader:
            opened.stream, opened.next = reader.stream(missing[0]), missing[0]
        stop_streams_but(opened)
    numbers = set(missing)
    while opened.next <= missing[-1]:
        number, frame = next(opened.stream)
        opened.next = number + 1
        if number in numbers:
            yield number, frame
    if opened.next == opened.prediction.video.n_frames:
        opened.stream = None


def stop_streams_but(opened: Opened) -> None:
    """Close decoders of other videos until at most `OPEN_STREAMS` stay open."""
    with _lock:
        idle = [file for file in _opened.values() if file.stream is not None and file is not opened]
    for file in idle[: max(0, len(idle) + 1 - OPEN_STREAMS)]:
        if file.lock.acquire(blocking=False):
            file.stream = None
            file.lock.release()


def thumbnail(opened: Opened, number: int) -> bytes:
    """One frame as a small JPEG."""

    def decode() -> bytes:
        with _decoding, lab.open_video(opened.video.path) as reader:
            return jpeg(reader.read([number])[0], THUMBNAIL_PX, opened.prediction.video.generated)

    return _kept.get((opened.video, number, THUMBNAIL_PX), decode)


def answer(request: Request, content: Callable[[Opened, int, int], Response]) -> Response:
    """The answer to a request, or the sentence that says why there is none."""
    from cache import video_content  # only now, because Streamlit makes caches while it runs

    with _lock:
        opened = _opened.get(request.path_params["token"])
    if opened is None:
        return refusal(404, "This video is no longer open in the app. Reload the page.")
    if video_content(opened.video.path).stamp != opened.video.stamp:
        return refusal(410, "The video was deleted, moved or changed. Choose it again.")
    n_frames = opened.prediction.video.n_frames
    first = request.path_params.get("first", 0)
    stop = request.path_params.get("stop", first + 1)
    if not 0 <= first < stop <= min(n_frames, first + MOST_FRAMES):
        sentence = f"Frames {first} to {stop} are not possible. Ask for at most {MOST_FRAMES} of {n_frames}."
        return refusal(400, sentence)
    try:
        return content(opened, first, stop)
    except (UserError, OSError) as error:
        return refusal(410, str(error).replace(opened.video.path, "The video"))


def refusal(status: int, sentence: str) -> Response:
    """A sentence instead of what was asked for."""
    return PlainTextResponse(sentence, status, headers=_HEADERS)


def of_video(request: Request) -> Response:
    """Number, size and times of the frames, the frames that the model saw, and the names of overlays."""

    def content(opened: Opened, *_: int) -> Response:
        with lab.open_video(opened.video.path) as reader:
            return JSONResponse(facts(reader.times_s, opened.prediction), headers=_HEADERS)

    return answer(request, content)


def of_frames(request: Request) -> Response:
    """See `pictures`."""
    return answer(
        request,
        lambda *span: Response(pictures(*span), media_type="application/octet-stream", headers=_HEADERS),
    )


def of_overlays(request: Request) -> Response:
    """See `overlays.overlays`."""
    threshold = min(1.0, request.path_params["threshold"])
    return answer(
        request,
        lambda opened, *span: JSONResponse(
            overlays(opened.prediction, *span, threshold, opened.unfamiliar), headers=_HEADERS
        ),
    )


def of_thumbnail(request: Request) -> Response:
    """See `thumbnail`."""
    return answer(
        request,
        lambda opened, first, _: Response(thumbnail(opened, first), media_type="image/jpeg", headers=_HEADERS),
    )


ROUTES = [
    Route("/viewer/{token}/video", of_video),
    Route("/viewer/{token}/frames/{first:int}/{stop:int}", of_frames),
    Route("/viewer/{token}/overlays/{first:int}/{stop:int}/{threshold:float}", of_overlays),
    Route("/viewer/{token}/thumbnails/{first:int}", of_thumbnail),
]
