"""Ray's fake multi-node provider: every node of the cluster is a raylet on this machine, and the autoscaler is real."""

from __future__ import annotations

from typing import Any

from serve.config.pools import HEAD
from serve.operate.render.pools import Pools

HEAD_TYPE = "ray.head.default"  # the provider knows the head by no other name
OBJECT_STORE_BYTES = 128 << 20  # nothing travels through it


def provider(gcs_port: int) -> dict[str, Any]:
    """The provider section, of a cluster whose control store listens on this port of 127.0.0.1."""
    return {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": f"127.0.0.1:{gcs_port}",
        "use_node_id_as_ip": True,  # all share one address: without it no node is ever found idle
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }


def node_types(pools: Pools) -> dict[str, Any]:
    """The pools as node types, the head first."""
    types = {}
    for name, pool in pools.all.items():
        is_head = name == HEAD
        resources = {"CPU": pool.num_cpus, "object_store_memory": OBJECT_STORE_BYTES}
        types[HEAD_TYPE if is_head else name] = {
            "resources": {**resources, "GPU": pool.num_gpus} if pool.num_gpus else resources,
            "node_config": {},
            "labels": {"pool": name},
            "min_workers": 0 if is_head else pool.min_nodes,
            "max_workers": 0 if is_head else pool.max_nodes,
        }
    return types
