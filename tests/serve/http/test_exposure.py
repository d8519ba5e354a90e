"""The real service behind HAProxy: its keys, slow clients, and Ray's own ports."""

from __future__ import annotations

import asyncio
import http.client
import socket
import time
from contextlib import closing
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
import yaml

from serve.contract.commands import API_KEY
from serve.http.auth import mint
from serve.operate.run.local_cluster import down, up
from tests.support.slow_senders import Senders
from tests.support.small_surface import TOML

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[3]
OLD, NEW = mint(), mint()
RANKING = {"viewer": None, "candidates": ["a", "b"], "traffic": "test"}


def start(folder, port, **keys):
    """Deploy the shipped file for the small surface with these keys, in place if it runs."""
    document = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    document["http_options"]["port"] = port
    application = document["applications"][0]
    application["args"] |= {"surface": "tiny.toml", "store": "lmdb:store", "models": "models", "log": "log"}
    application["deployments"][0]["user_config"]["api_keys"] = {
        name: {"sha256": sha256, "requests_per_s": 10_000} for name, (_, sha256) in keys.items()
    }
    (folder / "cluster.yaml").write_text(yaml.safe_dump(document))
    return up(folder / "cluster.yaml", run_dir=folder / "run", yes=True)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    (folder / "tiny.toml").write_text(TOML)
    (folder / "models").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    try:
        yield start(folder, port, app=OLD), folder, port
    finally:
        down(folder / "run")


def ask(url, key=None):
    return httpx.post(f"{url}/v1/rank", json=RANKING, headers={"x-api-key": key} if key else {})


def test_five_hundred_slow_clients_hold_no_slots_and_delay_no_others(service, monkeypatch):
    started, _, port = service
    monkeypatch.setenv(API_KEY, OLD[0])

    async def scenario():
        senders = Senders("127.0.0.1", port)
        running = asyncio.create_task(senders.run(500))
        statuses, until = [], time.monotonic() + 8.0
        limits = httpx.Limits(max_connections=4)
        async with httpx.AsyncClient(base_url=started["url"], limits=limits, timeout=5) as client:
            while time.monotonic() < until:
                asked = [
                    client.post("/v1/rank", json=RANKING, headers={"x-api-key": OLD[0]}) for _ in range(4)
                ]
                statuses += [answer.status_code for answer in await asyncio.gather(*asked)]
                await asyncio.sleep(0.05)
            connected = senders.num_connected
        running.cancel()
        return statuses, connected, senders.ended

    statuses, connected, ended = asyncio.run(scenario())
    assert set(statuses) == {200}
    assert connected > 400
    # HAProxy's answer, and the edge's.
    assert set(ended) == {"headers: 408", "body: 408"}


def status_line(port, *lines):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"\r\n".join(lines))
        return connection.makefile("rb").readline()


def test_a_connection_on_which_nothing_is_sent_is_closed_without_an_answer(service):
    """A client that opens connections ahead would take an answer for that to its next request."""
    with socket.create_connection(("127.0.0.1", service[2]), timeout=10) as silent:
        assert silent.recv(1_000) == b""
    with socket.create_connection(("127.0.0.1", service[2]), timeout=10) as slow:
        slow.sendall(b"POST /v1/rank HTTP/1.1\r\nHost: a\r\n")
        assert b" 408 " in slow.makefile("rb").readline()


def test_the_service_names_its_limit_of_headers_also_behind_haproxy(service):
    url = f"{service[0]['url']}/v1/rank"
    own = {"x-api-key": OLD[0]}
    for num, size, status in ((1, 16_000, 200), (80, 15_800, 200), (1, 16_384, 431), (80, 16_384, 431)):
        headers = own | {f"x-{i:02}": "x" * (size // num - 4) for i in range(num)}
        response = httpx.post(url, json=RANKING, headers=headers)
        assert response.status_code == status
    assert "16384 bytes of them" in response.json()["detail"]


def test_a_key_in_a_trailer_opens_nothing(service):
    key, port = f"X-Api-Key: {OLD[0]}".encode(), service[2]
    head = b"POST /v1/rank HTTP/1.1", b"Host: a", b"Content-Type: application/json"
    body = b"Transfer-Encoding: chunked", b"", b"2", b"{}", b"0"
    assert b" 422 " in status_line(port, *head, key, *body, b"", b"")
    assert b" 401 " in status_line(port, *head, *body, key, b"", b"")


def test_a_websocket_handshake_is_refused(service):
    upgrade = b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13"
    key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    head = b"GET /v1/rank HTTP/1.1", b"Host: a"
    assert b" 403 " in status_line(service[2], *head, *upgrade, key, b"", b"")


def test_behind_haproxy_a_client_that_reads_late_still_sees_the_413(service):
    client = http.client.HTTPConnection("127.0.0.1", service[2], timeout=20)
    headers = {"X-Api-Key": OLD[0], "Content-Type": "application/json"}
    with closing(client):
        client.request("POST", "/v1/rank", b" " * 10_000_000, headers)
        assert client.getresponse().status == 413


def test_keys_are_rotated_in_place(service):
    started, folder, port = service
    url = started["url"]
    assert [ask(url, key).status_code for key in (OLD[0], NEW[0], None)] == [200, 401, 401]
    refused = ask(url)
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["request_id"] == refused.headers["x-request-id"]
    assert httpx.get(f"{url}/livez").status_code == 200
    script = httpx.get(f"{url}/docs/swagger-ui-bundle.js")
    assert (script.headers["content-encoding"], len(script.content) > 1_000_000) == ("gzip", True)
    assert start(folder, port, app=OLD, app_2027=NEW)["action"] == "deployed"
    assert [ask(url, key).status_code for key in (OLD[0], NEW[0])] == [200, 200]
    again = start(folder, port, app_2027=NEW)
    assert [ask(url, key).status_code for key in (OLD[0], NEW[0])] == [401, 200]
    assert again["pid"] == started["pid"]


def test_only_the_token_opens_rays_own_ports(service):
    started, _, _ = service
    processes = {
        process.pid: process.name()
        for process in [
            psutil.Process(started["pid"]),
            *psutil.Process(started["pid"]).children(recursive=True),
        ]
    }
    listening = [
        (processes[one.pid], one.laddr.ip.removeprefix("::ffff:"), one.laddr.port)
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.pid in processes
    ]
    beyond = [(name, port) for name, address, port in listening if not address.startswith("127.")]
    # Ray's gRPC port needs the token; HAProxy's port only counts.
    assert {name.partition(":")[0] for name, _ in beyond} <= {"ray", "haproxy"}
    (gcs,) = [port for name, _, port in listening if name == "gcs_server"]
    replicas = [port for name, port in beyond if name != "haproxy"]
    # The kernel cuts the name `ray::ServeReplica:…` after 15 characters.
    assert len(replicas) == sum(name.startswith("ray::ServeRepl") for name in processes.values())
    assert called(gcs, "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo") == grpc.StatusCode.UNAUTHENTICATED
    for one in replicas:
        assert called(one, "/ray.serve.ASGIService/HandleRequest") == grpc.StatusCode.UNAUTHENTICATED


def called(port, method):
    """Return the answer of one of Ray's ports to a call without the token."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(method)
        with pytest.raises(grpc.RpcError) as refused:
            call(b"", timeout=5)
        return refused.value.code()
