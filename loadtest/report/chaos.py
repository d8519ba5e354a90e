"""Report of `loadtest chaos`: report.json, and a page with a table of faults and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from loadtest.measure.measure import milliseconds
from loadtest.measure.timeline import Moment
from loadtest.report.report import SAME_CORES, Report, bullets, figures, table, with_reasons, write_report
from loadtest.workload.profiles import Slo

HEAD = ("fault", "allowed", "measured", "held")
HELD = {True: "held", False: "not held", None: "not run"}


def chaos_summary(report: Report) -> str:
    """Return the table as text for a terminal."""
    lines = [f"{report['verdict']}: {len(report['faults'])} faults in {report['seconds']:g} s"]
    for found in report["faults"]:
        line = f"  {found['fault']:16} {HELD[found['held']]:8} {measured(found)}"
        lines.append(with_reasons(line, found["reasons"]))
    return "\n".join(lines)


def fault_line(found: Report) -> str:
    """Return one fault as a line for a terminal."""
    return with_reasons(f"  {HELD[found['held']]}: {measured(found)}", found["reasons"])


def measured(found: Report) -> str:
    """Return the measurements of a fault as text."""
    if "requests" not in found:
        return "–"
    parts = [
        f"{found['requests']:,} requests, {found['failed']} failed, {found['failed_first']} before the retry "
        f"({found['in_flight']} in flight)",
        f"outage {found['outage_s']:.2f} s",
        f"all replicas back {_seconds(found['strength_s'])}",
        f"recovered {_seconds(found['whole_s'])}",
        f"p99 {milliseconds(found['p99_before_ms'])} → {milliseconds(found['p99_during_ms'])} → "
        f"{milliseconds(found['p99_after_ms'])}",
        ", ".join(f"{number:,} {rung}" for rung, number in found["rungs"].items()),
    ]
    if "exposures_dropped" in found:
        parts.append(
            f"{found['rankings_counted']:,.0f} rankings counted, {found['exposures_logged']:,.0f} exposures logged, "
            f"{found['exposures_dropped']:,.0f} dropped"
        )
    if "flood" in found:
        parts.append(
            f"{found['flood']} answered in the flood, {found['restarts']} restarts, "
            f"{found['memory_before_mib']:,} → {found['memory_most_mib']:,} → {found['memory_mib']:,} MiB"
        )
    if "recovered_s" in found:
        parts.append(f"head back {_seconds(found['recovered_s'])}, {found['replaced']:g} replicas replaced")
        parts.append(f"live setting applied {_seconds(found.get('in_place_s'))}")
        parts.append(f"one more replica running {_seconds(found.get('scaled_s'))}")
    return "; ".join(parts)


def write_chaos(folder: Path, report: Report, lines: Mapping[str, Sequence[Moment]], slo: Slo) -> None:
    """Write the report folder, complete or not at all."""
    from loadtest.report.plots import load_and_cluster  # matplotlib

    body = [table(HEAD, _rows(report))]
    for found in report["faults"]:
        if found["fault"] in lines:
            plot = load_and_cluster(lines[found["fault"]], slo)
            body.append(figures({found["what"]: f"{bullets(found['reasons'])}\n{plot}"}))
    footer = FOOTER.format(
        knee=f"{report['knee_rps'] or 0:,.0f}", timeout=f"{report['client_timeout_s'] * 1000:g}"
    )
    write_report(folder, report, f"Chaos: {report['verdict']}", body, footer)


def _rows(report: Report) -> list[tuple[str, ...]]:
    return [
        (
            one["what"],
            one["allowed"],
            measured(one) if "requests" in one else "; ".join(one["reasons"]),
            HELD[one["held"]],
        )
        for one in report["faults"]
    ]


def _seconds(value: float | None) -> str:
    return "not in time" if value is None else f"after {value:.1f} s"


FOOTER = f"""{SAME_CORES}Open loop, Poisson arrivals, at 60 % of a knee of {{knee}} requests/s (changes: 80 %). The
client has a timeout of {{timeout}} ms and retries once, within its budget. The plots begin 3 s into the load; the fault
begins 5 s later."""
