"""Count restarts of replicas, controller and proxies, from Ray's table of actors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

MEMORY = "killed by Ray's memory monitor"
ENDED = "its process ended"
UNHEALTHY = "did not answer its health checks"


class Restarts:
    """Counter of restarts with the last reason; planned stops do not count."""

    def __init__(self) -> None:
        self._unhealthy: set[str] = set()

    def found(
        self, actors: Iterable[Mapping[str, Any]], applications: Mapping[str, Any]
    ) -> dict[str, dict[str, Any]]:
        """Return `count`, `last` (the reason), `at` and `times` by controller, proxy and deployment.

        `times` has the last ten that are known. A deployment goes by APPLICATION/DEPLOYMENT.

        `actors` are rows of Ray's table, `applications` is as in `service.json`.
        """
        for app in applications.values():
            for deployment in app["deployments"].values():
                # Ray reports that a replica was stopped, but not why. Serve reports it meanwhile.
                if deployment["status"] == "UNHEALTHY":
                    self._unhealthy |= {*deployment["ids"]}
                elif deployment["status"] == "HEALTHY":
                    self._unhealthy -= {*deployment["ids"]}
        found: dict[str, dict[str, Any]] = {}
        for actor in sorted(actors, key=lambda actor: actor["EndTime"]):
            dead = actor["State"] == "DEAD"
            last = self._reason(actor) if dead else ENDED
            count = actor["NumRestarts"] + (dead and last != "")
            if count and (name := _name(actor["Name"])):
                before = found.get(name, {"count": 0, "times": []})
                at = datetime.fromtimestamp(actor["EndTime"] / 1e3, UTC).isoformat(timespec="seconds")
                known = dead and actor["EndTime"]
                found[name] = {
                    "count": before["count"] + count,
                    "last": last,
                    "at": at if known else None,
                    "times": [*before["times"], *([at] if known else [])][-10:],
                }
        return found

    def _reason(self, actor: Mapping[str, Any]) -> str:
        """Return why a dead actor ended, empty where Serve stopped it as planned."""
        cause = actor["DeathCause"]
        if cause.HasField("oom_context"):
            return MEMORY
        context = cause.actor_died_error_context
        if context.reason != context.RAY_KILL:
            return ENDED
        replica = actor["Name"].rpartition("#")[2]
        is_replica = actor["Name"].startswith(REPLICA)
        return "" if is_replica and replica not in self._unhealthy else UNHEALTHY


REPLICA, CONTROLLER, PROXY = "SERVE_REPLICA::", "SERVE_CONTROLLER_ACTOR", "SERVE_PROXY_ACTOR"


def _name(actor: str) -> str:
    """Return the reported name of one of Serve's actors; empty for others."""
    if actor.startswith(REPLICA):
        return "/".join(actor.removeprefix(REPLICA).split("#")[:2])
    return {CONTROLLER: "controller", PROXY: "proxy"}.get(actor.split("-")[0], "")
