"""The RayService of KubeRay and the NetworkPolicy of its pods, as Kubernetes takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from serve.config.pools import HEAD, NodePool
from serve.operate.host.environment import rendered_environment
from serve.operate.render.options import Kubernetes

Object = dict[str, Any]
# The image's folder, from which relative paths start.
HOME = "/home/tabrank/app"
HARDENED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
# The ports of the head alone: Ray's controller, its dashboard and its client.
HEAD_PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
METRICS_PORT = 8080


@dataclass(frozen=True)
class Manifests:
    """What the objects are made from.

    `serve_config` is the text of the Serve document. With `has_workers` replicas run on workers,
    and none on the head. `redis` keeps Ray's state, and `has_store_password` says that pods need
    the password of a store.
    """

    options: Kubernetes
    head: NodePool
    workers: Mapping[str, NodePool]
    has_workers: bool
    port: int
    serve_config: str
    redis: str | None
    has_store_password: bool

    @property
    def _metadata(self) -> Object:
        return {"name": self.options.name, "namespace": self.options.namespace, "labels": self._labels}

    @property
    def _labels(self) -> Object:
        """The labels of all pods of the service, in both clusters of an upgrade."""
        return {"app.kubernetes.io/name": "tabrank", "app.kubernetes.io/instance": self.options.name}

    @property
    def _password(self) -> Object:
        return {"valueFrom": {"secretKeyRef": {"name": self.options.redis_secret_name, "key": "password"}}}

    def notes(self, file: str) -> list[str]:
        """Return what to know and to do before the objects are applied."""
        options, several = self.options, self.has_workers
        create = f"kubectl create secret generic -n {options.namespace}"
        token = f"{options.token_secret_name} --from-literal=auth_token=$(openssl rand -hex 32)"
        password = f"{options.redis_secret_name} --from-file=password=FILE, the password of {self.redis}"
        access = "ReadWriteMany" if several else "ReadWriteOnce"
        return [
            f"RayService and NetworkPolicy, rendered from {file}: edit that file. KubeRay 1.6 or newer.",
            f"The service is {options.name}-serve-svc.{options.namespace}:{self.port}; terminate TLS before it.",
            f"First: {create} {token}",
            *([f"and: {create} {password}."] if several else []),
            *(f"and: the PersistentVolumeClaim {claim}, {access}." for claim, _ in options.volume or ()),
        ]

    def ray_service(self) -> Object:
        """Return the RayService."""
        options, several = self.options, self.has_workers
        limits = {"cpu": "500m", "memory": "512Mi"}
        autoscaler = {
            "version": "v2",
            "upscalingMode": "Default",
            "idleTimeoutSeconds": round(60 * options.idle_minutes),
            "resources": {"requests": limits, "limits": limits},
            "securityContext": HARDENED,
        }
        state = {"redisAddress": self.redis, "redisPassword": self._password}
        head = {
            # Without replicas, the loss of the head costs none.
            "rayStartParams": {
                "num-cpus": "0" if several else str(self.head.num_cpus),
                "dashboard-host": "0.0.0.0",
            },
            "labels": {"pool": HEAD},
            "template": self._pod(HEAD, self.head),
        }
        cluster = {
            "rayVersion": version("ray"),
            "authOptions": {"mode": "token", "secretName": options.token_secret_name},
            "enableInTreeAutoscaling": several,
            **({"autoscalerOptions": autoscaler, "gcsFaultToleranceOptions": state} if several else {}),
            "headGroupSpec": head,
            "workerGroupSpecs": [
                {
                    "groupName": name,
                    "replicas": pool.min_nodes,
                    "minReplicas": pool.min_nodes,
                    "maxReplicas": pool.max_nodes,
                    "rayStartParams": {},
                    "labels": {"pool": name},
                    "template": self._pod(name, pool),
                }
                for name, pool in self.workers.items()
            ],
        }
        spec = {
            # A new cluster starts before the old one ends; an embedded store has one writer.
            "upgradeStrategy": {"type": "NewCluster" if several else "None"},
            "excludeHeadPodFromServeSvc": several,
            "serveConfigV2": self.serve_config,
            "rayClusterConfig": cluster,
        }
        return {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": self._metadata, "spec": spec}

    def _pod(self, name: str, pool: NodePool) -> Object:
        """Return the template of the pods of a pool."""
        options, is_head = self.options, name == HEAD
        claims = options.volume or ()
        # KubeRay sets the mode and the token by authOptions.
        environment = [{"name": key, "value": value} for key, value in rendered_environment(HOME).items()]
        if self.has_store_password:
            environment.append({"name": "TABRANK_REDIS_PASSWORD", **self._password})
        if not is_head:
            environment.append({"name": "RAY_gcs_rpc_server_reconnect_timeout_s", "value": "3600"})
        ports = {**(HEAD_PORTS if is_head else {}), "serve": self.port, "metrics": METRICS_PORT}
        resources = {
            "cpu": str(pool.num_cpus),
            "memory": f"{options.memory_gib_per_cpu * max(pool.num_cpus, 1)}Gi",
            **({"nvidia.com/gpu": str(pool.num_gpus)} if pool.num_gpus else {}),
        }
        times = {"initialDelaySeconds": 10, "periodSeconds": 5, "timeoutSeconds": 2}
        # The head is ready when Ray is, with or without replicas; a worker is ready while its
        # HAProxy takes requests.
        alive = {"path": "/api/healthz", "port": 52365}
        ready = alive if is_head else {"path": "/-/healthz", "port": self.port}
        container = {
            "name": "ray-head" if is_head else "ray-worker",
            "image": options.image,
            "env": environment,
            "ports": [{"name": name, "containerPort": port} for name, port in ports.items()],
            # Equal requests and limits, so that no other pod takes the CPUs.
            "resources": {"requests": resources, "limits": resources},
            "securityContext": HARDENED,
            "livenessProbe": {"httpGet": alive, **times, "failureThreshold": 24},
            "volumeMounts": [{"name": claim, "mountPath": folder} for claim, folder in claims],
            "readinessProbe": {"httpGet": ready, **times, "failureThreshold": 3 if is_head else 1},
        }
        spec = {
            # The autoscaler beside the head reads pods from Kubernetes.
            "automountServiceAccountToken": is_head and self.has_workers,
            # The autoscaler replaces a pod; a restarting one would be counted twice.
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 60,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "runAsGroup": 1000,
                "fsGroup": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [
                {"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim, _ in claims
            ],
        }
        labels = {**self._labels, "app.kubernetes.io/component": name}
        return {"metadata": {"labels": labels}, "spec": spec}

    def network_policy(self) -> Object:
        """Return the NetworkPolicy.

        Only the pods reach Ray's own ports, HAProxy's statistics (8404, 9101) and the replicas'
        ports (30000 and up). Outgoing traffic is not restricted.
        """
        options, pods = self.options, {"matchLabels": self._labels}
        ingress = [
            {"from": [{"podSelector": pods}]},
            _allowed(options.allow or [options.namespace], self.port),
            _allowed([options.monitoring], METRICS_PORT),
            # The operator deploys the file, and checks the health of the head's HAProxy.
            _allowed([options.operator], HEAD_PORTS["dashboard"], self.port),
        ]
        return {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": self._metadata,
            "spec": {"podSelector": pods, "policyTypes": ["Ingress"], "ingress": ingress},
        }


def _allowed(namespaces: list[str], *ports: int) -> Object:
    """Return the rule that lets the pods of namespaces reach ports."""
    names = [{"matchLabels": {"kubernetes.io/metadata.name": name}} for name in namespaces]
    return {
        "from": [{"namespaceSelector": name} for name in names],
        "ports": [{"protocol": "TCP", "port": port} for port in ports],
    }
