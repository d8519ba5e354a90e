"""The objects beside a RayService: account, budgets, storage, Redis, Ingress and monitoring."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from serve.operate.render.manifests import HARDENED, Manifests, Object, manifest, pod_security
from serve.operate.render.options import REDIS_PORT, Kubernetes

NETWORKING_API = "networking.k8s.io/v1"
MONITORING_API = "monitoring.coreos.com/v1"
OBSERVE = Path(__file__).parents[1] / "observe"
RULES = (OBSERVE / "rules.yml", OBSERVE / "alerts.yml")
REDIS_IMAGE = "redis:7.4"
# LMDB takes at most 64 GiB; the rest is room beside it.
STORE_GIB = 72


def before(manifests: Manifests) -> Iterator[Object]:
    """Yield what the pods of the RayService need when they start."""
    options = manifests.options
    yield manifest("v1", "ServiceAccount", options.metadata())
    for claim in manifests.stores:
        yield manifest("v1", "PersistentVolumeClaim", options.metadata(claim), _volume(STORE_GIB))
    if manifests.has_workers and not options.redis:
        yield from _redis(options)


def after(manifests: Manifests) -> Iterator[Object]:
    """Yield what routes to the pods of the RayService, and what watches over them."""
    options = manifests.options
    for name, pool in manifests.workers.items():
        # A budget that spares no pod would block each drain of a node.
        if pool.min_nodes > 1:
            labels = {**options.labels, "app.kubernetes.io/component": name}
            budget = {
                # A RayCluster has no subresource `scale`, so Kubernetes accepts only this kind of
                # number.
                "minAvailable": pool.min_nodes - 1,
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
                "selector": {"matchLabels": labels},
            }
            yield manifest(
                "policy/v1", "PodDisruptionBudget", options.metadata(f"{options.name}-{name}"), budget
            )
    if options.host:
        yield _ingress(options, manifests.port)
    pages = {
        # The rules name the job `tabrank`.
        "jobLabel": "app.kubernetes.io/name",
        "selector": {"matchLabels": options.labels},
        "podMetricsEndpoints": [{"port": "metrics", "interval": "15s"}],
    }
    yield manifest(MONITORING_API, "PodMonitor", options.metadata(), pages)
    groups = [group for file in RULES for group in yaml.safe_load(file.read_text())["groups"]]
    yield manifest(MONITORING_API, "PrometheusRule", options.metadata(), {"groups": groups})


def _redis(options: Kubernetes) -> Iterator[Object]:
    """Yield the Redis of Ray's state, its Service, and the policy that lets only our pods in."""
    name = options.redis_name
    labels = {"app.kubernetes.io/name": name}
    metadata = {"name": name, "namespace": options.namespace, "labels": labels}
    selector, port = {"matchLabels": labels}, {"protocol": "TCP", "port": REDIS_PORT}
    resources = {"cpu": "250m", "memory": "256Mi", "ephemeral-storage": "1Gi"}
    container = {
        "name": "redis",
        "image": REDIS_IMAGE,
        "command": ["redis-server"],
        "args": ["--dir", "/data", "--appendonly", "yes", "--requirepass", "$(PASSWORD)"],
        "env": [{"name": "PASSWORD", **options.password("ray-password")}],
        "ports": [{"containerPort": REDIS_PORT}],
        "resources": {"requests": resources, "limits": resources},
        "securityContext": {**HARDENED, "readOnlyRootFilesystem": True},
        "readinessProbe": {"tcpSocket": {"port": REDIS_PORT}},
        "livenessProbe": {"tcpSocket": {"port": REDIS_PORT}, "failureThreshold": 6},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    # 999 is the user of the image.
    security = {"automountServiceAccountToken": False, "securityContext": pod_security(999)}
    template = {
        "metadata": {"labels": labels},
        "spec": {**security, "containers": [container]},
    }
    stateful = {
        "serviceName": name,
        "replicas": 1,
        "selector": selector,
        "template": template,
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": _volume(1)}],
    }
    ours = [{"from": [{"podSelector": {"matchLabels": options.labels}}], "ports": [port]}]
    policy = {"podSelector": selector, "policyTypes": ["Ingress"], "ingress": ours}
    yield manifest("apps/v1", "StatefulSet", metadata, stateful)
    yield manifest("v1", "Service", metadata, {"selector": labels, "ports": [port]})
    yield manifest(NETWORKING_API, "NetworkPolicy", metadata, policy)


def _ingress(options: Kubernetes, port: int) -> Object:
    """Return the Ingress, which ends TLS before the service."""
    backend = {"service": {"name": f"{options.name}-serve-svc", "port": {"number": port}}}
    paths = {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}
    spec = {
        "tls": [{"hosts": [options.host], "secretName": options.tls_secret}],
        "rules": [{"host": options.host, "http": paths}],
    }
    return manifest(NETWORKING_API, "Ingress", options.metadata(), spec)


def _volume(gib: int) -> Object:
    return {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": f"{gib}Gi"}}}
