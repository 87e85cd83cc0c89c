"""The app at an address: its pages, paths that may stand there, and what a test presses and reads."""

from pathlib import Path

from streamlit.testing.v1 import AppTest

from endofm_lab.files import cache_folder, read_json, write_json

MAIN = Path(__file__).resolve().parents[2] / "app" / "main.py"


def typed_before(path: object) -> str:
    """A path that an address may give without a question, because it was typed in this app: ENDOFM_LAB_CACHE is set."""
    file = cache_folder("app") / "typed.json"
    write_json(file, [*(read_json(file) if file.is_file() else []), str(path)])
    return str(path)


def prediction(main: object, seconds: float = 250) -> AppTest:
    """The app at its page Prediction, before the first run."""
    return AppTest.from_file(str(main), default_timeout=seconds).switch_page("screens/prediction.py")


def home(**address: str) -> AppTest:
    app = AppTest.from_file(str(MAIN), default_timeout=250)
    app.query_params |= address
    app.run()
    assert not app.exception, app.exception
    return app


def press(app, label, number=0):
    [button for button in app.button if button.label == label][number].click().run()
    assert not app.exception, app.exception


def texts(app):
    return " ".join(element.value for element in (*app.markdown, *app.caption))
