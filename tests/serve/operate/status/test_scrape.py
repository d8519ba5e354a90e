import time

import pytest

from serve.contract.metric_catalog import BOUNDS_S
from serve.operate.status.scrape import Page, PageHistory, parse

ARM = 'experiment="launch",arm="model"'


def page(
    at_s: float, answered: int, *, worker: str = "w1", fallback: int = 0, within: dict[str, int] | None = None
) -> Page:
    text = f"""# HELP ray_tabrank_rankings_total Answered rankings.
# TYPE ray_tabrank_rankings_total counter
ray_tabrank_rankings_total{{WorkerId="{worker}",{ARM},rung="full"}} {answered}
ray_tabrank_rankings_total{{WorkerId="{worker}",{ARM},rung="fallback"}} {fallback}
ray_tabrank_degraded_total{{WorkerId="{worker}",reason="no_model"}} {fallback}
ray_tabrank_freshness_seconds{{WorkerId="{worker}"}} 0.08
ray_serve_other_total{{WorkerId="{worker}"}} 7
"""
    for bound, count in (within or {}).items():
        text += f'ray_tabrank_latency_seconds_bucket{{WorkerId="{worker}",{ARM},le="{bound}"}} {count}\n'
    return parse(text, at_s)


def traffic(*pages):
    history = PageHistory(every_s=1.0)
    for one in pages:
        history.add(one)
    return history.traffic()


def test_the_rate_is_taken_between_two_moments_at_which_the_counters_moved():
    # 100 rankings a second, reported once a second; the pages are read five times as often.
    pages = [page(0.1 + 0.2 * i, 100 * int(0.1 + 0.2 * i + 0.5)) for i in range(13)]
    assert traffic(*pages).rate_rps == pytest.approx(100, rel=0.11)
    assert (pages[-1].at_s - pages[0].at_s) < 3
    assert traffic(page(0.0, 5), page(3.0, 5)).rate_rps == 0


def test_a_counter_that_moved_once_has_a_rate_over_all_pages():
    assert traffic(page(0.0, 0), page(4.0, 3_600), page(8.0, 3_600)).rate_rps == 450
    assert traffic(page(0.0, 100), page(4.0, 3_700)).rate_rps == 900


def test_replicas_add_up_and_a_new_one_counts_from_zero():
    def both(at_s, one, two):
        return Page(at_s, {**page(at_s, one).values, **(page(at_s, two, worker="w2").values if two else {})})

    found = traffic(both(0, 100, 0), both(1, 200, 50), both(2, 300, 100), both(3, 400, 150))
    assert found.rate_rps == pytest.approx(150)
    assert found.freshness_ms == 80


def test_replicas_that_report_at_different_moments_have_no_common_rate():
    def both(at_s, one, two):
        return Page(at_s, {**page(at_s, one).values, **page(at_s, two, worker="w2").values})

    pages = both(0, 0, 0), both(2, 1_000, 0), both(3, 1_000, 1_000), both(6, 1_000, 1_000)
    assert traffic(*pages).rate_rps == pytest.approx(2_000 / 6, abs=1e-3)


def test_one_page_has_the_median_since_the_replicas_started():
    assert page(1, 100, within={"0.005": 50, "0.01": 90, "+Inf": 100}).median_ms == 5.0
    assert page(1, 100).median_ms is None


def test_quantiles_lie_between_the_bounds_as_prometheus_has_them():
    before = page(0, 0)
    within = {"0.005": 50, "0.01": 90, **{str(b): 99 for b in BOUNDS_S if b > 0.01}, "+Inf": 100}
    found = traffic(before, page(1, 100, within=within))
    assert [getattr(found, f"{quantile}_ms") for quantile in ("p50", "p90", "p99")] == [5.0, 10.0, 15.0]
    assert traffic(before, page(1, 1, within={"+Inf": 1})).p50_ms == BOUNDS_S[-1] * 1e3


def test_shares_are_of_the_rankings_between_two_pages():
    found = traffic(page(0, 1000, fallback=10), page(1, 1030, fallback=20))
    assert found.rungs == {"fallback": 0.25, "full": 0.75}
    assert found.reasons == {"no_model": 0.25}
    assert found.arms == {"model": 1.0}


def test_pages_without_rankings_give_no_traffic():
    assert traffic(parse("", 0.0), parse("ray_serve_x_total 3\n", 1.0)) is None


def test_pages_are_read_again_only_when_they_are_due():
    rare, always = PageHistory(1.0, read_every_s=60.0), PageHistory(1.0)
    assert rare.is_due
    for history in (rare, always):
        history.add(parse("", time.monotonic()))
    assert (rare.is_due, always.is_due) == (False, True)
    rare.add(parse("", time.monotonic() - 60.0))
    assert rare.is_due


def test_a_series_is_parsed_with_its_labels_whatever_its_value_is():
    text = 'ray_tabrank_x{a="b c",d="}"} 3\nray_tabrank_x{a="b c",d="}"} 1e3\nray_tabrank_y 4\n'
    found = parse(text, 0.0).values
    assert found == {
        ("ray_tabrank_x", frozenset({("a", "b c"), ("d", "}")})): 1003.0,
        ("ray_tabrank_y", frozenset()): 4.0,
    }


def test_records_have_rates_by_what_became_of_them_and_viewers_a_share_of_unknown_ones():
    def counted(at_s, *, events, duplicates, rejected, refused, known, unknown):
        lines = [
            f'tabrank_records_total{{WorkerId="i",kind="event"}} {events}',
            f'tabrank_records_total{{WorkerId="i",kind="viewer"}} {events}',
            f'tabrank_records_total{{WorkerId="i",kind="exposure"}} {50 * events}',
            f'tabrank_records_total{{WorkerId="i",kind="duplicate"}} {duplicates}',
            f'tabrank_records_total{{WorkerId="i",kind="rejected"}} {rejected}',
            f'tabrank_records_rejected_total{{WorkerId="w1"}} {refused}',
            f'tabrank_viewer_lookups_total{{WorkerId="w1",known="true"}} {known}',
            f'tabrank_viewer_lookups_total{{WorkerId="w1",known="false"}} {unknown}',
        ]
        text = "".join(f"ray_{line}\n" for line in lines)
        return Page(at_s, {**page(at_s, 0).values, **parse(text, at_s).values})

    found = traffic(
        counted(0, events=1000, duplicates=10, rejected=5, refused=7, known=90, unknown=10),
        counted(4, events=1100, duplicates=18, rejected=9, refused=9, known=150, unknown=30),
    )
    assert found.records_rps == {"accepted": 50.0, "duplicate": 2.0, "rejected": 1.5}
    assert (found.viewers, found.unknown_viewer_share) == (80, 0.25)
    assert traffic(page(0, 1), page(1, 2)).records_rps == {}
