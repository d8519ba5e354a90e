"""Read the health of a service: its supervisor's or cluster's state, its answers, its counters."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from serve.config.application import OUR_APPLICATION, OUR_INGRESS
from serve.config.settings import HEURISTICS
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
        running = RemoteService(address)
        service, document = running.service(), running.document
    else:
        folder = RunFolder.of(run or RUN)
        service, document = status(run or RUN), folder.deployed()
        waits = waiting(service, folder.wanted().get("document", {}), datetime.now(UTC))
        waits += filter(None, [service.get("unwatched")])
    answers = answers_of(service) if service["state"] in ("ready", "deploying", "unwatched") else {}
    return {
        **service,
        "degraded": degraded_by(answers, document),
        "waits": waits,
        "kill_switch": killed_in(document),
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
            found[name] = {**ready, "experiment": model.get("experiment")} if ready else {}
    return found


def degraded_by(answers: Mapping[str, Mapping[str, Any]], document: Mapping[str, Any]) -> list[str]:
    """Return why rankings differ from the file, a sentence each; `document` is Serve's document."""
    reasons = []
    for name, answer in answers.items():
        if not answer:
            reasons.append(f"{name}: no answer to /readyz")
            continue
        if answer.get("store") != "fresh":
            reasons.append(f"{name}: no fresh features: the store is {answer.get('store')}")
        arms = (answer.get("experiment") or {}).get("arms") or []
        without = [a["name"] for a in arms if a["scorer"] not in HEURISTICS and a["share"] and not a["model"]]
        if without:
            reasons.append(f"{name}: no model for {', '.join(without)}: these get the popular order")
        given = _settings(document, name).get("experiment", {}).get("arms")
        if given and arms and _assignment(given) != _assignment({arm["name"]: arm for arm in arms}):
            # For example an artifact fails its golden rows: the replica keeps its earlier arms.
            reasons.append(f"{name}: a replica refused the arms of the file; its log has the reason")
    return reasons + [f"{name}: the kill switch is on" for name in killed_in(document)]


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


def killed_in(document: Mapping[str, Any]) -> list[str]:
    """Return our applications whose kill switch is on in a document."""
    names = [app["name"] for app in document.get("applications", ())]
    return [name for name in names if _settings(document, name).get("kill_switch")]


def _settings(document: Mapping[str, Any], application: str) -> dict[str, Any]:
    """Return the live settings of one of our applications."""
    return _deployment(document, application, OUR_INGRESS, OUR_APPLICATION).get("user_config") or {}


def _deployment(
    document: Mapping[str, Any], application: str, name: str, import_path: str | None = None
) -> dict[str, Any]:
    """Return the options of a deployment, empty for another `import_path` than the given one."""
    for app in document.get("applications", ()):
        if app["name"] == application and import_path in (None, app.get("import_path")):
            for deployment in app.get("deployments") or ():
                if deployment["name"] == name:
                    return dict(deployment)
    return {}


def _assignment(arms: Mapping[str, Any]) -> dict[str, tuple[str, float]]:
    return {name: (arm["scorer"], float(arm["share"])) for name, arm in arms.items()}


def _get(url: str) -> dict[str, Any]:
    key = os.environ.get(API_KEY)
    _, body = get(url, {"X-Api-Key": key} if key else {})
    with contextlib.suppress(ValueError):
        answer = json.loads(body)
        return answer if isinstance(answer, dict) else {}
    return {}
