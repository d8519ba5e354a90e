"""Validation of the paths of store, models and log, for one machine or several."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from serve.config.node import Node
from serve.config.settings import AppArgs
from serve.contract.errors import suggest
from serve.storage.bucket import ROOTS, is_bucket, place
from serve.stores.protocol import shown

STORES = ("lmdb", "redis", "rediss")
STORE_FORMS = "use lmdb:PATH on one machine, redis://HOST:PORT/DB on any number"


def check_storage(at: Node, args: AppArgs, num_nodes: int) -> None:
    """Refuse locations of store, models and log that up to `num_nodes` nodes cannot share."""
    if wrong := _wrong_store(args.store, num_nodes):
        at["store"].refuse(wrong)
    for key, folder in (("models", args.models), ("log", args.log)):
        _check_folder(at[key], folder, num_nodes)


def _wrong_store(store: str, num_nodes: int) -> str:
    """Return the error in the address of a store, with its remedy; empty if there is none."""
    kind, _, where = store.partition(":")
    if kind not in STORES or not where or (kind != "lmdb" and not where.startswith("//")):
        hint = f"; did you mean {kind}://HOST?" if kind in STORES[1:] else suggest(kind, STORES)
        return f"{shown(store)!r} is not the address of a store{hint}; {STORE_FORMS}"
    if kind != "lmdb" and (wrong := _wrong_redis(store)):
        return f"{shown(store)!r}: {wrong}; {STORE_FORMS}"
    if num_nodes > 1 and kind == "lmdb":
        return f"{store!r} is a file on one machine, and `nodes` allows {num_nodes}; {STORE_FORMS}"
    if num_nodes > 1 and any(name in where for name in ("//127.", "//localhost", "@127.", "@localhost")):
        return (
            f"{shown(store)!r} is a different store on each machine, and `nodes` allows {num_nodes}; "
            "give a host name that all of them can reach"
        )
    return ""


def _wrong_redis(address: str) -> str:
    """Return the error in the address of a Redis server; empty if there is none."""
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    # The exception may quote the password.
    except ValueError:
        return "the port must be a number from 0 to 65535"
    if not host:
        return "the host is missing"
    if parts.password or "password=" in parts.query:
        return (
            "Ray would write this password to its logs; leave it out, as in redis://USER@HOST:PORT/DB, and set "
            "TABRANK_REDIS_PASSWORD in its environment"
        )
    # redis-py would use database 0.
    number = parts.path.strip("/")
    return "" if number.isdigit() or not number else f"the database must be a number (got {number!r})"


def _check_folder(at: Node, folder: str, num_nodes: int) -> None:
    if not folder:
        at.refuse("expected the path of a folder (got '')")
    elif is_bucket(folder):
        if len(place(folder).parts) <= ROOTS[place(folder).parts[0]]:
            at.refuse(f"{folder!r} names a whole bucket; add a key of its own, such as s3://BUCKET/log")
    elif "://" in folder:
        scheme = folder.partition("://")[0]
        hint = suggest(scheme, [root.removesuffix(":") for root in ROOTS])
        at.refuse(f"{folder!r} is neither a folder nor in a bucket{hint}; give a path, or s3://BUCKET/KEY")
    elif num_nodes > 1 and not os.path.isabs(folder):
        at.refuse(
            f"{folder!r} is local to each machine, and `nodes` allows {num_nodes}; "
            "give the absolute path of a folder that all of them mount"
        )
    elif num_nodes > 1:
        at.warn(f"{folder!r} must be a folder that every node mounts: `nodes` allows {num_nodes}")
