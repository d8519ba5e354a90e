"""Launcher sections of Ray's fake multi-node provider: each node is a raylet on this machine."""

from __future__ import annotations

from typing import Any

from serve.config.pools import HEAD
from serve.operate.render.pools import Pools

# The provider recognizes the head by this name only.
HEAD_TYPE = "ray.head.default"
# The service puts nothing into the object store.
OBJECT_STORE_BYTES = 128 << 20


def provider(gcs_port: int) -> dict[str, Any]:
    """Return the provider section; the control store listens on this port of 127.0.0.1."""
    return {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": f"127.0.0.1:{gcs_port}",
        # All nodes share one address. Without this no node is ever found idle.
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }


def node_types(pools: Pools) -> dict[str, Any]:
    """Return the pools as node types, the head first."""
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
