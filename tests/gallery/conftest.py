"""A browser, and a run's and a sweep's page, for the tests of pages."""

import pytest
from support.browser import CHROMIUM, ROWS, WIDE
from support.runs import StandInPipeline, config, prepare
from support.scores import make_scored_sweep
from support.sweeps import make

from tpusd.recipes.command import hydra_value
from tpusd.runs.start import start_run


@pytest.fixture(scope="module")  # its event loop must not outlive the tests of pages
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def opened(browser):
    """open(path) -> a page; at the end: no error on any, and no request but for files beside it."""
    contexts, faults = [], []

    def open_page(path, viewport=WIDE, fragment="", context=None, **options):
        if context is None:
            context = browser.new_context(viewport=viewport, **options)
            contexts.append(context)
            context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        root = path.parent.resolve().as_uri()
        page.on("request", lambda request: request.url.startswith((root, "blob:")) or faults.append(request.url))
        aborted = "net::ERR_ABORTED"  # by the test, which leaves a page while its images load
        page.on("requestfailed", lambda one: one.failure == aborted or faults.append(f"{one.failure}: {one.url}"))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: message.type == "error" and faults.append(message.text))
        page.goto(path.resolve().as_uri() + fragment)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture(scope="session")
def run_page(tmp_path_factory):
    path = tmp_path_factory.mktemp("pages") / "run"
    made = config(f"output={path}", f"prompts.rows={hydra_value(ROWS)}", "num_images_per_prompt=2", "sampler=ddim")
    return start_run(made, prepare=prepare, load=lambda *_: StandInPipeline()) / "index.html"


@pytest.fixture(scope="session")
def sweep_page(tmp_path_factory):
    path = tmp_path_factory.mktemp("pages") / "sweep"
    make(
        "sampler=ddim,pndm",
        "guidance_scale=3,7.5,12",
        "seed=0,1",
        f"prompts.rows={hydra_value(ROWS)}",
        f"output={path}",
    )
    return path / "index.html"


@pytest.fixture(scope="session")
def scored_sweep(tmp_path_factory):
    return make_scored_sweep(tmp_path_factory.mktemp("scored") / "sweep")
