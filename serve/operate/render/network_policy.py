"""Render the NetworkPolicy: which clients may reach which port of the pods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from serve.operate.render.pods import METRICS_PORT, pod_labels

DASHBOARD_PORT = 8265
# Kubernetes sets this label on each namespace.
NAMESPACE_LABEL = "kubernetes.io/metadata.name"


@dataclass(frozen=True)
class Allowed:
    """Namespaces that may reach the pods, by purpose."""

    callers: tuple[str, ...]
    monitoring: str
    operator: str


def network_policy(name: str, namespace: str, port: int, allowed: Allowed) -> dict[str, Any]:
    """Return the NetworkPolicy of the service's pods; outgoing traffic is not restricted.

    Only the pods reach Ray's own ports, HAProxy's statistics (8404, 9101) and the replicas' ports
    (30000 and up).
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
                # The operator deploys the file, and checks the health of the head's HAProxy.
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
