"""Tests of the metrics of a running service."""

from __future__ import annotations

from loadtest.targets.running import bound_of_share_ms, read_page, total
from serve.operate.status.scrape import Page, parse

PAGE = """# HELP ray_tabrank_x_total What it is.
# TYPE ray_tabrank_x_total counter
ray_tabrank_x_total{application="spaces",replica="a"} 3.0
ray_tabrank_x_total{application="spaces",replica="b"} 4.0
ray_tabrank_s_bucket{le="0.005",replica="a"} 90
ray_tabrank_s_bucket{le="0.01",replica="a"} 99
ray_tabrank_s_bucket{le="+Inf",replica="a"} 100
no number here
ray_tabrank_bare 1e3
"""
NOTHING = Page(0.0)


def test_a_metric_is_summed_over_the_rows_with_the_labels():
    page = parse(PAGE, 0.0)
    assert total(page, "ray_tabrank_x_total") == 7
    assert total(page, "ray_tabrank_x_total", replica="b") == 4
    assert total(page, "ray_tabrank_bare") == 1000
    assert total(page, "ray_tabrank_none") == 0


def test_the_bound_within_which_a_share_of_the_gain_lies():
    page = parse(PAGE, 0.0)
    assert bound_of_share_ms(NOTHING, page, "ray_tabrank_s_bucket", 0.9) == 5
    assert bound_of_share_ms(NOTHING, page, "ray_tabrank_s_bucket", 0.99) == 10
    assert bound_of_share_ms(NOTHING, page, "ray_tabrank_s_bucket", 1.0) == float("inf")
    assert bound_of_share_ms(page, page, "ray_tabrank_s_bucket", 0.99) is None
    assert bound_of_share_ms(NOTHING, page, "ray_tabrank_none", 0.99) is None


def test_where_no_page_answers_there_is_nothing_on_it():
    assert read_page("http://127.0.0.1:1/metrics").values == {}
    assert read_page("").values == {}
