"""Report of a plan: `plan.json`, `report.html`, and the text for a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from serve.operate.plan.replicas import Deployment, Second
from serve.operate.plan.trace import RATE, TIME, Trace, shown
from serve.report.charts import Axis, Series, plot
from serve.report.page import banner, bullets, footer, section, tiles, whole_page
from serve.report.page import table as tabled
from serve.report.rows import columns
from serve.storage.atomic_files import draft_of

Report = dict[str, Any]
NODES = "nodes"


def make_report(trace: Trace, deployments: Sequence[Deployment], seconds: Sequence[Second]) -> Report:
    """Return what plan.json and `--json` report about a simulation, besides its inputs.

    The load fits if no deployment needs more than its max_replicas, and each replica has a node.
    """
    problems = [*_at_limit(deployments, seconds), *_without_node(seconds)]
    return {
        "seconds": len(seconds),
        "fits": not problems,
        "problems": problems,
        "deployments": {each.name: _deployment(each, seconds) for each in deployments},
        NODES: _counts([second.num_nodes for second in seconds]),
        "timeline": list(_timeline(trace, seconds)),
    }


def _at_limit(deployments: Sequence[Deployment], seconds: Sequence[Second]) -> Iterator[str]:
    for each in deployments:
        needed = [second.needed[each.name] for second in seconds]
        if num_beyond := sum(count > each.max_replicas for count in needed):
            yield (
                f"{each.name} needs up to {max(needed)} replicas: raise max_replicas ({each.max_replicas}), too few "
                f"for {num_beyond} of {len(seconds)} s"
            )


def _without_node(seconds: Sequence[Second]) -> Iterator[str]:
    if waiting := [second.num_unplaced for second in seconds if second.num_unplaced]:
        yield (
            f"up to {max(waiting)} replicas find no room on a node, for {len(waiting)} of {len(seconds)} s: raise "
            "max_nodes, num_cpus or num_gpus of a pool"
        )


def _deployment(deployment: Deployment, seconds: Sequence[Second]) -> dict[str, Any]:
    """Return the counts of running replicas, compared with those that the load needs."""
    running = [second.running[deployment.name] for second in seconds]
    needed = [second.needed[deployment.name] for second in seconds]
    return {
        **_counts(running),
        "follows_load": deployment.autoscaler is not None,
        "most_needed": max(needed),
        # New replicas start after a delay, so a rising load always has some seconds with too few.
        "short_s": sum(has < needs for has, needs in zip(running, needed, strict=True)),
    }


def _counts(counts: Sequence[int]) -> dict[str, float]:
    return {
        "min": min(counts),
        "mean": round(fmean(counts), 2),
        "max": max(counts),
        # Replica-seconds or node-seconds, which are the cost.
        "seconds": sum(counts),
    }


def _timeline(trace: Trace, seconds: Sequence[Second]) -> Iterator[dict[str, float]]:
    """Return the counts at the beginning, at each change, and at the end."""
    last: dict[str, int] = {}
    for i, second in enumerate(seconds):
        counts = {**second.running, NODES: second.num_nodes}
        if counts != last or i + 1 == len(seconds):
            yield {TIME: trace.begin_s + i, RATE: second.rate_rps, **counts}
        last = counts


def text_of(report: Report) -> str:
    """Return the plan as text for a terminal."""
    return "\n".join([columns(_rows(report), str.rjust), "", *_lines(report), f"{_verdict(report)}."])


def _rows(report: Report) -> list[list[str]]:
    """Return a header, then a row for each change of a count."""
    names = [*report["deployments"], NODES]
    rows = [[TIME, "req/s", *names]]
    for row in report["timeline"]:
        rows.append([shown(row[TIME]), f"{row[RATE]:,.0f}", *(str(row[name]) for name in names)])
    return rows


def _lines(report: Report) -> list[str]:
    """Return a line for each deployment, for the nodes, and for each problem."""
    lines = [
        f"{name}: {counts['min']} to {counts['max']} replicas, mean {counts['mean']:g}; "
        + (
            f"needs up to {counts['most_needed']} ({report['ongoing_ms'][name]:g} ms a request), and has fewer for "
            f"{counts['short_s']} s"
            if counts["follows_load"]
            else "does not follow the load, so it is not judged"
        )
        for name, counts in report["deployments"].items()
    ]
    nodes = report[NODES]
    lines.append(f"nodes: {nodes['min']} to {nodes['max']}, mean {nodes['mean']:g}")
    return [*lines, *report["problems"]]


def _verdict(report: Report) -> str:
    return "the load fits" if report["fits"] else "the load does not fit"


def write_plan(folder: Path, report: Report) -> None:
    """Write the report to a folder, completely or not at all."""
    with draft_of(folder) as draft:
        (draft / "plan.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (draft / "report.html").write_text(_page(report), encoding="utf-8")


def _page(report: Report) -> str:
    """Return report.html: the verdict, the plot, then the changes."""
    timeline, names = report["timeline"], [*report["deployments"], NODES]
    at_s, time = [row[TIME] for row in timeline], Axis("second of the trace", is_time=True)
    colours = dict.fromkeys(names[:1], "model")
    series = [Series(n, at_s, [row[n] for row in timeline], "step", colour=colours.get(n)) for n in names]
    numbers = [
        (name, f"{counts['max']}", f"at most; mean {counts['mean']:g}")
        for name, counts in [*report["deployments"].items(), (NODES, report[NODES])]
    ]
    held = "All replicas that it needs are within max_replicas, and have a node."
    why = "; ".join(report["problems"]) or held
    doubt = (
        "Requests are not simulated. The plan assumes that the time for which a request is ongoing does not depend "
        "on the load, and leaves out latencies and load shedding."
    )
    parts = [
        banner("good" if report["fits"] else "bad", _verdict(report).capitalize(), why, doubt),
        tiles(numbers),
        plot("Replicas and nodes", time, Axis("count", zero=True, whole=True), series),
        section("Changes", tabled(_rows(report)), bullets(_lines(report))),
        footer({}, "Ray's own scaling code ran on simulated time.", ("plan.json",)),
    ]
    return whole_page(f"Plan of {report['config']} under {report['trace']}", parts)
