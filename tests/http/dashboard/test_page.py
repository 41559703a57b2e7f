"""The page in a real browser: it loads without outside addresses, updates by itself, and explains a decision."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.testclient import TestClient

from router_ml.events.event import OutcomeEvent
from tests.http.dashboard.sample import sample_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUERY = "find a free hour with Dana and mail her the agenda"


@pytest.fixture(scope="module")
def application() -> Starlette:
    return sample_page()


@pytest.fixture(scope="module")
def address(application: Starlette) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(application, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]  # containers have little shared memory
        started = driver.chromium.launch(executable_path=CHROMIUM, args=arguments, timeout=120_000)
        yield started
        started.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """An empty page, closed after the test: an open one goes on drawing, and keeps the server from ending."""
    opened = browser.new_page()
    opened.set_default_timeout(60_000)
    yield opened
    opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_its_window_and_asks_no_other_address(page: Any, address: str, width: int, scheme: str) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    addresses: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#chart canvas")
    assert errors == []
    assert all(url.startswith((address, "data:")) for url in addresses), addresses
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert "right, of judged answers" in page.inner_text("main")


def test_a_query_typed_into_the_box_is_decided_and_explained(page: Any, address: str) -> None:
    page.goto(address)
    page.fill("input[name=query]", QUERY)
    page.click("button")
    page.wait_for_selector("#decision table")
    shown = page.inner_text("#decision")
    assert "qwen2.5:3b-instruct" in shown
    assert "complex" in shown


def test_what_is_shown_is_escaped() -> None:
    page = sample_page(0, ())
    with TestClient(page) as client:
        answer = client.post("/dashboard/explain", data={"query": "x", "policy": "<script>alert(1)</script>"})
    assert answer.status_code == 200
    assert "<script>alert" not in answer.text
    assert "unknown policy" in answer.text


def test_a_page_without_traffic_says_what_to_do() -> None:
    with TestClient(sample_page(0, (), experiment=False)) as client:
        text = client.get("/").text
    assert "No request yet." in text
    assert "No alert is firing." in text
    assert "router-ml experiment start --help" in text


def test_a_new_request_reaches_the_open_page(page: Any, address: str, application: Starlette) -> None:
    page.goto(address)
    page.wait_for_selector(".recent")
    for recorder in application.state.recorders:
        recorder.record(OutcomeEvent("new", "a-model-seen-just-now", None, 1.0))
    page.wait_for_selector(".recent td:has-text('a-model-seen-just-now')")
