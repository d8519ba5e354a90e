"""Values of the launcher files for clouds: machine types, images, and who reaches the service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve.contract.errors import TabrankError
from serve.operate.render.options import Aws, Azure, Cloud
from serve.operate.render.templates import load

# The parameter of AWS with the id of Ubuntu's newest image, which differs by region. Ray's own
# table has images of 2023 without Python 3.11.
UBUNTU = "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"


def choose_machines(options: Cloud, pools: list[dict[str, Any]]) -> None:
    """Give each pool its machine type, the requested one or else the smallest that fits."""
    is_default = options.machine_image == type(options).machine_image
    if is_default and any(pool["num_gpus"] for pool in pools):
        raise TabrankError(
            f"render {options.sub_command}: a pool has GPUs; name an image with their driver: --machine-image"
        )
    requested = dict(options.instance or ())
    names = [pool["pool"] for pool in pools]
    for name in requested:
        if name not in names:
            raise TabrankError(f"--instance {name}: `nodes` has no such pool; it has {', '.join(names)}")
    (machines,) = load("machines.yaml")
    for pool in pools:
        instance = requested.get(pool["pool"]) or _smallest(machines[options.sub_command], pool)
        pool |= {"instance": instance, "has_gpu": pool["num_gpus"] or instance.startswith("g2-")}


def cloud_values(options: Cloud, port: int) -> dict[str, Any]:
    """Return the values of a cloud's template."""
    match options:
        case Aws():
            return _aws_values(options, port)
        case Azure():
            return _azure_values(options)
    return {"allowed": ",".join(options.allow or ["CIDR"])}


def _smallest(table: Mapping[int, Mapping[int, str]], pool: Mapping[str, Any]) -> str:
    """Return the machine type with the fewest GPUs, and then CPUs, that are enough."""
    num_cpus, num_gpus = pool["num_cpus"], pool["num_gpus"] or 0
    for gpus, types in table.items():
        for cpus, name in types.items():
            if cpus >= num_cpus and gpus >= num_gpus and bool(gpus) == bool(num_gpus):
                return name
    raise TabrankError(
        f"nodes.{pool['pool']}: no machine in our table has {num_cpus} CPUs and {num_gpus} GPUs; "
        f"name one with --instance {pool['pool']}=TYPE"
    )


def _aws_values(options: Aws, port: int) -> dict[str, Any]:
    if not options.machine_image:
        raise TabrankError(
            "--machine-image is missing; for Ubuntu 24.04, use the output of: `aws ssm get-parameter "
            f"--region {options.region} --name {UBUNTU} --query Parameter.Value --output text`"
        )
    allow = options.allow or []
    opened = f"{port} from {', '.join(allow)}" if allow else "nothing else (--allow CIDR opens the service)"
    return {"ranges": [{"range": cidr} for cidr in allow], "opened": opened}


def _azure_values(options: Azure) -> dict[str, Any]:
    keys = ("image_publisher", "image_offer", "image_sku", "image_version")
    parts = options.machine_image.split(":")
    if len(parts) != len(keys):
        raise TabrankError(
            f"--machine-image {options.machine_image}: use PUBLISHER:OFFER:SKU:VERSION, such as {Azure.machine_image}"
        )
    group = options.resource_group or options.name
    allowed = " ".join(options.allow or ["CIDR"])
    return {**dict(zip(keys, parts, strict=True)), "resource_group": group, "allowed": allowed}
