"""Run `serve plan`: the replicas and nodes of a `cluster.yaml` over a trace of load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from serve.config.reader import read
from serve.contract.errors import TabrankError
from serve.contract.validation import refuse_existing
from serve.operate.plan.replicas import read_deployments, simulate
from serve.operate.plan.report import Report, make_report, write_plan
from serve.operate.plan.trace import read_trace


def plan(
    config_path: Path,
    trace_path: Path,
    ongoing_ms: Sequence[str],
    node_start_s: float,
    out: Path | None = None,
) -> Report:
    """Return the report of a plan, and write it to the folder `out`; `fits` is the verdict.

    `ongoing_ms` states for how many ms a request is ongoing in a deployment, such as "Scorer=0.5".
    A deployment that it leaves out gets our measured time.

    Raise TabrankError for a file that cannot be read or planned.
    """
    if out is not None:
        refuse_existing(out)
    config, trace = read(config_path), read_trace(trace_path)
    deployments = read_deployments(config, dict(map(_time_ms, ongoing_ms)))
    seconds = simulate(config, deployments, trace, node_start_s)
    report = {
        "config": str(config.path),
        "config_sha256": config.sha256,
        "trace": str(trace_path),
        "ongoing_ms": {each.name: each.ongoing_ms for each in deployments if each.autoscaler},
        "node_start_s": node_start_s,
        **make_report(trace, deployments, seconds),
    }
    if out is not None:
        write_plan(out, report)
    return report


def _time_ms(text: str) -> tuple[str, float]:
    """Return the name of a deployment and its milliseconds."""
    name, _, number = text.partition("=")
    with suppress(ValueError):
        if 0 < (time_ms := float(number)) < math.inf:
            return name, time_ms
    raise TabrankError(f"--ongoing-ms {text}: must be DEPLOYMENT=MS, such as Scorer=0.5")
