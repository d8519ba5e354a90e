"""The pods of a RayService: what the head's and every worker's have in common, and where they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve.config.pools import NodePool
from serve.operate.host.environment import rendered_environment
from serve.operate.render.head_state import worker_environment

HOME = "/home/tabrank/app"  # of the image: what relative paths count from
USER = 1000
AGENT_PORT = 52365
STORE_PASSWORD = "TABRANK_REDIS_PASSWORD"  # serve.stores.redis_client reads it; importing that wants redis
METRICS_PORT = 8080  # of each node's metrics; KubeRay has them there


@dataclass(frozen=True)
class PodOrder:
    """What every pod is made of; `volumes`: the folder in the pod by the name of its PersistentVolumeClaim."""

    name: str
    image: str
    redis_secret: str
    volumes: Mapping[str, str]
    port: int
    memory_gib_per_cpu: int
    store_password: bool


def head_template(order: PodOrder, pool: NodePool, *, serves: bool) -> dict[str, Any]:
    """The head's pod: it is ready when Ray is, whether or not it serves."""
    ports = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "serve": order.port}
    container = _container(order, "ray-head", pool, ports)
    container["readinessProbe"] = _probe("/api/healthz", AGENT_PORT, period_s=5, failures=3)
    return _template(order, "head", container, reads_kubernetes=not serves)


def worker_template(order: PodOrder, name: str, pool: NodePool) -> dict[str, Any]:
    """A worker's pod: it is ready while its HAProxy takes requests, so that the service's list is of those."""
    container = _container(order, "ray-worker", pool, {"serve": order.port})
    container["env"] += [{"name": key, "value": value} for key, value in worker_environment().items()]
    container["readinessProbe"] = _probe("/-/healthz", order.port, period_s=5, failures=1)
    return _template(order, name, container, reads_kubernetes=False)


def _template(
    order: PodOrder, pool_name: str, container: dict[str, Any], *, reads_kubernetes: bool
) -> dict[str, Any]:
    claims = [{"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in order.volumes]
    return {
        "metadata": {"labels": {**pod_labels(order.name), "app.kubernetes.io/component": pool_name}},
        "spec": {
            "automountServiceAccountToken": reads_kubernetes,  # the autoscaler beside the head asks for pods
            "restartPolicy": "Never",  # the autoscaler replaces a pod; one that restarts would be counted twice
            "terminationGracePeriodSeconds": 60,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            **({"volumes": claims} if claims else {}),
        },
    }


def _container(order: PodOrder, name: str, pool: NodePool, ports: Mapping[str, int]) -> dict[str, Any]:
    resources = {"cpu": str(pool.num_cpus), "memory": f"{order.memory_gib_per_cpu * max(pool.num_cpus, 1)}Gi"}
    if pool.num_gpus:
        resources["nvidia.com/gpu"] = str(pool.num_gpus)
    all_ports = {**ports, "metrics": METRICS_PORT}
    mounts = [{"name": claim, "mountPath": path} for claim, path in order.volumes.items()]
    return {
        "name": name,
        "image": order.image,
        "env": _environment(order),
        "ports": [{"name": key, "containerPort": port} for key, port in all_ports.items()],
        "resources": {"requests": resources, "limits": dict(resources)},  # equal: no neighbour takes its CPUs
        "securityContext": container_security(),
        "livenessProbe": _probe("/api/healthz", AGENT_PORT, period_s=5, failures=24),
        **({"volumeMounts": mounts} if mounts else {}),
    }


def container_security() -> dict[str, Any]:
    """No more rights than any process needs."""
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def pod_labels(name: str) -> dict[str, str]:
    """What marks every pod of this service, of an old and a new cluster alike during an upgrade."""
    return {"app.kubernetes.io/name": "tabrank", "app.kubernetes.io/instance": name}


def _environment(order: PodOrder) -> list[dict[str, Any]]:
    values = rendered_environment(HOME)
    del values["RAY_AUTH_MODE"]  # KubeRay sets it, and the token, by authOptions
    env: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in values.items()]
    if order.store_password:
        secret = {"secretKeyRef": {"name": order.redis_secret, "key": "password"}}
        env.append({"name": STORE_PASSWORD, "valueFrom": secret})
    return env


def _probe(path: str, port: int, *, period_s: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": port},
        "initialDelaySeconds": 10,
        "periodSeconds": period_s,
        "timeoutSeconds": 2,
        "failureThreshold": failures,
    }
