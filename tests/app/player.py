"""The viewer in tests without a browser: what it was told, and a reader who moves it."""

import io
import json
import struct

import numpy as np
from PIL import Image
from starlette.requests import Request
from starlette.routing import Match
from streamlit.proto.WidgetStates_pb2 import WidgetState


def told(app) -> dict:
    """The data that the page gave to the viewer."""
    return json.loads(component(app).json)


def component(app):
    return app.get("bidi_component")[0].proto


def move_to(app, frame: int):
    """Run the page after the browser has said that the reader moved to a frame."""
    state = WidgetState(id=component(app).id)
    state.json_value = json.dumps({"at": {"frame": frame, "message": told(app)["message"] + 1}})
    states = app._tree.get_widget_states()
    states.widgets.append(state)
    app._tree.get_widget_states = lambda: states
    return app.run()


def answered(app, path: str):
    """The answer to a request of the viewer, as the app gives it over loopback."""
    from components.viewer.frames import ROUTES  # the app's folder is on the path while the app runs

    address = told(app)["address"]
    scope = {"type": "http", "method": "GET", "path": f"{address}/{path}"}
    for route in ROUTES:
        match, child = route.matches(scope)
        if match is Match.FULL:
            return route.endpoint(Request({**scope, **child, "headers": [], "query_string": b""}))
    raise AssertionError(f"no route for {path}")


def facts_of(app) -> dict:
    """What the viewer knows about the video."""
    return json.loads(answered(app, "video").body)


def overlays_of(app, frame: int) -> dict:
    """Masks and boxes of a seen frame."""
    return json.loads(answered(app, f"overlays/{frame}/{frame + 1}/0.5").body)[str(frame)]


def pictures_in(body: bytes) -> dict[int, np.ndarray]:
    """The frames in an answer by their numbers, uint8 (H, W, 3)."""
    pictures, at = {}, 0
    while at < len(body):
        number, length = struct.unpack_from("<II", body, at)
        pictures[number] = np.asarray(Image.open(io.BytesIO(body[at + 8 : at + 8 + length])))
        at += 8 + length
    return pictures


def picture_of(app, frame: int) -> np.ndarray:
    """One frame as the viewer gets it."""
    return pictures_in(answered(app, f"frames/{frame}/{frame + 1}").body)[frame]
