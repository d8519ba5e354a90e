"""Read the health of a service: its supervisor's or cluster's state, its answers, its counters."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from serve.config.application import OUR_APPLICATION
from serve.contract.errors import TabrankError
from serve.operate.diff.dashboard import actors
from serve.operate.diff.running import RemoteService
from serve.operate.host.run_folder import RunFolder
from serve.operate.host.state import RUN, get, status, status_code
from serve.operate.status.causes import DOWN, causes, health, line, of_answers
from serve.operate.status.restarts import Restarts
from serve.operate.status.scrape import PageHistory, read_pages
from serve.rollout import history as releases

# The variable with a key. Without it, the /v1/model of a service with keys is unknown.
API_KEY = "TABRANK_API_KEY"
# In these states it may answer; "unhealthy" is what a dashboard reports.
ANSWERING = ("ready", "deploying", "unwatched", "unhealthy")
# What changed is of interest this long, the newest of it.
CHANGES_WITHIN, MAX_CHANGES = timedelta(hours=1), 20


def look(run: Path | None, address: str | None, history: PageHistory | None = None) -> dict[str, Any]:
    """Return the state of the running service; unknown values are None.

    `health` has the state of its health, with the first thing to do: the first of `causes`.
    Reading rates takes some seconds, unless `history` holds earlier pages. New pages are added.

    Raises:
        TabrankError: the dashboard at `address` does not answer, or no application runs there.
    """
    now, wanted = datetime.now(UTC), {}
    if address and run is None:
        remote = RemoteService(address)
        service = remote.service()
        restarts = history.restarts if history else Restarts()
        service["restarts"] = restarts.found(actors(remote.client), service["applications"])
    else:
        run = run or RUN
        service, wanted = status(run), RunFolder.of(run).wanted().get("document", {})
    answers = answers_of(service) if service["state"] in ANSWERING else {}
    pages = _pages(service)
    if history is None or not pages:
        history = PageHistory(service.get("metrics_every_s", 10.0))
        history.fill(pages)
    elif history.is_due:
        history.add(read_pages(pages))
    found = {
        **service,
        "at": now.isoformat(timespec="seconds"),
        "run": run and str(run),
        "kill_switch": _switched(answers),
        "surfaces": answers,
        "traffic": history.traffic(),
        "memory": history.memory(),
        "changes": _changes(service, run, now),
    }
    found["breaks"] = list(_breaks(found))
    found["causes"] = causes(found, wanted, now, pages[0] if pages and history.is_empty else "")
    waits = [line(one) for one in found["causes"] if one["name"] in ("deploying", "not_starting")]
    waits += filter(None, [service.get("unwatched")])
    return {**found, **_by_kind(found["causes"]), "health": health(found), "waits": waits}


def metrics_pages(run: Path | None, address: str | None) -> list[str]:
    """Return the URLs of the nodes' metrics pages; raise TabrankError where none is known."""
    service = RemoteService(address).service() if address and run is None else status(run or RUN)
    pages = _pages(service)
    if not pages:
        raise TabrankError(
            f"{address or run or RUN}: no page of metrics is known; start the service: python -m serve up"
        )
    return pages


def median_ms(run: Path | None, address: str | None, app: str) -> float | None:
    """Return the p50 of an application's rankings since its replicas started; None if unknown."""
    with contextlib.suppress(TabrankError):
        return read_pages(metrics_pages(run, address)).of("application", app).median_ms
    return None


def _pages(service: Mapping[str, Any]) -> list[str]:
    """Return the pages of the nodes and, last, that of HAProxy; none where nothing is served."""
    nodes = service.get("nodes", ()) if service["state"] not in DOWN else ()
    pages = [node["metrics_url"] for node in nodes if node["alive"] and node.get("metrics_url")]
    haproxy = service.get("haproxy_metrics_url")
    # HAProxy writes its page in the thread that forwards requests: ask for what is read.
    return [*pages, f"{haproxy}?scope=frontend&scope=backend"] if pages and haproxy else pages


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
    return _by_kind(of_answers(answers))


def _by_kind(named: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"degraded": [], "advice": []}
    for one in named:
        found["advice" if one["advice"] else "degraded"].append(line(one))
    return found


def _changes(service: Mapping[str, Any], run: Path | None, now: datetime) -> list[dict[str, Any]]:
    """Return what changed in the last hour, newest first: deploys, versions and restarts."""
    changes = [*service.get("changes", ())]
    for name, one in (service.get("restarts") or {}).items():
        changes += [{"at": at, "what": f"{name} restarted: {one['last']}"} for at in one["times"][-1:]]
        changes += [{"at": at, "what": f"{name} restarted"} for at in one["times"][:-1]]
    for app in RunFolder.of(run).deployed().get("applications", ()) if run else ():
        models = Path(service.get("config", "")).parent / (app.get("args") or {}).get("models", "var/models")
        with contextlib.suppress(OSError):
            changes += [_released(entry) for entry in releases.read(models).entries[-MAX_CHANGES:]]
    recent = [one for one in changes if now - datetime.fromisoformat(one["at"]) < CHANGES_WITHIN]
    # Of the same second, the one that was noted last comes first.
    return sorted(recent, key=lambda one: one["at"])[::-1][:MAX_CHANGES]


def _breaks(found: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Yield what the last deploys broke for callers, if it still is so.

    Each is a probe of `changes.broken`, asked without a key, as callers of before do; of the same
    one, the newest.
    """
    probes = {
        (probe["name"], probe["path"]): {"at": change["at"], **probe}
        for change in reversed(found["changes"])
        for probe in change.get("probes", ())
    }
    for probe in probes.values():
        if status_code(found["url"] + probe["path"]) == probe["status"]:
            yield probe


def _released(entry: releases.HistoryEntry) -> dict[str, str]:
    at = datetime.fromtimestamp(entry.at_ms / 1e3, UTC).isoformat(timespec="seconds")
    reason = f": {entry.reason}" if entry.reason else ""
    return {"at": at, "what": f"{entry.action} {entry.version} by the {entry.by}{reason}"}


def _switched(answers: Mapping[str, Mapping[str, Any]]) -> list[str] | None:
    """Return the applications whose kill switch is on; None if one of them did not answer."""
    names = {name: [one["name"] for one in answer.get("diagnoses", ())] for name, answer in answers.items()}
    return [name for name in names if "kill_switch" in names[name]] if all(answers.values()) else None


def _get(url: str) -> dict[str, Any]:
    key = os.environ.get(API_KEY)
    _, body = get(url, {"X-Api-Key": key} if key else {})
    with contextlib.suppress(ValueError):
        answer = json.loads(body)
        return answer if isinstance(answer, dict) else {}
    return {}
