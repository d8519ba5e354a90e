"""Second node of a cluster on 127.0.0.1, as a command.

    python -m loadtest.targets.worker_node GCS_ADDRESS NUM_CPUS

`ray start --address` does the same, but replaces 127.0.0.1 with the machine's external address.
"""

import sys

from ray._private.node import Node
from ray._private.parameter import RayParams

# Small, as no data passes through it.
OBJECT_STORE_BYTES = 128 << 20


def start(gcs_address: str, num_cpus: int) -> None:
    """Start the node's processes, which outlive this process."""
    params = RayParams(
        node_ip_address="127.0.0.1",
        gcs_address=gcs_address,
        num_cpus=num_cpus,
        labels={"pool": "workers"},
        object_store_memory=OBJECT_STORE_BYTES,
        dashboard_agent_listen_port=0,
    )
    Node(params, head=False, shutdown_at_exit=False, spawn_reaper=False)


if __name__ == "__main__":
    start(sys.argv[1], int(sys.argv[2]))
