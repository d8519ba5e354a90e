"""Report of `loadtest overload`: a table of the runs, and a plot of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from loadtest.measure.measure import milliseconds
from loadtest.measure.timeline import Moment
from loadtest.measure.verdict import LEAST_KNEE, WORDS, listed
from loadtest.report.plots import load_and_cluster
from loadtest.report.report import Report, marked, row_line, rows_table, verdict, write_report
from loadtest.workload.profiles import Slo
from serve.report.charts import Axis, Series, plot
from serve.report.page import figures, paragraph, section, tiles
from serve.report.rows import number


def overload_summary(report: Report) -> str:
    """Return the report as lines for a terminal."""
    head = f"{report['verdict']}: {_knees(report)}, service and generator on a core each"
    return "\n".join([head, *map(run_line, report["runs"]), f"  control: {_control(report)}"])


def run_line(run: Report) -> str:
    """Return one run as a line for a terminal, with its reasons below."""
    return row_line(_cells(run), run["reasons"])


def run_title(run: Report) -> str:
    """Return the load of a run as a multiple of the knee: `2×`."""
    return f"{run['times']:g}×"


def _control(report: Report) -> str:
    """Return what the control shows, which is the load without load shedding. It must fail."""
    control = report["control"]
    effects = {"held": "the service holds too, so it is not the cause", "not held": "the service fails"}
    effects["void"] = ": ".join(["nothing is known", *control["reasons"][:1]])
    return f"without load shedding {effects[control['verdict']]}"


def _knees(report: Report) -> str:
    """Return the knee with the measured ones: `knee 900 requests/s (before 950, after 900)`."""
    before, after = (number(report[f"knee_{when}_rps"]) for when in ("before", "after"))
    return f"knee {number(report['knee_rps'])} requests/s (before {before}, after {after})"


def write_overload(folder: Path, report: Report, lines: Mapping[str, Sequence[Moment]], slo: Slo) -> None:
    """Write the report folder. In case of an error, nothing is written."""
    runs, before_rps = report["runs"], report["knee_before_rps"]
    after_rps = report["knee_after_rps"] or 0.0
    lead = (
        f"With the service on one core and the load generator on another: {_knees(report)}; the lower counts. "
        f"Goodput counts answers of any rung within {report['deadline_ms']:g} ms of their due time. A weak second "
        "has less than half of the mean rate of full answers. Seconds with a late generator do not count."
    )
    reasons = [f"{run_title(run)}: {reason}" for run in runs for reason in run["reasons"]]
    if after_rps < LEAST_KNEE * before_rps:
        reasons.append(f"the knee fell from {before_rps:,.0f} to {after_rps:,.0f} /s")
    if report["control"]["verdict"] != "not held":
        reasons.append(_control(report))
    shown = [("knee", f"{number(report['knee_rps'])} /s", "the lower of two")]
    for run in runs:
        full = (run_title(run), f"{run['full_of_knee']:.1%}", "full answers, as a share of the knee")
        shown += marked(run["verdict"], [full])
    claim, held = "answers of the model under overload", f"All runs held; {_control(report)}"
    doubt = "The service had one core of one machine, and the load generator another. A fleet has more parts."
    control, cells = report["control"], [*map(_cells, runs)]
    # A control that could not run has only a verdict and a reason.
    if "times" in control:
        cells.append(_cells(control) | {"offered": f"{run_title(control)}, no load shedding"})
    body = [
        verdict(report, claim, held, reasons, doubt),
        tiles(shown),
        section("Answers against load", _answers_against_load(report)),
        paragraph(lead),
        rows_table(cells),
        figures({title: load_and_cluster(moments, slo) for title, moments in lines.items()}),
    ]
    write_report(folder, report, "Overload", body, FOOTER)


def _answers_against_load(report: Report) -> str:
    """Plot the answers and refusals of the runs, as shares of the knee."""
    runs = sorted(report["runs"], key=lambda run: run["times"])
    rates = [run["goodput_by_rung_rps"] | {"refused": run["refused_rps"]} for run in runs]
    loads = [run_title(run) for run in runs]
    colours = {"full": "model", "partial": "other", "fallback": "popular", "refused": "muted"}
    shares = {name: [rate.get(name, 0.0) / report["knee_rps"] for rate in rates] for name in colours}
    series = [Series(name, loads, y, "bars", colour=colours[name]) for name, y in shares.items() if any(y)]
    return plot("", Axis("offered"), Axis("share of the knee", zero=True, format=".0%"), series)


def _cells(run: Report) -> dict[str, str]:
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


FOOTER = """. Open loop: requests are sent at random times (Poisson arrivals) and wait for no answer. Latency counts
from when a request is due. A request is not sent while 1,000 are unanswered, which is the generator's limit."""
