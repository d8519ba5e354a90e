"""Forget: erase viewers from a log, its snapshots and the store behind it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from serve.contract.errors import TabrankError
from serve.contract.rankings import MAX_ID_CHARACTERS
from serve.features.rows import Schema
from serve.log.atomic_files import exclusive
from serve.log.lease import Lease
from serve.log.snapshots import Snapshot, clean_up, rewrite, snapshots
from serve.model import artifact
from training.erasure.states import find_store, forget_in_store, forgotten, schema_of
from training.erasure.tables import ORDER, ErasedViewers

# Some hundred thousand ids: to forget them takes seconds, in which a running service waits.
MAX_BYTES = 4 << 20
# Compaction of a large log holds the log's lock for minutes.
WAIT_S = 600.0


def read_viewers(path: Path) -> list[str]:
    """Read ids from a UTF-8 file, one a line, each once; empty lines are ignored.

    Spaces belong to an id, the end of its line (LF or CRLF) does not.

    Raises:
        TabrankError: the file cannot be read, is too large, or holds no id or one that is too long.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        lines = content[:MAX_BYTES].decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TabrankError(f"{path}: not readable as UTF-8 text: {error}") from None
    if len(content) > MAX_BYTES:
        raise TabrankError(f"{path}: has over {MAX_BYTES >> 20} MiB; split it, and run once for each part")
    viewers = dict.fromkeys(line.removesuffix("\r") for line in lines)
    viewers.pop("", None)
    if not viewers or max(map(len, viewers)) > MAX_ID_CHARACTERS:
        raise TabrankError(f"{path}: must hold ids of up to {MAX_ID_CHARACTERS} characters, one a line")
    return list(viewers)


def forget(
    log: Path,
    viewers: Sequence[str],
    models: Path,
    *,
    dry_run: bool = False,
    progress: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """Erase viewers from a log and the store behind it; with `dry_run`, only count.

    The result holds the numbers of `viewers` and of those that are `unknown`; `rows`, by table and
    of `snapshots`, that are theirs; the `store`, None if there is none; `models`, as `trained_on`
    returns them.

    Raises:
        TabrankError: a file is damaged, the state of a snapshot is unknown, or the store or the log
            cannot be written. What is erased by then stays erased, and another attempt continues.
    """
    lock = log / ".lock"
    held = partial(exclusive, lock, f"{log}: its service merges segments; try again later", WAIT_S)
    lease, store, known = find_store(log, viewers)
    erased = ErasedViewers(viewers)
    with held() if lock.exists() or not dry_run else nullcontext():
        if not dry_run:
            clean_up(log)
        counts, states = erased.scan(log), _snapshots(log, lease, erased)
    unknown = erased.viewers - erased.found - known
    if not dry_run:
        if lease and store:
            forget_in_store(log, lease, store, viewers)
        with held():
            erased = ErasedViewers(viewers)
            counts, states = erased.scan(log), _snapshots(log, lease, erased)
            for number, (name, path) in enumerate(counts):
                for share in erased.erase(name, path):
                    progress((number + share) / len(counts))
            for snapshot, schema, _ in states:
                rewrite(snapshot, forgotten(snapshot, schema, erased.viewers))
    rows = {of: sum(num for (name, _), num in counts.items() if name == of) for of in ORDER}
    if store and not dry_run:
        # Those that forget the viewers in the store.
        rows["viewers"] -= len(viewers)
    return {
        "viewers": len(viewers),
        "unknown": len(unknown),
        "rows": rows | {"snapshots": sum(num for *_, num in states)},
        "store": store,
        "models": trained_on(models, log, erased),
        "dry_run": dry_run,
    }


def _snapshots(log: Path, lease: Lease | None, erased: ErasedViewers) -> list[tuple[Snapshot, Schema, int]]:
    """Return each snapshot with rows of the viewers, the schema of its state, and their number."""
    found = []
    for snapshot in snapshots(log):
        if theirs := erased.viewers.intersection(snapshot.ids("viewer").to_pylist()):
            erased.found |= theirs
            snapshot.verify()
            found.append((snapshot, schema_of(snapshot, lease), len(theirs)))
    return found


def trained_on(models: Path, log: Path, erased: ErasedViewers) -> dict[str, str | None]:
    """Return the published versions that learned, or may have, from the viewers' exposures.

    The value is None, or the reason why it cannot be told.
    """
    found: dict[str, str | None] = {}
    times = sorted(erased.shown_ms)
    for version in artifact.versions(models):
        try:
            manifest = artifact.load(models / version).manifest
            begin, end, source = manifest["span_ms"][0], manifest["seen_until_ms"], manifest["log"]
        except KeyError:
            found[version] = "its manifest, of an earlier release, does not name its log"
        except TabrankError as error:
            found[version] = str(error)
        else:
            if source != str(log.resolve()):
                found[version] = f"it was fitted on {source}, which may be a copy"
            elif bisect_left(times, begin) < bisect_left(times, end + 1):
                found[version] = None
            elif begin < erased.first_ms:
                found[version] = "the log no longer has its first rows"
    return found


def describe(log: Path, result: Mapping[str, Any]) -> list[str]:
    """Return the result of `forget` as lines of text."""
    rows = ", ".join(f"{num:,} {name}" for name, num in result["rows"].items())
    done = "dry run, nothing changed" if result["dry_run"] else "erased"
    lines = [
        f"{log}: rows of {result['viewers']:,} viewers: {rows}; {done}",
        f"store: {result['store'] or 'none behind this log'}",
        f"{result['unknown']:,} of the viewers were found nowhere",
    ]
    for version, why in result["models"].items():
        learned = "learned from them; fit and publish another" if why is None else f"may have learned: {why}"
        lines.append(f"{version} {learned}")
    return lines
