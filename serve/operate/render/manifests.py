"""The RayService of KubeRay as an object of Kubernetes, with the network policy of its pods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from serve.config.pools import HEAD, TAINT, NodePool
from serve.operate.host.environment import rendered_environment
from serve.operate.plan.nodes import IDLE_TIMEOUT_S
from serve.operate.render.options import Kubernetes

Object = dict[str, Any]
# The folder in the image from which relative paths start.
HOME = "/home/tabrank/app"
HARDENED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
# The ports that only the head has: Ray's controller, its dashboard and its client.
HEAD_PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
METRICS_PORT = 8080
# Local disk of a pod: logs, scratch space, and models.
DISK = "20Gi"
# Serve's proxies and HAProxy may take these times, one after the other, when they stop.
PROXY_TIMES = ("PROXY_MIN_DRAINING_PERIOD", "HAPROXY_HARD_STOP_AFTER")
SPREAD_OVER = ("kubernetes.io/hostname", "topology.kubernetes.io/zone")

# When a pod stops, replicas that replace its own have this time to start, on a node with room.
REPLACEMENT_S = 60
# Kubernetes and load balancers take up to this time to stop sending requests to a pod that stops.
UNROUTED_S = 10
DRAIN = Path(__file__).with_name("templates") / "drain.sh"


@dataclass(frozen=True)
class Manifests:
    """What the RayService is made from.

    `serve_config` is the text of the Serve document, whose replicas stop within `shutdown_s`. If
    `has_workers`, all replicas run on workers, and none on the head. `has_store_password` says that
    pods need the password of a store. `stores` has the folders of embedded stores, by the names of
    the claims for their volumes.
    """

    options: Kubernetes
    head: NodePool
    workers: Mapping[str, NodePool]
    has_workers: bool
    port: int
    serve_config: str
    shutdown_s: int
    has_store_password: bool
    stores: Mapping[str, str]

    def ray_service(self) -> Object:
        """Return the RayService."""
        options, several = self.options, self.has_workers
        limits = {"cpu": "500m", "memory": "512Mi", "ephemeral-storage": "1Gi"}
        autoscaler = {
            "version": "v2",
            "upscalingMode": "Default",
            "idleTimeoutSeconds": round(IDLE_TIMEOUT_S),
            "resources": {"requests": limits, "limits": limits},
            "securityContext": HARDENED,
        }
        state = {"redisAddress": options.redis_server, "redisPassword": options.password("ray-password")}
        head = {
            # The head runs no replicas, so that none is lost with it.
            "rayStartParams": {
                "num-cpus": "0" if several else str(self.head.num_cpus),
                "dashboard-host": "0.0.0.0",
            },
            "labels": {"pool": HEAD},
            "template": self._pod(HEAD, self.head),
        }
        cluster = {
            "rayVersion": version("ray"),
            "authOptions": {"mode": "token", "secretName": options.token_secret},
            "enableInTreeAutoscaling": several,
            **({"autoscalerOptions": autoscaler, "gcsFaultToleranceOptions": state} if several else {}),
            "networkPolicy": self._network_policy(),
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
            # In an upgrade, a new cluster starts before the old one ends. An embedded store may
            # have only one writer, so it cannot be upgraded in this way.
            "upgradeStrategy": {"type": "NewCluster" if several else "None"},
            "excludeHeadPodFromServeSvc": several,
            "serveConfigV2": self.serve_config,
            "rayClusterConfig": cluster,
        }
        return manifest("ray.io/v1", "RayService", options.metadata(), spec)

    def _pod(self, name: str, pool: NodePool) -> Object:
        """Return the template of the pods of a pool."""
        options, is_head = self.options, name == HEAD
        claims = {**dict(options.volume or ()), **self.stores}
        env = rendered_environment(HOME)
        # KubeRay sets Ray's authentication mode and token from `authOptions`.
        environment = [{"name": key, "value": value} for key, value in env.items()]
        if self.has_store_password:
            environment.append({"name": "TABRANK_REDIS_PASSWORD", **options.password("password")})
        if not is_head:
            environment.append({"name": "RAY_gcs_rpc_server_reconnect_timeout_s", "value": "3600"})
        ports = {**(HEAD_PORTS if is_head else {}), "serve": self.port, "metrics": METRICS_PORT}
        resources = {
            "cpu": str(pool.num_cpus),
            "memory": f"{options.memory_gib_per_cpu * max(pool.num_cpus, 1)}Gi",
            "ephemeral-storage": DISK,
            **({"nvidia.com/gpu": str(pool.num_gpus)} if pool.num_gpus else {}),
        }
        times = {"initialDelaySeconds": 10, "periodSeconds": 5, "timeoutSeconds": 2}
        # The head is ready when Ray is, with or without replicas. A worker is ready while its
        # HAProxy accepts requests.
        alive = {"path": "/api/healthz", "port": 52365}
        ready = alive if is_head else {"path": "/-/healthz", "port": self.port}
        drain_s = REPLACEMENT_S + self.shutdown_s
        drain = ["bash", "-c", DRAIN.read_text(), "drain", str(drain_s), str(UNROUTED_S)]
        # If there is only a head, its replicas cannot move, and answer what still comes in.
        stop = ["sleep", str(UNROUTED_S)] if is_head else drain
        container = {
            "name": "ray-head" if is_head else "ray-worker",
            "image": options.image,
            "env": environment,
            "ports": [{"name": name, "containerPort": port} for name, port in ports.items()],
            # Equal requests and limits, so that no other pod takes the CPUs.
            "resources": {"requests": resources, "limits": resources},
            "securityContext": HARDENED,
            "livenessProbe": {"httpGet": alive, **times, "failureThreshold": 24},
            "volumeMounts": [{"name": claim, "mountPath": folder} for claim, folder in claims.items()],
            "readinessProbe": {"httpGet": ready, **times, "failureThreshold": 3 if is_head else 1},
            "lifecycle": {"preStop": {"exec": {"command": stop}}},
        }
        proxy_s = sum(int(env[f"RAY_SERVE_{name}_S"]) for name in PROXY_TIMES)
        labels = {**options.labels, "app.kubernetes.io/component": name}
        among = {"labelSelector": {"matchLabels": labels}, "maxSkew": 1}
        spread = {**among, "whenUnsatisfiable": "ScheduleAnyway"}
        # Nodes with GPUs have this taint in most clouds.
        taints = [*pool.taints, *(["nvidia.com/gpu:NoSchedule"] if pool.num_gpus else [])]
        spec = {
            # The autoscaler beside the head reads pods from Kubernetes.
            "automountServiceAccountToken": is_head and self.has_workers,
            # The autoscaler replaces a pod; a restarting one would be counted twice.
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": UNROUTED_S + drain_s + proxy_s,
            "serviceAccountName": options.name,
            **({"nodeSelector": dict(pool.labels)} if pool.labels else {}),
            **({"tolerations": [_toleration(taint) for taint in taints]} if taints else {}),
            "topologySpreadConstraints": [{"topologyKey": key, **spread} for key in SPREAD_OVER],
            "securityContext": pod_security(1000),
            "containers": [container],
            "volumes": [{"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in claims],
        }
        return {"metadata": {"labels": labels}, "spec": spec}

    def _network_policy(self) -> Object:
        """Return the rules for traffic that comes from outside the cluster's own pods.

        Only the pods reach Ray's own ports, HAProxy's statistics (8404, 9101) and the replicas'
        ports (30000 and up). Outgoing traffic is not restricted.
        """
        options = self.options
        callers = _allowed(options.allow or [options.namespace], self.port)
        callers["from"] += [{"ipBlock": {"cidr": cidr}} for cidr in options.balancer or ()]
        scrapes = _allowed([options.monitoring], METRICS_PORT)
        # The operator deploys the file, and checks the health of the head's HAProxy.
        deploys = _allowed([options.operator], HEAD_PORTS["dashboard"], self.port)
        head = [scrapes, deploys] if self.has_workers else [scrapes, deploys, callers]
        return {
            "mode": "DenyAllIngress",
            "head": {"ingressRules": head},
            "worker": {"ingressRules": [scrapes, callers]},
        }


def manifest(api: str, kind: str, metadata: Object, spec: Object | None = None) -> Object:
    """Return an object of Kubernetes."""
    start = {"apiVersion": api, "kind": kind, "metadata": metadata}
    return {**start, "spec": spec} if spec else start


def pod_security(user: int) -> Object:
    """Return the context of a pod that runs as a user other than root."""
    ids = {"runAsUser": user, "runAsGroup": user, "fsGroup": user}
    return {"runAsNonRoot": True, **ids, "seccompProfile": {"type": "RuntimeDefault"}}


def _toleration(taint: str) -> Object:
    match = TAINT.fullmatch(taint)
    assert match
    given = {key: value for key, value in match.groupdict().items() if value is not None}
    return {"operator": "Equal" if "value" in given else "Exists", **given}


def _allowed(namespaces: list[str], *ports: int) -> Object:
    """Return the rule that lets the pods of namespaces reach ports."""
    names = [{"matchLabels": {"kubernetes.io/metadata.name": name}} for name in namespaces]
    return {
        "from": [{"namespaceSelector": name} for name in names],
        "ports": [{"protocol": "TCP", "port": port} for port in ports],
    }
