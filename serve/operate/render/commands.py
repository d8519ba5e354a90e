"""`python -m serve render`: parse and check the options, and write the text."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from serve.contract.commands import CONFIG, RUN, ConfigFile, Json, RunFolder
from serve.contract.errors import TabrankError

render = typer.Typer(no_args_is_help=True)
# The name of a Kubernetes object.
OBJECT = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
Out = Annotated[Path | None, typer.Option(help="Write to this file instead of stdout.")]
Name = Annotated[str, typer.Option(help="Name of the cluster: lower case, digits and dashes.")]

# The options that apply to some providers only.
OWN = {
    "region": ("aws", "gcp", "azure"),
    "project": ("gcp", "azure"),
    "instance": ("aws", "gcp", "azure"),
    "machine-image": ("aws", "gcp", "azure"),
    "allow": ("aws", "gcp", "azure"),
    "head-ip": ("local",),
    "worker-ip": ("local",),
    "image": ("aws", "gcp", "azure", "local"),
    "gcs-port": ("fake",),
}


@render.command()
def launcher(
    config: ConfigFile = CONFIG,
    provider: Annotated[
        str, typer.Option(help="aws, gcp, azure, local, or fake: nodes on this machine.")
    ] = "",
    out: Out = None,
    name: Name = "tabrank",
    image: Annotated[str | None, typer.Option(help="Container image, made from the Dockerfile.")] = None,
    region: Annotated[str | None, typer.Option(help="Cloud region: us-east-1, us-central1, eastus.")] = None,
    project: Annotated[str | None, typer.Option(help="gcp: project id; azure: resource group.")] = None,
    instance: Annotated[list[str] | None, typer.Option(help="POOL=TYPE; else chosen by CPUs.")] = None,
    machine_image: Annotated[
        str | None, typer.Option(help="Machine image; required by aws, else Ubuntu 24.04.")
    ] = None,
    allow: Annotated[list[str] | None, typer.Option(help="CIDR that may reach the service's port.")] = None,
    head_ip: Annotated[str | None, typer.Option(help="local: the head's address.")] = None,
    worker_ip: Annotated[list[str] | None, typer.Option(help="local: a worker's address; repeat it.")] = None,
    ssh_user: Annotated[str, typer.Option(help="User that logs in to the machines.")] = "ubuntu",
    ssh_key: Annotated[str | None, typer.Option(help="Private key, where Ray makes none.")] = None,
    idle_minutes: Annotated[float, typer.Option(min=0, help="Minutes that an idle machine stays.")] = 5.0,
    gcs_port: Annotated[int | None, typer.Option(help="fake: port of the control store.")] = None,
    as_json: Json = False,
) -> None:
    """Write the launcher file for `ray up`, checked against Ray's own schema."""
    from serve.config.reader import read
    from serve.contract.validation import one_of
    from serve.operate.render.launcher import GCS_PORT, PROVIDERS, Launch, unreachable
    from serve.operate.render.launcher import launcher as text_of
    from serve.operate.render.providers import ProviderOptions

    if not provider:
        raise TabrankError(f"--provider is missing; it is one of {', '.join(PROVIDERS)}")
    one_of(provider, PROVIDERS, "--provider")
    given = {
        "image": image, "region": region, "project": project, "instance": instance, "allow": allow,
        "machine-image": machine_image, "head-ip": head_ip, "worker-ip": worker_ip, "gcs-port": gcs_port}  # fmt: skip
    _refuse_foreign_options(provider, [key for key, value in given.items() if value])
    options = ProviderOptions(
        refuse_name(name),
        region,
        project,
        _pairs(instance or [], "--instance", "POOL=TYPE"),
        machine_image,
        tuple(_ranges(allow or [])),
        head_ip,
        tuple(worker_ip or []),
        ssh_user,
        ssh_key,
    )
    launch = Launch(provider, options, image, idle_minutes=idle_minutes, gcs_port=gcs_port or GCS_PORT)
    declared = read(config)
    text = text_of(declared, launch)
    if reason := unreachable(declared, launch):
        print(f"warning: {reason}", file=sys.stderr)
    _write(text, out, as_json)


@render.command()
def rayservice(
    config: ConfigFile = CONFIG,
    image: Annotated[str, typer.Option(help="Container image, made from the Dockerfile.")] = "",
    namespace: Annotated[str, typer.Option(help="Namespace of the service.")] = "tabrank",
    out: Out = None,
    name: Name = "tabrank",
    volume: Annotated[
        list[str] | None, typer.Option(help="CLAIM=FOLDER: a claim, mounted in each pod.")
    ] = None,
    redis: Annotated[
        str | None, typer.Option(help="HOST:PORT for Ray's own state; else the store's server.")
    ] = None,
    token_secret: Annotated[str | None, typer.Option(help="Secret with the key auth_token.")] = None,
    redis_secret: Annotated[str | None, typer.Option(help="Secret with the key password.")] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="Namespace of callers; else the service's own.")
    ] = None,
    monitoring: Annotated[str, typer.Option(help="Namespace of Prometheus.")] = "monitoring",
    operator: Annotated[str, typer.Option(help="Namespace of the KubeRay operator.")] = "kuberay-system",
    idle_minutes: Annotated[float, typer.Option(min=0, help="Minutes that an idle pod stays.")] = 5.0,
    memory_gib_per_cpu: Annotated[int, typer.Option(min=1, help="Memory of a pod per CPU.")] = 2,
    as_json: Json = False,
) -> None:
    """Write the RayService and the NetworkPolicy for `kubectl apply`."""
    from serve.config.reader import read
    from serve.operate.render.network_policy import Allowed
    from serve.operate.render.rayservice import Manifest
    from serve.operate.render.rayservice import rayservice as text_of

    if not image:
        raise TabrankError("--image is missing: name the image that you built from the Dockerfile and pushed")
    claims = _pairs(volume or [], "--volume", "CLAIM=FOLDER")
    named = (("--namespace", [namespace]), ("--volume", claims), ("--token-secret", [token_secret]),
             ("--redis-secret", [redis_secret]), ("--allow", allow or []), ("--monitoring", [monitoring]),
             ("--operator", [operator]))  # fmt: skip
    for option, values in named:
        _refuse_object_names(option, filter(None, values))
    manifest = Manifest(
        name=refuse_name(name),
        namespace=namespace,
        image=image,
        token_secret=token_secret or f"{name}-ray-token",
        redis_secret=redis_secret or f"{name}-redis",
        redis=_server(redis) if redis else None,
        volumes=claims,
        allowed=Allowed(tuple(allow or [namespace]), monitoring, operator),
        idle_s=round(60 * idle_minutes),
        memory_gib_per_cpu=memory_gib_per_cpu,
    )
    _write(text_of(read(config), manifest), out, as_json)


@render.command()
def systemd(
    config: ConfigFile = CONFIG,
    run: RunFolder = RUN,
    out: Out = None,
    name: Name = "tabrank",
    as_json: Json = False,
) -> None:
    """Write the systemd unit that keeps the service running on this machine."""
    from serve.config.reader import read
    from serve.operate.render.systemd import systemd as text_of

    _write(text_of(read(config), run, refuse_name(name)), out, as_json)


def refuse_name(name: str) -> str:
    """Return a cluster's name that every cloud and Kubernetes accept; else raise TabrankError."""
    from serve.config.pools import NAME

    if not NAME.fullmatch(name):
        raise TabrankError(
            f"--name {name}: use up to 40 lower-case letters, digits and dashes, starting with a letter"
        )
    return name


def _refuse_object_names(option: str, names: Iterable[str]) -> None:
    for name in names:
        if not OBJECT.fullmatch(name):
            raise TabrankError(
                f"{option} {name}: Kubernetes takes up to 63 lower-case letters, digits and dashes, with a letter or "
                "a digit at both ends"
            )


def _server(address: str) -> str:
    if not re.fullmatch(r"(rediss?://)?[^/@:\s]+:\d{1,5}", address):
        raise TabrankError(
            "--redis: must be HOST:PORT, or rediss://HOST:PORT for TLS; the password comes from --redis-secret"
        )
    return address


def _refuse_foreign_options(provider: str, given: Iterable[str]) -> None:
    for key in given:
        if provider not in OWN[key]:
            raise TabrankError(
                f"--{key} is for {', '.join(OWN[key])}; leave it out with --provider {provider}"
            )


def _pairs(values: Iterable[str], option: str, form: str) -> dict[str, str]:
    pairs = {}
    for value in values:
        key, equals, right = value.partition("=")
        if not (key and equals and right):
            raise TabrankError(f"{option} {value}: must be {form}")
        if key in pairs:
            raise TabrankError(f"{option} {value}: {key} appears twice; leave one out")
        pairs[key] = right
    return pairs


def _ranges(values: Iterable[str]) -> Iterable[str]:
    import ipaddress

    for value in values:
        try:
            yield str(ipaddress.ip_network(value))
        except ValueError as error:
            raise TabrankError(f"--allow {value}: {error}; give a range such as 203.0.113.0/24") from None


def _write(text: str, out: Path | None, as_json: bool) -> None:
    if out:
        try:
            out.write_text(text)
        except OSError as error:
            raise TabrankError(f"--out {out}: {error.strerror}; name a file that can be written") from None
        print(f"written: {out}", file=sys.stderr)
    if as_json:
        print(json.dumps({"out": str(out) if out else None, "text": None if out else text}))
    elif not out:
        print(text, end="")
