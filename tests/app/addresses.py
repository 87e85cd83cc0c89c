"""Paths in the addresses of the app's pages, and the page where a video is looked at."""

from streamlit.testing.v1 import AppTest

from endofm_lab.files import cache_folder, read_json, write_json


def typed_before(path: object) -> str:
    """A path that an address may give without a question, because it was typed in this app: ENDOFM_LAB_CACHE is set."""
    file = cache_folder("app") / "typed.json"
    write_json(file, [*(read_json(file) if file.is_file() else []), str(path)])
    return str(path)


def prediction(main: object, seconds: float = 250) -> AppTest:
    """The app at its page Prediction, before the first run."""
    return AppTest.from_file(str(main), default_timeout=seconds).switch_page("screens/prediction.py")
