"""Settings of a rendered cluster that survives its head: Ray's state on disk, workers that wait.

By default Ray keeps the state in memory, and a worker gives up a minute after the head falls
silent, so that the service ends with its head. With these settings, the replicas and the HAProxy of
each worker go on serving. A head that is restarted over the same folder finds its nodes,
applications and replicas (`loadtest chaos --fault head`).
"""

from __future__ import annotations

from importlib.metadata import version

from serve.config.reader import Config
from serve.operate.render.pools import Pools

# A person has to notice and to restart the head; only new replicas wait for it.
WAIT_S = 3600
FOLDER = "gcs"


def head_environment(home: str) -> dict[str, str]:
    """Return the head's variables: RocksDB within `home` on its disk, one for each Ray version."""
    return {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": f"{home}/{FOLDER}/{version('ray')}"}


def worker_environment() -> dict[str, str]:
    """Return each worker's variable for the time that it waits for its head."""
    return {"RAY_gcs_rpc_server_reconnect_timeout_s": str(WAIT_S)}


def head_loss_notes(config: Config, pools: Pools) -> list[str]:
    """Return notes on the loss of the head, and on settings that would make it worse."""
    if not pools.max_workers:
        return []
    notes = [
        f"Without its head the service goes on for {WAIT_S // 60} min with its workers. The head's state is in "
        f"~/tabrank/{FOLDER} on its disk, and `ray up` with this file restarts the head from it."
    ]
    if pools.head.num_cpus:
        notes.append(
            "Replicas on the head end with it: num_cpus: 0 under nodes.head keeps them on the workers."
        )
    if config.serve.get("proxy_location", "EveryNode") == "HeadOnly":
        notes.append(
            "The only ingress ends with it too: use proxy_location: EveryNode and a load balancer over the workers."
        )
    return notes
