"""Tests of `loadtest slow`, against a service in this process without HAProxy, and without one."""

from __future__ import annotations

import pytest

import loadtest.scenarios.slow
from loadtest.errors import LoadtestError
from loadtest.generator.ids import Ids
from loadtest.scenarios.slow import run_slow, slow_summary
from loadtest.workload.profiles import Profile
from serve.log.writer import write_log
from tests.support.live_service import Live
from tests.support.small_surface import tables

PROFILE = Profile("few", 50, 4, 0, 1, 0.5)
IDS = Ids(viewers=["ann"], candidates=["a", "b", "c", "d"])


@pytest.mark.integration
@pytest.mark.no_ray
def test_windows_with_slow_clients_are_held_against_those_without(tmp_path, monkeypatch):
    monkeypatch.setattr(loadtest.scenarios.slow, "SETTLE_S", 1.0)
    monkeypatch.setattr("serve.http.body_reader.BODY_S", 3.0)
    write_log(tmp_path / "log", tables())
    service = Live(tmp_path, tmp_path / "log", clock="wall")
    with service.listening() as url:
        report = run_slow(PROFILE, url, IDS, num_slow=20, num_pairs=1, window_s=6.5)
    assert report["ratio"] > 0
    assert (report["errors"], report["slow_clients"]) == (0, 20)
    assert [len(windows) for windows in report["p99_ms"].values()] == [1, 1]
    assert list(report["slow_ended"][0]) == ["body: 408"]
    assert "20 slow clients make the p99 of 50 req/s" in slow_summary(report)


def test_without_a_service_it_says_so():
    with pytest.raises(LoadtestError, match="no service answers there"):
        run_slow(PROFILE, "http://127.0.0.1:9", IDS, 20, 1)
