"""Report of `loadtest freshness`: its numbers, report.json and report.html."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.measure.measure import Floats, Measurement, Requests, milliseconds, percentile, rounded, tail
from loadtest.measure.verdict import FRESHNESS_LIMIT_MS, MIN_ACHIEVED, MIN_SAMPLES
from loadtest.report.plots import distribution
from loadtest.report.report import Findings, Report, doubts, indented, write_report
from serve.contract.validation import spelled
from serve.report.page import section

# Numbers of the posts in the report.
OF_EVENTS = ("p50_ms", "p90_ms", "p99_ms", "max_ms", "errors", "error_kinds", "generator_late_ms_p99")
HOW = (
    "Freshness is the time from sending an event to the first ranking that shows it. An event that never showed counts "
    "as slower than all others."
)


def freshness_numbers(probes: Mapping[str, Requests]) -> Report:
    """Return the percentiles of all probes and of each kind.

    One is None if too many probes never showed.
    """
    return _probes_of(list(probes.values())) | {kind: _probes_of([part]) for kind, part in probes.items()}


def event_numbers(target_per_s: float, batch: int, measured: Measurement) -> Report:
    """Return the numbers of the posted viewer events.

    Their latencies run to the acknowledgement of a post.
    """
    return {
        "target_per_s": target_per_s,
        "acknowledged_per_s": round(measured.candidates_per_s, 3),
        "events_a_post": batch,
        "posts": measured.requests,
        **{name: rounded(getattr(measured, name)) for name in OF_EVENTS},
    }


def spread(latency_ms: Floats, ok: Any = None) -> Report:
    """Return percentiles of the latencies. Those that are not `ok` count as slower than all."""
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: rounded(percentile(latency_ms, share, ok)) for name, share in shares.items()}


def write_freshness(folder: Path, report: Report, probes: Mapping[str, Requests]) -> None:
    """Write the report folder. In case of an error, nothing is written.

    Raises:
        TabrankError: if `folder` exists.
    """
    lines = {f"new {kind}": tail(part.latency_ms[part.ok], len(part.ok)) for kind, part in probes.items()}
    shown_ms = np.concatenate([part.latency_ms[part.ok] for part in probes.values()])
    lines["all"] = tail(shown_ms, sum(len(part.ok) for part in probes.values()))
    limit = (f"p99 < {FRESHNESS_LIMIT_MS:g} ms", FRESHNESS_LIMIT_MS, 0.01)
    picture = distribution("ms from the event to the ranking", lines, [limit])
    write_report(folder, report, freshness_findings(report), [section("Freshness", picture)], HOW)


def freshness_findings(report: Report) -> Findings:
    """Return the numbers of a report with their limits."""
    fresh, rank, events = report["freshness_ms"], report["rank"], report["events"]
    at_least = f"at least {MIN_ACHIEVED:.0%} of"
    acknowledged = f"{events['acknowledged_per_s']:,.1f}"
    polled = "Rankings are polled every 20 ms, so the times are too long by up to 20 ms and one ranking."
    left = [f"left behind: {what}" for what in report["left_behind"]]
    held = f"the p99 from event to ranking is {milliseconds(fresh['p99'])}"
    return Findings(
        title="Event to visible in a ranking",
        word=report["verdict"],
        claim="events in rankings within a second",
        held=held,
        doubt=doubts(report, polled),
        lead=f"{spelled(report['seconds'])} at {report['url']}",
        rows=[
            ("p50 of all", milliseconds(fresh["p50"]), ""),
            ("p99 of all", milliseconds(fresh["p99"]), f"below {FRESHNESS_LIMIT_MS:g} ms"),
            ("probe events", str(fresh["samples"]), f"at least {MIN_SAMPLES}"),
            *indented(fresh["missed_kinds"]),
            *(
                (f"p99 of a new {kind}", milliseconds(fresh[kind]["p99"]), "")
                for kind in ("candidate", "viewer")
            ),
            ("rankings a second", f"{rank['rps']:,.1f}", f"{at_least} {rank['target_rps']:g}"),
            ("rankings that failed", f"{rank['errors']:,} of {rank['requests']:,}", "none allowed"),
            *indented(rank["error_kinds"]),
            ("events a second, acknowledged", acknowledged, f"{at_least} {events['target_per_s']:g}"),
            (
                f"posts of {events['events_a_post']}, failed",
                f"{events['errors']:,} of {events['posts']:,}",
                "",
            ),
            *indented(events["error_kinds"]),
        ],
        notes=[*(report["reasons"] or [held] * bool(left)), *left],
        first=(
            "p50 of all",
            "p99 of all",
            "probe events",
            "rankings a second",
            "events a second, acknowledged",
        ),
    )


def _probes_of(parts: Sequence[Requests]) -> Report:
    latency_ms = np.concatenate([part.latency_ms for part in parts])
    ok = np.concatenate([part.ok for part in parts])
    missed = sum((part.where(~part.ok).named_counts() for part in parts), Counter())
    counts = {"samples": len(ok), "missed": missed.total(), "missed_kinds": dict(missed)}
    return spread(latency_ms, ok) | counts
