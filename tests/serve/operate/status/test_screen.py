from serve.operate.status.screen import keep_showing, render

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
    "url": "http://127.0.0.1:8000",
    "error": "",
    "degraded": [],
    "kill_switch": [],
    "applications": {
        "spaces": {
            "deployments": {
                "FeatureFetch": {
                    "status": "UPSCALING",
                    "target": 3,
                    "replicas": {"RUNNING": 2, "STARTING": 1},
                },
                "Scorer": {"status": "HEALTHY", "replicas": {"RUNNING": 1}},
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
        "rate_rps": 412.4,
        "p50_ms": 3.21,
        "p90_ms": 12.0,
        "p99_ms": None,
        "rungs": {"full": 0.98, "fallback": 0.02},
        "reasons": {"deadline": 0.02},
        "arms": {"model": 0.74},
        "freshness_ms": 105.0,
    },
}


def test_the_screen_shows_everything():
    assert render(FOUND).splitlines() == [
        "ready  http://127.0.0.1:8000",
        "application  deployment    status     replicas",
        "spaces       FeatureFetch  upscaling  2/3 running, 1 starting",
        "             Scorer        healthy    1/– running",
        "rankings/s        412",
        "latency ms        p50 3.2  p90 12.0  p99 –",
        "rungs             full 98.0%, fallback 2.0%",
        "degraded by       deadline 2.0%",
        "features, ms old  105",
        "spaces: model     20260131T120000Z-ab12",
        "spaces: arms      model 75% (seen 74%), popular 25%, held out 10%",
        "restarts          controller 1 (its process ended)",
        "                  spaces/Scorer 2 (its process ended at 2026-01-31T12:00:00+00:00)",
        "kill switch       off",
        "nodes  1 head, 1 workers",
    ]


def test_an_unknown_value_is_a_dash_and_problems_come_first():
    found = FOUND | {"traffic": None, "surfaces": {"spaces": {}}, "nodes": [], "error": "no such model"}
    found |= {"degraded": ["spaces: no answer to /readyz"], "kill_switch": ["spaces"]}
    lines = render(found).splitlines()
    assert lines[1:3] == ["degraded: spaces: no answer to /readyz", "last error: no such model"]
    words = [" ".join(line.split()) for line in lines]
    assert {"rankings/s –", "rungs –", "nodes –", "kill switch on for spaces"} <= set(words)
    assert render({"state": "stopped", "degraded": [], "kill_switch": []}) == "stopped"


def test_ctrl_c_before_the_first_screen_ends_the_command(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("serve.operate.status.vitals.look", interrupted)
    assert keep_showing(None, None, 2.0, False)["state"] == "unknown"
