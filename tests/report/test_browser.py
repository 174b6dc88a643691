"""The pages in a real browser, as wide as a phone."""

import shutil

import pytest

from tests.report.conftest import evaluate

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
PHONE = 360  # CSS pixels


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def overflowing(page):
    """Elements that reach beyond the screen, or whose content reaches beyond them."""
    return page.evaluate(
        "width => [...document.querySelectorAll('body, body *')].filter(element =>"
        " element.getBoundingClientRect().right > width || element.scrollWidth > element.clientWidth + 1"
        " && getComputedStyle(element).display !== 'inline').map(element => element.outerHTML.slice(0, 80))",
        PHONE,
    )


@pytest.mark.parametrize("what", ["evaluation", "comparison"])
def test_page_is_readable_on_a_phone(browser, root, files, tmp_path, what):
    source = f"predictions={files['poor']}" if what == "evaluation" else f"compare=[{files['poor']},{files['good']}]"
    outcome = evaluate(root, tmp_path, source)
    assert outcome.code == 0, outcome.err
    asked, complaints = [], []
    page = browser.new_page(viewport={"width": PHONE, "height": 780})
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.goto((tmp_path / "report.html").as_uri())
    assert [url for url in asked if not url.startswith("data:")] == [(tmp_path / "report.html").as_uri()]
    assert complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE
    assert overflowing(page) == []
    pictures = page.locator("img")
    assert pictures.count() == (23 if what == "evaluation" else 2)
    for picture in pictures.all():
        width, height, shown = picture.evaluate(
            "img => img.decode().then(() => [img.naturalWidth, img.naturalHeight, img.getBoundingClientRect().width])"
        )
        assert min(width, height) > 50
        assert shown > 250
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('td, th, p, small')]"
        ".map(element => parseFloat(getComputedStyle(element).fontSize)))"
    )
    assert smallest >= 10
    page.screenshot(path=tmp_path / "phone.png", full_page=True)
    page.close()
