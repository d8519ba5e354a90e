"""What lets a cluster outlive its head: the head's state on its own disk, and workers that wait for it to come back.

By default Ray keeps that state in memory, and a worker gives up a minute after the head fell silent: the service
would end with its head. With these, replicas and the HAProxy of each worker serve on, and a head that is started
again over the same folder finds its nodes, applications and replicas (`loadtest chaos --fault head`).
"""

from __future__ import annotations

from importlib.metadata import version

from serve.config.reader import Config
from serve.operate.render.pools import Pools

WAIT_S = 3600  # a person has to notice, and to start the head; nothing but new replicas waits for it
FOLDER = "gcs"


def head_environment(home: str) -> dict[str, str]:
    """Of the head: RocksDB within `home`, which is on a disk. Another version of Ray begins with an empty one."""
    return {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": f"{home}/{FOLDER}/{version('ray')}"}


def worker_environment() -> dict[str, str]:
    """Of every worker, whatever it is that keeps the head's state: how long it does without its head."""
    return {"RAY_gcs_rpc_server_reconnect_timeout_s": str(WAIT_S)}


def without_head(config: Config, pools: Pools) -> list[str]:
    """What the loss of the head of several machines means, and what of the file would make it worse."""
    if not pools.max_workers:
        return []
    notes = [
        f"Without its head the service goes on for {WAIT_S // 60} min on what the workers hold: the head's state lies "
        f"in ~/tabrank/{FOLDER} on its disk, and `ray up` on this file starts it again over that."
    ]
    if pools.head.num_cpus:
        notes.append(
            "Replicas on the head go with it: num_cpus: 0 under nodes.head keeps them on the workers."
        )
    if config.serve.get("proxy_location", "EveryNode") == "HeadOnly":
        notes.append(
            "So does the way in: proxy_location: EveryNode, and a load balancer over the workers, keep one."
        )
    return notes
