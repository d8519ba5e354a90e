"""Report of `loadtest overload`: a table of the runs, and a plot of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from loadtest.measure.measure import milliseconds
from loadtest.measure.timeline import Moment
from loadtest.measure.verdict import LEAST_KNEE, WORDS, listed
from loadtest.report.plots import load_and_cluster
from loadtest.report.report import Findings, Report, reasons_of, record_line, write_report
from loadtest.workload.profiles import Slo
from serve.report.page import section
from serve.report.rows import number


def run_line(run: Report) -> str:
    """Return one run as a line for a terminal, with its reasons below."""
    return "\n    - ".join([record_line(_record(run)), *run["reasons"]])


def run_title(run: Report) -> str:
    """Return the load of a run as a multiple of the knee: `2×`."""
    return f"{run['times']:g}×"


def overload_findings(report: Report) -> Findings:
    """Return what the report says of all runs."""
    runs, before_rps, after_rps = report["runs"], report["knee_before_rps"], report["knee_after_rps"]
    control, knee = report["control"], number(report["knee_rps"])
    # What the load without load shedding shows, which must fail.
    effects = {"held": "the service holds too, so it is not the cause", "not held": "the service fails"}
    effects["void"] = ": ".join(["nothing is known", *control["reasons"][:1]])
    told = f"without load shedding {effects[control['verdict']]}"
    notes = reasons_of({run_title(run): run for run in runs})
    if (after_rps or 0.0) < LEAST_KNEE * before_rps:
        notes.append(f"the knee fell from {before_rps:,.0f} to {after_rps or 0.0:,.0f} /s")
    if control["verdict"] != "not held":
        notes.append(told)
    records = [*map(_record, runs)]
    # A control that could not run has only a verdict and a reason.
    if "times" in control:
        records.append(_record(control) | {"offered": f"{run_title(control)}, no load shedding"})
    full = (
        (run_title(run), f"{run['full_of_knee']:.1%}", "full answers, as a share of the knee") for run in runs
    )
    knees = f"knee {knee} requests/s (before {number(before_rps)}, after {number(after_rps)})"
    return Findings(
        title="Overload",
        word=report["verdict"],
        claim="answers of the model under overload",
        held=f"All runs held; {told}",
        doubt="The service had one core of one machine, and the load generator another. A fleet has more parts.",
        lead=f"{knees}, service and generator on a core each",
        rows=[("knee", f"{knee} /s", "the lower of two"), *full],
        notes=notes,
        records=records,
    )


def write_overload(folder: Path, report: Report, lines: Mapping[str, Sequence[Moment]], slo: Slo) -> None:
    """Write the report folder. In case of an error, nothing is written."""
    how = (
        f"Goodput counts answers of any rung within {report['deadline_ms']:g} ms of their due time. A weak second has "
        "less than half of the mean rate of full answers. Seconds with a late generator do not count. A request is not "
        "sent while 1,000 are unanswered, which is the generator's limit."
    )
    pictures = [section(title, load_and_cluster(moments, slo)) for title, moments in lines.items()]
    write_report(folder, report, overload_findings(report), pictures, how)


def _record(run: Report) -> dict[str, str]:
    """Return the cells of a run by the names of their columns."""
    return {
        "offered": run_title(run),
        "verdict": WORDS[run["verdict"]],
        "requests/s": f"{run['offered_rps']:,.0f}",
        "full of the knee": f"{run['full_of_knee']:.1%}",
        "weak seconds": str(run["weak_seconds"]),
        "goodput of the knee": f"{run['goodput_share']:.1%}",
        "by rung, /s": ", ".join(f"{name} {rps:,.0f}" for name, rps in run["goodput_by_rung_rps"].items()),
        "p99 of answers": milliseconds(run["p99_ms"]),
        "refused": f"{run['refused']:,}",
        "p99 of refusals": milliseconds(run["refused_p99_ms"]),
        "failed": listed(run["failures"]) or "none",
        "normal after": "–" if run["back_s"] is None else f"{run['back_s']} s",
        "generator late, p99": f"{run['generator_late_ms_p99']:.1f} ms, {run['seconds_late']} late seconds",
    }
