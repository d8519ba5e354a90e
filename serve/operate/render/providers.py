"""What differs between the clouds: where a machine comes from, its type, its image, and who may reach it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from serve.config.pools import NodePool
from serve.contract.errors import TabrankError

UBUNTU = "24.04"  # its Python is 3.12
DISK_GB = 100


@dataclass(frozen=True)
class Order:
    """What is asked of a provider beyond `cluster.yaml`; an option that it has no use for is refused.

    `instances`: the machine's type by pool, where the table's is not wanted. `allow`: address ranges that may
    reach the service's port.
    """

    name: str = "tabrank"
    region: str | None = None
    project: str | None = None
    instances: Mapping[str, str] | None = None
    machine_image: str | None = None
    allow: tuple[str, ...] = ()
    head_ip: str | None = None
    worker_ips: tuple[str, ...] = ()
    ssh_user: str = "ubuntu"
    ssh_key: str | None = None


Sizes = Mapping[tuple[int, int], str]  # (CPUs, GPUs) of a machine → its type


@dataclass(frozen=True)
class Cloud:
    """One cloud: its defaults, its machines, and the functions that write its sections of the file."""

    region: str
    sizes: Sizes
    provider: Callable[[Order, str, int], dict[str, Any]]
    node_config: Callable[[Order, str], dict[str, Any]]
    head_packages: str  # what its autoscaler on the head imports
    left: Callable[[Order, int], list[str]]  # what remains to be done, as sentences

    def instance(self, pool_name: str, pool: NodePool, order: Order) -> str:
        """The machine's type: the one asked for, else the smallest of the table with that many CPUs and GPUs."""
        if order.instances and pool_name in order.instances:
            return order.instances[pool_name]
        fitting = [
            (gpus, cpus, name)
            for (cpus, gpus), name in self.sizes.items()
            if cpus >= pool.num_cpus and gpus >= pool.num_gpus and bool(gpus) == bool(pool.num_gpus)
        ]
        if not fitting:
            raise TabrankError(
                f"nodes.{pool_name}: no machine in our table has {pool.num_cpus} CPUs and {pool.num_gpus} GPUs; "
                f"name one with --instance {pool_name}=TYPE"
            )
        return min(fitting)[2]


def cpu_sizes(prefix: str, suffixes: Mapping[int, str]) -> dict[tuple[int, int], str]:
    """A family of machines without GPUs, by their CPUs."""
    return {(cpus, 0): prefix + suffix for cpus, suffix in suffixes.items()}


def _aws_provider(order: Order, region: str, port: int) -> dict[str, Any]:
    # Its id differs by region, and Ray's own table names images of 2023 that have no Python 3.11.
    if not order.machine_image:
        name = f"/aws/service/canonical/ubuntu/server/{UBUNTU}/stable/current/amd64/hvm/ebs-gp3/ami-id"
        raise TabrankError(
            f"--provider aws: --machine-image is missing; for Ubuntu {UBUNTU}, take what this prints: "
            f"`aws ssm get-parameter --region {region} --name {name} --query Parameter.Value --output text`"
        )
    rules = [
        {"FromPort": port, "ToPort": port, "IpProtocol": "tcp", "IpRanges": [{"CidrIp": cidr}]}
        for cidr in order.allow
    ]
    group: dict[str, Any] = {"GroupName": f"ray-{order.name}"}
    return {
        "type": "aws",
        "region": region,
        "cache_stopped_nodes": False,  # a stopped machine still costs its disk
        "security_group": {**group, "IpPermissions": rules} if rules else group,
    }


def _aws_node(order: Order, instance: str) -> dict[str, Any]:
    return {
        "InstanceType": instance,
        "ImageId": order.machine_image,
        "BlockDeviceMappings": [
            {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": DISK_GB, "VolumeType": "gp3"}}
        ],
        "MetadataOptions": {"HttpTokens": "required"},
    }


def _aws_left(order: Order, port: int) -> list[str]:
    return [
        f"Reachable from outside, by the security group ray-{order.name}: SSH (22), from anywhere, which Ray adds; "
        + (
            f"{port} from {', '.join(order.allow)}."
            if order.allow
            else "nothing else (--allow CIDR opens the service)."
        ),
        "Left to you: to narrow SSH in that group, and a load balancer with TLS before the service.",
    ]


def _gcp_provider(order: Order, region: str, port: int) -> dict[str, Any]:
    if not order.project:
        raise TabrankError(
            "--provider gcp: --project is missing; name the project that the machines belong to"
        )
    return {
        "type": "gcp",
        "region": region,
        "availability_zone": f"{region}-a",
        "project_id": order.project,
    }


def _gcp_node(order: Order, instance: str) -> dict[str, Any]:
    newest = f"projects/ubuntu-os-cloud/global/images/family/ubuntu-{UBUNTU.replace('.', '')}-lts-amd64"
    image = order.machine_image or newest
    node: dict[str, Any] = {
        "machineType": instance,
        "tags": {"items": [order.name]},
        "disks": [
            {
                "boot": True,
                "autoDelete": True,
                "type": "PERSISTENT",
                "initializeParams": {"diskSizeGb": DISK_GB, "sourceImage": image},
            }
        ],
    }
    if instance.startswith("g2-"):
        node["scheduling"] = [
            {"onHostMaintenance": "TERMINATE"}
        ]  # such machines cannot be moved while they run
    return node


def _gcp_left(order: Order, port: int) -> list[str]:
    ranges = ",".join(order.allow) or "CIDR"
    return [
        "Reachable from outside, by the rules of the network 'default': SSH (22) and ping. Ray makes no rule here.",
        f"Left to you: gcloud compute firewall-rules create {order.name}-service --allow tcp:{port} "
        f"--target-tags {order.name} --source-ranges {ranges}; a load balancer with TLS before the service. In a "
        "network of your own: a rule that lets the machines reach each other.",
    ]


def _azure_provider(order: Order, region: str, port: int) -> dict[str, Any]:
    return {"type": "azure", "location": region, "resource_group": order.project or order.name}


def _azure_node(order: Order, instance: str) -> dict[str, Any]:
    newest = f"Canonical:ubuntu-{UBUNTU.replace('.', '_')}-lts:server:latest"
    parts = (order.machine_image or newest).split(":")
    if len(parts) != 4:
        raise TabrankError(
            f"--machine-image {order.machine_image}: on azure it is PUBLISHER:OFFER:SKU:VERSION, such as {newest}"
        )
    keys = ("imagePublisher", "imageOffer", "imageSku", "imageVersion")
    return {"azure_arm_parameters": {"vmSize": instance, **dict(zip(keys, parts, strict=True))}}


def _azure_left(order: Order, port: int) -> list[str]:
    group = order.project or order.name
    ranges = " ".join(order.allow) or "CIDR"
    return [
        "Reachable from outside, by the security group that Ray makes: SSH (22), from anywhere.",
        f"Left to you: az network nsg rule create --resource-group {group} --nsg-name NAME --name service "
        f"--priority 1100 --destination-port-ranges {port} --source-address-prefixes {ranges}; to narrow SSH in that "
        "group, and a load balancer with TLS before the service.",
    ]


CLOUDS: Mapping[str, Cloud] = {
    "aws": Cloud(
        region="us-east-1",
        sizes={
            **cpu_sizes(
                "m7i.",
                {
                    2: "large",
                    4: "xlarge",
                    8: "2xlarge",
                    16: "4xlarge",
                    32: "8xlarge",
                    48: "12xlarge",
                    64: "16xlarge",
                    96: "24xlarge",
                    192: "48xlarge",
                },
            ),
            (4, 1): "g6.xlarge",
            (8, 1): "g6.2xlarge",
            (16, 1): "g6.4xlarge",
            (32, 1): "g6.8xlarge",
            (64, 1): "g6.16xlarge",
            (48, 4): "g6.12xlarge",
            (96, 4): "g6.24xlarge",
            (192, 8): "g6.48xlarge",
        },
        provider=_aws_provider,
        node_config=_aws_node,
        head_packages="boto3",
        left=_aws_left,
    ),
    "gcp": Cloud(
        region="us-central1",
        sizes={
            **cpu_sizes("n2-standard-", {cpus: str(cpus) for cpus in (2, 4, 8, 16, 32, 48, 64, 80, 96, 128)}),
            (4, 1): "g2-standard-4",
            (8, 1): "g2-standard-8",
            (12, 1): "g2-standard-12",
            (16, 1): "g2-standard-16",
            (32, 1): "g2-standard-32",
            (24, 2): "g2-standard-24",
            (48, 4): "g2-standard-48",
            (96, 8): "g2-standard-96",
        },
        provider=_gcp_provider,
        node_config=_gcp_node,
        head_packages="google-api-python-client google-auth cryptography",
        left=_gcp_left,
    ),
    "azure": Cloud(
        region="eastus",
        sizes={
            **cpu_sizes("Standard_D", {cpus: f"{cpus}s_v5" for cpus in (2, 4, 8, 16, 32, 48, 64, 96)}),
            (4, 1): "Standard_NC4as_T4_v3",
            (8, 1): "Standard_NC8as_T4_v3",
            (16, 1): "Standard_NC16as_T4_v3",
            (64, 4): "Standard_NC64as_T4_v3",
        },
        provider=_azure_provider,
        node_config=_azure_node,
        head_packages=(
            "azure-cli-core azure-identity azure-mgmt-compute azure-mgmt-network azure-mgmt-resource "
            "azure-common msrestazure"
        ),
        left=_azure_left,
    ),
}
