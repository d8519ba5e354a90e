"""Read the health of a service: its supervisor's or cluster's state, its answers, its counters."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from serve.config.application import OUR_APPLICATION
from serve.config.diagnoses import DIAGNOSES
from serve.contract.errors import TabrankError
from serve.operate.diff.running import RemoteService, cause
from serve.operate.host.run_folder import RunFolder
from serve.operate.host.state import RUN, get, status
from serve.operate.status.scrape import PageHistory, read_pages

# The variable with a key. Without it, the /v1/model of a service with keys is unknown.
API_KEY = "TABRANK_API_KEY"
# A replica that finds room on a node starts within this time.
STARTS_WITHIN = timedelta(seconds=10)


def look(run: Path | None, address: str | None, history: PageHistory | None = None) -> dict[str, Any]:
    """Return the state of the running service; unknown values are None.

    Reading rates takes some seconds, unless `history` holds earlier pages. New pages are added.
    """
    waits: list[str] = []
    if address and run is None:
        service = RemoteService(address).service()
    else:
        folder = RunFolder.of(run or RUN)
        service = status(run or RUN)
        waits = waiting(service, folder.wanted().get("document", {}), datetime.now(UTC))
        waits += filter(None, [service.get("unwatched")])
    answers = answers_of(service) if service["state"] in ("ready", "deploying", "unwatched") else {}
    return {
        **service,
        **diagnosed(answers),
        "waits": waits,
        "kill_switch": _switched(answers),
        "surfaces": answers,
        "traffic": _traffic(service, history),
    }


def _traffic(service: Mapping[str, Any], history: PageHistory | None) -> dict[str, Any] | None:
    pages = _pages(service)
    if not pages:
        return None
    if history is None:
        history = PageHistory(service.get("metrics_every_s", 10.0))
        history.fill(pages)
    else:
        history.add(read_pages(pages))
    return history.traffic()


def metrics_pages(run: Path | None, address: str | None) -> list[str]:
    """Return the URLs of the nodes' metrics pages; raise TabrankError where none is known."""
    service = RemoteService(address).service() if address and run is None else status(run or RUN)
    pages = _pages(service)
    if not pages:
        raise TabrankError(
            f"{address or run or RUN}: no page of metrics is known; start the service: python -m serve up"
        )
    return pages


def _pages(service: Mapping[str, Any]) -> list[str]:
    nodes = service.get("nodes", ())
    return [node["metrics_url"] for node in nodes if node["alive"] and node.get("metrics_url")]


def answers_of(service: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return each of our applications' /readyz, with the experiment of /v1/model; empty if silent.

    `service` has the form of `service.json`.
    """
    found = {}
    for name, app in service.get("applications", {}).items():
        if app.get("import_path") == OUR_APPLICATION:
            base = service["url"] + (app.get("route_prefix") or "/").rstrip("/")
            ready, model = _get(base + "/readyz"), _get(base + "/v1/model")
            # An error has a body too.
            found[name] = {**ready, "experiment": model.get("experiment")} if "store" in ready else {}
    return found


def diagnosed(answers: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the diagnoses in the answers of `answers_of`, a text each with its application.

    `degraded` has those because of which rankings differ from the file, `advice` the others.
    """
    found: dict[str, list[str]] = {"degraded": [], "advice": []}
    for name, answer in answers.items():
        if not answer:
            found["degraded"].append(f"{name}: no answer to /readyz")
        for one in answer.get("diagnoses", ()):
            kind = "advice" if DIAGNOSES.get(one["name"], {}).get("advice") else "degraded"
            found[kind].append(f"{name}: {one['cause']} {one['remedy']}")
    return found


def waiting(service: Mapping[str, Any], wanted: Mapping[str, Any], now: datetime) -> list[str]:
    """Return the deploy under way and, after a while, why its replicas do not start; else empty.

    `service` has the form of `service.json`, `wanted` is the document that is being deployed.
    """
    under_way = service.get("deploying")
    if service["state"] != "deploying" or not under_way:
        return []
    lines = [f"a deploy of {under_way['config']} is under way since {under_way['since']}"]
    if now - datetime.fromisoformat(under_way["since"]) < STARTS_WITHIN:
        return lines
    for app, details in service["applications"].items():
        for name, deployment in details["deployments"].items():
            starting = deployment["replicas"].get("STARTING", 0)
            if starting:
                options = _deployment(wanted, app, name).get("ray_actor_options") or {}
                # Serve's default is 1.
                num_cpus = 1 if options.get("num_cpus") is None else options["num_cpus"]
                room = f"no room? {starting} of its replicas wait for {num_cpus:g} CPUs each"
                reason = cause([deployment["message"]]) if deployment["message"] else room
                lines.append(f"{app}/{name}: {reason}")
    return lines


def _switched(answers: Mapping[str, Mapping[str, Any]]) -> list[str] | None:
    """Return the applications whose kill switch is on; None if one of them did not answer."""
    names = {name: [one["name"] for one in answer.get("diagnoses", ())] for name, answer in answers.items()}
    return [name for name in names if "kill_switch" in names[name]] if all(answers.values()) else None


def _deployment(document: Mapping[str, Any], application: str, name: str) -> dict[str, Any]:
    """Return the options of a deployment; empty if the document has none."""
    for app in document.get("applications", ()):
        if app["name"] == application:
            for deployment in app.get("deployments") or ():
                if deployment["name"] == name:
                    return dict(deployment)
    return {}


def _get(url: str) -> dict[str, Any]:
    key = os.environ.get(API_KEY)
    _, body = get(url, {"X-Api-Key": key} if key else {})
    with contextlib.suppress(ValueError):
        answer = json.loads(body)
        return answer if isinstance(answer, dict) else {}
    return {}
