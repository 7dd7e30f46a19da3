"""The pages in a real browser: what the tests of pages share. Needs the extra `results`, and chromium on the path."""

import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MARKS = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path; apt-get install chromium"),
]
HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> 'a' \"b\" & `c`"
)
RTL = "ثعلب أحمر \u202e fox"
ROWS = [{"prompt": "a red fox"}, {"prompt": HOSTILE, "negative_prompt": HOSTILE}, {"prompt": RTL, "seed": 7}]
WIDE, NARROW = {"width": 1440, "height": 900}, {"width": 390, "height": 844}


def settled(page):
    page.wait_for_function("() => !document.querySelector('.line:empty')")  # lines are filled when they come into view


def texts(page, selector):
    settled(page)
    return page.locator(selector).all_inner_texts()


def shown_files(page):
    """The files of the tiles, from the page's own directory on."""
    settled(page)
    sources = page.eval_on_selector_all(".tile img", "all => all.map((one) => decodeURI(one.src))")
    directory = page.evaluate("decodeURI(location.href.split('#')[0]).replace(/[^/]*$/, '')")
    return [source.removeprefix(directory) for source in sources]
