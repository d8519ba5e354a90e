"""Describe this machine for reports, and tell whether it is overloaded."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

# With more processes per core than this, Ray's own time limits (30 s for a node) are too short. A
# start of the service itself brings a load of about one per core.
OVERLOADED = 2.0


def describe_machine() -> dict[str, str | int | float]:
    """Return its processor, usable cores, memory, Python version and platform."""
    return {
        "cpu": _cpu(),
        "cores": num_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_per_core() -> float:
    """Return how many processes ran or waited for each core, on average over the last minute."""
    return os.getloadavg()[0] / num_cores()


def overload() -> str:
    """Return a clause that says that this machine is overloaded, or "" if it is not."""
    load = load_per_core()
    words = f"this machine is overloaded: load {load * num_cores():.0f} on {num_cores()} cores"
    return words if load > OVERLOADED else ""


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
