"""Shipped alerting rules and dashboard, and the queries that try them on a Prometheus."""

from __future__ import annotations

import json
import subprocess
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import yaml

from serve.operate.render.companions import OBSERVE, RULES

DASHBOARD = OBSERVE / "dashboard.json"


def rules(path):
    """Return all rules in a file."""
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def records():
    """Return the recording rules."""
    return rules(RULES[0])


def alerts():
    """Return the alerts; an alert with two severities occurs twice."""
    return rules(RULES[1])


def panels():
    """Return the expressions of each panel, with variables filled in."""
    return [
        [filled(target["expr"]) for target in panel["targets"]]
        for panel in json.loads(DASHBOARD.read_text())["panels"]
        if panel["type"] != "row"
    ]


def filled(expression):
    """Return the expression as Grafana sends it if all applications are selected."""
    return expression.replace("$__rate_interval", "1m").replace("$application", ".*")


def expressions():
    """Return all shipped expressions, of rules and of panels."""
    return [expression for panel in panels() for expression in panel] + [
        rule["expr"] for rule in (*records(), *alerts())
    ]


def required_expressions():
    """Return the expressions that must have a series on a scraped service.

    These are all except the alerts, which use only recording rules.
    """
    rules = [text for rule in records() for text in (rule["record"], rule["expr"])]
    return [expression for panel in panels() for expression in panel] + rules


@contextmanager
def prometheus(run, folder, port):
    """Run a Prometheus on the service of a run folder until the block ends."""
    service = run.service()
    jobs = {"tabrank": service.metrics_url, "haproxy": service.haproxy_metrics_url}
    document = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [*map(str, RULES)],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [urlsplit(url).netloc]}]}
            for job, url in jobs.items()
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(document))
    flags = {"config.file": folder / "prometheus.yml", "storage.tsdb.path": folder / "data"}
    flags["web.listen-address"] = f"127.0.0.1:{port}"
    with subprocess.Popen(["prometheus", *(f"--{name}={value}" for name, value in flags.items())]) as process:
        yield
        process.terminate()


def without_series(port, wanted, seconds):
    """Return the wanted expressions that have no series in a Prometheus within `seconds`."""
    end = time.monotonic() + seconds
    left = list(dict.fromkeys(wanted))
    with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=10) as client:
        while left and time.monotonic() < end:
            time.sleep(1.0)
            try:
                left = [text for text in left if not _result(client, text)]
            # Prometheus is still starting.
            except httpx.TransportError:
                continue
        failed = [rule["name"] for rule in _rules(client) if rule["health"] != "ok"]
    return left + failed


def _result(client, expression):
    answer = client.get("/query", params={"query": expression}).json()
    assert answer["status"] == "success", (expression, answer)
    return answer["data"]["result"]


def _rules(client):
    groups = client.get("/rules").json()["data"]["groups"]
    return [rule for group in groups for rule in group["rules"]]
