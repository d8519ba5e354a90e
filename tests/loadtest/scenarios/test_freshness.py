"""Tests of `python -m loadtest freshness` over HTTP, against a stub that shows events late."""

from __future__ import annotations

import json
import re
import time
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.loadtest_command import IDS, interrupted, run_loadtest, with_ids

# fmt: off
KEYS = {
    "verdict", "reasons", "url", "seconds", "freshness_ms", "answered_freshness_ms", "rank", "events", "left_behind",
    "machine",
}
# fmt: on
SPREAD = {"p50", "p90", "p99", "max", "samples", "missed", "missed_kinds"}

pytestmark = [pytest.mark.integration, pytest.mark.no_ray]


@pytest.fixture
def fresh(live_stub, tmp_path):
    return measured(live_stub, tmp_path)


def measured(live_stub, folder):
    """Return a function that runs the command: exit code, printed object and stderr."""
    ids = with_ids(folder)
    # A busy machine makes the generator late; the tests of `run` cover that.
    (folder / "slo.toml").write_text("generator_late_ms_p99 = 2000\n")
    load = ("--rate", "50", "--events", "100", "--probes", "60", "--duration", "2", "--warmup", "0.5")

    def run(*more, url=None, source=ids):
        service = ("--url", url or live_stub.url, *source, "--slo", "slo.toml", "--out", "out")
        return run_loadtest(folder, "freshness", *service, *load, *more)

    return run


@pytest.fixture(scope="module")
def soon(shared_live_stub, tmp_path_factory):
    """Stub that shows events soon: the stub, the folder of the run, and the command's results."""
    folder = tmp_path_factory.mktemp("soon")
    return shared_live_stub, folder, measured(shared_live_stub, folder)()


def test_events_that_show_soon_hold(soon):
    _, folder, (code, report, messages) = soon
    assert (code, report["verdict"], report["reasons"]) == (0, "held", [])
    assert set(report) == KEYS
    spread = report["freshness_ms"]
    assert set(spread) == SPREAD | {"candidate", "viewer"}
    assert set(spread["candidate"]) == set(spread["viewer"]) == SPREAD
    assert [spread[kind]["samples"] for kind in ("candidate", "viewer")] == [60, 60]
    assert (spread["samples"], spread["missed"]) == (120, 0)
    # Not before the stub shows it, and not after the next poll on a busy machine.
    assert 100 <= spread["p50"] < 200
    assert spread["p50"] <= spread["p90"] <= spread["p99"] <= spread["max"]
    assert report["answered_freshness_ms"] == dict.fromkeys(("p50", "p90", "p99", "max"), 7.5)
    assert report["rank"]["rps"] == pytest.approx(50, rel=0.1)
    assert (report["rank"]["errors"], report["rank"]["full_share"]) == (0, 1.0)
    assert report["events"]["acknowledged_per_s"] == pytest.approx(100, rel=0.1)
    assert report["events"]["p99_ms"] is not None
    assert "out/report.html" in messages
    assert json.loads((folder / "out" / "report.json").read_text()) == report


def test_the_load_is_test_traffic_and_its_events_are_a_logs(soon):
    live_stub, *_ = soon
    assert {request["traffic"] for request in live_stub.requests} == {"test"}
    events = [record for record in live_stub.records if record["type"] == "event"]
    names = [record["id"] for record in events]
    assert len(set(names)) == len(names)
    load = [record for record in events if record["viewer"] in IDS["viewers"]]
    assert len(load) == 250
    assert {record["kind"] for record in load} == {"join"}


def test_kinds_of_events_come_from_the_log(live_stub, fresh, tmp_path):
    log = tmp_path / "log"
    log.mkdir()
    shown = {"viewer": IDS["viewers"], "ts_ms": list(range(50))}
    kinds = ["click"] * 30 + ["leave"] * 10 + ["impression"] * 99
    for name, columns in (
        ("exposures", shown),
        ("candidates", {"id": IDS["candidates"]}),
        ("events", {"kind": kinds}),
    ):
        pq.write_table(pa.table(columns), log / f"{name}.parquet")
    code, _, messages = fresh(source=("--log", "log"))
    # On a busy machine the events may show late: other tests ask for the verdict.
    assert code in (0, 1), messages
    load = [record for record in live_stub.records if record.get("viewer") in IDS["viewers"]]
    assert set(Counter(record["kind"] for record in load)) == {"click", "leave"}


def test_nothing_of_the_probes_is_left(soon):
    live_stub, _, (_, report, _) = soon
    candidates = [record for record in live_stub.records if record["type"] == "candidate"]
    begun = {record["id"] for record in candidates if "ends_ms" not in record}
    # The candidates of the probes, and the anchor of their viewers.
    assert len(begun) == 61
    assert begun == {
        record["id"] for record in candidates if record.get("ends_ms", 1e99) <= time.time() * 1000
    }
    forgotten = {record["viewer"] for record in live_stub.records if record["type"] == "forget"}
    joined = {record["viewer"] for record in live_stub.records if record["type"] == "event"}
    assert joined - set(IDS["viewers"]) == forgotten
    assert report["left_behind"] == []


def test_events_that_show_late_do_not_hold(live_stub, fresh):
    live_stub.shows_after_s = 1.2
    code, report, _ = fresh("--probes", "52")
    assert (code, report["verdict"]) == (1, "not held")
    assert 1200 <= report["freshness_ms"]["p50"] < 1500
    assert len(report["reasons"]) == 1
    assert re.match(r"the p99 of freshness is 1\d\d\d ms", report["reasons"][0])


def test_events_that_never_show_do_not_hold(live_stub, fresh):
    live_stub.shows_after_s = None
    code, report, _ = fresh("--duration", "1", "--probes", "20")
    assert (code, report["freshness_ms"]["p50"], report["freshness_ms"]["missed"]) == (1, None, 20)
    assert report["freshness_ms"]["missed_kinds"] == {"not shown within 5 s": 20}
    assert [reason[:25] for reason in report["reasons"]] == [
        "there were only 20 probes",
        "20 of 20 probes never sho",
    ]
    # Polling every 20 ms for 5 s would make 250 requests.
    polls = [request for request in live_stub.requests if request["viewer"] not in IDS["viewers"]]
    assert 20 <= len(polls) < 20 * 110


def test_a_fallback_shows_nothing(live_stub, fresh):
    # Fallback answers report no viewer as unknown, as they read none.
    live_stub.full_until = 0
    code, report, _ = fresh("--duration", "1", "--probes", "20")
    assert (code, report["freshness_ms"]["missed"]) == (1, 20)


def test_rankings_that_fail_do_not_hold(live_stub, fresh):
    live_stub.status = 503
    live_stub.share_bad = 0.1
    code, report, _ = fresh()
    assert code == 1
    assert list(report["rank"]["error_kinds"]) == ["HTTP 503"]
    assert any("rankings failed" in reason for reason in report["reasons"])


def test_a_service_without_events_is_no_case_for_a_verdict(live_stub, fresh, tmp_path):
    live_stub.events_status = 404
    code, report, messages = fresh()
    assert (code, report["verdict"]) == (2, "void")
    assert "the service does not accept events: 404" in report["reasons"][0]
    assert messages.strip() == report["reasons"][0]
    assert not (tmp_path / "out").exists()


def test_a_service_that_takes_no_events_now_says_why(live_stub, fresh):
    live_stub.events_status = 503
    code, report, _ = fresh()
    assert code == 2
    assert "does not accept events: 503 the log is full" in report["reasons"][0]


def test_a_refused_kind_of_event_is_told_before_the_run(live_stub, fresh):
    live_stub.refuses = "join"
    code, report, _ = fresh()
    assert code == 2
    assert "/records/1: no such kind" in report["reasons"][0]
    # Only the ranking that checks the service before the run.
    assert len(live_stub.requests) == 1


def test_another_service_than_tabrank_is_told_so(stub, fresh):
    code, report, _ = fresh(url=stub.url)
    assert code == 2
    assert "GET /v1/model does not name the predicted event" in report["reasons"][0]


def test_without_a_service_nothing_is_measured(fresh):
    code, report, _ = fresh(url="http://127.0.0.1:9")
    assert (code, report["verdict"]) == (2, "void")
    assert "no service answers there" in report["reasons"][0]


def test_an_interrupted_run_ends_its_probes_too(live_stub, tmp_path):
    load = ("--rate", "20", "--events", "20", "--warmup", "0", "--probes", "20")
    command = ("freshness", "--url", live_stub.url, *with_ids(tmp_path), *load)
    code, _, messages = interrupted(tmp_path, lambda: len(live_stub.requests) >= 40, *command)
    assert code == 2
    assert messages.strip().splitlines()[-1] == "interrupted: no verdict, and no report is written"
    candidates = [record for record in live_stub.records if record["type"] == "candidate"]
    assert {r["id"] for r in candidates if "ends_ms" not in r} == {
        r["id"] for r in candidates if "ends_ms" in r
    }
    assert not (tmp_path / "var").exists()


def test_the_page_has_its_plots_and_the_numbers_beside_it(live_stub, fresh, tmp_path):
    live_stub.share_bad = 1.0
    _, report, _ = fresh("--duration", "1")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.json"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('class="plot"') == 2
    assert "there were only 60 probes, and at least 100 are needed" in page
    samples = {kind: report["freshness_ms"][kind]["samples"] for kind in ("candidate", "viewer")}
    assert samples == {"candidate": 30, "viewer": 30}
