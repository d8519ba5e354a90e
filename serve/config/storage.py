"""Where an application's store, models and log lie, for as many machines as there may be."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from serve.config.diagnostics import Findings
from serve.config.known_keys import meant
from serve.config.settings import AppArgs
from serve.config.yaml_positions import Steps
from serve.stores.factory import shown

STORES = ("lmdb", "redis", "rediss")
STORE_FORMS = "use lmdb:PATH on one machine, redis://HOST:PORT/DB on any number"


def check_storage(findings: Findings, steps: Steps, args: AppArgs, base: Path, num_nodes: int) -> None:
    """Where store, models and log lie, for so many nodes at most."""
    kind, _, where = args.store.partition(":")
    if kind == "memory":
        findings.refuse(
            (*steps, "store"), f"memory: lives in one process, and the service has several; {STORE_FORMS}"
        )
    elif kind not in STORES or not where or (kind != "lmdb" and not where.startswith("//")):
        hint = f"did you mean {kind}://HOST?" if kind in STORES[1:] else meant(kind, STORES)
        findings.refuse(
            (*steps, "store"), f"{shown(args.store)!r} is no address of a store; {hint}; {STORE_FORMS}"
        )
    elif kind != "lmdb" and (wrong := _wrong_redis(args.store)):
        findings.refuse((*steps, "store"), f"{shown(args.store)!r}: {wrong}; {STORE_FORMS}")
    elif num_nodes > 1 and kind == "lmdb":
        findings.refuse(
            (*steps, "store"),
            f"{args.store!r} is a file of one machine, and `nodes` allows {num_nodes}; {STORE_FORMS}",
        )
    elif num_nodes > 1 and any(name in where for name in ("//127.", "//localhost", "@127.", "@localhost")):
        findings.refuse(
            (*steps, "store"),
            f"{shown(args.store)!r} is another store on each machine, and `nodes` allows {num_nodes}; "
            "name the host as all of them know it",
        )
    for key, folder in (("models", args.models), ("log", args.log)):
        _check_folder(findings, (*steps, key), folder, num_nodes)
    if num_nodes <= 1 and not (base / args.models).exists() and "://" not in args.models:
        findings.warn(
            (*steps, "models"), f"there is no folder {args.models!r} yet: rankings are popular until then"
        )


def _wrong_redis(address: str) -> str:
    """What is wrong with the address of a Redis server; empty if nothing is."""
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:  # it may quote the password
        return "the port is no number from 0 to 65535"
    if not host:
        return "there is no host in it"
    if parts.password or "password=" in parts.query:
        return (
            "Ray would write the password in it to its logs; leave it out, as in redis://USER@HOST:PORT/DB, and set "
            "TABRANK_REDIS_PASSWORD in its environment"
        )
    number = parts.path.strip("/")
    return "" if number.isdigit() or not number else f"a database has a number (got {number!r})"


def _check_folder(findings: Findings, steps: Steps, folder: str, num_nodes: int) -> None:
    if not folder:
        findings.refuse(steps, "the path of a folder was expected (got '')")
    elif "://" in folder:
        findings.refuse(steps, f"only folders are read (got {folder!r}); mount it, and give the path")
    elif num_nodes > 1 and not os.path.isabs(folder):
        findings.refuse(
            steps,
            f"{folder!r} is local to each machine, and `nodes` allows {num_nodes}; "
            "give the absolute path of a folder that all of them mount",
        )
    elif num_nodes > 1:
        findings.warn(
            steps, f"{folder!r} must be a folder that every node mounts: `nodes` allows {num_nodes}"
        )
