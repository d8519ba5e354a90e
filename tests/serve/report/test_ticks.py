"""Ticks of plots in a browser."""

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
    ]
    (tmp_path / "page.html").write_text(whole_page("ticks", plots))
    with browser() as chromium, page_at(chromium, (tmp_path / "page.html").as_uri(), width=390) as page:
        page.wait_for_selector(".plot svg >> nth=1")
        axes = page.locator(".role-axis-label")
        assert axes.count() == 4
        for axis in axes.all():
            assert len([text for text in axis.locator("text").all_text_contents() if text]) >= 2
