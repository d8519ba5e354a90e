"""Read the nodes and actors of this process's Ray cluster for `service.json`."""

from __future__ import annotations

from typing import Any

from serve.operate.host.service_state import NodeState


def nodes() -> list[NodeState]:
    """Return the cluster's nodes, dead ones included, with pool label and metrics page."""
    import ray

    return [
        NodeState(
            id=node["NodeID"],
            pool=node.get("Labels", {}).get("pool", "head"),
            alive=node["Alive"],
            metrics_url=f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics",
        )
        for node in ray.nodes()
    ]


def actors() -> list[dict[str, Any]]:
    """Return Ray's table of actors, dead ones included; the public call needs the dashboard."""
    from ray._private.state import actors as table

    return list(table().values())
