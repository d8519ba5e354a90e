"""Tests of `python -m loadtest run` and the locustfile over HTTP, against a stub of the service."""

from __future__ import annotations

import csv
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loadtest.generator.ids import Ids
from loadtest.scenarios.run import run_profile
from loadtest.workload.profiles import Profile, Slo
from tests.support.loadtest_command import ENVIRONMENT, IDS, ROOT, interrupted, run_loadtest, with_ids

pytestmark = [pytest.mark.integration, pytest.mark.no_ray]


def load(stub, folder, *more):
    """Run the command for a second: exit code, printed object and stderr."""
    (folder / "brief.toml").write_text(
        "target_rps = 100\ncandidates = 55\nwarmup_s = 0.5\nduration_s = 1\nviewer_skew = 1\n"
    )
    given = ("--profile", "brief.toml", "--url", stub.url, *with_ids(folder), "--out", "out")
    return run_loadtest(folder, "run", *given, *more)


@pytest.fixture(scope="module")
def good(shared_stub, tmp_path_factory):
    """Good service under load: the stub, the folder of the run, and the command's results."""
    folder = tmp_path_factory.mktemp("good")
    return shared_stub, folder, load(shared_stub, folder, *slo(folder))


def slo(tmp_path, **limits):
    # A busy machine makes the generator late; the tests of the verdict use 10 ms.
    limits = {"generator_late_ms_p99": 1000, "p90_ms": 2000, "p99_ms": 3000, **limits}
    (tmp_path / "slo.toml").write_text("".join(f"{key} = {value}\n" for key, value in limits.items()))
    return "--slo", "slo.toml"


def test_a_good_service_holds(good):
    _, tmp_path, (code, report, messages) = good
    assert (code, report["verdict"], report["reasons"]) == (0, "held", [])
    assert (report["requests"], report["errors"], report["rungs"]) == (100, 0, {"full": 100})
    assert report["rps"] == pytest.approx(100, rel=0.1)
    assert report["candidates_per_s"] == pytest.approx(5500, rel=0.1)
    assert "out/report.html" in messages
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    rows = list(csv.DictReader((tmp_path / "out" / "timeline.csv").read_text().splitlines()))
    assert sum(int(row["offered_rps"]) for row in rows) == 100


def test_what_is_sent_is_what_the_profile_says(good):
    stub, *_ = good
    # The probe, the warm-up and the measured requests.
    assert len(stub.requests) == 1 + 150
    for request in stub.requests:
        assert len(set(request["candidates"])) == 55
        assert request["viewer"] in IDS["viewers"]
        assert request["traffic"] == "test"
        assert set(request) == {"viewer", "candidates", "traffic"}


def test_connections_are_kept(good):
    stub, *_ = good
    assert stub.num_connections < 60


def test_a_slow_service_does_not_hold_and_slows_no_other_request(stub, tmp_path):
    stub.wait_s = 0.3
    code, report, _ = load(stub, tmp_path, *slo(tmp_path, p90_ms=50, p99_ms=100))
    assert (code, report["verdict"]) == (1, "not held")
    assert report["requests"] == 100
    # A closed loop of fewer than thirty users would have waited and sent fewer.
    assert 300 <= report["p50_ms"] < 600
    assert [reason.split()[0] for reason in report["reasons"]] == ["p90", "p99"]


def test_without_a_service_nothing_is_written(stub, tmp_path):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{sock.getsockname()[1]}"
        code, report, messages = load(stub, tmp_path, "--url", nobody)
    assert (code, report["verdict"]) == (2, "void")
    assert report["reasons"] == [messages.strip()]
    assert "Traceback" not in messages
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_has_no_verdict_and_leaves_nothing(stub, tmp_path):
    command = ("run", "--url", stub.url, *with_ids(tmp_path), "--rps", "50")
    code, _, messages = interrupted(tmp_path, lambda: len(stub.requests) >= 20, *command)
    assert code == 2
    assert messages.strip().splitlines()[-1] == "interrupted: no verdict, and no report is written"
    assert not (tmp_path / "var").exists()


def test_a_shaped_load_is_told_by_phase_beside_the_replicas_that_ran(stub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "var" / "run"
    run.mkdir(parents=True)
    deployments = {"Scorer": {"replicas": {"RUNNING": 2}}}
    service = {"applications": {"spaces": {"deployments": deployments}}, "nodes": [{"alive": True}]}
    (run / "service.json").write_text(json.dumps(service | {"url": stub.url}))
    shape = ((0.0, 1.0), (1.0, 1.0), (1.0, 3.0), (2.0, 3.0))
    profile = Profile("mine", 50.0, 55, 0.5, 2.0, 1.0, shape)
    report = run_profile(profile, Slo(2000, 3000, 0, 1, 1000), stub.url, Ids(**IDS), tmp_path / "out")
    assert (report["verdict"], report["requests"]) == ("held", 200)
    assert [(phase["name"], phase["requests"]) for phase in report["phases"]] == [("×1", 50), ("×3", 150)]
    assert [step["p99_recovered_s"] for step in report["steps"]] == [0]
    rows = list(csv.DictReader((tmp_path / "out" / "timeline.csv").read_text().splitlines()))
    assert [row["offered_rps"] for row in rows] == ["50", "150"]
    assert rows[1]["Scorer_replicas"] == "2"
    assert rows[1]["nodes"] == "1"


LOCUST = [str(Path(sys.executable).with_name("locust")), "-f", str(ROOT / "loadtest" / "locustfile.py")]


def locust(stub, folder, *more):
    """Run the locustfile with Locust alone."""
    command = [*LOCUST, "--host", stub.url, "--headless", *more]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=ENVIRONMENT, timeout=60)


def test_a_master_that_is_ended_waits_for_its_workers_reports(stub, tmp_path):
    load = ("--processes", "2", "-t", "120s", "-u", "20", *with_ids(tmp_path), *slo(tmp_path))
    command = [*LOCUST, "--host", stub.url, "--headless", *load]
    process = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 90
    # The workers report every 3 s.
    while len(stub.requests) < 20 and time.monotonic() < until:
        time.sleep(0.05)
    process.terminate()
    _, messages = process.communicate(timeout=90)
    assert process.returncode == 0, messages
    assert "SLO held, p90" in messages


def test_the_locustfile_refuses_ids_that_it_cannot_use(stub, tmp_path):
    done = locust(stub, tmp_path, "--ids", "none.json", "-t", "2s")
    assert done.returncode == 2
    assert "none.json: cannot be read" in done.stderr


def test_users_wait_for_their_answers_and_exit_by_the_slo(stub, tmp_path):
    stub.status, stub.share_bad = 503, 0.5
    done = locust(stub, tmp_path, "-t", "3s", "-u", "8", "-r", "8", *with_ids(tmp_path), *slo(tmp_path))
    assert done.returncode == 1, done.stderr
    assert "HTTP 503" in done.stderr
    assert stub.num_connections == 8
    # Each user asks at once, and then after 0.5 to 1.5 s each time: seven times at most.
    assert 2 * 8 <= len(stub.requests) <= 7 * 8
