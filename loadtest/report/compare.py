"""Report of `compare`: report.json, and a page with the numbers by load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from loadtest.measure.verdict import listed
from loadtest.report.report import SAME_CORES, Report, doubts, row_line, rows_table, verdict, write_report
from serve.report.charts import Axis, Series, plot
from serve.report.page import bullets
from serve.report.rows import number

NUMBERS = {"rps": "requests/s", "p50_ms": "p50 ms", "p99_ms": "p99 ms"}


def write_compare(folder: Path, report: Report) -> None:
    """Write the report folder. In case of an error, nothing is written.

    Raises:
        TabrankError: if `folder` exists.
    """
    *ratios, last = (note for note in _notes(report) if note not in report["reasons"])
    doubt = doubts(report, "Each stays up while the other is measured. FastAPI is an untuned example.")
    loads = report["loads"]
    answers = {at: {name: one["rps"] for name, one in load["services"].items()} for at, load in loads.items()}
    # The colours of `look.css` tell the services apart.
    bars = [
        Series(name, list(loads), [answers[at][name] for at in loads], "bars", colour=colour)
        for name, colour in (("fastapi", "popular"), ("tabrank", "model"))
    ]
    body = [
        verdict(report, "tabrank and FastAPI measured in turns", last, report["reasons"], doubt),
        plot("Full answers", Axis(""), Axis("requests/s", zero=True), bars),
        rows_table([*_rows(report)]),
        bullets([*ratios, last]),
    ]
    write_report(folder, report, _title(report), body, FOOTER)


def compare_summary(report: Report) -> str:
    """Return the report as lines for a terminal."""
    head = f"{_title(report)}: {report['verdict']}"
    return "\n".join([head, *(row_line(row, ()) for row in _rows(report)), *_notes(report)])


def window_line(name: str, window: Report) -> str:
    """Return one window of a service as a line for a terminal."""
    numbers = ", ".join(f"{label} {number(window[key], ',.1f')}" for key, label in NUMBERS.items())
    return f"{_named(name, window)}: {numbers}"


def _named(name: str, found: Report) -> str:
    return name if found["kept_up"] else f"{name} (does not keep up)"


def _title(report: Report) -> str:
    return f"Tabrank and FastAPI in turns, {report['rounds']} of {report['window_s']} s at each load"


def _rows(report: Report) -> Iterator[dict[str, str]]:
    for at, load in report["loads"].items():
        for name, found in load["services"].items():
            others = listed({end: times for end, times in found["ended"].items() if end != "full"})
            yield {
                "load": at,
                "service": _named(name, found),
                **{label: number(found[key], ",.1f") for key, label in NUMBERS.items()},
                "not in full": others or "0",
                "late s": str(found["late_s"]),
                "CPU µs a full answer": ", ".join(
                    f"{group} {us:,.0f}" for group, us in found["cpu_us"].items()
                ),
            }


def _notes(report: Report) -> Iterator[str]:
    """Yield the reasons, and the ratios at each load."""
    yield from report["reasons"]
    for at, load in report["loads"].items():
        ratios = (f"{label} {_ratio(load['ratios'][key])}" for key, label in NUMBERS.items())
        yield f"{at}, tabrank to fastapi: {', '.join(ratios)}"


def _ratio(found: Report | None) -> str:
    if found is None:
        return "–"
    middle = "meaningless" if found["meaningless"] else f"{found['median']:.2f}"
    return f"{middle} ({found['lowest']:.2f} to {found['highest']:.2f})"


FOOTER = f"""{SAME_CORES}In a closed loop, a connection sends a request once the one before is answered. In
an open loop, requests are sent at random times (Poisson arrivals), and latency counts from when a request is due.
Numbers are medians over the rounds; requests/s and CPU count full answers. Seconds in which the generator was late are
excluded. A ratio is meaningless if it varies by more than 1.5 times."""
