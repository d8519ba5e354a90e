"""Who may reach which port of the pods: the service's callers, Prometheus, the operator, and the pods each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from serve.operate.render.pods import METRICS_PORT, pod_labels

DASHBOARD_PORT = 8265
NAMESPACE_LABEL = "kubernetes.io/metadata.name"  # Kubernetes puts it on every namespace


@dataclass(frozen=True)
class Allowed:
    """Namespaces by what they may do."""

    callers: tuple[str, ...]
    monitoring: str
    operator: str


def network_policy(name: str, namespace: str, port: int, allowed: Allowed) -> dict[str, Any]:
    """The NetworkPolicy of the service's pods. What goes out of them is not restricted.

    Ray's own ports, HAProxy's statistics (8404, 9101) and the replicas' (30000 and up) are for the pods alone.
    """
    labels = pod_labels(name)
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(labels)},
        "spec": {
            "podSelector": {"matchLabels": dict(labels)},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": dict(labels)}}]},
                _rule(allowed.callers, port),
                _rule((allowed.monitoring,), METRICS_PORT),
                # It deploys the file, and asks the head's HAProxy for its health.
                _rule((allowed.operator,), DASHBOARD_PORT, port),
            ],
        },
    }


def _rule(namespaces: tuple[str, ...], *ports: int) -> dict[str, Any]:
    return {
        "from": [
            {"namespaceSelector": {"matchLabels": {NAMESPACE_LABEL: namespace}}} for namespace in namespaces
        ],
        "ports": [{"protocol": "TCP", "port": port} for port in ports],
    }
