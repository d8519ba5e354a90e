"""The RayService that KubeRay takes, and its NetworkPolicy, from `cluster.yaml`."""

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
    PodOrder,
    container_security,
    head_template,
    pod_labels,
    worker_template,
)
from serve.operate.render.pools import Pools, our_arguments, paths_of, pools_of, refuse_without_keys
from serve.operate.render.serve_text import serve_text

KUBERAY = "1.6"  # the first whose authOptions take a Secret of one's own
HOST: dict[tuple[str, ...], str] = {("http_options", "host"): "0.0.0.0"}  # of a pod, behind the NetworkPolicy
REDIS_PORT = 6379
PROXIES: dict[tuple[str, ...], str] = {
    ("proxy_location",): "EveryNode"
}  # an HAProxy in each pod that serves, for Kubernetes to choose from


@dataclass(frozen=True)
class Manifest:
    """What is asked for beyond `cluster.yaml`. Secrets are named here, and never written.

    `volumes`: the folder in the pods by the name of its claim. `redis`: HOST:PORT of the control store's memory.
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
    """The text of both objects; raises TabrankError where the file cannot be served by pods."""
    pools = pools_of(config)
    _refuse_what_no_volume_holds(config, manifest)
    _refuse_secrets(config)
    refuse_without_keys(config)
    if pools.max_workers:
        _refuse_what_fits_no_worker(config, pools)
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
        # Two clusters at once, the new one before the old one goes; but an embedded store has room for one writer.
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
    order = _pod_order(config, manifest)
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
    num_cpus = str(pools.head.num_cpus) if alone else "0"  # its loss then costs no replica
    return {
        **cluster,
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": num_cpus, "dashboard-host": "0.0.0.0"},
            "labels": {"pool": HEAD},
            "template": head_template(order, pools.head, serves=alone),
        },
        "workerGroupSpecs": [_group(order, name, pool) for name, pool in pools.workers.items()],
    }


def _group(order: PodOrder, name: str, pool: NodePool) -> dict[str, Any]:
    return {
        "groupName": name,
        "replicas": pool.min_nodes,
        "minReplicas": pool.min_nodes,
        "maxReplicas": pool.max_nodes,
        "rayStartParams": {},
        "labels": {"pool": name},
        "template": worker_template(order, name, pool),
    }


def _pod_order(config: Config, manifest: Manifest) -> PodOrder:
    redis = any(args.store.startswith("redis") for _, args in our_arguments(config))
    return PodOrder(
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
            "--redis is missing: HOST:PORT of the server that keeps Ray's state through a loss of the head"
        )
    secret = {"secretKeyRef": {"name": manifest.redis_secret, "key": "password"}}
    return {"redisAddress": address, "redisPassword": {"valueFrom": secret}}


def _server(store: str) -> str:
    """A store's server, as Ray takes it: with its port, and the scheme where that asks for TLS."""
    parts = urlsplit(store)
    address = f"{parts.hostname}:{parts.port or REDIS_PORT}"
    return f"rediss://{address}" if parts.scheme == "rediss" else address


def _refuse_secrets(config: Config) -> None:
    for where, args in our_arguments(config):
        if "@" in args.store and "://" in args.store:
            raise TabrankError(
                f"{where}.store: holds a user or a password, which a rendered file must not; leave them out, and put "
                "the password into the Secret that --redis-secret names"
            )


def _refuse_what_no_volume_holds(config: Config, manifest: Manifest) -> None:
    folders = [PurePosixPath(path) for path in manifest.volumes.values()]
    for where, args in our_arguments(config):
        paths = paths_of(args)
        if args.store.startswith("lmdb:"):
            paths["store"] = args.store.removeprefix("lmdb:")
        for key, path in paths.items():
            full = PurePosixPath(HOME) / path
            if "://" not in path and not any(full.is_relative_to(folder) for folder in folders):
                raise TabrankError(
                    f"{where}.{key}: {full} would be lost with its pod; name the claim that holds it with "
                    f"--volume CLAIM={full if key == 'store' else full.parent}"
                )


def _refuse_what_fits_no_worker(config: Config, pools: Pools) -> None:
    for unit in ("num_cpus", "num_gpus"):
        room = sum(getattr(pool, unit) * pool.max_nodes for pool in pools.workers.values())
        needed = sum(getattr(size, unit) * size.max_replicas for size in config.sizes)
        if needed > room:
            raise TabrankError(
                f"{config.path}: nodes: all replicas take {needed:g} {unit}, and the pools beside the head have "
                f"{room:g}: on Kubernetes the head runs none; raise max_nodes, or lower max_replicas"
            )


def _notes(config: Config, pools: Pools, manifest: Manifest) -> list[str]:
    namespace, secret = manifest.namespace, "kubectl create secret generic"
    notes = [
        f"RayService and NetworkPolicy, rendered from {config.path.name}: edit that one. KubeRay {KUBERAY} or newer.",
        f"The service is {manifest.name}-serve-svc.{namespace}:{config.port}; TLS is for what stands before it.",
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
    """Long texts as blocks, so that the Serve part stays readable; nothing as an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)


_Dumper.add_representer(str, _Dumper.represent_text)
