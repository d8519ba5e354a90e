"""Golden screens of 80 columns and 24 lines; on a pipe each item is one line."""

from __future__ import annotations

import io
import os

import msgspec
import pytest
from rich.console import Console
from typer.testing import CliRunner

from serve.__main__ import app
from serve.operate.status import screen as module
from serve.operate.status.report import Report
from serve.operate.status.screen import screen, show

READY = {
    "store": "fresh",
    "model": "20260131T120000Z-ab12",
    "experiment": {
        "holdout": 0.1,
        "arms": [
            {"name": "model", "scorer": "current", "share": 0.75, "model": "20260131T120000Z-ab12"},
            {"name": "popular", "scorer": "popular", "share": 0.25, "model": None},
        ],
    },
}
FOUND = {
    "state": "ready",
    "health": {"state": "healthy", "line": "healthy", "remedy": None, "runbook": None},
    "causes": [],
    "at": "2026-01-31T12:30:05+00:00",
    "url": "http://127.0.0.1:8000",
    "error": "",
    "degraded": [],
    "kill_switch": [],
    "processes": 14,
    "memory_mib": 1_415,
    "memory": {"used_mib": 4_000, "limit_mib": 8_192, "node": "10.0.0.1"},
    "applications": {
        "spaces": {
            "deployments": {
                "FeatureFetch": {
                    "status": "UPSCALING",
                    "target": 3,
                    "replicas": {"RUNNING": 2, "STARTING": 1},
                },
                "Scorer": {"status": "HEALTHY", "replicas": {"RUNNING": 1}},
                "Ingest": {"status": "HEALTHY", "target": 1, "replicas": {"RUNNING": 1}},
            }
        }
    },
    "restarts": {
        "spaces/Scorer": {"count": 2, "last": "its process ended", "at": "2026-01-31T12:00:00+00:00"},
        "controller": {"count": 1, "last": "its process ended", "at": None},
    },
    "nodes": [
        {"id": "a", "pool": "head", "alive": True},
        {"id": "b", "pool": "workers", "alive": True},
        {"id": "c", "pool": "workers", "alive": False},
    ],
    "surfaces": {"spaces": READY},
    "traffic": {
        "window_s": 5.2,
        "rate_rps": 412.4,
        "p50_ms": 3.21,
        "p90_ms": 12.0,
        "p99_ms": None,
        "rungs": {"full": 0.998, "fallback": 0.002},
        "reasons": {"deadline": 0.002},
        "arms": {"model": 0.74},
        "records_rps": {"accepted": 206.1, "duplicate": 1.25, "rejected": 0.0},
        "freshness_ms": 105.0,
        "error_share": 0.001,
        "errors": {"503": 0.001},
        "refused_share": 0.0,
        "client_error_share": 0.02,
        "client_errors": {"401": 0.02},
    },
    "changes": [
        {"at": f"2026-01-31T12:{minute}:00+00:00", "what": what}
        for minute, what in (
            (20, "kill switch off"),
            (15, "kill switch on"),
            (10, "promote 20260131T120000Z-ab12 by the command"),
            ("05", "deployed cluster.yaml: FeatureFetch.user_config.deadline_ms"),
            ("01", "started with cluster.yaml"),
        )
    ],
    "log": "/srv/tabrank/var/run/supervisor.log",
    "replica_logs": "/tmp/tabrank-x1y2z3/r/session_latest/logs/serve",
}
REST = """\
rankings  412/s; p50 3.2, p90 12.0, p99 – ms
answers   full 99.8%, fallback 0.2%; degraded by deadline 0.2%
records   206/s accepted, 1.2/s duplicate, 0.0/s rejected
errors    0.1% failed (503 0.1%), 0.0% refused, 2.0% client errors (401 2.0%)
features  105 ms old
memory    4,000 of 8,192 MiB (49%) on 10.0.0.1; the service 1,415 MiB in 14
          processes
spaces    model 20260131T120000Z-ab12
          arms model 75% (seen 74%), popular 25%, held out 10%
replicas  spaces/FeatureFetch 2/3 running, 1 starting (upscaling)
          spaces/Scorer 1/– running
          spaces/Ingest 1/1 running
nodes     1 head, 1 workers; kill switch off
restarts  controller 1 (its process ended)
          spaces/Scorer 2 (its process ended at 2026-01-31T12:00:00+00:00)
last hour 12:20 kill switch off
          12:15 kill switch on
          and 3 more (--json)
logs      /srv/tabrank/var/run/supervisor.log; of replicas
          /tmp/tabrank-x1y2z3/r/session_latest/logs/serve
"""
COMMAND = (
    "`cd /srv/tabrank && python -m serve load --surface spaces --log var/log --store lmdb:var/store "
    "--until 2026-01-31`"
)
DEGRADED = {
    "health": {"state": "degraded", "line": "", "remedy": "", "runbook": "docs/runbook.md#x"},
    "causes": [
        {
            "name": "no_store",
            "where": "spaces",
            "text": "There is no store at lmdb:var/store: rankings have no scores, and events are refused.",
            "remedy": f"Fill it with {COMMAND}.",
            "advice": False,
        },
        {"name": "not_full", "where": "", "text": "All is lost.", "remedy": "Mend.", "advice": False},
        {"name": "other_names", "where": "spaces", "text": "Old names.", "remedy": "Rename.", "advice": True},
    ],
}


def report(**changed):
    return msgspec.convert(FOUND | changed, Report)


def test_a_healthy_service_fits_a_terminal_of_80_columns_and_24_lines():
    head = (
        "healthy   nothing to do\n"
        "at        2026-01-31 12:30:05 UTC, rates over 5 s; ready http://127.0.0.1:8000\n"
    )
    shown = screen(report(), 80).plain
    assert shown.splitlines() == (head + REST).splitlines()
    assert len(shown.splitlines()) < 24
    assert max(map(len, shown.splitlines())) <= 80


def test_without_traffic_the_features_have_no_age():
    def features(**changed):
        lines = screen(report(traffic=FOUND["traffic"] | changed), 80).plain.splitlines()
        return next(line for line in lines if line.startswith("features"))

    assert features(freshness_ms=0.0, rate_rps=0.0) == "features  no traffic"
    # The exposures of a little traffic are taken at once.
    assert features(freshness_ms=0.0, rate_rps=0.5) == "features  0.0 ms old"
    assert features(freshness_ms=9e3, rate_rps=0.0) == "features  9,000 ms old"


def test_a_degraded_service_begins_with_what_to_do_and_keeps_the_command_in_one_line():
    lines = screen(report(**DEGRADED), 80).plain.splitlines()
    assert lines[:7] == [
        "degraded  spaces: There is no store at lmdb:var/store: rankings have no scores,",
        "          and events are refused. Fill it with",
        f"          {COMMAND}.",
        "          (docs/runbook.md#x)",
        "and       All is lost. Mend.",
        "advice    spaces: Old names. Rename.",
        "at        2026-01-31 12:30:05 UTC, rates over 5 s; ready http://127.0.0.1:8000",
    ]


def test_on_a_pipe_the_first_line_is_whole_and_nothing_is_coloured(capsys):
    show(report(**DEGRADED), False)
    first = capsys.readouterr().out.splitlines()[0]
    assert first == (
        "degraded  spaces: There is no store at lmdb:var/store: rankings have no scores, and events are refused."
        f" Fill it with {COMMAND}. (docs/runbook.md#x)"
    )


def test_the_colour_is_green_only_if_the_service_is_healthy(monkeypatch):
    def coloured(found, **env):
        out = io.StringIO()
        console = Console(file=out, force_terminal=True, width=80, _environ={"TERM": "xterm", **env})
        monkeypatch.setattr(module, "Console", lambda: console)
        show(found, False)
        return out.getvalue()

    assert coloured(report()).startswith("\x1b[1;32mhealthy")
    assert coloured(report(**DEGRADED)).startswith("\x1b[1;31mdegraded")
    assert "\x1b[31manswers" in coloured(report(**DEGRADED))
    assert "32m" not in coloured(report(**DEGRADED))
    assert "3" not in "".join(
        part.split("m")[0] for part in coloured(report(**DEGRADED), NO_COLOR="1").split("\x1b[")[1:]
    )


def test_an_unknown_value_is_a_dash_and_a_stopped_service_has_no_numbers():
    found = report(traffic=None, surfaces={"spaces": {}}, nodes=[], kill_switch=None, memory={}, memory_mib=0)
    lines = screen(found).plain.splitlines()
    assert {
        "rankings  –/s; p50 –, p90 –, p99 – ms",
        "answers   –",
        "errors    – failed, – refused, – client errors",
        "memory    –",
        "spaces    model –",
        "nodes     –; kill switch –",
    } <= set(lines)
    health = FOUND["health"] | {"state": "down"}
    stopped = {"state": "stopped", "health": health, "causes": DEGRADED["causes"][1:2]}
    assert screen(msgspec.convert(stopped, Report)).plain == "down      All is lost. Mend."


@pytest.mark.parametrize(("changed", "code"), [({}, 0), ({"degraded": ["x"]}, 1), ({"state": "stopped"}, 1)])
def test_the_exit_code_is_0_only_for_a_ready_service_that_is_not_degraded(monkeypatch, changed, code):
    monkeypatch.setattr("serve.operate.status.vitals.look", lambda *_: report(**changed))
    done = CliRunner().invoke(app, ["status", "--json"])
    assert done.exit_code == code
    assert msgspec.json.decode(done.stdout, type=Report) == report(**changed)


@pytest.mark.parametrize("command", [["status"], ["status", "--json"]])
def test_a_reader_that_left_gets_no_traceback(monkeypatch, command):
    monkeypatch.setattr("serve.operate.status.vitals.look", lambda *_: report())
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as gone, monkeypatch.context() as patched:
        errors = io.StringIO()
        patched.setattr("sys.stdout", gone)
        patched.setattr("sys.stderr", errors)
        with pytest.raises(SystemExit) as left:
            app(command, prog_name="python -m serve")
        assert (left.value.code, errors.getvalue()) == (1, "")
        # Its buffer cannot be flushed, so that closing it would fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)
