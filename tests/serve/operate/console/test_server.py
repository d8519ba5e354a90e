"""The console's requests: pages, states, refusals of other origins, rankings to try."""

from __future__ import annotations

import asyncio
import itertools
import json
import time

import msgspec
import pytest
from msgspec import convert
from starlette.testclient import TestClient
from typer.testing import CliRunner

from serve.__main__ import app
from serve.contract.commands import API_KEY
from serve.contract.errors import TabrankError
from serve.contract.rankings import RankAnswer
from serve.operate.console.server import FILES, console, serve
from serve.operate.console.watch import Watch
from serve.rollout.registry import ModelRegistry
from tests.support.console_service import ANSWER, Service, degraded, gone, healthy
from tests.support.small_surface import TOML
from tests.support.stub_artifact import MODEL, publish_stub

BASE = "http://127.0.0.1:8090"
JSON = {"content-type": "application/json"}


async def read(watch, num):
    """Return what a watch says to a browser that asks this often, each time for what is new."""
    found, newest_ms = [], 0.0
    for _ in range(num):
        found.append(await watch.news(newest_ms))
        newest_ms = max([newest_ms, *(point[0] for point in found[-1]["points"])])
        await asyncio.sleep(watch.every_s)
    return found


def client(look=None, run=None, address=None):
    """Return a client of a console that, with `look`, has read the service once."""
    watch = Watch(look or healthy, every_s=0.01)
    if look:
        asyncio.run(watch.news(0))
    return TestClient(console(watch, run, address, 8090), base_url=BASE)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a working directory with a model and an example of a request."""
    monkeypatch.chdir(tmp_path)
    publish_stub(tmp_path / "var/models", TOML)
    ModelRegistry(tmp_path / "var/models").promote(MODEL)
    (tmp_path / "var/log").mkdir()
    (tmp_path / "var/log/request.json").write_text(json.dumps({"viewer": "ann", "candidates": ["a"]}))
    return tmp_path


@pytest.fixture(scope="module")
def service():
    """Yield a stub that ranks."""
    with Service().running() as service:
        yield service


@pytest.mark.parametrize("path", ["/", *(f"/{name}" for name in FILES)])
def test_each_file_has_a_strict_policy_and_no_cors(path):
    answer = client().get(path)
    policy = answer.headers["content-security-policy"]
    assert answer.status_code == 200
    assert ("script-src 'self';" in policy, "unsafe" in policy) == (True, False)
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["/", "/data/models", "/data/state", "/console.js", "/nothing"])
@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:8090"},
        {"host": "127.0.0.1:8091"},
        {"host": ""},
        {"origin": "http://evil.example"},
        {"origin": "https://127.0.0.1:8090"},
        {"origin": "http://127.0.0.1:3000"},
        {"origin": "null"},
    ],
)
def test_another_host_or_origin_is_refused(path, headers):
    answer = client().get(path, headers=headers)
    assert (answer.status_code, "this console" in answer.text) == (403, True)


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_of_another_site_reads_no_data_and_may_link_here(site):
    page, headers = client(), {"sec-fetch-site": site}
    paths = ["/data/models", "/data/requests", "/data/state", "/"]
    assert [page.get(path, headers=headers).status_code for path in paths] == [403, 403, 403, 200]


@pytest.mark.parametrize("site", ["none", "same-origin"])
def test_the_page_itself_reads_data(folder, site):
    assert client().get("/data/requests", headers={"sec-fetch-site": site}).status_code == 200


def test_localhost_is_this_machine_too():
    assert client().get("/", headers={"host": "localhost:8090"}).status_code == 200


def test_a_page_of_another_origin_cannot_try_rankings_and_nothing_else_is_posted(folder, service):
    page = client(lambda: healthy(url=service.url))
    before, body = len(service.requests), b'{"viewer": null, "candidates": []}'
    foreign = page.post("/data/rank", content=body, headers=JSON | {"origin": "http://evil.example"})
    form = page.post("/data/rank", content=body, headers={"content-type": "text/plain", "origin": BASE})
    assert (foreign.status_code, form.status_code) == (403, 415)
    assert page.put("/data/rank", content=body).status_code == 405
    assert page.post("/data/models").status_code == 405
    assert page.get("/%2e%2e/server.py").status_code == 404
    assert len(service.requests) == before


def test_a_tried_ranking_is_test_traffic_with_words_and_the_key_stays_here(folder, service, monkeypatch):
    monkeypatch.setenv(API_KEY, "secret-key")
    page = client(lambda: healthy(url=service.url))
    asked = {"viewer": "ann", "candidates": ["a"], "traffic": "live"}
    answer = page.post("/data/rank?application=spaces", json=asked, headers={"origin": BASE})
    path, headers, body = service.requests[-1]
    assert (path, headers["X-Api-Key"]) == ("/v1/rank", "secret-key")
    assert body == asked | {"traffic": "test", "explain": True}
    first, second = answer.json()["ranking"]
    assert first["words"] == [
        "joined this host's rooms (0.31 joins, typical 0.05)",
        "people in the room (0.31 joins, typical 0.05)",
    ]
    assert (second["words"], answer.json()["rung"]) == ([], "full")
    shown = [page.get(path).text for path in ("/", "/data/models", "/data/requests")]
    assert "secret-key" not in "".join([answer.text, *shown])


@pytest.mark.parametrize(
    ("answer", "status", "detail"),
    [
        ({"title": "invalid request", "detail": "unknown field", "pointer": "/viewr"}, 422, "unknown field"),
        ("not a problem", 500, "the service answered 500"),
    ],
)
def test_a_refusal_of_the_service_is_passed_on(folder, answer, status, detail):
    with Service().running() as refusing:
        refusing.answer, refusing.status = answer, status
        tried = client(lambda: healthy(url=refusing.url)).post("/data/rank", json={"candidates": []})
    assert tried.status_code == status
    assert tried.json()["detail"].startswith(detail)


@pytest.mark.parametrize(
    "answer", [{"live": True}, [1], "text", {"ranking": [1]}, {"ranking": [{"reasons": [{"feature": "x"}]}]}]
)
def test_an_answer_of_another_service_is_named(folder, answer):
    with Service().running() as other:
        other.answer = answer
        tried = client(lambda: healthy(url=other.url)).post("/data/rank", json={"candidates": []})
    assert tried.status_code == 502
    assert f"no tabrank service answers at {other.url};" in tried.json()["detail"]


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"3", b"[" * 100_000, b"\xff"])
def test_what_is_no_request_is_refused_here(folder, body):
    tried = client().post("/data/rank", content=body, headers=JSON)
    assert (tried.status_code, "JSON object" in tried.json()["detail"]) == (400, True)


def test_without_a_service_a_ranking_says_how_to_start_it(folder):
    tried = client(gone).post("/data/rank", json={"viewer": None, "candidates": []})
    assert (tried.status_code, "serve up" in tried.json()["detail"]) == (502, True)


def test_models_and_requests_are_those_of_the_folder_and_need_no_service(folder):
    page = client(gone, run=folder / "my run")
    body = page.get("/data/models").json()
    (found,) = body["applications"]
    assert (body["options"], body["shifts"]) == (f" --run '{folder}/my run'", [])
    assert [(one["version"], one["state"]) for one in found["versions"]] == [(MODEL, "current")]
    assert (found["models"], found["report"], found["changes"][0]["action"]) == (
        "var/models",
        None,
        "promote",
    )
    example = {"viewer": "ann", "candidates": ["a"]}
    assert page.get("/data/requests").json()["requests"] == [{"at_ms": None, "request": example}]


def test_a_version_tells_of_itself_what_its_artifact_holds(folder):
    (found,) = client(gone, run=folder / "run").get("/data/models").json()["applications"]
    (version,) = found["versions"]
    about = version["about"]
    assert (about["outcomes"], about["bytes"]["model.onnx"]) == ({"join": {"scale": 1.0}}, 0)
    # The stub has no evaluation.
    assert "features" not in about
    (folder / "var/models" / MODEL / "model.onnx").unlink()
    (found,) = client(gone, run=folder / "run").get("/data/models").json()["applications"]
    (version,) = found["versions"]
    assert (version["state"], "bytes" in version["about"]) == ("refused", False)
    (folder / "var/models" / MODEL / "manifest.json").write_text("{}")
    (found,) = client(gone, run=folder / "run").get("/data/models").json()["applications"]
    assert [one["about"] for one in found["versions"]] == [{}]


def test_a_service_of_another_version_hides_no_model(folder):
    (folder / "service.json").write_text('{"slots": 2}')
    page = client(gone, run=folder)
    assert page.get("/data/models").json()["applications"][0]["versions"]
    assert page.get("/data/requests").json()["requests"]


def test_a_time_that_is_no_number_is_refused(folder):
    assert client().get("/data/state?after=x").status_code == 400


def test_folders_of_this_machine_are_not_shown_as_those_of_a_cluster_at_an_address(folder):
    page = client(healthy, address="http://127.0.0.1:1/;ls")
    body = page.get("/data/models").json()
    assert (body["applications"], body["options"]) == ([], " --address 'http://127.0.0.1:1/;ls'")
    assert page.get("/data/requests").json() == {"requests": None}


def test_a_report_of_the_experiment_beside_the_log_is_found(folder):
    (folder / "var/launch").mkdir()
    report, page = folder / "var/launch/report.json", client(healthy)
    report.write_text(json.dumps({"experiment": "another", "verdict": "won"}))
    assert page.get("/data/models").json()["applications"][0]["report"] is None
    report.write_text(json.dumps({"experiment": "launch", "verdict": "won"}))
    assert page.get("/data/models").json()["applications"][0]["report"]["verdict"] == "won"


def test_a_state_comes_with_its_point_and_health_in_the_words_of_status():
    news = asyncio.run(Watch(degraded).news(0))
    assert news["found"].health.line == degraded().causes[0].text
    (point,) = news["points"]
    assert point[1:] == [903.0, 5.8, 11.9, 24.6, 0.0, 0.0, 0.0, 0.004, 0.031, 0.002, 412.0, 1.5, 0.4]
    assert news["gone"] is None


def test_a_service_that_is_gone_keeps_the_time_of_its_last_answer_until_it_is_back():
    states = iter([healthy(), gone(), gone(), healthy(), gone()])
    messages = asyncio.run(read(Watch(lambda: next(states), every_s=0.002), 5))
    seen = [(message["found"].state, message["gone"]) for message in messages]
    assert [state for state, _ in seen] == ["ready", "stopped", "stopped", "ready", "stopped"]
    assert seen[1][1] == seen[2][1]
    assert (seen[0][1], seen[3][1]) == (None, None)
    assert seen[1][1]["seen"] < seen[1][1]["since"] < seen[4][1]["seen"] < seen[4][1]["since"]


def test_the_history_is_bounded_and_a_browser_gets_what_is_new():
    watch, now_ms = Watch(healthy, every_s=60.0), time.time() * 1e3
    watch.points.extend([now_ms - 1e3 + i] for i in range(100))
    *before, last = asyncio.run(watch.news(now_ms - 1e3 + 93))["points"]
    assert before == [[now_ms - 1e3 + i] for i in range(94, 100)]
    assert last[0] > before[-1][0]
    assert len(watch.points) == 60


def test_an_hour_is_kept_also_while_reads_are_rare_and_it_is_below_a_megabyte():
    now_ms = time.time() * 1e3
    rare = Watch(healthy)
    rare.points.extend([now_ms - i * 10e3] for i in range(720, 0, -1))
    asyncio.run(rare.news(0))
    assert 359 <= len(rare.points) <= 361
    full = Watch(healthy)
    full.points.extend([now_ms - i, *[i / 7] * 13] for i in range(1_000_000, 0, -500))
    assert len(full.points) == 1_800
    (answer,) = asyncio.run(read(full, 1))
    assert len(msgspec.json.encode(answer["points"])) < 800_000


def test_without_a_browser_the_service_is_read_rarely_and_a_browser_gets_what_was_read(monkeypatch):
    monkeypatch.setattr("serve.operate.console.watch.UNSEEN_EVERY_S", 0.05)
    with TestClient(console(watch := Watch(healthy, every_s=0.01), None, None, 8090), base_url=BASE) as page:
        time.sleep(0.4)
        num = len(watch.points)
        points = page.get("/data/state").json()["points"]
    assert 3 <= num <= 8
    assert len(points) >= num


def test_one_reader_serves_all_browsers_and_nothing_is_read_without_one():
    reads = []

    def look():
        reads.append(1)
        return healthy()

    async def scenario():
        watch = Watch(look, every_s=0.02)
        await asyncio.gather(*(read(watch, 3) for _ in range(5)))
        num = len(reads)
        await asyncio.sleep(0.06)
        return num

    # Of five browsers, each of which asks three times.
    assert 2 <= asyncio.run(scenario()) == len(reads) <= 3


@pytest.mark.parametrize(
    ("error", "line"),
    [(TabrankError("http://x: does not answer"), "http://x: does not answer"), (KeyError("x"), "own output")],
)
def test_a_failed_read_is_a_state_and_the_next_one_counts(error, line):
    states = iter([error, healthy()])

    def look():
        state = next(states)
        if isinstance(state, Exception):
            raise state
        return state

    failed, good = asyncio.run(read(Watch(look, every_s=0.001), 2))
    assert (failed["found"].health.state, good["found"].health.state) == ("unknown", "healthy")
    assert line in failed["found"].health.line


@pytest.mark.parametrize(
    ("late", "verdicts"),
    [
        (
            healthy(surfaces={"spaces": {}}, health={"state": "down", "line": ""}),
            ["healthy", "unknown", "down"],
        ),
        (healthy(), ["healthy", "unknown", "healthy"]),
    ],
)
def test_a_service_that_is_always_late_does_not_alternate(monkeypatch, late, verdicts):
    monkeypatch.setattr("serve.operate.console.watch.OVERDUE_S", 0.25)
    states = iter([healthy()])

    def look():
        if (first := next(states, None)) is None:
            time.sleep(0.4)
        return first or late

    watch = Watch(look, every_s=0.001)
    found = asyncio.run(read(watch, 8))
    seen = [message["found"].health.state for message in found]
    assert [state for state, _ in itertools.groupby(seen)] == verdicts
    assert {message["found"].url for message in found} == {healthy().url}
    assert [message["gone"] is None for message in found] == [state != "down" for state in seen]
    assert 3 <= len(watch.points) < len(found)
    assert watch.found.url == healthy().url


def test_an_application_that_is_not_asked_is_not_said_to_be_gone():
    assert asyncio.run(Watch(lambda: healthy(state="deploy_failed", surfaces={})).news(0))["gone"] is None


def test_an_overdue_read_is_shown_as_missing(monkeypatch):
    monkeypatch.setattr("serve.operate.console.watch.OVERDUE_S", 0.02)

    async def scenario():
        free, loop = asyncio.Event(), asyncio.get_running_loop()

        def look():
            asyncio.run_coroutine_threadsafe(free.wait(), loop).result()
            return healthy()

        watch = Watch(look)
        overdue = await watch.news(0)
        free.set()
        return overdue, await watch.news(0)

    overdue, after = asyncio.run(scenario())
    assert (overdue["found"].health.state, overdue["points"]) == ("unknown", [])
    assert (after["found"].health.state, len(after["points"])) == ("healthy", 1)


def test_a_port_in_use_is_refused_in_a_sentence(service):
    port = service.http.server_port
    with pytest.raises(TabrankError, match=rf"--port: {port} is not free .* use another"):
        serve(None, None, port, print)


def test_an_unknown_option_names_the_nearest():
    done = CliRunner().invoke(app, ["console", "--prot", "1"])
    assert (done.exit_code, "--port" in done.output) == (2, True)


def test_the_answer_of_the_stub_is_one_of_the_contract():
    assert convert(ANSWER, RankAnswer).ranking[0].reasons[0].contribution == 0.83
