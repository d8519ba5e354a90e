"""Tests of the pages in a browser: whole without a network, accessible, small, and sortable."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.measure.cluster import ClusterSample
from loadtest.measure.measure import RequestLog
from loadtest.measure.service import Outcome
from loadtest.report.demo import write_demo
from loadtest.report.run import report_run
from loadtest.workload.profiles import load_profile, load_slo
from tests.support.browser import WIDTHS, browser, needs_axe, needs_chromium, page_at, violations
from tests.support.demo_report import demo_report

pytestmark = [pytest.mark.integration, pytest.mark.no_ray, needs_chromium, needs_axe]
PROFILE = load_profile("headline", warmup_s=5, duration_s=30)
PLOTS = {"demo": 1, "demo/load-headline": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of a demo's report, and of its load test with 27,000 requests."""
    demo = tmp_path_factory.mktemp("pages") / "demo"
    demo.mkdir()
    rng, log = np.random.default_rng(0), RequestLog()
    for at_s in np.linspace(-5, 29.99, 31_500).tolist():
        log.add(at_s, rng.exponential(), rng.lognormal(1.5, 0.6), Outcome("full", True, True), 55)
    samples = [ClusterSample(second + 0.5, {"Scorer": 1 + second // 20}, 1) for second in range(30)]
    load = (PROFILE, load_slo(), "http://127.0.0.1:8000", log.requests(), samples)
    report_run(*load, demo / "load-headline")
    write_demo(demo_report(), demo)
    return demo.parent


@pytest.fixture(scope="module")
def chromium():
    with browser() as found:
        yield found


@pytest.mark.parametrize("name", PLOTS)
def test_a_page_is_accessible_and_whole_at_every_width(folder, chromium, name):
    path = folder / name / "report.html"
    assert path.stat().st_size < 1_500_000
    for width, dark in zip(WIDTHS, (False, True), strict=True):
        with page_at(chromium, path.as_uri(), width=width, dark=dark) as page:
            page.wait_for_selector(".plot svg")
            assert page.locator(".plot svg").count() == PLOTS[name]
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert violations(page) == []


def test_the_first_screen_of_the_demo_has_verdict_figures_and_a_doubt(folder, chromium):
    with page_at(chromium, (folder / "demo/report.html").as_uri()) as page:
        for told in ("Held: 900 rankings/s in time", "18.5 ms", "at most 100 ms", "What this does not say"):
            box = page.get_by_text(told).first.bounding_box()
            assert box["y"] + box["height"] < 900, told
        page.get_by_role("link", name="The load test at 900 requests/s").click()
        assert page.get_by_text("Held: 900 requests/s within the limits").is_visible()


def test_the_table_of_rankings_sorts_by_its_columns(folder, chromium):
    with page_at(chromium, (folder / "demo/report.html").as_uri()) as page:
        table = page.locator("table").filter(has_text="looked at")
        places = table.locator("tbody tr td:first-child")
        assert places.all_text_contents() == ["1", "2", "3"]
        for _ in range(2):
            table.get_by_role("button", name="place").click()
        assert places.all_text_contents() == ["3", "2", "1"]
