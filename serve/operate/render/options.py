"""Options of `python -m serve render kubernetes`: the fields of the class are the options."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from serve.contract.commands import CONFIG, ConfigFile

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


def object_name(text: str) -> str:
    """Return the name of an object of Kubernetes."""
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", text):
        raise typer.BadParameter(
            f"{text}: Kubernetes takes up to 63 lower-case letters, digits and dashes, with a letter or a digit at "
            "both ends"
        )
    return text


def service_name(text: str) -> str:
    """Return a name to which the names of the other objects can be added."""
    from serve.config.pools import NAME

    if not NAME.fullmatch(text):
        raise typer.BadParameter(
            f"{text}: use up to 40 lower-case letters, digits and dashes, starting with a letter"
        )
    return text


def server(text: str) -> str:
    """Return the address of a server, which must not hold a password."""
    if not re.fullmatch(r"(rediss?://)?[^/@:\s]+:\d{1,5}", text):
        raise typer.BadParameter(
            "must be HOST:PORT, or rediss://HOST:PORT for TLS; the password comes from a Secret"
        )
    return text


def namespace_option(description: str) -> Any:
    """Return an option whose value is the name of a namespace."""
    return typer.Option(parser=object_name, metavar="NAME", help=description)


@dataclass(frozen=True, kw_only=True)
class Kubernetes:
    """Write the RayService, and the other objects that a cluster needs, for `kubectl apply`.

    A kustomization of the file sets everything else, such as the class of the Ingress.

    Example: python -m serve render kubernetes --image IMAGE --volume tabrank=/mnt/tabrank
    """

    config: ConfigFile = CONFIG
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of stdout.")] = None
    name: Annotated[
        str, typer.Option(parser=service_name, help="Name of the service; the Secrets are named after it.")
    ] = "tabrank"
    image: Annotated[str, typer.Option(help="Container image, made from the Dockerfile.")]
    namespace: Annotated[str, namespace_option("Namespace of the service.")] = "tabrank"
    volume: Annotated[
        list[Claim] | None,
        typer.Option(parser=claim, callback=unique, metavar="CLAIM=FOLDER", help="Mount of a volume."),
    ] = None
    redis: Annotated[
        str | None,
        typer.Option(parser=server, metavar="HOST:PORT", help="Redis for Ray's state, or one is rendered."),
    ] = None
    allow: Annotated[list[str] | None, namespace_option("Callers' namespace; default: the service's.")] = None
    balancer: Annotated[
        list[str] | None,
        typer.Option(parser=network, metavar="CIDR", help="Addresses of load balancers and health checks."),
    ] = None
    host: Annotated[str | None, typer.Option(metavar="NAME", help="Host of an Ingress with TLS.")] = None
    monitoring: Annotated[str, namespace_option("Namespace of Prometheus.")] = "monitoring"
    operator: Annotated[str, namespace_option("Namespace of the KubeRay operator.")] = "kuberay-system"
    memory_gib_per_cpu: Annotated[int, typer.Option(min=1, help="Memory of a pod per CPU.")] = 2

    @property
    def token_secret(self) -> str:
        """The name of the Secret with the key `auth_token`, Ray's token."""
        return f"{self.name}-ray-token"

    @property
    def redis_secret(self) -> str:
        """The name of the Secret with the keys `password` (of the store) and `ray-password`."""
        return f"{self.name}-redis"

    @property
    def tls_secret(self) -> str:
        """The name of the Secret with the certificate of the host."""
        return f"{self.name}-tls"

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
        return {"valueFrom": {"secretKeyRef": {"name": self.redis_secret, "key": key}}}
