"""Options of `python -m serve render`: each sub-command is a class, its fields are the options."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from serve.contract.commands import CONFIG, RUN, ConfigFile, Json, RunFolder

REDIS_PORT = 6379


class Claim(NamedTuple):
    """A claim for a volume, and the folder where pods mount it."""

    name: str
    folder: str


def claim(text: str) -> Claim:
    """Return the name of a claim and its folder."""
    name, _, folder = text.partition("=")
    if not (name and folder):
        raise typer.BadParameter(f"{text}: must be CLAIM=FOLDER")
    object_name(name)
    return Claim(name, folder)


class Pair(NamedTuple):
    """A label or an annotation."""

    key: str
    value: str


def pair(text: str) -> Pair:
    """Return the key of a label or an annotation, and its value."""
    key, _, value = text.partition("=")
    if not (re.fullmatch(r"[-./\w]+", key) and value):
        raise typer.BadParameter(f"{text}: must be KEY=VALUE")
    return Pair(key, value)


def network(text: str) -> str:
    """Return a range of addresses."""
    try:
        return str(ip_network(text))
    except ValueError as error:
        raise typer.BadParameter(f"{error}; write it as 35.191.0.0/16") from None


def unique(claims: list[Claim] | None) -> list[Claim] | None:
    """Return the claims, whose names must differ."""
    names = [claim.name for claim in claims or ()]
    for name in names:
        if names.count(name) > 1:
            raise typer.BadParameter(f"{name} appears twice; leave one out")
    return claims


def cluster_name(text: str) -> str:
    """Return a name that Kubernetes and systemd accept."""
    from serve.config.pools import NAME

    if not NAME.fullmatch(text):
        raise typer.BadParameter(
            f"{text}: use up to 40 lower-case letters, digits and dashes, starting with a letter"
        )
    return text


def object_name(text: str) -> str:
    """Return the name of an object of Kubernetes."""
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", text):
        raise typer.BadParameter(
            f"{text}: Kubernetes takes up to 63 lower-case letters, digits and dashes, with a letter or a digit at "
            "both ends"
        )
    return text


def server(text: str) -> str:
    """Return the address of a server, which must not hold a password."""
    if not re.fullmatch(r"(rediss?://)?[^/@:\s]+:\d{1,5}", text):
        raise typer.BadParameter(
            "must be HOST:PORT, or rediss://HOST:PORT for TLS; the password comes from --redis-secret"
        )
    return text


def object_option(description: str) -> Any:
    """Return an option whose value is the name of an object of Kubernetes."""
    return typer.Option(parser=object_name, metavar="NAME", help=description)


def pair_option(description: str) -> Any:
    """Return an option whose value is a label or an annotation."""
    return typer.Option(parser=pair, metavar="KEY=VALUE", help=description)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every sub-command."""

    config: ConfigFile = CONFIG
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of stdout.")] = None
    name: Annotated[str, typer.Option(parser=cluster_name, help="Name of the cluster.")] = "tabrank"
    as_json: Json = False


@dataclass(frozen=True, kw_only=True)
class Kubernetes(Options):
    """Write the RayService, and the other objects that a cluster needs, for `kubectl apply`.

    Example: python -m serve render kubernetes --image IMAGE --volume tabrank=/mnt/tabrank
    """

    image: Annotated[str, typer.Option(help="Container image, made from the Dockerfile.")]
    namespace: Annotated[str, object_option("Namespace of the service.")] = "tabrank"
    volume: Annotated[
        list[Claim] | None,
        typer.Option(parser=claim, callback=unique, metavar="CLAIM=FOLDER", help="Mount of a volume."),
    ] = None
    redis: Annotated[
        str | None,
        typer.Option(parser=server, metavar="HOST:PORT", help="Redis for Ray's state, or one is rendered."),
    ] = None
    redis_image: Annotated[str, typer.Option(help="Image of the rendered Redis.")] = "redis:7.4"
    token_secret: Annotated[str | None, object_option("Secret with the key auth_token.")] = None
    redis_secret: Annotated[
        str | None, object_option("Secret with the keys password (store) and ray-password (Ray's state).")
    ] = None
    allow: Annotated[list[str] | None, object_option("Callers' namespace; default: the service's.")] = None
    balancer: Annotated[
        list[str] | None,
        typer.Option(parser=network, metavar="CIDR", help="Addresses of load balancers and health checks."),
    ] = None
    host: Annotated[str | None, typer.Option(metavar="NAME", help="Host of an Ingress with TLS.")] = None
    tls_secret: Annotated[str | None, object_option("Secret with the certificate of --host.")] = None
    ingress_class: Annotated[str | None, object_option("Ingress class; default: the cluster's.")] = None
    ray_tls: Annotated[bool, typer.Option("--ray-tls", help="TLS between pods; needs cert-manager.")] = False
    monitoring: Annotated[str, object_option("Namespace of Prometheus.")] = "monitoring"
    monitor_label: Annotated[
        list[Pair] | None, pair_option("Label by which Prometheus finds its objects.")
    ] = None
    operator: Annotated[str, object_option("Namespace of the KubeRay operator.")] = "kuberay-system"
    identity: Annotated[
        list[Pair] | None, pair_option("Annotation of the service account, for an identity of the cloud.")
    ] = None
    pull_secret: Annotated[str | None, object_option("Secret of the images' registry.")] = None
    priority_class: Annotated[str | None, object_option("PriorityClass of the pods.")] = None
    idle_minutes: Annotated[float, typer.Option(min=0, help="Minutes that an idle pod stays.")] = 5.0
    memory_gib_per_cpu: Annotated[int, typer.Option(min=1, help="Memory of a pod per CPU.")] = 2
    disk_gib: Annotated[int, typer.Option(min=1, help="Local disk of a pod: logs, scratch, models.")] = 20

    @property
    def token_secret_name(self) -> str:
        """The name of the Secret with Ray's token."""
        return self.token_secret or f"{self.name}-ray-token"

    @property
    def redis_secret_name(self) -> str:
        """The name of the Secret with the password of Redis."""
        return self.redis_secret or f"{self.name}-redis"

    @property
    def tls_secret_name(self) -> str:
        """The name of the Secret with the certificate."""
        return self.tls_secret or f"{self.name}-tls"

    @property
    def redis_name(self) -> str:
        """The name of the rendered Redis of Ray's state."""
        return f"{self.name}-ray-redis"

    @property
    def redis_server(self) -> str:
        """The address of the Redis of Ray's state."""
        return self.redis or f"{self.redis_name}:{REDIS_PORT}"

    @property
    def labels(self) -> dict[str, str]:
        """The labels of all pods of the service, in both clusters of an upgrade."""
        return {"app.kubernetes.io/name": "tabrank", "app.kubernetes.io/instance": self.name}

    def metadata(self, name: str = "") -> dict[str, Any]:
        """Return the metadata of an object."""
        return {"name": name or self.name, "namespace": self.namespace, "labels": self.labels}

    def password(self, key: str) -> dict[str, Any]:
        """Return where a variable with a password gets it from."""
        return {"valueFrom": {"secretKeyRef": {"name": self.redis_secret_name, "key": key}}}


@dataclass(frozen=True, kw_only=True)
class Systemd(Options):
    """Write the systemd unit that keeps the service running on this machine.

    Example: python -m serve render systemd --out tabrank.service
    """

    run: RunFolder = RUN


SUB_COMMANDS = (Kubernetes, Systemd)
