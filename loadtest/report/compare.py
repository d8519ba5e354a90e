"""Report of `compare`: report.json, and a page with the numbers by load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from loadtest.measure.verdict import listed
from loadtest.report.report import Findings, Report, doubts, write_report
from serve.report.rows import number

NUMBERS = {"rps": "requests/s", "p50_ms": "p50 ms", "p99_ms": "p99 ms"}
HOW = (
    "In a closed loop, a connection sends a request once the one before is answered. Numbers are medians over the "
    "rounds; requests/s and CPU count full answers. Seconds in which the generator was late are excluded. A ratio is "
    "meaningless if it varies by more than 1.5 times."
)


def write_compare(folder: Path, report: Report) -> None:
    """Write the report folder. In case of an error, nothing is written.

    Raises:
        TabrankError: if `folder` exists.
    """
    write_report(folder, report, compare_findings(report), [], HOW)


def compare_findings(report: Report) -> Findings:
    """Return the ratios at each load, and the numbers of each service."""
    rows = []
    for at, load in report["loads"].items():
        rps, *latencies = (f"{label} {_ratio(load['ratios'][key])}" for key, label in NUMBERS.items())
        rows.append((at, rps, ", ".join(latencies)))
    return Findings(
        title="Tabrank and FastAPI in turns",
        word=report["verdict"],
        claim="tabrank and FastAPI measured in turns",
        held=", ".join(rows[-1]),
        doubt=doubts(report, "Each stays up while the other is measured. FastAPI is an untuned example."),
        lead=f"{report['rounds']} windows of {report['window_s']} s at each load; ratios are tabrank to fastapi",
        rows=rows,
        notes=report["reasons"],
        records=[*_records(report)],
    )


def window_line(name: str, window: Report) -> str:
    """Return one window of a service as a line for a terminal."""
    numbers = ", ".join(f"{label} {number(window[key], ',.1f')}" for key, label in NUMBERS.items())
    return f"{_named(name, window)}: {numbers}"


def _named(name: str, found: Report) -> str:
    return name if found["kept_up"] else f"{name} (does not keep up)"


def _records(report: Report) -> Iterator[dict[str, str]]:
    for at, load in report["loads"].items():
        for name, found in load["services"].items():
            others = listed({end: times for end, times in found["ended"].items() if end != "full"})
            cpu = ", ".join(f"{group} {us:,.0f}" for group, us in found["cpu_us"].items())
            yield {
                "load": at,
                "service": _named(name, found),
                **{label: number(found[key], ",.1f") for key, label in NUMBERS.items()},
                "not in full": others or "0",
                "late s": str(found["late_s"]),
                "CPU µs a full answer": cpu,
            }


def _ratio(found: Report | None) -> str:
    if found is None:
        return "–"
    middle = "meaningless" if found["meaningless"] else f"{found['median']:.2f}"
    return f"{middle} ({found['lowest']:.2f} to {found['highest']:.2f})"
