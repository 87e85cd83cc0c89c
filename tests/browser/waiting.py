"""Wait for pages of the app, and read what they show."""

import re


def settled(page):
    """Wait until Streamlit is idle."""
    page.wait_for_selector("[data-testid=stApp]")
    page.wait_for_function(
        "() => !document.querySelector('[data-testid=stStatusWidget]')"
        " && document.querySelector('[data-testid=stApp]').dataset.testScriptState !== 'running'",
        timeout=120_000,
    )


def shown_frame(page) -> int:
    return int(re.search(r"frame (\d+) of", page.locator("text=/frame \\d+ of/").first.inner_text()).group(1))
