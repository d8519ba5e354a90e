"""Read the health of a service, from its supervisor or cluster, its answers and its counters."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from serve.contract.commands import RUN, key_header
from serve.contract.errors import TabrankError
from serve.model.mirror import mirror_of
from serve.operate.host.running_service import RemoteService
from serve.operate.host.service_state import Probe, ServiceChange, ServiceState, fields_of, iso
from serve.operate.host.state import RunState, get, status, status_code
from serve.operate.status.causes import DOWN, causes, health
from serve.operate.status.report import Cause, Report
from serve.operate.status.scrape import PageHistory, read_pages
from serve.rollout import history as releases
from serve.storage.bucket import place

# In these states a service may answer; a dashboard reports "unhealthy".
ANSWERING = ("ready", "deploying", "unwatched", "unhealthy")
# Changes are shown for this long, and no more than this many of the newest.
CHANGES_WITHIN, MAX_CHANGES = timedelta(hours=1), 20


def look(run: Path | None, address: str | None, history: PageHistory | None = None) -> Report:
    """Return the report of the running service.

    Reading rates takes some seconds, unless `history` holds earlier pages. New pages are added
    to it.

    Raises:
        TabrankError: the dashboard at `address` does not answer, or no application runs there; or
            the files of the run folder cannot be read.
    """
    now, run = datetime.now(UTC), run or (None if address else RUN)
    found = Report(**fields_of(_state(run, address), RunState))
    found.surfaces = answers_of(found) if found.state in ANSWERING else {}
    pages = pages_of(found)
    if history is None or not pages:
        history = PageHistory(found.metrics_every_s)
        history.fill(pages)
    elif history.is_due:
        history.add(read_pages(pages))
    found.at, found.run = iso(now.timestamp()), str(run) if run else None
    found.kill_switch = _switched(found.surfaces)
    found.traffic, found.memory = history.traffic(), history.memory()
    found.changes = _changes(found, now)
    found.breaks = list(_breaks(found))
    silent = pages[0] if pages and history.is_empty else ""
    found.causes = causes(found, now, silent)
    found.health = health(found)
    found.degraded, found.advice = by_kind(found.causes)
    return found


def _state(run: Path | None, address: str | None) -> RunState:
    """Return the state of the service of a run folder or at an address."""
    if address and run is None:
        return RunState(**fields_of(RemoteService(address).state, ServiceState))
    return status(run or RUN)


def metrics_pages(run: Path | None, address: str | None) -> list[str]:
    """Return the URLs of the nodes' metrics pages; raise TabrankError if none is known."""
    pages = pages_of(_state(run, address))
    if not pages:
        raise TabrankError(
            f"{address or run or RUN}: no page of metrics is known; start the service: python -m serve up"
        )
    return pages


def median_ms(service: ServiceState, app: str) -> float | None:
    """Return the p50 of an application's rankings since its replicas started; None if unknown."""
    return read_pages(pages_of(service)).of("application", app).median_ms


def pages_of(service: ServiceState) -> list[str]:
    """Return the pages of the nodes and, last, that of HAProxy; none if nothing is served."""
    nodes = service.nodes if service.state not in DOWN else ()
    pages = [node.metrics_url for node in nodes if node.alive and node.metrics_url]
    haproxy = service.haproxy_metrics_url
    # HAProxy writes its page in the thread that forwards requests, so ask only for what is read.
    return [*pages, f"{haproxy}?scope=frontend&scope=backend"] if pages and haproxy else pages


def answers_of(service: ServiceState) -> dict[str, dict[str, Any]]:
    """Return what each application says of itself; empty for one that does not answer.

    It is the body of `/readyz`, with the experiment, outcomes and weights of `/v1/model`. An
    application without a route cannot be asked.
    """
    found = {}
    for name, url in service.our_urls.items():
        ready, model = _get(f"{url}/readyz"), _get(f"{url}/v1/model")
        # An error has a body too, so look for a field that only a good answer has.
        told = {key: model.get(key) for key in ("experiment", "outcomes", "weights")}
        found[name] = ready | told if "store" in ready else {}
    return found


def by_kind(named: Iterable[Cause]) -> tuple[list[str], list[str]]:
    """Return the texts of causes that degrade the service, and those of advice."""
    texts: tuple[list[str], list[str]] = ([], [])
    for one in named:
        texts[one.advice].append(str(one))
    return texts


def _changes(found: Report, now: datetime) -> list[ServiceChange]:
    """Return what changed in the last hour, newest first: deploys, versions and restarts."""
    changes = [*found.changes]
    for name, one in (found.restarts or {}).items():
        changes += [ServiceChange(at, f"{name} restarted: {one.last}") for at in one.times[-1:]]
        changes += [ServiceChange(at, f"{name} restarted") for at in one.times[:-1]]
    # The files of a cluster at an address are out of reach.
    for app in found.applications.values() if found.run else ():
        models = mirror_of(place(app.models or "var/models", Path(found.config).parent)).folder
        with contextlib.suppress(OSError):
            changes += [_released(entry) for entry in releases.read(models).entries[-MAX_CHANGES:]]
    recent = [one for one in changes if now - datetime.fromisoformat(one.at) < CHANGES_WITHIN]
    # Among changes of the same second, the one that was noted last comes first.
    return sorted(recent, key=lambda one: one.at)[::-1][:MAX_CHANGES]


def _breaks(found: Report) -> Iterator[Probe]:
    """Yield what the last deploys broke for callers and is still broken.

    Each is a probe from `changes.broken`, sent without a key, as callers did before the deploy. If
    several deploys have the same probe, the newest one counts.
    """
    probes = {
        (probe.name, probe.path): msgspec.structs.replace(probe, at=change.at)
        for change in reversed(found.changes)
        for probe in change.probes
    }
    for probe in probes.values():
        if status_code(found.url + probe.path) == probe.status:
            yield probe


def _released(entry: releases.HistoryEntry) -> ServiceChange:
    reason = f": {entry.reason}" if entry.reason else ""
    return ServiceChange(iso(entry.at_ms / 1e3), f"{entry.action} {entry.version} by the {entry.by}{reason}")


def _switched(answers: Mapping[str, Mapping[str, Any]]) -> list[str] | None:
    """Return the applications whose kill switch is on; None if one of them did not answer."""
    names = {name: [one["name"] for one in answer.get("diagnoses", ())] for name, answer in answers.items()}
    return [name for name in names if "kill_switch" in names[name]] if all(answers.values()) else None


def _get(url: str) -> dict[str, Any]:
    # If the environment has no key, the /v1/model of a service with keys stays unknown.
    _, body = get(url, key_header())
    with contextlib.suppress(ValueError):
        answer = json.loads(body)
        return answer if isinstance(answer, dict) else {}
    return {}
