"""Page `/docs` in a browser, below a route prefix and with API keys."""

from __future__ import annotations

import hashlib
import json

import httpx
import pytest

from serve.config.settings import ApiKey
from serve.log.writer import write_log
from tests.support.browser import WIDTHS, browser, needs_axe, needs_chromium, page_at, violations
from tests.support.live_service import Live
from tests.support.small_surface import tables

pytestmark = [pytest.mark.integration, pytest.mark.no_ray, needs_chromium]
PREFIX = "/tab"
RANK, EVENTS = "#operations-ranking-rank", "#operations-events-events"
STATUS = ".live-responses-table .response .response-col_status"
# Of Swagger UI's own elements, its text areas, select boxes, code and colours.
SWAGGERS = {"color-contrast", "label", "scrollable-region-focusable", "select-name"}


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    write_log(folder / "log", tables())
    key = ApiKey("app", hashlib.sha256(b"the key").hexdigest(), 1_000)
    live = Live(folder, folder / "log", clock="wall", api_keys=(key,))

    async def prefixed(scope, receive, send):
        path = scope["path"] if scope["path"].startswith(PREFIX) else "/nowhere"
        return await edge(scope | {"root_path": PREFIX, "path": path}, receive, send)

    with live.listening() as url:
        edge, live.edge = live.edge, prefixed
        yield url + PREFIX


@pytest.fixture(scope="module")
def chromium():
    with browser() as chromium:
        yield chromium


def answered(page, operation):
    """Execute an operation, and return its status and the JSON of its answer."""
    page.click(f"{operation} .execute")
    page.wait_for_selector(f"{operation} {STATUS}")
    answer = page.inner_text(f"{operation} .live-responses-table .highlight-code")
    return page.inner_text(f"{operation} {STATUS}").split()[0], json.loads(answer[answer.index("{") :])


def test_requests_can_be_tried_with_a_key_and_without(chromium, url):
    # The page fails on an error in the console, such as a breach of its Content-Security-Policy.
    with page_at(chromium, f"{url}/docs") as page:
        # Both operations that callers use are open, and the others are not.
        page.wait_for_selector(f"{EVENTS}.is-open .execute")
        assert "/v1 promises" in page.inner_text(".info").replace("\n", " ")
        assert page.locator(".opblock.is-open").count() == 2
        page.click(".authorize")
        page.fill(".modal-ux input", "the key")
        page.click(".modal-ux .authorize")
        page.click(".modal-ux .btn-done")
        status, ranking = answered(page, RANK)
        assert status == "200"
        # The store knows none of them, and the request states a field of the second one.
        assert [one["candidate"] for one in ranking["ranking"]] == ["candidate-2", "candidate-1"]
        assert ranking["ranking"][0]["features"]["hour"] == 3
        status, outcome = answered(page, EVENTS)
        assert (status, outcome["accepted"], outcome["rejected"]) == ("200", 3, [])
    assert httpx.post(f"{url}/v1/rank", json={}).status_code == 401


@needs_axe
def test_what_is_ours_of_the_page_is_accessible_in_light_and_dark_wide_and_narrow(chromium, url):
    looks = []
    with page_at(chromium, f"{url}/docs") as page:
        page.wait_for_selector(f"{EVENTS}.is-open .execute")
        for width, height in WIDTHS.items():
            page.set_viewport_size({"width": width, "height": height})
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                page.wait_for_selector("html.dark-mode" if scheme == "dark" else "html:not(.dark-mode)")
                looks.append(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))
                assert violations(page, SWAGGERS) == []
            assert page.evaluate("document.documentElement.scrollWidth") == width
    assert looks[0] != looks[1]
    assert looks[:2] == looks[2:]
