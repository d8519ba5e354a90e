"""Tests of `python -m loadtest run` and the locustfile over HTTP, against a stub of the service."""

from __future__ import annotations

import csv
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.support.loadtest_command import ENVIRONMENT, IDS, ROOT, interrupted, run_loadtest, with_ids

pytestmark = [pytest.mark.integration, pytest.mark.no_ray]


@pytest.fixture
def load(stub, tmp_path):
    return loaded(stub, tmp_path)


def loaded(stub, folder):
    """Return a function that runs the command: exit code, printed object and stderr."""
    ids = with_ids(folder)

    def run(*more, url=None, rps=100, duration=1):
        load = ("--rps", rps, "--duration", duration, "--warmup", "0.5", "--out", "out")
        return run_loadtest(folder, "run", "--url", url or stub.url, *ids, *load, *more)

    return run


@pytest.fixture(scope="module")
def good(shared_stub, tmp_path_factory):
    """Good service under load: the stub, the folder of the run, and the command's results."""
    folder = tmp_path_factory.mktemp("good")
    return shared_stub, folder, loaded(shared_stub, folder)(*slo(folder))


def slo(tmp_path, **limits):
    # A busy machine makes the generator late; only the tests of lateness use 10 ms.
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


def test_a_shaped_load_is_told_by_phase_beside_the_replicas_that_ran(stub, load, tmp_path):
    (tmp_path / "mine.toml").write_text(
        "target_rps = 1\ncandidates = 55\nwarmup_s = 1\nduration_s = 4\nviewer_skew = 1\n"
        "shape = [[0, 1], [2, 1], [2, 3], [4, 3]]\n"
    )
    (tmp_path / "run").mkdir()
    deployments = {"Scorer": {"replicas": {"RUNNING": 2}}}
    service = {"applications": {"spaces": {"deployments": deployments}}, "nodes": [{"alive": True}]}
    (tmp_path / "run" / "service.json").write_text(json.dumps(service))
    mine = ("--profile", "mine.toml", "--cluster", "run")
    code, report, _ = load(*slo(tmp_path), *mine, rps=50, duration=4)
    assert (code, report["verdict"], report["requests"]) == (0, "held", 400)
    assert [(phase["name"], phase["requests"]) for phase in report["phases"]] == [("×1", 100), ("×3", 300)]
    assert [step["p99_recovered_s"] for step in report["steps"]] == [0]
    rows = list(csv.DictReader((tmp_path / "out" / "timeline.csv").read_text().splitlines()))
    assert [row["Scorer_replicas"] for row in rows] == ["2"] * 4
    assert [row["nodes"] for row in rows] == ["1"] * 4
    assert sum(int(row["offered_rps"]) for row in rows[2:]) == 300


def test_a_cluster_that_is_not_there_is_refused_before_the_load(stub, load, tmp_path):
    code, report, messages = load("--cluster", "nowhere")
    assert (code, report["verdict"]) == (2, "void")
    assert messages.startswith("--cluster nowhere: found no deployment there")
    assert not (tmp_path / "out").exists()


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


def test_a_service_that_closes_each_connection_is_served_too(stub, load, tmp_path):
    stub.close = True
    code, report, _ = load(*slo(tmp_path))
    assert (code, report["errors"]) == (0, 0)
    assert stub.num_connections == 151


def test_a_slow_service_does_not_hold_and_slows_no_other_request(stub, load, tmp_path):
    stub.wait_s = 0.3
    code, report, _ = load(*slo(tmp_path, p90_ms=50, p99_ms=100))
    assert (code, report["verdict"]) == (1, "not held")
    assert report["requests"] == 100
    # A closed loop of fewer than thirty users would have waited and sent fewer.
    assert 300 <= report["p50_ms"] < 600
    assert [reason.split()[0] for reason in report["reasons"]] == ["p90", "p99"]


def test_fallback_answers_do_not_hold(stub, load, tmp_path):
    stub.rung = "fallback"
    stub.share_bad = 0.05
    code, report, _ = load(*slo(tmp_path))
    assert (code, report["verdict"]) == (1, "not held")
    assert report["rungs"]["fallback"] > 0
    assert report["full_share"] < 0.999
    assert report["candidates_per_s"] == pytest.approx(55 * report["rps"] * report["full_share"], rel=0.1)


def test_full_answers_of_a_heuristic_do_not_hold(stub, load, tmp_path):
    stub.model = None
    code, report, _ = load(*slo(tmp_path))
    assert (code, report["full_share"], report["candidates_per_s"]) == (1, 0.0, 0.0)
    assert "from a heuristic" in report["reasons"][0]


def test_failing_answers_are_named_and_do_not_hold(stub, load, tmp_path):
    stub.status = 503
    code, report, _ = load(*slo(tmp_path))
    assert (code, report["error_kinds"], report["p50_ms"]) == (1, {"HTTP 503": 100}, None)


def test_answers_that_lack_a_candidate_do_not_hold(stub, load, tmp_path):
    stub.drop_last = True
    code, report, _ = load(*slo(tmp_path))
    assert (code, report["error_kinds"]) == (1, {"wrong number of candidates": 100})


def test_what_the_bound_on_open_requests_keeps_back_is_counted(stub, load, tmp_path):
    stub.wait_s = 4.0
    code, report, _ = load(*slo(tmp_path), rps=800, duration=2)
    assert code == 1
    assert report["requests"] == 1600
    assert report["error_kinds"] == {"not sent": 1600 + 400 - 1000}


def test_a_late_generator_voids_the_run(stub, load, tmp_path):
    code, report, _ = load(*slo(tmp_path, generator_late_ms_p99=0))
    assert (code, report["verdict"]) == (2, "void")
    assert "the load generator itself was late" in report["reasons"][0]


def test_without_a_service_nothing_is_written(load, tmp_path):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        code, report, messages = load(url=f"http://127.0.0.1:{sock.getsockname()[1]}")
    assert (code, report["verdict"]) == (2, "void")
    assert report["reasons"] == [messages.strip()]
    assert "Traceback" not in messages
    assert not (tmp_path / "out").exists()


def test_a_profile_that_is_not_there_is_one_sentence(load):
    code, report, messages = load("--profile", "headlin")
    assert (code, report["verdict"]) == (2, "void")
    assert messages.startswith("no profile 'headlin'")


def test_an_interrupted_run_has_no_verdict_and_leaves_nothing(stub, tmp_path):
    command = ("run", "--url", stub.url, *with_ids(tmp_path), "--rps", "50")
    code, _, messages = interrupted(tmp_path, lambda: len(stub.requests) >= 20, *command)
    assert code == 2
    assert messages.strip().splitlines()[-1] == "interrupted: no verdict, and no report is written"
    assert not (tmp_path / "var").exists()


LOCUST = [str(Path(sys.executable).with_name("locust")), "-f", str(ROOT / "loadtest" / "locustfile.py")]


def locust(stub, folder, *more):
    """Run the locustfile with Locust alone."""
    command = [*LOCUST, "--host", stub.url, "--headless", *more]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=ENVIRONMENT, timeout=60)


def test_the_locustfile_divides_the_rate_among_workers(stub, tmp_path):
    stub.wait_s = 0.105
    load = ("--processes", "2", "-t", "4s", "--profile", "modest", *with_ids(tmp_path), "--rps", "100")
    limits = slo(tmp_path, p90_ms=50)
    done = locust(stub, tmp_path, *load, *limits, "--json", "--only-summary", "--loglevel", "ERROR")
    # The p90 is 105 ms.
    assert done.returncode == 1, done.stderr
    # The workers print an empty list each.
    [entry] = json.loads(done.stdout[done.stdout.index("[\n") :])
    assert entry["name"] == "/v1/rank full"
    assert 100 < entry["num_requests"] < 450
    # Locust's own histogram would report 100 or 110.
    assert any(100 < float(ms) < 110 for ms in entry["response_times"])


def test_a_master_that_is_ended_waits_for_its_workers_reports(stub, tmp_path):
    load = ("--processes", "2", "-t", "120s", *with_ids(tmp_path), "--rps", "50", *slo(tmp_path))
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


def test_closed_loop_users_wait_for_their_answers_and_exit_by_the_slo(stub, tmp_path):
    load = ("ClosedLoopUser", "-t", "5s", "-u", "8", "-r", "8", *with_ids(tmp_path), *slo(tmp_path))
    done = locust(stub, tmp_path, *load)
    assert done.returncode == 0, done.stderr
    assert "SLO held, p90" in done.stderr
    assert stub.num_connections == 8
    # Each user asks at once, and then after 0.5 to 1.5 s each time: eleven times at most.
    assert 2 * 8 <= len(stub.requests) <= 11 * 8
    stub.status = 503
    done = locust(stub, tmp_path, *load)
    assert done.returncode == 1, done.stderr
    assert "HTTP 503" in done.stderr


def test_the_web_ui_names_both_users_and_starts_as_many_as_asked_for(stub, tmp_path):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [*LOCUST, "--host", stub.url, "--web-host", "127.0.0.1", "--web-port", str(port)]
    command += [*with_ids(tmp_path), *slo(tmp_path)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=log)
    web = f"http://127.0.0.1:{port}"
    try:
        page = asked(web)
        assert '"show_userclass_picker": true' in page
        assert '"available_user_classes": ["ClosedLoopUser", "OpenLoopUser"]' in page
        # As the form sends it at first: both are ticked.
        form = "user_classes=ClosedLoopUser&user_classes=OpenLoopUser&user_count=6&spawn_rate=6"
        assert json.loads(asked(f"{web}/swarm", form.encode()))["success"]
        until = time.monotonic() + 90
        while stub.num_connections < 6 and time.monotonic() < until:
            time.sleep(0.05)
        assert json.loads(asked(f"{web}/stats/requests"))["user_count"] == 6
        asked(f"{web}/stop", b"")
    finally:
        process.terminate()
        process.wait(90)
    told = (tmp_path / "log").read_text()
    assert "OpenLoopUser: Sends the rate of the profile" in told
    assert "SLO held" in told


def asked(url, form=None):
    """Return the body that Locust's web UI answers, once it is up."""
    until = time.monotonic() + 90
    while True:
        try:
            with urllib.request.urlopen(url, form, timeout=5) as answer:
                return answer.read().decode()
        except urllib.error.URLError:
            assert time.monotonic() < until
            time.sleep(0.1)
