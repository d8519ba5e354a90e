"""Options of `python -m serve render`: one class a sub-command, whose fields are its options."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from serve.contract.commands import CONFIG, RUN, ConfigFile, Json, RunFolder


class Pair(NamedTuple):
    """The two sides of an option's value NAME=VALUE."""

    name: str
    value: str


def pair(text: str) -> Pair:
    """Return the two sides of an equals sign."""
    name, _, value = text.partition("=")
    if not (name and value):
        raise typer.BadParameter(f"{text}: an equals sign must join two values")
    return Pair(name, value)


def claim(text: str) -> Pair:
    """Return the name of a claim and its folder."""
    mount = pair(text)
    object_name(mount.name)
    return mount


def unique(pairs: list[Pair] | None) -> list[Pair] | None:
    """Return the pairs, whose names must differ."""
    names = [pair.name for pair in pairs or ()]
    for name in names:
        if names.count(name) > 1:
            raise typer.BadParameter(f"{name} appears twice; leave one out")
    return pairs


def cluster_name(text: str) -> str:
    """Return a name that every cloud and Kubernetes accept."""
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


def cidr(text: str) -> str:
    """Return a range of addresses."""
    try:
        return str(ip_network(text))
    except ValueError as error:
        raise typer.BadParameter(f"{error}; give a range such as 203.0.113.0/24") from None


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


Image = typer.Option(help="Container image, made from the Dockerfile.")
IdleMinutes = Annotated[float, typer.Option(min=0, help="Minutes that an idle machine or pod stays.")]
Region = Annotated[str, typer.Option(help="Region of the machines.")]
MachineImage = Annotated[str, typer.Option(help="Machine image; for GPUs, one with their driver.")]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every sub-command."""

    config: ConfigFile = CONFIG
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of stdout.")] = None
    name: Annotated[str, typer.Option(parser=cluster_name, help="Name of the cluster.")] = "tabrank"
    as_json: Json = False

    @property
    def sub_command(self) -> str:
        """Return the word that calls it."""
        return type(self).__name__.lower()


@dataclass(frozen=True, kw_only=True)
class Launcher(Options):
    """Options of every launcher file."""

    idle_minutes: IdleMinutes = 5.0


@dataclass(frozen=True, kw_only=True)
class Machines(Launcher):
    """Options of the launcher files for machines that Ray reaches by SSH."""

    image: Annotated[str | None, Image] = None
    ssh_user: Annotated[str, typer.Option(help="User that logs in to the machines.")] = "ubuntu"
    ssh_key: Annotated[str | None, typer.Option(help="Private key, where Ray makes none.")] = None


@dataclass(frozen=True, kw_only=True)
class Cloud(Machines):
    """Options of the launcher files for clouds."""

    # Each cloud has its own region, and all but AWS an image.
    region: Region = ""
    machine_image: MachineImage = ""
    instance: Annotated[
        list[Pair] | None,
        typer.Option(parser=pair, callback=unique, metavar="POOL=TYPE", help="Else the smallest that fits."),
    ] = None
    allow: Annotated[
        list[str] | None, typer.Option(parser=cidr, metavar="CIDR", help="May reach the service's port.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Aws(Cloud):
    """Write the `ray up` file for AWS.

    Example: python -m serve render aws --machine-image AMI --image IMAGE --out up.yaml
    """

    region: Region = "us-east-1"


@dataclass(frozen=True, kw_only=True)
class Gcp(Cloud):
    """Write the `ray up` file for Google Cloud.

    Example: python -m serve render gcp --project PROJECT --image IMAGE --out up.yaml
    """

    project: Annotated[str, typer.Option(help="Id of the project of the machines.")]
    region: Region = "us-central1"
    machine_image: MachineImage = "projects/ubuntu-os-cloud/global/images/family/ubuntu-2404-lts-amd64"


@dataclass(frozen=True, kw_only=True)
class Azure(Cloud):
    """Write the `ray up` file for Azure.

    Example: python -m serve render azure --image IMAGE --out up.yaml
    """

    resource_group: Annotated[str | None, typer.Option(help="Resource group; else the name.")] = None
    region: Region = "eastus"
    machine_image: MachineImage = "Canonical:ubuntu-24_04-lts:server:latest"


@dataclass(frozen=True, kw_only=True)
class Local(Machines):
    """Write the `ray up` file for machines of your own.

    Example: python -m serve render local --head-ip 10.0.0.1 --worker-ip 10.0.0.2 --out up.yaml
    """

    head_ip: Annotated[str, typer.Option(help="Address of the head.")]
    worker_ip: Annotated[list[str] | None, typer.Option(help="Address of a worker; repeat it.")] = None


@dataclass(frozen=True, kw_only=True)
class Fake(Launcher):
    """Write the `ray up` file for a test of several nodes on this machine.

    Example: python -m serve render fake --idle-minutes 0.1 --out up.yaml
    """

    gcs_port: Annotated[int, typer.Option(help="Port of the control store.")] = 6379


@dataclass(frozen=True, kw_only=True)
class Kubernetes(Options):
    """Write the RayService and the NetworkPolicy for `kubectl apply`.

    Example: python -m serve render kubernetes --image IMAGE --volume tabrank=/mnt/tabrank
    """

    image: Annotated[str, Image]
    namespace: Annotated[str, object_option("Namespace of the service.")] = "tabrank"
    volume: Annotated[
        list[Pair] | None,
        typer.Option(parser=claim, callback=unique, metavar="CLAIM=FOLDER", help="A mount of each pod."),
    ] = None
    redis: Annotated[
        str | None,
        typer.Option(parser=server, metavar="HOST:PORT", help="For Ray's state; else the store's."),
    ] = None
    token_secret: Annotated[str | None, object_option("Secret with the key auth_token.")] = None
    redis_secret: Annotated[str | None, object_option("Secret with the key password.")] = None
    allow: Annotated[list[str] | None, object_option("Namespace of callers; else the service's own.")] = None
    monitoring: Annotated[str, object_option("Namespace of Prometheus.")] = "monitoring"
    operator: Annotated[str, object_option("Namespace of the KubeRay operator.")] = "kuberay-system"
    idle_minutes: IdleMinutes = 5.0
    memory_gib_per_cpu: Annotated[int, typer.Option(min=1, help="Memory of a pod per CPU.")] = 2


@dataclass(frozen=True, kw_only=True)
class Systemd(Options):
    """Write the systemd unit that keeps the service running on this machine.

    Example: python -m serve render systemd --out tabrank.service
    """

    run: RunFolder = RUN


SUB_COMMANDS = (Aws, Gcp, Azure, Local, Fake, Kubernetes, Systemd)
