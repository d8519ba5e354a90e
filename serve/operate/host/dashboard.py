"""Read nodes and actors of a Ray cluster from the REST interface of its dashboard."""

from __future__ import annotations

import contextlib
from typing import Any

from serve.operate.host.service_state import NodeState


def nodes(client: Any) -> list[NodeState]:
    """Return the nodes, as far as they are reported."""
    targets = _get(client, "/api/prometheus/sd") or [{}]
    # A node's page comes before those of the dashboard and the autoscaler at the same address.
    pages = {page.rpartition(":")[0]: page for page in reversed(targets[0].get("targets", ()))}
    return [
        NodeState(
            id=node["node_id"],
            pool=(node.get("labels") or {}).get("pool", "head"),
            alive=node["state"] == "ALIVE",
            metrics_url=pages.get(node.get("node_ip")) and f"http://{pages[node['node_ip']]}/metrics",
        )
        for node in _get(client, "/api/v0/nodes", "data", "result", "result") or ()
    ]


def actors(client: Any) -> list[dict[str, Any]]:
    """Return Ray's table of actors, dead ones included, in the form of Ray's `state.actors`."""
    from google.protobuf.json_format import ParseDict  # type: ignore[import-untyped]
    from ray.core.generated.common_pb2 import ActorDeathCause

    # One interface reports when an actor ended, the other one why.
    ends = _get(client, "/logical/actors?nocache=1", "data", "actors") or {}
    rows = _get(client, "/api/v0/actors?detail=1&limit=10000", "data", "result", "result") or ()
    return [
        {
            "Name": row["name"] or "",
            "State": row["state"],
            "NumRestarts": int(row["num_restarts"]),
            "EndTime": int(ends.get(row["actor_id"], {}).get("endTime") or 0),
            "DeathCause": ParseDict(
                row.get("death_cause") or {}, ActorDeathCause(), ignore_unknown_fields=True
            ),
        }
        for row in rows
    ]


def _get(client: Any, path: str, *keys: str) -> Any:
    """Return a part of an answer of the dashboard, or None: the status can do without."""
    with contextlib.suppress(Exception):
        answer = client._do_request("GET", path).json()
        for key in keys:
            answer = answer[key]
        return answer
    return None
