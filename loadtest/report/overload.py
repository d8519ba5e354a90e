"""Report of `loadtest overload`: report.json, and a page with a table and a plot of each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from loadtest.measure.measure import milliseconds
from loadtest.measure.timeline import Moment
from loadtest.measure.verdict import listed
from loadtest.report.report import Report, bullets, figures, paragraph, table, with_reasons, write_report
from loadtest.workload.profiles import Slo


def overload_summary(report: Report) -> str:
    """Return the report as a few lines for a terminal."""
    head = f"{report['verdict']}: knee {report['knee_rps']:,.0f} req/s, service and generator on a core each"
    lines = [head, *(_run_lines(run) for run in report["runs"])]
    control = report["control"]
    if not control["run"]:
        return "\n".join([*lines, f"  the control was not run: {control['reason']}"])
    holds = control["verdict"] == "held"
    effect = "it holds too, so load shedding is not the cause" if holds else "it collapses"
    return "\n".join([*lines, f"  without load shedding {effect}:", _run_lines(control)])


def run_line(run: Report) -> str:
    """Return one run as a line for a terminal."""
    rungs = ", ".join(f"{rps:.0f} {name}" for name, rps in run["goodput_by_rung_rps"].items()) or "nothing"
    back = "not back to normal" if run["back_s"] is None else f"back to normal after {run['back_s']} s"
    failed = listed(run["failures"])
    return (
        f"  {run['times']:g}x: {run['verdict']}; goodput {run['goodput_share']:.1%} of the knee ({rungs} /s), "
        f"p99 {milliseconds(run['p99_ms'])}, {run['refused']:,} refused (p99 {milliseconds(run['refused_p99_ms'])}), "
        f"{failed or 'none failed'}; {back}; generator late {run['generator_late_ms_p99']:.1f} ms"
    )


def write_overload(folder: Path, report: Report, lines: Mapping[str, Sequence[Moment]], slo: Slo) -> None:
    """Write the report folder, complete or not at all."""
    from loadtest.report.plots import load_and_cluster  # matplotlib

    plots = {title: load_and_cluster(moments, slo) for title, moments in lines.items()}
    runs = [*report["runs"], *([report["control"]] if report["control"]["run"] else [])]
    lead = (
        f"The knee is {report['knee_rps']:,.0f} requests/s, measured with the same pinning: the service on one "
        "core, the load generator on another. Goodput counts answers of any rung within "
        f"{report['deadline_ms']:g} ms of their due time."
    )
    reasons = [reason for run in report["runs"] for reason in run["reasons"]]
    rows = [_row(run, run is report["control"]) for run in runs]
    body = [
        paragraph(lead),
        bullets(reasons),
        table(list(rows[0]), [list(row.values()) for row in rows]),
        figures(plots),
    ]
    write_report(folder, report, f"Overload: {report['verdict']}", body, FOOTER)


def _run_lines(run: Report) -> str:
    return with_reasons(run_line(run), run["reasons"])


def _row(run: Report, control: bool) -> dict[str, str]:
    """Return the cells of a run by the names of their columns."""
    rungs = ", ".join(f"{name} {rps:,.0f}" for name, rps in run["goodput_by_rung_rps"].items())
    return {
        "offered": f"{run['times']:g}×" + (", no load shedding" if control else ""),
        "requests/s": f"{run['offered_rps']:,.0f}",
        "goodput of the knee": f"{run['goodput_share']:.1%}",
        "by rung, /s": rungs,
        "p99 of answers": milliseconds(run["p99_ms"]),
        "refused": f"{run['refused']:,}",
        "p99 of refusals": milliseconds(run["refused_p99_ms"]),
        "5xx": str(run["http_5xx"]),
        "not sent": f"{run['not_sent']:,}",
        "normal after": "–" if run["back_s"] is None else f"{run['back_s']} s",
        "generator late, p99": milliseconds(run["generator_late_ms_p99"]),
        "verdict": run["verdict"],
    }


FOOTER = """. Open loop, Poisson arrivals; latency counts from the due time of a request.
Not sent: 1,000 requests were unanswered at that moment, which is the generator's limit."""
