"""Report of `loadtest chaos`: a table of the faults, and a plot of the load during each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from loadtest.measure.measure import milliseconds
from loadtest.measure.timeline import Moment
from loadtest.measure.verdict import WORDS
from loadtest.report.plots import load_and_cluster
from loadtest.report.report import Findings, Report, doubts, reasons_of, record_line, write_report
from loadtest.workload.profiles import Slo
from serve.contract.validation import spelled
from serve.report.page import bullets, section
from serve.report.rows import number


def fault_line(found: Report) -> str:
    """Return one fault as a line for a terminal, with its reasons below."""
    return "\n    - ".join([record_line(_record(found)), *found["reasons"]])


def _record(found: Report) -> dict[str, str]:
    """Return what is told of a fault by the names of the columns."""
    return {
        "fault": f"{found['fault']}: {found['what']}",
        "verdict": WORDS[found["verdict"]],
        "allowed": found["allowed"],
        # A fault that could not be measured has reasons alone.
        "measured": _measured(found) if "requests" in found else "–",
    }


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


def chaos_findings(report: Report) -> Findings:
    """Return what the report says of all faults."""
    faults = report["faults"]
    num_held = sum(one["verdict"] == "held" for one in faults)
    failed, sent = (sum(one.get(key, 0) for one in faults) for key in ("failed", "requests"))
    load = ("knee", f"{number(report['knee_rps'])} /s", "the load is 60 % of it")
    if rate_rps := report.get("rate_rps"):
        load = ("load", f"{rate_rps:g} /s", "as the command was told; no knee was measured")
    return Findings(
        title="Chaos",
        word=report["verdict"],
        claim=f"survival of faults under load ({len(faults)} run)",
        held="each fault had at most the effect that is allowed for it",
        doubt=doubts(report, "Each fault was injected once, and none during another."),
        lead=f"{len(faults)} faults in {spelled(report['seconds'])}",
        rows=[
            ("faults held", f"{num_held} of {len(faults)}", ""),
            ("requests that failed", f"{failed:,} of {sent:,}", "after one retry"),
            load,
        ],
        notes=reasons_of({one["fault"]: one for one in faults}),
        records=[*map(_record, faults)],
    )


def write_chaos(folder: Path, report: Report, lines: Mapping[str, Sequence[Moment]], slo: Slo) -> None:
    """Write the report folder. In case of an error, nothing is written."""
    pictures = [
        section(one["what"], bullets(one["reasons"]), load_and_cluster(lines[one["fault"]], slo))
        for one in report["faults"]
        if one["fault"] in lines
    ]
    how = f"The client has a timeout of {report['client_timeout_s'] * 1000:g} ms and retries once, within its budget. "
    how += "The plots begin 3 s into the load; the fault begins 5 s later."
    write_report(folder, report, chaos_findings(report), pictures, how)
