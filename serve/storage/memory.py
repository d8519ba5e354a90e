"""Free memory of this process."""

from __future__ import annotations

from pathlib import Path

import psutil


def available_bytes() -> int:
    """Return how much memory the machine, or this process's control group (cgroup v2), has free."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        most, used = ((group / f"memory.{what}").read_text() for what in ("max", "current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return min(free, int(most) - int(used) + int(stat["inactive_file"]))
    # There is no such group, or its limit is "max".
    except (OSError, ValueError, KeyError):
        return free
