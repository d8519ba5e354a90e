"""Each degradation of a running service has its words, its remedy and its place in the runbook."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from msgspec import convert, json

from serve.config.application import OUR_APPLICATION
from serve.config.diagnoses import DIAGNOSES
from serve.operate.host.run_folder import MARKER, SUPERVISE, RunFolder
from serve.operate.host.service_state import (
    ApplicationState,
    NodeState,
    ServiceChange,
    ServiceState,
    SupervisedState,
)
from serve.operate.host.state import RunState
from serve.operate.status import vitals
from serve.operate.status.causes import causes, health, of_answers
from serve.operate.status.report import Health, Memory, Report
from serve.operate.status.scrape import PageHistory, parse
from serve.operate.status.screen import screen
from serve.operate.status.vitals import look
from serve.rollout.history import HistoryEntry, append

ROOT = Path(__file__).parents[4]
RUNBOOK = (ROOT / "docs/runbook.md").read_text()
HEALTHY = Health("healthy", "healthy")
MIB = 1 << 20
NOW = datetime.now(UTC)


def ago(**delta: float) -> str:
    return (datetime.now(NOW.tzinfo) - timedelta(**delta)).isoformat(timespec="seconds")


def deployment(running: int = 1, target: int = 1, status: str = "HEALTHY", message: str = "", **others: int):
    states = {"RUNNING": running, **others}
    return {"status": status, "message": message, "target": target, "replicas": states, "ids": []}


class Stub:
    """Service of a written `service.json`, with pages of its own for health and metrics."""

    def __init__(self, run: RunFolder) -> None:
        self.run, self.ready = run, {"store": "fresh", "model": "m", "diagnoses": []}
        self.names = ["full", "fallback", "200", "429", "503", "overload", "full_replica"]
        self.names += ["known", "unknown", "context", "no_context"]
        self.counts = {f"{app}{name}": 0.0 for app in ("", "other_") for name in self.names}
        self.freshness_s, self.used_mib, self.lost, self.is_metered = 0.1, 4_000, 0, True
        # The statuses of paths, calls by status, steady rankings, and requests of no application.
        self.statuses, self.calls = {}, {}
        self.steady_rps, self.unrouted = 0.0, 0
        self.history = PageHistory(1.0)
        stub = self

        class Pages(BaseHTTPRequestHandler):
            def do_GET(self):
                body = stub.page(self.path)
                self.send_response(stub.statuses.get(self.path, 200 if body else 500))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        deployments = {"FeatureFetch": deployment(2, 2), "Scorer": deployment()}
        app = {"import_path": OUR_APPLICATION, "route_prefix": "/", "deployments": deployments}
        self.service = {
            "state": "ready",
            "url": self.url,
            "config": str(run.path / "cluster.yaml"),
            "error": "",
            "haproxy_metrics_url": f"{self.url}/haproxy",
            "nodes": [{"id": "a", "pool": "head", "alive": True, "metrics_url": f"{self.url}/metrics"}],
            "applications": {"spaces": app},
            "restarts": {},
            "changes": [],
        }

    def page(self, path: str) -> bytes:
        if path in self.statuses:
            return b""
        if path in ("/livez", "/readyz", "/v1/model"):
            return json.encode(self.ready) if self.ready else b""
        if path == "/haproxy?scope=frontend&scope=backend":
            return (
                f'haproxy_frontend_http_responses_total{{proxy="x",code="5xx"}} {self.lost}\n'
                f'haproxy_backend_http_responses_total{{proxy="default_backend",code="4xx"}} {self.unrouted}\n'
                f'haproxy_backend_http_responses_total{{proxy="http-spaces",code="4xx"}} 70\n'
            ).encode()
        if not self.is_metered:
            return b""
        lines = [
            *self.counted("spaces", ""),
            *self.counted("other", "other_"),
            f'ray_tabrank_freshness_seconds{{application="spaces",WorkerId="w"}} {self.freshness_s}\n',
            f'ray_tabrank_steady_rankings_per_second{{application="spaces",WorkerId="w"}} {self.steady_rps}\n',
            *(self.called(*labels, count) for labels, count in self.calls.items()),
            f'ray_node_mem_used{{ip="10.0.0.1"}} {self.used_mib * MIB}\n',
            f'ray_node_mem_total{{ip="10.0.0.1"}} {8_192 * MIB}\n',
        ]
        return "".join(lines).encode()

    def counted(self, application: str, prefix: str) -> list[str]:
        of = {name: f"{self.counts[prefix + name]}\n" for name in self.names}
        app = f'application="{application}",WorkerId="{application}"'
        http = f"ray_tabrank_http_server_request_duration_seconds_count{{{app},http_response_status_code"
        return [
            *(
                f'ray_tabrank_rankings_total{{{app},rung="{rung}"}} {of[rung]}'
                for rung in ("full", "fallback")
            ),
            f'ray_tabrank_degraded_total{{{app},reason="overload"}} {of["overload"]}',
            *(
                f'ray_serve_num_http_requests_total{{{app},status_code="{code}"}} {of[code]}'
                for code in ("200", "429", "503")
            ),
            f'{http}="429"}} {of["429"]}',
            f'ray_tabrank_candidate_lookups_total{{{app},known="true"}} {of["known"]}',
            f'ray_tabrank_candidate_lookups_total{{{app},known="false"}} {of["unknown"]}',
            f'ray_tabrank_live_rankings_total{{{app},has_context="true"}} {of["context"]}',
            f'ray_tabrank_live_rankings_total{{{app},has_context="false"}} {of["no_context"]}',
            f"ray_tabrank_refused_seconds_count{{{app}}} {of['full_replica']}",
        ]

    def called(self, route: str, status: int, count: int) -> str:
        labels = f'application="spaces",http_route="{route}",http_response_status_code="{status}"'
        return f"ray_tabrank_http_server_request_duration_seconds_count{{{labels}}} {count}\n"

    def write(self) -> None:
        self.run.write(convert(self.service, SupervisedState))

    def called_since(self, **calls: int) -> dict:
        """Return the second of two looks, between which `/v1/rank` got these answers."""
        self.write()
        look(self.run.path, None, self.history)
        self.calls = {("/v1/rank", int(status[1:])): count for status, count in calls.items()}
        return look(self.run.path, None, self.history)

    def look(self, **grown: float) -> dict:
        """Return the second of two looks, between which these counters have grown."""
        self.write()
        look(self.run.path, None, self.history)
        for name, count in grown.items():
            self.counts[name.removeprefix("_")] += count
        return look(self.run.path, None, self.history)


@pytest.fixture(scope="module")
def supervised(tmp_path_factory):
    """Run folder with a process that passes for its supervisor."""
    run = RunFolder(tmp_path_factory.mktemp("run"))
    command = [sys.executable, "-c", "print(flush=True); input()", SUPERVISE]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, env={**os.environ, MARKER: run.cluster_id}) as process:
        assert process.stdout.readline() == b"\n"
        yield run
        process.kill()


@pytest.fixture
def stub(supervised):
    stub = Stub(supervised)
    yield stub
    stub.server.shutdown()
    stub.server.server_close()
    supervised.remove_state()


def named(found: dict) -> dict[str, str]:
    """Return the text of each cause by name, after checks that hold for every state."""
    assert json.decode(json.encode(found), type=Report) == found
    first = [one for one in found.causes if not one.advice][:1]
    for one in first:
        assert (found.health.line, found.health.remedy) == (one.text, one.remedy)
    assert found.health.state in (("degraded", "down", "unknown") if first else ("healthy", "unknown"))
    return {one.name: one.text for one in found.causes}


def test_a_service_that_nothing_is_wrong_with_is_healthy(stub):
    found = stub.look(full=100, _200=100)
    assert (found.health, found.causes, found.degraded) == (HEALTHY, [], [])
    assert found.memory == Memory(4_000, 8_192, "10.0.0.1")
    assert (found.traffic.error_share, found.traffic.errors) == (0, {})
    assert found.traffic.window_s > 0
    assert datetime.fromisoformat(found.at).tzinfo is not None


def test_a_tenth_of_the_answers_in_fallback_is_not_healthy(stub):
    found = stub.look(full=90, fallback=10, overload=5, _200=100)
    assert named(found) == {
        "overloaded": "Overloaded: 0.0% of the requests are refused with 429,"
        " 5.0% of the rankings have fewer scores.",
        "not_full": "10.0% of the rankings are not full (overload 5.0%).",
    }
    assert found.health.runbook == "docs/runbook.md#tabrankfailing"


def test_errors_and_refusals_are_named_with_their_shares(stub):
    found = stub.look(full=90, _200=90, _429=5, full_replica=5, _503=5)
    assert named(found) == {
        "overloaded": "Overloaded: 5.0% of the requests are refused with 429,"
        " 0.0% of the rankings have fewer scores.",
        "errors": "5.0% of the requests fail (503 5.0%).",
    }
    assert found.traffic.errors == {"503": 0.05}
    assert (found.traffic.error_share, found.traffic.refused_share) == (0.05, 0.05)


def test_a_key_above_its_rate_is_no_overload(stub):
    found = stub.look(full=90, _200=90, _429=10)
    assert named(found) == {
        "limited": "10.0% of the requests get 429 from replicas that are not full:"
        " a key exceeds its rate, or Ingest is slow."
    }
    assert (found.traffic.overload_share, found.traffic.limited_share) == (0, 0.1)


def test_a_busy_application_hides_no_fault_of_a_quiet_one(stub):
    found = stub.look(full=9000, _200=9000, other_fallback=100, other_200=50, other_503=50)
    wanted = [("errors", "other"), ("not_full", "other")]
    assert [(one.name, one.where) for one in found.causes] == wanted
    assert found.causes[0].text == "50.0% of the requests fail (503 50.0%)."
    stub.ready["diagnoses"] = [{"name": "kill_switch", "cause": "On.", "remedy": "Off."}]
    found = stub.look(fallback=9000, _200=9000, other_fallback=100, other_200=100)
    wanted = [("kill_switch", "spaces"), ("errors", "other"), ("not_full", "other")]
    assert [(one.name, one.where) for one in found.causes] == wanted


def test_one_failure_of_a_quiet_service_is_no_fault_and_most_of_them_are(stub):
    assert named(stub.look(full=20, _200=20, _503=1)) == {}
    stub.history = PageHistory(1.0)
    assert named(stub.look(_503=1)) == {"errors": "100.0% of the requests fail (503 100.0%)."}


def test_what_haproxy_alone_counts_as_failed_is_blamed_on_nobody(stub):
    stub.write()
    look(stub.run.path, None, stub.history)
    stub.lost = 30
    found = stub.look(full=60, _200=60, _503=10)
    assert found.traffic.errors == pytest.approx({"503": 1 / 9, "unattributed": 2 / 9}, abs=1e-3)
    assert named(found) == {
        "errors": "14.3% of the requests fail (503 14.3%).",
        "unattributed": "HAProxy counts 22.2% of the requests as failed that no replica has counted so far.",
    }


REMEDIES = {
    401: "Callers send no API key",
    403: "Callers may not do",
    404: "Callers use an earlier route",
    408: "Request bodies do not arrive",
    415: "Read the `detail`",
    422: "Request bodies do not fit the surface",
}


@pytest.mark.parametrize(("status", "remedy"), REMEDIES.items())
def test_client_errors_lead_with_their_share_and_what_they_mean(stub, status, remedy):
    stub.ready["diagnoses"] = [{"name": "no_model", "cause": "No model.", "remedy": "Publish one."}]
    found = stub.called_since(_200=60, **{f"_{status}": 40})
    assert [*named(found)] == ["client_errors", "no_model"]
    assert found.health.state == "degraded"
    share = f"40.0% of the calls of `/v1/rank` and `/v1/events` fail by their callers ({status} 40.0%)."
    assert found.health.line == share
    assert found.health.remedy.startswith(remedy)
    assert found.traffic.client_errors == {str(status): 0.4}
    assert f"40.0% client errors ({status} 40.0%)" in screen(found).plain


def test_few_failing_callers_are_advice_and_all_of_two_are_told(stub):
    found = stub.called_since(_200=98, _422=3)
    assert (found.health, [*named(found)]) == (HEALTHY, ["client_errors"])
    stub.history, stub.calls = PageHistory(1.0), {}
    found = stub.called_since(_401=2)
    assert (found.health.state, [*named(found)]) == ("degraded", ["client_errors"])


def test_a_scanner_one_mistake_and_refusals_of_load_are_no_client_errors(stub):
    stub.calls = {("", 404): 0, ("/readyz", 200): 0, ("/v1/rank", 200): 0}
    stub.write()
    look(stub.run.path, None, stub.history)
    stub.calls = {("", 404): 500, ("/readyz", 200): 5, ("/v1/rank", 422): 2, ("/v1/rank", 429): 9}
    found = look(stub.run.path, None, stub.history)
    assert "client_errors" not in named(found)
    assert found.traffic.client_errors == {"422": pytest.approx(2 / 11)}


def test_unknown_candidates_and_missing_context_are_told_with_their_shares(stub):
    found = stub.look(full=100, _200=100, known=940, unknown=60, context=90, no_context=10)
    assert named(found) == {
        "unknown_candidates": "6.0% of the candidates of live rankings are unknown: no record of them is "
        "stored, and they come last without a score.",
        "no_context": "10.0% of the live rankings of a model lack fields, of the context or stated of candidates, "
        "that its training rows had.",
    }
    # Callers ask so: the service is as it should be, unless it is for most of them.
    assert found.health == HEALTHY
    shown = "6.0% of the candidates; 10.0% of the rankings lack the model's fields"
    assert f"unknown   {shown}\n" in screen(found).plain
    stub.history = PageHistory(1.0)
    found = stub.look(full=100, _200=100, known=500, unknown=500)
    assert (found.health.state, [*named(found)]) == ("degraded", ["unknown_candidates"])
    assert found.health.runbook == "docs/runbook.md#tabrankunknowncandidates"


def test_few_unknown_candidates_are_normal_and_without_a_store_all_are(stub):
    stub.history = PageHistory(1.0)
    found = stub.look(full=100, _200=100, known=960, unknown=40, context=200, no_context=2)
    assert (named(found), found.traffic.unknown_share) == ({}, 0.04)
    stub.history = PageHistory(1.0)
    assert named(stub.look(full=2, _200=2, known=2, unknown=2)) == {}
    stub.history = PageHistory(1.0)
    stub.ready["diagnoses"] = [{"name": "no_store", "cause": "None.", "remedy": "Fill it."}]
    assert [*named(stub.look(full=9, _200=9, unknown=90))] == ["no_store"]


def test_requests_of_no_application_are_a_fault_if_the_route_has_changed(stub):
    def unrouted(count: int, rankings: int = 90) -> dict:
        stub.history, stub.unrouted = PageHistory(1.0), 0
        stub.write()
        look(stub.run.path, None, stub.history)
        stub.unrouted = count
        return stub.look(full=rankings, _200=rankings)

    # A scanner, also of a service that is idle.
    for found in (unrouted(20), unrouted(900), unrouted(20, rankings=0)):
        assert (found.health, [*named(found)]) == (HEALTHY, ["unrouted"])
    assert named(unrouted(9)) == {}
    # The old route answers again.
    stub.service["changes"] = [changed("route_changed", "/livez", 404)]
    assert unrouted(20).health == HEALTHY
    stub.service["changes"] = [changed("route_changed", "/old/livez", 404)]
    stub.statuses["/old/livez"] = 404
    found = unrouted(900)
    assert named(found) == {"unrouted": "90.9% of the requests are for paths of no application and get 404."}
    assert found.health.remedy.startswith("If callers send them, restore `route_prefix`")
    assert found.health.runbook == "docs/runbook.md#tabrankunrouted"


def test_requests_of_no_application_are_a_fault_while_steady_rankings_are_missing(stub):
    # The page is read again at once, so that only a high rate is missed.
    stub.steady_rps = 1e6
    stub.write()
    look(stub.run.path, None, stub.history)
    stub.unrouted = 20
    # Of another application.
    found = stub.look(other_200=80)
    assert [(one.name, one.advice) for one in found.causes] == [
        ("unrouted", False),
        ("no_traffic", False),
    ]


def changed(name: str, path: str, status: int, **ago_: float) -> dict:
    probe = {"name": name, "where": "spaces", "path": path, "status": status}
    return {"at": ago(**ago_), "what": "deployed cluster.yaml", "probes": [probe]}


@pytest.mark.parametrize(
    ("name", "path", "status", "text"),
    [
        (
            "route_changed",
            "/old/livez",
            404,
            "changed the route. `/old/livez`, below the earlier route, gets 404",
        ),
        ("first_key", "/v1/keyless", 401, "set the first API key. `/v1/keyless` without a key gets 401"),
    ],
)
def test_what_a_deploy_broke_for_callers_leads_until_rankings_come(stub, name, path, status, text):
    stub.service["changes"] = [changed(name, path, status, seconds=5)]
    stub.statuses[path] = status
    found = stub.look()
    assert text in named(found)[name]
    assert (found.health.state, found.health.line) == ("degraded", named(found)[name])
    # Callers of before are served, as after a second deploy of the old file.
    stub.statuses[path] = 200
    assert stub.look().health == HEALTHY
    stub.statuses[path] = status
    assert stub.look(full=5, _200=5).health == HEALTHY
    # Whoever had to move has done so, or is counted.
    stub.service["changes"], stub.history = [changed(name, path, status, minutes=11)], PageHistory(1.0)
    found = stub.look()
    assert (found.health, [*named(found)]) == (HEALTHY, [name])
    # One caller of before is left.
    stub.unrouted += status == 404
    found = stub.called_since(_401=int(status == 401))
    assert (found.health.state, found.health.line) == ("degraded", named(found)[name])


def test_of_two_deploys_that_broke_the_same_the_newest_is_told(stub):
    of = [changed("first_key", "/v1/keyless", 401, minutes=minutes) for minutes in (30, 3)]
    stub.service["changes"], stub.statuses["/v1/keyless"] = of, 401
    (only,) = stub.look().causes
    assert (only.name, only.advice) == ("first_key", False)
    assert only.text.startswith(f"A deploy at {of[1]['at'][11:16]} UTC set the first API key.")


def test_a_key_of_the_environment_does_not_hide_that_callers_need_one(stub, monkeypatch):
    monkeypatch.setenv("TABRANK_API_KEY", "k" * 40)
    stub.service["changes"] = [changed("first_key", "/v1/keyless", 401)]
    asked = []
    monkeypatch.setattr(vitals, "status_code", lambda *asked_: asked.append(asked_) or 401)
    assert [*named(stub.look())] == ["first_key"]
    assert asked[0] == (f"{stub.url}/v1/keyless",)


def test_steady_traffic_that_falls_to_nothing_is_told(stub):
    stub.steady_rps = 900.0
    stub.counts["full"] = 1e6
    stub.write()
    look(stub.run.path, None, stub.history)
    # A page is read again some seconds later.
    (first,) = stub.history._pages
    stub.history._pages = [replace(first, at_s=first.at_s - 5)]
    found = look(stub.run.path, None, stub.history)
    assert named(found) == {
        "no_traffic": "No ranking has come in the last 5 s, after at least 900.0 a second for minutes in the"
        " last hour."
    }
    assert found.health.runbook == "docs/runbook.md#tabranknotraffic"
    assert stub.look(full=1).health == HEALTHY
    # Five seconds without one are usual at such a rate.
    stub.steady_rps, stub.history = 1.0, PageHistory(1.0)
    assert stub.look().health == HEALTHY


def test_a_page_that_did_not_answer_makes_no_counter_grow(stub):
    stub.counts |= {"full": 9e4, "fallback": 1e4, "200": 1e5, "503": 500.0}
    stub.lost = 5_000
    stub.write()
    stub.is_metered = False
    look(stub.run.path, None, stub.history)
    stub.is_metered = True
    look(stub.run.path, None, stub.history)
    found = stub.look(full=100, _200=100)
    assert (found.health, found.causes) == (HEALTHY, [])
    assert (found.traffic.rankings, found.traffic.requests) == (100, 100)
    # A second node that dies stops neither the numbers nor the rate.
    dead = {"id": "b", "pool": "worker", "alive": True, "metrics_url": f"{stub.url}/dead"}
    stub.service["nodes"].append(dead)
    found = stub.look(full=100, fallback=100, _200=200)
    assert [*named(found)] == ["not_full"]


def test_stale_features_a_full_memory_and_silent_metrics_are_named(stub):
    stub.freshness_s, stub.used_mib = 12.3, 7_800
    found = stub.look()
    assert named(found) == {
        "memory_high": "Memory is nearly full: 7,800 of 8,192 MiB (95%).",
        "features_old": "The features of a replica are 12 s old: rankings miss what happened since.",
    }
    assert [one.where for one in found.causes] == ["10.0.0.1", "spaces"]
    stub.is_metered, stub.history = False, PageHistory(1.0)
    found = stub.look()
    assert [*named(found)] == ["no_metrics"]
    assert (found.health.state, found.memory.used_mib) == ("unknown", None)


def test_diagnoses_of_the_replicas_come_before_what_follows_from_them(stub):
    stub.ready["diagnoses"] = [
        {"name": "other_names", "cause": "It has names of another.", "remedy": "Rename."},
        {"name": "no_model", "cause": "No model.", "remedy": "Publish one."},
        {"name": "no_store", "cause": "No store.", "remedy": "Fill it."},
    ]
    stub.freshness_s = 60.0
    found = stub.look(fallback=50, _200=50)
    assert [*named(found)] == ["no_store", "no_model", "not_full", "other_names"]
    assert found.degraded[0] == "spaces: No store. Fill it."
    assert found.advice == ["spaces: It has names of another. Rename."]
    stub.ready, stub.freshness_s, stub.history = None, 0.1, PageHistory(1.0)
    found = stub.look()
    assert named(found) == {"no_answer": "The application does not answer `/readyz`."}
    assert found.health.state == "down"


def test_a_replica_that_restarts_is_named_and_scaling_is_advice(stub):
    deployments = stub.service["applications"]["spaces"]["deployments"]
    message = "A replica's health check failed. This deployment will be UNHEALTHY until it recovers."
    deployments["FeatureFetch"] = deployment(1, 2, "UNHEALTHY", message, STARTING=1)
    stub.service["restarts"] = {
        "spaces/FeatureFetch": {
            "count": 4,
            "last": "its process ended",
            "at": ago(minutes=1),
            "times": [ago(hours=3), *(ago(minutes=minutes) for minutes in (20, 10, 1))],
        }
    }
    found = stub.look()
    assert named(found) == {
        "replicas_missing": "1 of 2 replicas run, 1 starting: A replica's health check failed.",
        "restarted": named(found)["restarted"],
    }
    assert re.fullmatch(
        r"3 restarts within 2[12] min; the last: its process ended\.", named(found)["restarted"]
    )
    # A cause comes before what follows from it.
    assert found.health.line == named(found)["restarted"]
    log = "Ray's logs/serve/replica_spaces_FeatureFetch_*.log"
    assert found.health.remedy == f"Read the newest of {log}; after a release, roll back."
    assert {one.where for one in found.causes} == {"spaces/FeatureFetch"}
    assert [one.what for one in found.changes] == [
        "spaces/FeatureFetch restarted: its process ended",
        *["spaces/FeatureFetch restarted"] * 2,
    ]
    stub.service["restarts"]["spaces/FeatureFetch"]["times"] = [ago(minutes=1)] * 10
    assert re.match(r"10 restarts within [12] min; ", named(stub.look())["restarted"])
    deployments["FeatureFetch"] = deployment(1, 2, "UPSCALING", "", STARTING=1)
    stub.service["restarts"]["spaces/FeatureFetch"]["times"] = [ago(minutes=1)]
    found = stub.look()
    assert [*named(found)] == ["restarted", "replicas_missing"]
    assert found.health == HEALTHY


def test_deploys_that_run_wait_or_failed_are_named(stub):
    since = ago(seconds=60)
    stub.service |= {"state": "deploying", "deploying": {"config": "/srv/a.yaml", "since": since}}
    stub.service["applications"]["spaces"]["deployments"]["Scorer"] = deployment(0, 1, "UPDATING", STARTING=1)
    found = stub.look()
    assert named(found) == {
        "deploying": f"A deploy of /srv/a.yaml has been under way since {since}.",
        "not_starting": "Replicas do not start: no room? 1 wait for a node with free CPUs.",
        "replicas_missing": "0 of 1 replicas run, 1 starting.",
    }
    stub.service |= {"state": "ready", "deploying": None, "error": "no such model"}
    assert named(stub.look())["deploy_failed"] == "The last deploy failed: no such model."


def test_a_service_that_does_not_run_is_down_with_the_command_that_starts_it(tmp_path):
    found = look(tmp_path, None)
    assert named(found) == {"not_running": f"No service runs in {tmp_path}."}
    assert found.health.state == "down"
    assert found.health.remedy == f"Start it with `python -m serve up cluster.yaml --run {tmp_path}`."
    url = "http://127.0.0.1:1"
    RunFolder(tmp_path).write(SupervisedState("failed", error="no room", url=url))
    assert named(look(tmp_path, None)) == {"ended": "The service has ended: no room."}
    # A service that was killed while it ran has the error of an earlier deploy.
    RunFolder(tmp_path).write(SupervisedState("ready", error="a bad arm", url=url))
    assert named(look(tmp_path, None)) == {"ended": "The service has ended: its processes are gone."}


def test_a_silent_supervisor_leaves_a_service_that_answers(stub):
    stub.write()
    os.utime(stub.run.path / "service.json", (0, 0))
    found = look(stub.run.path, None, stub.history)
    assert [*named(found)] == ["supervisor_silent"]
    assert str(found.supervision).startswith("The supervisor has not written its state for ")


def test_silent_applications_come_before_a_supervisor_that_is_gone():
    supervision = {"name": "supervisor_gone", "cause": "The supervisor is gone.", "remedy": "Start one."}
    found = {"state": "unwatched", "run": "run", "supervision": supervision, "surfaces": {"spaces": {}}}
    found = convert(found, Report)
    found.causes = causes(found, NOW, "")
    assert [one.name for one in found.causes] == ["no_answer", "supervisor_gone"]
    assert health(found).state == "down"


def test_the_changes_of_the_last_hour_come_newest_first(stub):
    def entry(minutes: float, action: str, by: str, reason: str = "") -> HistoryEntry:
        at_ms = int((datetime.now(UTC) - timedelta(minutes=minutes)).timestamp() * 1e3)
        return HistoryEntry(at_ms, action, "20260101T000000Z-000a", None, None, by, reason)

    # The default of `args`.
    models = stub.run.path / "var/models"
    models.mkdir(parents=True)
    append(models, entry(90, "promote", "command"))
    append(models, entry(30, "promote", "command"))
    append(models, entry(5, "rollback", "service", "scores drift"))
    stub.service["document"] = {"applications": [{"name": "spaces", "args": {"log": "log"}}]}
    stub.service["changes"] = [
        {"at": ago(hours=2), "what": "started"},
        {"at": ago(minutes=10), "what": "kill switch on for spaces"},
    ]
    assert [one.what for one in stub.look().changes] == [
        "rollback 20260101T000000Z-000a by the service: scores drift",
        "kill switch on for spaces",
        "promote 20260101T000000Z-000a by the command",
    ]


class Cluster:
    """Fake of `RemoteService`, whose pages of metrics are out of reach."""

    def __init__(self, address: str) -> None:
        self.state = ServiceState(
            state="unhealthy",
            url="http://127.0.0.1:1",
            error="a replica died",
            nodes=[NodeState(True, "head", metrics_url="http://127.0.0.1:1/metrics")],
            changes=[ServiceChange(ago(minutes=1), "deployed spaces")],
        )


def test_a_cluster_at_an_address_is_named_in_the_same_words(monkeypatch):
    monkeypatch.setattr(vitals, "RemoteService", Cluster)
    found = look(None, "http://head:8265", PageHistory(1.0))
    assert named(found) == {
        "not_deployed": "The application is unhealthy: a replica died.",
        "no_metrics": "No page of metrics answers, so that rates, errors and memory are unknown.",
    }
    assert [one.advice for one in found.causes] == [False, True]
    assert [one.what for one in found.changes] == ["deployed spaces"]


def test_what_is_unknown_is_the_first_thing_to_do(monkeypatch):
    monkeypatch.setattr(vitals, "RemoteService", lambda address: service)
    service = Cluster("http://head:8265")
    service.state.state, service.state.error = "ready", ""
    found = look(None, "http://head:8265", PageHistory(1.0))
    (silent,) = found.causes
    runbook = "docs/runbook.md#tabranknometrics"
    assert found.health == Health("unknown", silent.text, silent.remedy, runbook)
    shown = screen(found, None).plain
    assert shown.startswith("unknown   No page of metrics answers")
    assert shown.count(silent.remedy) == 1
    assert "nothing to do" not in shown


def test_the_median_is_that_of_one_application_and_unknown_without_rankings(monkeypatch):
    text = "".join(
        f'ray_tabrank_latency_seconds_bucket{{application="{app}",le="{le}"}} {count}\n'
        for app, bound in (("slow", "0.05"), ("fast", "0.005"))
        for le, count in ((bound, 100), ("+Inf", 100))
    )
    monkeypatch.setattr(vitals, "read_pages", lambda urls: parse(text, 0.0))
    slow_ms, fast_ms, none = (vitals.median_ms(ServiceState(), app) for app in ("slow", "fast", "silent"))
    assert slow_ms > 10 > fast_ms
    assert none is None


def test_every_cause_has_a_remedy_and_a_section_of_the_runbook():
    headings = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", RUNBOOK, re.MULTILINE)
    }
    assert {one["runbook"] for one in DIAGNOSES.values()} <= headings


def test_an_error_of_readyz_is_no_answer_and_leaves_the_kill_switch_unknown(monkeypatch):
    monkeypatch.setattr(vitals, "_get", lambda url: {"status": 500, "title": "internal error"})
    app = ApplicationState(import_path=OUR_APPLICATION)
    service = RunState("ready", url="http://x", applications={"spaces": app})
    (silent,) = of_answers(vitals.answers_of(service))
    assert str(silent).startswith("spaces: The application does not answer `/readyz`.")
    monkeypatch.setattr(vitals, "status", lambda run: service)
    assert vitals.look(None, None).kill_switch is None


def test_a_diagnosis_of_a_later_release_degrades_the_service():
    answers = {"spaces": {"diagnoses": [{"name": "of_later", "cause": "It is so.", "remedy": "Do this."}]}}
    found = Report(state="ready", run="run", surfaces=answers)
    found.causes = causes(found, NOW, "")
    assert [one.where for one in found.causes] == ["spaces"]
    assert health(found) == Health("degraded", "It is so.", "Do this.")
