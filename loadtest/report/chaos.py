"""Report of `loadtest chaos`: a table of the faults, and a plot of the load during each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from loadtest.measure.measure import milliseconds
from loadtest.measure.timeline import Moment
from loadtest.measure.verdict import WORDS
from loadtest.report.plots import load_and_cluster
from loadtest.report.report import (
    SAME_CORES,
    Report,
    doubts,
    marked,
    row_line,
    rows_table,
    verdict,
    write_report,
)
from loadtest.workload.profiles import Slo
from serve.contract.validation import spelled
from serve.report.page import bullets, section, tiles
from serve.report.rows import number


def chaos_summary(report: Report) -> str:
    """Return the report as lines for a terminal."""
    head = f"{report['verdict']}: {len(report['faults'])} faults in {spelled(report['seconds'])}"
    return "\n".join([head, *map(fault_line, report["faults"])])


def fault_line(found: Report) -> str:
    """Return one fault as a line for a terminal, with its reasons below."""
    return row_line({"fault": found["fault"], **_cells(found)}, found["reasons"])


def _cells(found: Report) -> dict[str, str]:
    """Return what is told of a fault by the names of the columns."""
    allowed, held = {"allowed": found["allowed"]}, {"verdict": WORDS[found["verdict"]]}
    # A fault that could not be measured has reasons alone.
    return held | allowed | {"measured": _measured(found) if "requests" in found else "–"}


def _measured(found: Report) -> str:
    p99 = " → ".join(milliseconds(found[f"p99_{when}_ms"]) for when in ("before", "during", "after"))
    parts = [
        f"{found['requests']:,} requests, {found['failed']} failed, {found['failed_first']} before the retry "
        f"({found['in_flight']} in flight)",
        f"outage {found['outage_s']:.2f} s",
        f"all replicas back {_after(found['strength_s'])}",
        f"recovered {_after(found['whole_s'])}",
        f"p99 {p99}",
        ", ".join(f"{number:,} {rung}" for rung, number in found["rungs"].items()),
    ]
    return "; ".join([*parts, *found.get("notes", ())])


def _after(value: float | None) -> str:
    return "not in time" if value is None else f"after {value:.1f} s"


def write_chaos(folder: Path, report: Report, lines: Mapping[str, Sequence[Moment]], slo: Slo) -> None:
    """Write the report folder. In case of an error, nothing is written."""
    faults = report["faults"]
    num_held = sum(one["verdict"] == "held" for one in faults)
    failed, sent = (sum(one.get(key, 0) for one in faults) for key in ("failed", "requests"))
    load = ("knee", f"{number(report['knee_rps'])} /s", "the load is 60 % of it")
    if rate_rps := report.get("rate_rps"):
        load = ("load", f"{rate_rps:g} /s", "as the command was told; no knee was measured")
    numbers = [
        ("faults held", f"{num_held} of {len(faults)}", ""),
        ("requests that failed", f"{failed:,} of {sent:,}", "after one retry"),
        load,
    ]
    reasons = [f"{one['fault']}: {reason}" for one in faults for reason in one["reasons"]]
    doubt = doubts(report, "Each fault was injected once, and none during another.")
    held = "each fault had at most the effect that is allowed for it"
    body = [
        verdict(report, f"survival of faults under load ({len(faults)} run)", held, reasons, doubt),
        tiles(marked(report["verdict"], numbers)),
        rows_table([{"fault": one["what"], **_cells(one)} for one in faults]),
    ]
    for one in faults:
        if one["fault"] in lines:
            plot = load_and_cluster(lines[one["fault"]], slo)
            body.append(section(one["what"], bullets(one["reasons"]), plot))
    footer = FOOTER.format(timeout_ms=report["client_timeout_s"] * 1000)
    write_report(folder, report, "Chaos", body, footer)


FOOTER = f"""{SAME_CORES}Open loop: requests are sent at random times (Poisson arrivals). The client has a
timeout of {{timeout_ms:g}} ms and retries once, within its budget. The plots begin 3 s into the load; the fault begins
5 s later."""
