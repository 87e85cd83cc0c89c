import pytest

from tests.browser.waiting import settled

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1200)]


def test_pictures_of_the_generated_set_carry_the_mark(page, app_url):
    page.goto(f"{app_url}/data")
    # The set is drawn at first use: seconds, but minutes on a busy machine.
    page.wait_for_selector("text=Generated pictures: they show no patient.", timeout=500_000)
    settled(page)
    pictures = page.locator("[data-testid=stImage] img")
    pictures.nth(9).wait_for(state="attached", timeout=60_000)
    assert pictures.count() == 10
    corner = """image => { const canvas = document.createElement("canvas");
      canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
      const pen = canvas.getContext("2d"); pen.drawImage(image, 0, 0);
      return Array.from(pen.getImageData(canvas.width - 12, 4, 8, 6).data); }"""
    for image in pictures.all():
        image.scroll_into_view_if_needed()
        image.evaluate("image => image.decode()")
        assert min(image.evaluate(corner)[1::4]) < 80 < 150 < max(image.evaluate(corner)[1::4]), "the mark"


def test_titles_of_pictures_do_not_overlap_in_a_narrow_window(page, app_url):
    page.set_viewport_size({"width": 900, "height": 1500})
    page.goto(f"{app_url}/data")
    page.wait_for_selector("[data-testid=stImage] img", timeout=500_000)
    settled(page)
    boxes = [
        caption.bounding_box()
        for caption in page.locator("[data-testid=stCaptionContainer]").filter(has_text="phantom-0-").all()
    ]
    assert len(boxes) == 10 and max(box["x"] + box["width"] for box in boxes) <= 900
    for number, one in enumerate(boxes):
        for other in boxes[number + 1 :]:
            beside = one["x"] + one["width"] <= other["x"] + 1 or other["x"] + other["width"] <= one["x"] + 1
            assert beside or abs(one["y"] - other["y"]) > 100


def test_every_view_of_the_data_page_draws_its_answer(page, app_url):
    page.goto(f"{app_url}/data")
    page.wait_for_selector("text=Generated pictures: they show no patient.", timeout=500_000)
    settled(page)
    for view, words in (
        ("Classes", "Coverage as CSV"),
        ("Split", "Divided groups"),
        ("Audit", "No leakage found between train, val, test"),
        ("Recipes", "endofm-lab data prepare"),
    ):
        page.locator(f"[data-testid=stButtonGroup] button:has-text('{view}')").click()
        page.wait_for_selector(f"text={words}", timeout=120_000)
        settled(page)
        assert page.locator("[data-testid=stException]").count() == 0
