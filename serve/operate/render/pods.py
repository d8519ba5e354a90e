"""Render the pods of a RayService: the common part, the head and the workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve.config.pools import NodePool
from serve.operate.host.environment import rendered_environment
from serve.operate.render.head_state import worker_environment

# The image's folder, from which relative paths start.
HOME = "/home/tabrank/app"
USER = 1000
AGENT_PORT = 52365
# Also in serve.stores.redis_client, whose import would need redis.
STORE_PASSWORD = "TABRANK_REDIS_PASSWORD"
# Each node's metrics; KubeRay expects this port.
METRICS_PORT = 8080


@dataclass(frozen=True)
class PodOptions:
    """Options of all pods; `volumes` maps a PersistentVolumeClaim to its folder in the pod."""

    name: str
    image: str
    redis_secret: str
    volumes: Mapping[str, str]
    port: int
    memory_gib_per_cpu: int
    store_password: bool


def head_template(options: PodOptions, pool: NodePool, *, serves: bool) -> dict[str, Any]:
    """Return the head's pod, which is ready when Ray is, with or without replicas."""
    ports = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "serve": options.port}
    container = _container(options, "ray-head", pool, ports)
    container["readinessProbe"] = _probe("/api/healthz", AGENT_PORT, period_s=5, failures=3)
    return _template(options, "head", container, reads_kubernetes=not serves)


def worker_template(options: PodOptions, name: str, pool: NodePool) -> dict[str, Any]:
    """Return a worker's pod, which is ready while its HAProxy takes requests."""
    container = _container(options, "ray-worker", pool, {"serve": options.port})
    container["env"] += [{"name": key, "value": value} for key, value in worker_environment().items()]
    container["readinessProbe"] = _probe("/-/healthz", options.port, period_s=5, failures=1)
    return _template(options, name, container, reads_kubernetes=False)


def _template(
    options: PodOptions, pool_name: str, container: dict[str, Any], *, reads_kubernetes: bool
) -> dict[str, Any]:
    claims = [{"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in options.volumes]
    return {
        "metadata": {"labels": {**pod_labels(options.name), "app.kubernetes.io/component": pool_name}},
        "spec": {
            # The autoscaler beside the head reads pods from Kubernetes.
            "automountServiceAccountToken": reads_kubernetes,
            # The autoscaler replaces a pod; a restarting one would be counted twice.
            "restartPolicy": "Never",
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


def _container(options: PodOptions, name: str, pool: NodePool, ports: Mapping[str, int]) -> dict[str, Any]:
    resources = {
        "cpu": str(pool.num_cpus),
        "memory": f"{options.memory_gib_per_cpu * max(pool.num_cpus, 1)}Gi",
    }
    if pool.num_gpus:
        resources["nvidia.com/gpu"] = str(pool.num_gpus)
    all_ports = {**ports, "metrics": METRICS_PORT}
    mounts = [{"name": claim, "mountPath": path} for claim, path in options.volumes.items()]
    return {
        "name": name,
        "image": options.image,
        "env": _environment(options),
        "ports": [{"name": key, "containerPort": port} for key, port in all_ports.items()],
        # Equal requests and limits, so that no other pod takes the CPUs.
        "resources": {"requests": resources, "limits": dict(resources)},
        "securityContext": container_security(),
        "livenessProbe": _probe("/api/healthz", AGENT_PORT, period_s=5, failures=24),
        **({"volumeMounts": mounts} if mounts else {}),
    }


def container_security() -> dict[str, Any]:
    """Return a security context without privileges."""
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def pod_labels(name: str) -> dict[str, str]:
    """Return the labels of all pods of this service, in both clusters of an upgrade."""
    return {"app.kubernetes.io/name": "tabrank", "app.kubernetes.io/instance": name}


def _environment(options: PodOptions) -> list[dict[str, Any]]:
    values = rendered_environment(HOME)
    # KubeRay sets the mode and the token by authOptions.
    del values["RAY_AUTH_MODE"]
    env: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in values.items()]
    if options.store_password:
        secret = {"secretKeyRef": {"name": options.redis_secret, "key": "password"}}
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
