"""Ticks and legends of plots in a browser."""

from __future__ import annotations

import pytest

from serve.report.charts import Axis, Series, plot
from serve.report.page import whole_page
from tests.support.browser import browser, needs_chromium, page_at

pytestmark = [pytest.mark.integration, pytest.mark.no_ray, needs_chromium]


def test_an_axis_of_one_value_has_two_ticks_or_more(tmp_path):
    x, y = Axis("second of the measurement"), Axis("failed", zero=True)
    plots = [
        plot("one second", x, y, [Series("a", [7], [3])]),
        plot("none", x, y, [Series("a", [1, 2], [0, 0])]),
        plot("cost", Axis("µs", log=True), y, [Series("a", [5, 5], [1, 2], "points")]),
        plot("near", Axis("µs", log=True), y, [Series("a", [0.46, 0.47], [1, 2], "points")]),
    ]
    (tmp_path / "page.html").write_text(whole_page("ticks", plots))
    with browser() as chromium, page_at(chromium, (tmp_path / "page.html").as_uri(), width=390) as page:
        page.wait_for_selector(".plot svg >> nth=3")
        axes = page.locator(".role-axis-label")
        assert axes.count() == 8
        for axis in axes.all():
            assert len([text for text in axis.locator("text").all_text_contents() if text]) >= 2


def test_over_time_a_legend_has_the_latest_value_of_each_line(tmp_path):
    time, share = Axis("second of the measurement", is_time=True), Axis("share", format=".1%")
    lines = [Series("p50", [0, 1, 2], [1.0, 2.0, 3.456]), Series("p99", [0, 1, 2], [7.0, 20.5, None])]
    plots = [
        plot("", time, Axis("ms"), [*lines, Series("failed", [1], [3.0], "points")]),
        plot("", time, share, [Series("full", [0, 1], [0.9, 0.998], "step")]),
        plot("", Axis("predicted"), Axis("ms"), lines),
    ]
    (tmp_path / "page.html").write_text(whole_page("legends", plots))
    with browser() as chromium, page_at(chromium, (tmp_path / "page.html").as_uri()) as page:
        page.wait_for_selector(".plot svg >> nth=2")
        legends = [text.splitlines() for text in page.locator(".legend").all_inner_texts()]
    assert legends == [["p50 3.456", "p99 20.5", "failed"], ["full 99.8%"], ["p50", "p99"]]
