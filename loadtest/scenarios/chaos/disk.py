"""Faults of files: a damaged store, and a full disk. They hit a copy of the workspace's store."""

from __future__ import annotations

import contextlib
import os
import resource

import psutil

from loadtest.report.report import Report
from loadtest.scenarios.chaos.fault import TWO, Allowed, Fault, Injected
from loadtest.targets.running import REPLICA, Target

# Size of the garbage that replaces the store's file.
GARBAGE_BYTES = 1 << 20
# Size of LMDB's two meta pages. A commit writes beyond them, and fails.
FULL_BYTES = 8192
# Nobody may notice the fault, and all is as before within 5 s of its end.
HEALED = Allowed(failed_share=0.0, first="none", whole_s=5.0)
INGEST = REPLICA + "Ingest"


class StoreCorrupt(Fault):
    """Fault that replaces the store's file by garbage, and later restores it."""

    name, what = "store", "LMDB file replaced by garbage, then restored"
    replicas, allowed, hold_s, watch_s = TWO, HEALED, 6.0, 12.0

    def inject(self, target: Target) -> None:
        """Replace the store's file."""
        self._data = next((target.folder / "chaos" / "store").rglob("data.mdb"))
        os.replace(self._data, self._data.with_name("aside.mdb"))
        self._data.write_bytes(os.urandom(GARBAGE_BYTES))

    def heal(self, target: Target) -> None:
        """Restore the store's file."""
        os.replace(self._data.with_name("aside.mdb"), self._data)


class DiskFull(Fault):
    """Fault that lets the files of Ingest grow no more, as on a full disk.

    It is a limit on the size of files (RLIMIT_FSIZE), which affects no other process. A full file
    system would affect all.
    """

    name, what = "disk-full", "disk full for Ingest, 20 s"
    allowed, hold_s, watch_s = HEALED, 20.0, 10.0

    def inject(self, target: Target) -> None:
        """Limit the size of the files of Ingest."""
        _limit_files(target, FULL_BYTES)

    def heal(self, target: Target) -> None:
        """Lift the limit of the Ingest that runs now."""
        _limit_files(target, resource.RLIM_INFINITY)

    def measured(self, load: Injected) -> tuple[Report, list[str]]:
        """Return how many rankings the service counted, and how many it logged or did not log."""
        counted = load.gained("ray_tabrank_rankings_total")
        logged = load.gained("ray_tabrank_records_total", kind="exposure")
        dropped, thinned = (
            load.gained(f"ray_tabrank_exposures_{how}_total") for how in ("dropped", "thinned")
        )
        note = f"{counted:,.0f} rankings were counted; {logged:,.0f} exposures were logged, "
        note += f"{dropped:,.0f} dropped, and {thinned:,.0f} left out by sampling"
        numbers = {"rankings_counted": counted, "exposures_logged": logged, "exposures_dropped": dropped}
        numbers["exposures_thinned"] = thinned
        return {**numbers, "notes": [note]}, []


def _limit_files(target: Target, num_bytes: int) -> None:
    """Limit the size in bytes to which Ingest can grow a file."""
    for process in target.find(INGEST):
        with contextlib.suppress(psutil.NoSuchProcess):
            _, hard = process.rlimit(psutil.RLIMIT_FSIZE)
            process.rlimit(psutil.RLIMIT_FSIZE, (num_bytes, hard))
