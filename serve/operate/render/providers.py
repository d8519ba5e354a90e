"""Differences between the clouds: provider section, machine types, images, and firewall rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from serve.config.pools import NodePool
from serve.contract.errors import TabrankError

# Its Python is 3.12.
UBUNTU = "24.04"
DISK_GB = 100


@dataclass(frozen=True)
class ProviderOptions:
    """Options for a provider beyond `cluster.yaml`; options of other providers are refused.

    `instances` gives a pool's machine type instead of the table's. `allow` lists address ranges
    that may reach the service's port.
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


# (CPUs, GPUs) of a machine, and its type.
Sizes = Mapping[tuple[int, int], str]


@dataclass(frozen=True)
class Cloud:
    """One cloud: its defaults, its machine types, and the functions that write its sections."""

    region: str
    sizes: Sizes
    provider: Callable[[ProviderOptions, str, int], dict[str, Any]]
    node_config: Callable[[ProviderOptions, str], dict[str, Any]]
    # The packages that the cloud's autoscaler imports on the head.
    head_packages: str
    # Returns the steps that remain for the user, as sentences.
    remaining_steps: Callable[[ProviderOptions, int], list[str]]

    def instance(self, pool_name: str, pool: NodePool, options: ProviderOptions) -> str:
        """Return the requested machine type, or else the smallest with enough CPUs and GPUs."""
        if options.instances and pool_name in options.instances:
            return options.instances[pool_name]
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
    """Return a family of machine types without GPUs, by their CPUs."""
    return {(cpus, 0): prefix + suffix for cpus, suffix in suffixes.items()}


def _aws_provider(options: ProviderOptions, region: str, port: int) -> dict[str, Any]:
    # The image's id differs by region, and Ray's own table has images of 2023 without Python 3.11.
    if not options.machine_image:
        name = f"/aws/service/canonical/ubuntu/server/{UBUNTU}/stable/current/amd64/hvm/ebs-gp3/ami-id"
        raise TabrankError(
            f"--provider aws: --machine-image is missing; for Ubuntu {UBUNTU}, use the output of: "
            f"`aws ssm get-parameter --region {region} --name {name} --query Parameter.Value --output text`"
        )
    rules = [
        {"FromPort": port, "ToPort": port, "IpProtocol": "tcp", "IpRanges": [{"CidrIp": cidr}]}
        for cidr in options.allow
    ]
    group: dict[str, Any] = {"GroupName": f"ray-{options.name}"}
    return {
        "type": "aws",
        "region": region,
        # A stopped machine still costs its disk.
        "cache_stopped_nodes": False,
        "security_group": {**group, "IpPermissions": rules} if rules else group,
    }


def _aws_node(options: ProviderOptions, instance: str) -> dict[str, Any]:
    return {
        "InstanceType": instance,
        "ImageId": options.machine_image,
        "BlockDeviceMappings": [
            {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": DISK_GB, "VolumeType": "gp3"}}
        ],
        "MetadataOptions": {"HttpTokens": "required"},
    }


def _aws_remaining_steps(options: ProviderOptions, port: int) -> list[str]:
    return [
        f"Reachable from outside, by the security group ray-{options.name}: SSH (22) from anywhere, a rule of Ray's; "
        + (
            f"{port} from {', '.join(options.allow)}."
            if options.allow
            else "nothing else (--allow CIDR opens the service)."
        ),
        "Left to you: restrict SSH in that group, and put a load balancer with TLS before the service.",
    ]


def _gcp_provider(options: ProviderOptions, region: str, port: int) -> dict[str, Any]:
    if not options.project:
        raise TabrankError("--provider gcp: --project is missing; name the project of the machines")
    return {
        "type": "gcp",
        "region": region,
        "availability_zone": f"{region}-a",
        "project_id": options.project,
    }


def _gcp_node(options: ProviderOptions, instance: str) -> dict[str, Any]:
    newest = f"projects/ubuntu-os-cloud/global/images/family/ubuntu-{UBUNTU.replace('.', '')}-lts-amd64"
    image = options.machine_image or newest
    node: dict[str, Any] = {
        "machineType": instance,
        "tags": {"items": [options.name]},
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
        # Such machines cannot be moved while they run.
        node["scheduling"] = [{"onHostMaintenance": "TERMINATE"}]
    return node


def _gcp_remaining_steps(options: ProviderOptions, port: int) -> list[str]:
    ranges = ",".join(options.allow) or "CIDR"
    return [
        "Reachable from outside, by the rules of the network 'default': SSH (22) and ping. Ray adds no rule here.",
        f"Left to you: gcloud compute firewall-rules create {options.name}-service --allow tcp:{port} "
        f"--target-tags {options.name} --source-ranges {ranges}; and put a load balancer with TLS before the service. "
        "A network of your own also needs a rule that lets the machines reach each other.",
    ]


def _azure_provider(options: ProviderOptions, region: str, port: int) -> dict[str, Any]:
    return {"type": "azure", "location": region, "resource_group": options.project or options.name}


def _azure_node(options: ProviderOptions, instance: str) -> dict[str, Any]:
    newest = f"Canonical:ubuntu-{UBUNTU.replace('.', '_')}-lts:server:latest"
    parts = (options.machine_image or newest).split(":")
    if len(parts) != 4:
        raise TabrankError(
            f"--machine-image {options.machine_image}: on azure use PUBLISHER:OFFER:SKU:VERSION, such as {newest}"
        )
    keys = ("imagePublisher", "imageOffer", "imageSku", "imageVersion")
    return {"azure_arm_parameters": {"vmSize": instance, **dict(zip(keys, parts, strict=True))}}


def _azure_remaining_steps(options: ProviderOptions, port: int) -> list[str]:
    group = options.project or options.name
    ranges = " ".join(options.allow) or "CIDR"
    return [
        "Reachable from outside, by the security group that Ray creates: SSH (22) from anywhere.",
        f"Left to you: az network nsg rule create --resource-group {group} --nsg-name NAME --name service "
        f"--priority 1100 --destination-port-ranges {port} --source-address-prefixes {ranges}; restrict SSH in that "
        "group, and put a load balancer with TLS before the service.",
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
        remaining_steps=_aws_remaining_steps,
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
        remaining_steps=_gcp_remaining_steps,
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
        remaining_steps=_azure_remaining_steps,
    ),
}
