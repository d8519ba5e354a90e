"""Render the RayService for KubeRay, with its NetworkPolicy, from `cluster.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import yaml

from serve.config.pools import HEAD, NodePool
from serve.config.reader import Config
from serve.contract.errors import TabrankError
from serve.operate.render.network_policy import Allowed, network_policy
from serve.operate.render.pods import (
    HOME,
    PodOptions,
    container_security,
    head_template,
    pod_labels,
    worker_template,
)
from serve.operate.render.pools import Pools, our_arguments, paths_of, pools_of, refuse_without_keys
from serve.operate.render.serve_text import serve_text

# The first version whose authOptions accept a Secret of the user's own.
KUBERAY = "1.6"
# A pod listens on all addresses, behind the NetworkPolicy.
HOST: dict[tuple[str, ...], str] = {("http_options", "host"): "0.0.0.0"}
REDIS_PORT = 6379
# Each serving pod runs an HAProxy, and Kubernetes balances over them.
PROXIES: dict[tuple[str, ...], str] = {("proxy_location",): "EveryNode"}


@dataclass(frozen=True)
class Manifest:
    """Options beyond `cluster.yaml`; Secrets are named here and never written.

    `volumes` maps a claim to its folder in the pods. `redis` is HOST:PORT of the server for the
    control store's state.
    """

    name: str
    namespace: str
    image: str
    token_secret: str
    redis_secret: str
    redis: str | None
    volumes: Mapping[str, str]
    allowed: Allowed
    idle_s: int = 300
    memory_gib_per_cpu: int = 2


def rayservice(config: Config, manifest: Manifest) -> str:
    """Return the text of both objects; raise TabrankError where pods cannot serve the file."""
    pools = pools_of(config)
    _refuse_unmounted_paths(config, manifest)
    _refuse_secrets(config)
    refuse_without_keys(config)
    if pools.max_workers:
        _refuse_excess_replicas(config, pools)
    objects = [
        _service(config, pools, manifest),
        network_policy(manifest.name, manifest.namespace, config.port, manifest.allowed),
    ]
    notes = "".join(f"# {line}\n" for line in _notes(config, pools, manifest))
    return notes + yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)


def _service(config: Config, pools: Pools, manifest: Manifest) -> dict[str, Any]:
    alone = not pools.max_workers
    changes = HOST if alone else HOST | PROXIES
    spec: dict[str, Any] = {
        # The new cluster starts before the old one ends. An embedded store allows only one writer.
        "upgradeStrategy": {"type": "None" if alone else "NewCluster"},
        "excludeHeadPodFromServeSvc": not alone,
        "serveConfigV2": serve_text(config.path.read_text(encoding="utf-8-sig"), changes),
        "rayClusterConfig": _cluster(config, pools, manifest),
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {
            "name": manifest.name,
            "namespace": manifest.namespace,
            "labels": pod_labels(manifest.name),
        },
        "spec": spec,
    }


def _cluster(config: Config, pools: Pools, manifest: Manifest) -> dict[str, Any]:
    alone = not pools.max_workers
    options = _pod_options(config, manifest)
    cluster: dict[str, Any] = {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token", "secretName": manifest.token_secret},
        "enableInTreeAutoscaling": not alone,
    }
    if not alone:
        cluster["autoscalerOptions"] = {
            "version": "v2",
            "upscalingMode": "Default",
            "idleTimeoutSeconds": manifest.idle_s,
            "resources": _equal({"cpu": "500m", "memory": "512Mi"}),
            "securityContext": container_security(),
        }
        cluster["gcsFaultToleranceOptions"] = _fault_tolerance(config, manifest)
    # Without replicas, the loss of the head costs none.
    num_cpus = str(pools.head.num_cpus) if alone else "0"
    return {
        **cluster,
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": num_cpus, "dashboard-host": "0.0.0.0"},
            "labels": {"pool": HEAD},
            "template": head_template(options, pools.head, serves=alone),
        },
        "workerGroupSpecs": [_group(options, name, pool) for name, pool in pools.workers.items()],
    }


def _group(options: PodOptions, name: str, pool: NodePool) -> dict[str, Any]:
    return {
        "groupName": name,
        "replicas": pool.min_nodes,
        "minReplicas": pool.min_nodes,
        "maxReplicas": pool.max_nodes,
        "rayStartParams": {},
        "labels": {"pool": name},
        "template": worker_template(options, name, pool),
    }


def _pod_options(config: Config, manifest: Manifest) -> PodOptions:
    redis = any(args.store.startswith("redis") for _, args in our_arguments(config))
    return PodOptions(
        manifest.name,
        manifest.image,
        manifest.redis_secret,
        manifest.volumes,
        config.port,
        manifest.memory_gib_per_cpu,
        store_password=redis,
    )


def _fault_tolerance(config: Config, manifest: Manifest) -> dict[str, Any]:
    address = manifest.redis or next(
        (_server(args.store) for _, args in our_arguments(config) if "://" in args.store), None
    )
    if not address:
        raise TabrankError(
            "--redis is missing: name HOST:PORT of the server that keeps Ray's state when the head is lost"
        )
    secret = {"secretKeyRef": {"name": manifest.redis_secret, "key": "password"}}
    return {"redisAddress": address, "redisPassword": {"valueFrom": secret}}


def _server(store: str) -> str:
    """Return a store's server as Ray takes it: with its port, and the scheme for TLS."""
    parts = urlsplit(store)
    address = f"{parts.hostname}:{parts.port or REDIS_PORT}"
    return f"rediss://{address}" if parts.scheme == "rediss" else address


def _refuse_secrets(config: Config) -> None:
    for where, args in our_arguments(config):
        if "@" in args.store and "://" in args.store:
            raise TabrankError(
                f"{where}.store: has a user or a password, which a rendered file must not contain; remove them, and "
                "put the password into the Secret that --redis-secret names"
            )


def _refuse_unmounted_paths(config: Config, manifest: Manifest) -> None:
    folders = [PurePosixPath(path) for path in manifest.volumes.values()]
    for where, args in our_arguments(config):
        paths = paths_of(args)
        if args.store.startswith("lmdb:"):
            paths["store"] = args.store.removeprefix("lmdb:")
        for key, path in paths.items():
            full = PurePosixPath(HOME) / path
            if "://" not in path and not any(full.is_relative_to(folder) for folder in folders):
                raise TabrankError(
                    f"{where}.{key}: {full} would be lost with its pod; name its claim with "
                    f"--volume CLAIM={full if key == 'store' else full.parent}"
                )


def _refuse_excess_replicas(config: Config, pools: Pools) -> None:
    for unit in ("num_cpus", "num_gpus"):
        room = sum(getattr(pool, unit) * pool.max_nodes for pool in pools.workers.values())
        needed = sum(getattr(size, unit) * size.max_replicas for size in config.sizes)
        if needed > room:
            raise TabrankError(
                f"{config.path}: nodes: all replicas need {needed:g} {unit}, and the worker pools have {room:g}: on "
                f"Kubernetes the head runs no replica; raise max_nodes, or lower max_replicas"
            )


def _notes(config: Config, pools: Pools, manifest: Manifest) -> list[str]:
    namespace, secret = manifest.namespace, "kubectl create secret generic"
    notes = [
        f"RayService and NetworkPolicy, rendered from {config.path.name}: edit that file. KubeRay {KUBERAY} or newer.",
        f"The service is {manifest.name}-serve-svc.{namespace}:{config.port}; terminate TLS before it.",
        f"First: {secret} -n {namespace} {manifest.token_secret} --from-literal=auth_token=$(openssl rand -hex 32)",
    ]
    if pools.max_workers:
        line = f"{secret} -n {namespace} {manifest.redis_secret} --from-file=password=FILE"
        notes.append(f"and: {line}, the password of {_fault_tolerance(config, manifest)['redisAddress']}.")
    modes = "ReadWriteMany" if pools.max_workers else "ReadWriteOnce"
    notes += [f"and: the PersistentVolumeClaim {claim}, {modes}." for claim in manifest.volumes]
    return notes


def _equal(resources: dict[str, str]) -> dict[str, Any]:
    return {"requests": resources, "limits": dict(resources)}


class _Dumper(yaml.SafeDumper):
    """Dumper that writes long texts as blocks, for a readable Serve part, and no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)


_Dumper.add_representer(str, _Dumper.represent_text)
