"""Tests of the metrics page."""

from __future__ import annotations

from loadtest.measure.metrics_page import parse, read_page, total, within

PAGE = """# HELP ray_x_total What it is.
# TYPE ray_x_total counter
ray_x_total{application="spaces",replica="a"} 3.0
ray_x_total{application="spaces",replica="b"} 4.0
ray_ms_total{le="5",replica="a"} 90
ray_ms_total{le="10",replica="a"} 99
ray_ms_total{le="+Inf",replica="a"} 100
no number here
ray_bare 1e3
"""


def test_a_metric_is_summed_over_the_rows_with_the_labels():
    page = parse(PAGE)
    assert total(page, "ray_x_total") == 7
    assert total(page, "ray_x_total", replica="b") == 4
    assert total(page, "ray_bare") == 1000
    assert total(page, "ray_none") == 0


def test_the_bound_within_which_a_share_of_the_gain_lies():
    page = parse(PAGE)
    assert within({}, page, "ray_ms_total", 0.9) == 5
    assert within({}, page, "ray_ms_total", 0.99) == 10
    assert within({}, page, "ray_ms_total", 1.0) == float("inf")
    assert within(page, page, "ray_ms_total", 0.99) is None
    assert within({}, page, "ray_none", 0.99) is None


def test_where_no_page_answers_there_is_nothing_on_it():
    assert read_page("http://127.0.0.1:1/metrics") == {}
