"""End-to-end test: from RankLens files to ranked answers over HTTP, on Ray Train and Ray Serve."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import pytest
import yaml

from serve.features.matrix import Features
from serve.features.rows import Schema
from serve.features.surface import load_surface
from serve.log.reader import read_log
from serve.log.replay import Replay
from serve.model.scorers import load_scorer
from serve.operate.host.run_folder import RunFolder
from tests.support.commands import call, call_json
from tests.support.monitoring_rules import prometheus, required_expressions, without_series

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[1]
NUM_REQUESTS = 200


def run(*arguments, cwd, accept=(0,)):
    done = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, cwd=cwd, check=False
    )
    assert done.returncode in accept, done.stderr[-2_000:]
    return done


@pytest.fixture(scope="module")
def home(ranklens, tmp_path_factory):
    """Folder with a fitted, published RankLens model and a store filled from the first 80 %.

    Of the log, its first two fifths do: a fit takes half the time.
    """
    home = tmp_path_factory.mktemp("home")
    call("import", "ranklens", "--source", ranklens, "--out", "log", cwd=home)
    call("split", "--log", "log", "--at", "0.4", "--out", "part", cwd=home)
    call("split", "--log", "part/before", "--at", "0.8", "--out", ".", cwd=home)
    fit = ("--surface", "ranklens", "--log", "before", "--workers", "0", "--epochs", "3")
    call("fit", *fit, "--out", "model", cwd=home)
    call("publish", "--model", "model", "--models", "models", cwd=home)
    run("serve", "load", "--surface", "ranklens", "--log", "before", "--store", "lmdb:store", cwd=home)
    return home


def config(home, **changes):
    """Write the shipped `cluster.yaml` for RankLens on a free port, with the requests' clock."""
    document = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    document["http_options"] |= {"port": port, "request_timeout_s": 30}
    application = document["applications"][0]
    application["args"] |= {
        "surface": "ranklens",
        "store": "lmdb:store",
        "models": "models",
        "clock": "event",
    } | changes
    # The test machine may be busy.
    application["deployments"][0]["user_config"]["deadline_ms"] = 10_000
    application["deployments"][0]["graceful_shutdown_timeout_s"] = 15
    document["logging_config"]["encoding"] = "JSON"
    document["tracing_config"] = {"enabled": True, "exporter_import_path": "serve.http.tracing:to_file"} | {
        "sampling_ratio": 0.0
    }
    (home / "cluster.yaml").write_text(yaml.safe_dump(document))
    return f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def url(home):
    # Rankings change the store.
    shutil.copytree(home / "store", home / "store-served")
    url = config(home, store="lmdb:store-served", log="log-served")
    run("serve", "up", "--timeout", "180", cwd=home)
    yield url
    run("serve", "down", cwd=home)


def test_the_model_beats_the_heuristic_on_what_it_has_not_seen(home):
    result = call_json("evaluate", "--model", "model", "--history", "before", "--log", "after", cwd=home)
    assert result["model"]["auc"] >= 0.78
    assert result["model"]["ndcg@10"] > result["popular"]["ndcg@10"]
    assert result["rows"] == 13_776


@pytest.fixture(scope="module")
def by_the_library(home):
    """First exposures of the rest of the log, with the library's scores from the store's state."""
    surface = load_surface("ranklens")
    schema = Schema(surface)
    features, scorer = Features(schema), load_scorer(home / "model", "onnx")
    replay = Replay(schema, read_log(home / "before", surface))
    replay.finish()
    exposures = read_log(home / "after", surface).exposures.slice(0, NUM_REQUESTS).to_pylist()
    for exposure in exposures:
        names = exposure["candidates"]
        at = replay.state.candidates.find(names)
        matrix = features.compute(
            replay.state.viewers.table[replay.state.viewers.find([exposure["viewer"]])],
            replay.state.candidates.table[at],
            schema.context_rows([{}]),
            np.zeros(len(names), np.int64),
            np.array([exposure["ts_ms"]]),
            replay.state.candidates.values_of(at),
        )
        exposure["scores"] = dict(
            zip(names, scorer.score(matrix.numeric, matrix.category)[:, 0], strict=True)
        )
    return exposures


def test_scores_over_http_are_those_of_the_library(by_the_library, url):
    worst = 0.0
    with httpx.Client(base_url=url, timeout=30) as client:
        for exposure in by_the_library:
            names, now_ms = exposure["candidates"], exposure["ts_ms"]
            body = {"viewer": exposure["viewer"], "candidates": names, "now_ms": now_ms, "traffic": "test"}
            answer = client.post("/v1/rank", json=body).json()
            assert (answer["rung"], answer["degraded"]) == ("full", [])
            served = {ranked["candidate"]: ranked["score"] for ranked in answer["ranking"]}
            worst = max(worst, max(abs(served[name] - exposure["scores"][name]) for name in names))
            scores = [ranked["score"] for ranked in answer["ranking"]]
            assert scores == sorted(scores, reverse=True)
    assert worst <= 1e-5


def test_what_the_service_writes_is_its_users_alone(home, url):
    event = {"type": "event", "id": "mode", "kind": "click", "viewer": "0", "candidate": "1805", "ts_ms": 1}
    assert httpx.post(f"{url}/v1/events", json={"records": [event]}, timeout=30).json()["accepted"] == 1
    folders = [home / "var/run", home / "store", home / "before", home / "log-served"]
    segments = folders[-1] / "events"
    while not list(segments.glob("[0-9]*.parquet")):
        time.sleep(0.1)
    written = [path for folder in folders for path in (folder, *folder.rglob("*"))]
    assert len(written) > 15
    assert [(path, oct(path.stat().st_mode)) for path in written if path.stat().st_mode & 0o077] == []


def test_rankings_take_the_fast_path(url):
    body = {"viewer": "0", "candidates": [], "now_ms": 1_636_994_000_000}
    answer = httpx.post(f"{url}/v1/rank", json=body, timeout=30)
    assert answer.headers["x-request-id"] == answer.json()["request_id"]
    # Ray generates UUIDs.
    assert "-" not in answer.headers["x-request-id"]
    assert "-" in httpx.get(f"{url}/v1/model", timeout=30).headers["x-request-id"]


@pytest.mark.parametrize(
    ("content", "status", "pointer"),
    [
        ('{"viewer": "0", "candidates": ["1805", "1805"], "now_ms": 1}', 422, "/candidates/1"),
        (
            json.dumps({"viewer": "0", "candidates": [str(i) for i in range(1_001)], "now_ms": 1}),
            422,
            "/candidates",
        ),
        ('{"viewer": 7, "candidates": [], "now_ms": 1}', 422, "/viewer"),
        ('{"viewer": "0", "candidates": [NaN], "now_ms": 1}', 400, None),
        ('{"viewer": ', 400, None),
    ],
)
def test_what_cannot_be_ranked_is_refused_over_http(url, content, status, pointer):
    response = httpx.post(
        f"{url}/v1/rank", content=content, headers={"content-type": "application/json"}, timeout=30
    )
    assert (response.status_code, response.json().get("pointer")) == (status, pointer)
    assert response.headers["content-type"] == "application/problem+json"


def test_unknown_ids_and_empty_lists_are_answered_over_http(url):
    now_ms = 1_636_994_000_000
    body = {"viewer": "nobody", "candidates": ["1805", "no-such-movie"], "now_ms": now_ms}
    answer = httpx.post(f"{url}/v1/rank", json=body, timeout=30).json()
    assert answer["unknown_viewer"] is True
    assert answer["unknown_candidates"] == ["no-such-movie"]
    assert answer["rung"] == "full"
    empty = httpx.post(
        f"{url}/v1/rank", json={"viewer": None, "candidates": [], "now_ms": now_ms}, timeout=30
    )
    assert (empty.status_code, empty.json()["ranking"]) == (200, [])
    explained = httpx.post(f"{url}/v1/rank", json=body | {"explain": True}, timeout=30).json()
    movie = next(r for r in explained["ranking"] if r["candidate"] == "1805")
    assert all(isinstance(genre, str) for genre in movie["features"]["genres"])


def test_every_panel_and_rule_has_a_series_in_prometheus(home, url, tmp_path):
    if not all(map(shutil.which, ("prometheus", "promtool"))):
        pytest.skip("prometheus or promtool is missing: apt-get install prometheus")
    run = RunFolder(home / "var/run")
    body = {"viewer": "0", "candidates": ["1805", "2387"], "now_ms": 1_636_994_000_000, "traffic": "test"}
    event = {"type": "event", "viewer": "0", "candidate": "1805", "kind": "click", "ts_ms": body["now_ms"]}

    def traffic(name):
        with httpx.Client(base_url=url, timeout=30) as client:
            for i in range(15):
                headers = {"x-deadline-ms": "1"} if i % 3 else {}
                client.post("/v1/rank", json=body, headers=headers).raise_for_status()
                records = [event | {"id": f"{name}{i}"}]
                client.post("/v1/events", json={"records": records}).raise_for_status()

    traffic("before")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with prometheus(run, tmp_path, port):
        time.sleep(3.0)
        traffic("while")
        assert without_series(port, required_expressions(), seconds=30) == []
    address = run.service().metrics_url
    ours = re.findall(r"^(?:# \w+ )?ray_tabrank_.*\n", httpx.get(address).text, re.M)
    done = subprocess.run(
        ["promtool", "check", "metrics"], input="".join(ours), capture_output=True, text=True, check=False
    )
    # The labels that Ray adds to counters and gauges are in camel case.
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if "camelCase" not in line]
    assert complaints == []
    assert "# TYPE ray_tabrank_latency_seconds histogram\n" in ours
    page = urlsplit(address)
    listening = [c.laddr for c in psutil.net_connections("tcp") if c.laddr.port == page.port and not c.raddr]
    assert {address.ip for address in listening} == {"127.0.0.1"}


def test_a_sampled_trace_gets_its_spans_and_log_lines_are_objects(home, url):
    run, trace_id = RunFolder(home / "var/run"), f"{time.time_ns():032x}"
    body = {"viewer": "0", "candidates": ["1805"], "now_ms": 1_636_994_000_000, "traffic": "test"}
    headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    answer = httpx.post(f"{url}/v1/rank", json=body, headers=headers, timeout=30).json()
    end = time.monotonic() + 10
    names: dict[str, dict] = {}
    while len(names) < 4 and time.monotonic() < end:
        time.sleep(0.2)
        spans = _lines(run.path / "spans", "*.jsonl")
        names = {span["name"]: span for span in spans if span["context"]["trace_id"] == f"0x{trace_id}"}
    assert set(names) == {"POST /v1/rank", "queue", "features", "score"}
    assert names["POST /v1/rank"]["parent_id"] == "0xb7ad6b7169203331"
    assert names["POST /v1/rank"]["attributes"]["request_id"] == answer["request_id"]
    assert names["score"]["parent_id"] == names["POST /v1/rank"]["context"]["span_id"]
    lines = _lines(run.temp / "r/session_latest/logs/serve", "replica_spaces_FeatureFetch_*.log")
    (model,) = [line for line in lines if line["message"].startswith("ranking with model")]
    fields = model["application"], model["deployment"], model["levelname"]
    assert fields == ("spaces", "spaces_FeatureFetch", "INFO")


def test_the_documents_and_probes_answer_over_http(url):
    assert httpx.get(f"{url}/readyz", timeout=30).json()["model"]
    assert httpx.get(f"{url}/v1/model", timeout=30).json()["surface"] == "ranklens"
    assert httpx.get(f"{url}/livez", timeout=30).json() == {"live": True}
    assert httpx.get(f"{url}/openapi.json", timeout=30).json()["openapi"].startswith("3.1")


def test_a_larger_share_keeps_replicas_and_moves_viewers_only_into_it(home, url):
    def assigned_arms():
        with httpx.Client(base_url=url, timeout=30) as client:
            body = {"candidates": ["1805", "2387"], "now_ms": 1_636_994_000_000, "traffic": "test"}
            answers = [client.post("/v1/rank", json=body | {"viewer": f"v{i}"}).json() for i in range(400)]
        assert {answer["experiment"] for answer in answers} == {"launch"}
        return [answer["arm"] for answer in answers]

    def give(share):
        file = home / "cluster.yaml"
        document = yaml.safe_load(file.read_text())
        arms = document["applications"][0]["deployments"][0]["user_config"]["experiment"]["arms"]
        arms["model"]["share"], arms["popular"]["share"] = share, 1 - share
        file.write_text(yaml.safe_dump(document))
        run("serve", "up", cwd=home)

    give(0.1)
    replicas, before = _replicas(home), assigned_arms()
    give(0.5)
    after = assigned_arms()
    assert _replicas(home) == replicas
    assert 20 < before.count("model") < 60 < 160 < after.count("model") < 240
    assert all(a == b or b == "model" for a, b in zip(before, after, strict=True))


def test_without_scorer_the_answer_is_scored_and_without_store_popular(home, url):
    """Run last with this service, as it breaks the service for good."""
    body = {"candidates": ["1805", "2387", "62374"], "now_ms": 1_636_994_000_000}
    for i in range(100):
        body |= {"viewer": f"v{i}"}
        full = httpx.post(f"{url}/v1/rank", json=body, timeout=30).json()
        if full["arm"] == "model":
            break
    assert (full["arm"], full["rung"]) == ("model", "full")
    _kill_scorer(home)
    in_time = {"x-deadline-ms": "100"}
    answers = [httpx.post(f"{url}/v1/rank", json=body, headers=in_time, timeout=30) for _ in range(20)]
    assert {answer.status_code for answer in answers} == {200}
    assert answers[-1].json()["rung"] == "full"
    shutil.rmtree(home / "store-served")
    gone = _until(lambda: httpx.post(f"{url}/v1/rank", json=body, timeout=30).json(), "store_unavailable")
    assert gone["rung"] == "fallback"
    assert {r["candidate"] for r in gone["ranking"]} == set(body["candidates"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Install the project as a wheel, outside of the source tree."""
    built, installed = (tmp_path_factory.mktemp(name) for name in ("built", "installed"))
    pip = ("pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(built), str(ROOT), cwd=built)
    run(*pip, "install", "--no-deps", "--target", str(installed), str(next(built.glob("*.whl"))), cwd=built)
    return installed


@pytest.mark.proof
def test_rays_own_command_serves_the_same_from_a_wheel(home, wheel):
    url = config(home)
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(wheel)}
    environment.pop("RAY_ADDRESS", None)
    where = [sys.executable, "-c", "import serve.app as app; print(app.__file__)"]
    found = subprocess.run(where, cwd=home, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(str(wheel))
    shipped = {path.name for path in (wheel / "serve/operate/observe").iterdir()}
    assert shipped >= {"rules.yml", "alerts.yml", "alerts_test.yml", "dashboard.json"}
    command = [str(Path(sys.executable).with_name("serve")), "run", "cluster.yaml"]
    process = subprocess.Popen(
        command, cwd=home, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        body = {"viewer": "0", "candidates": ["1805", "2387"], "now_ms": 1_636_994_000_000}
        answer = _until(lambda: _try_post(f"{url}/v1/rank", body), "full", seconds=120)
        assert answer["surface"] == "ranklens"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def _lines(folder, files):
    return [json.loads(line) for path in folder.glob(files) for line in path.read_text().splitlines()]


def _replicas(home):
    """Return the processes of the replicas with their command lines."""
    pid = json.loads((home / "var/run/service.json").read_text())["pid"]
    lines = {p: " ".join(p.cmdline()) for p in psutil.Process(pid).children(recursive=True)}
    return {process: line for process, line in lines.items() if "ServeReplica" in line}


def _kill_scorer(home):
    victims = [process for process, line in _replicas(home).items() if "Scorer" in line]
    assert victims
    for victim in victims:
        victim.kill()


def _try_post(url, body):
    try:
        return httpx.post(url, json=body, timeout=30).json()
    except (httpx.HTTPError, ValueError):
        return {}


def _until(ask, wanted, seconds=20.0):
    """Repeat a request until the answer's rung or reason is the wanted one."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = ask()
        if wanted == answer.get("rung") or wanted in answer.get("degraded", ()):
            return answer
        time.sleep(0.2)
    raise AssertionError(f"{wanted} never came; last answer {answer}")
