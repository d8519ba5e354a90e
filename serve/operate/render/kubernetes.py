"""Render the RayService for KubeRay, and the objects beside it, from `cluster.yaml`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import ceil
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import yaml

from serve.config.application import OUR_APPLICATION, OUR_INGRESS
from serve.config.pools import HEAD, NodePool
from serve.config.reader import Config
from serve.config.settings import AppArgs
from serve.contract.errors import TabrankError
from serve.operate.render.companions import after, before
from serve.operate.render.manifests import HOME, Manifests
from serve.operate.render.options import Kubernetes
from serve.storage.bucket import is_bucket


def kubernetes(config: Config, options: Kubernetes) -> str:
    """Return the text of the objects; raise TabrankError if pods cannot serve the file."""
    workers = dict(config.nodes)
    head = workers.pop(HEAD, None)
    if head is None:
        raise TabrankError(f"{config.path}: nodes: the pool {HEAD!r} is missing; add it for Ray's controller")
    servers, folders = [], []
    for i, application in enumerate(config.serve["applications"]):
        if application["import_path"] == OUR_APPLICATION:
            where = f"{config.path}: applications[{i}]"
            args = AppArgs.from_mapping(application["args"], f"{where}.args")
            _refuse_unmounted_paths(f"{where}.args", args, options)
            _refuse_without_keys(where, application)
            if "://" in args.store:
                _refuse_secrets(f"{where}.args", args.store)
                servers.append(_server(args.store))
            elif not _mounted(folder := args.store.removeprefix("lmdb:"), options):
                folders.append(str(PurePosixPath(HOME) / folder))
    several = any(pool.max_nodes for pool in workers.values())
    if several:
        _refuse_excess_replicas(config, workers)
    if options.redis in servers:
        raise TabrankError(
            f"--redis {options.redis} is the store's server, whose load and loss would reach Ray's state too; name "
            "another one, or leave --redis out and one is rendered"
        )
    # A pod listens on all addresses, behind the network policy.
    serve = {**config.serve, "http_options": {**config.serve.get("http_options", {}), "host": "0.0.0.0"}}
    if several:
        # Each serving pod runs an HAProxy, and Kubernetes balances over them.
        serve["proxy_location"] = "EveryNode"
    manifests = Manifests(
        options=options,
        head=head,
        workers=workers,
        has_workers=several,
        port=config.port,
        serve_config=yaml.dump(serve, Dumper=Dumper, sort_keys=False, allow_unicode=True),
        shutdown_s=_shutdown_s(config),
        has_store_password=bool(servers),
        # One volume for each folder, which two applications may share.
        stores={f"{options.name}-store-{i}": one for i, one in enumerate(dict.fromkeys(folders))},
    )
    objects = *before(manifests), manifests.ray_service(), *after(manifests)
    comments = "".join(f"# {note}\n" for note in _notes(manifests, config.path.name))
    return comments + yaml.dump_all(objects, Dumper=Dumper, sort_keys=False, width=110, allow_unicode=True)


def _notes(manifests: Manifests, file: str) -> Iterator[str]:
    """Yield what to know and to do before the objects are applied."""
    options, several = manifests.options, manifests.has_workers
    create = f"kubectl create secret generic -n {options.namespace}"
    yield f"RayService and what it needs, rendered from {file}: edit that file. Needs KubeRay 1.7 or newer"
    yield "with the feature gate RayClusterNetworkPolicy, and Prometheus' operator."
    yield f"The service is {options.name}-serve-svc.{options.namespace}:{manifests.port}; terminate TLS before it."
    yield f"First: {create} {options.token_secret} --from-literal=auth_token=$(openssl rand -hex 32)"
    keys = ["--from-file=password=FILE"] * manifests.has_store_password
    if keys := keys + ["--from-file=ray-password=FILE"] * several:
        yield " ".join([f"and: {create} {options.redis_secret}", *keys])
    if options.host:
        yield f"and: the Secret {options.tls_secret}, the certificate of {options.host}."
    for claim, _ in options.volume or ():
        yield f"and: the PersistentVolumeClaim {claim}, {'ReadWriteMany' if several else 'ReadWriteOnce'}."
    for name, pool in manifests.workers.items():
        if pool.min_nodes == 1:
            yield f"The pool {name} may have one pod, whose node cannot be drained without a gap: set min_nodes 2."


class Dumper(yaml.SafeDumper):
    """Dumper without aliases, which writes texts of several lines as blocks, as the Serve part."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return True: write a value that appears twice again, and not as an alias."""
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Return the text, as a block if it has several lines."""
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


Dumper.add_representer(str, Dumper.represent_text)


def _server(store: str) -> str:
    """Return a store's server as Ray takes it: with its port, and the scheme for TLS."""
    parts = urlsplit(store)
    address = f"{parts.hostname}:{parts.port or 6379}"
    return f"rediss://{address}" if parts.scheme == "rediss" else address


def _refuse_secrets(where: str, store: str) -> None:
    if "@" in store:
        raise TabrankError(
            f"{where}.store: has a user or a password, which a rendered file must not contain; remove them, and "
            "put the password into the Secret of Redis, which the head of the rendered file names"
        )


def _refuse_without_keys(where: str, application: Mapping[str, Any]) -> None:
    ingress = [one for one in application.get("deployments") or () if one["name"] == OUR_INGRESS]
    if not any((one.get("user_config") or {}).get("api_keys") for one in ingress):
        raise TabrankError(
            f"{where}.deployments[{OUR_INGRESS}].user_config.api_keys is missing: a pod listens on all addresses "
            "and needs keys; `python -m serve key` mints one"
        )


def _refuse_unmounted_paths(where: str, args: AppArgs, options: Kubernetes) -> None:
    for key, path in {"models": args.models, "log": args.log}.items():
        # A bucket needs no volume: the service account opens it.
        if not is_bucket(path) and not _mounted(path, options):
            full = PurePosixPath(HOME) / path
            raise TabrankError(
                f"{where}.{key}: {full} would be lost with its pod; name its claim with "
                f"--volume CLAIM={full.parent}"
            )


def _mounted(path: str, options: Kubernetes) -> bool:
    """Return True if a path is inside a volume that an option names."""
    return any((PurePosixPath(HOME) / path).is_relative_to(folder) for _, folder in options.volume or ())


def _shutdown_s(config: Config) -> int:
    """Return the longest time that a replica may take to stop."""
    deployments = (one for app in config.serve["applications"] for one in app.get("deployments") or ())
    # Ray's default is 20 s.
    return ceil(max([20.0, *(float(one.get("graceful_shutdown_timeout_s") or 0) for one in deployments)]))


def _refuse_excess_replicas(config: Config, workers: Mapping[str, NodePool]) -> None:
    for unit in ("num_cpus", "num_gpus"):
        room = sum(getattr(pool, unit) * pool.max_nodes for pool in workers.values())
        needed = sum(getattr(size, unit) * size.max_replicas for size in config.sizes)
        if needed > room:
            raise TabrankError(
                f"{config.path}: nodes: all replicas need {needed:g} {unit}, and the worker pools have {room:g}: on "
                f"Kubernetes the head runs no replica; raise max_nodes, or lower max_replicas"
            )
