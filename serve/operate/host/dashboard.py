"""Read the nodes of a Ray cluster from the REST interface of its dashboard."""

from __future__ import annotations

import contextlib
from typing import Any

from serve.operate.host.service_state import NodeState


def nodes(client: Any) -> list[NodeState]:
    """Return the nodes that the dashboard reports."""
    targets = _get(client, "/api/prometheus/sd") or [{}]
    # At the same address, a node's page comes before those of the dashboard and the autoscaler.
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


def _get(client: Any, path: str, *keys: str) -> Any:
    """Return a part of the dashboard's answer, or None, because the status can do without it."""
    with contextlib.suppress(Exception):
        answer = client._do_request("GET", path).json()
        for key in keys:
            answer = answer[key]
        return answer
    return None
