"""Report of `compare`: report.json, and a page with the numbers by load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from loadtest.measure.verdict import listed
from loadtest.report.report import SAME_CORES, Report, doubts, verdict, write_report
from serve.report.charts import Axis, Series, plot
from serve.report.page import figures, table
from serve.report.rows import columns, number

NUMBERS = {"rps": "requests/s", "p50_ms": "p50 ms", "p99_ms": "p99 ms"}
# Colour of each service.
COLOURS = {"tabrank": "model", "fastapi": "popular", "idiomatic": "baseline"}
HEAD = ("load", "service", *NUMBERS.values(), "not in full", "late s", "CPU µs a full answer")


def write_compare(folder: Path, report: Report) -> None:
    """Write the report folder, complete or not at all.

    Raises:
        TabrankError: if `folder` exists.
    """
    *_, (at, last) = report["loads"].items()
    held = f"{at}, tabrank to fastapi: {_ratios(last)}"
    doubt = doubts(report, "All three run at once, and two of them are examples, not tuned services.")
    claim = "three services measured in turns"
    body = [
        verdict(report, claim, held, report["reasons"], doubt),
        figures({"By load": _plots(report) + table([HEAD, *_rows(report)])}),
        figures({"tabrank to fastapi": table([("load", *NUMBERS.values()), *_ratio_rows(report)])}),
    ]
    write_report(folder, report, _title(report), body, FOOTER)


def _plots(report: Report) -> str:
    """Plot each number by load, with a bar for each service."""
    loads = list(report["loads"])
    names = list(report["loads"][loads[0]]["services"])
    series = {
        key: [
            Series(
                name,
                loads,
                [report["loads"][at]["services"][name][key] for at in loads],
                "bars",
                colour=COLOURS.get(name),
            )
            for name in names
        ]
        for key in ("rps", "p99_ms")
    }
    return "".join(
        plot(NUMBERS[key], Axis(""), Axis(NUMBERS[key], zero=True), each, height=200)
        for key, each in series.items()
    )


def _ratio_rows(report: Report) -> Iterator[tuple[str, ...]]:
    for at, load in report["loads"].items():
        yield at, *(_ratio(load["ratios"][key]) for key in NUMBERS)


def compare_summary(report: Report) -> str:
    """Return the report as lines for a terminal."""
    return "\n".join([_title(report), columns([HEAD, *_rows(report)]), *_notes(report)])


def window_line(name: str, window: Report) -> str:
    """Return one window of a service as a line for a terminal."""
    numbers = ", ".join(f"{label} {number(window[key], ',.1f')}" for key, label in NUMBERS.items())
    return f"{_named(name, window)}: {numbers}"


def _named(name: str, found: Report) -> str:
    return name if found["kept_up"] else f"{name} (does not keep up)"


def _title(report: Report) -> str:
    times = f"{report['rounds']} of {report['window_s']} s at each load"
    return f"Three services in turns, {times}: {report['verdict']}"


def _rows(report: Report) -> Iterator[tuple[str, ...]]:
    for at, load in report["loads"].items():
        for name, found in load["services"].items():
            numbers = (number(found[key], ",.1f") for key in NUMBERS)
            others = listed({end: times for end, times in found["ended"].items() if end != "full"})
            cpu = ", ".join(f"{group} {us:,.0f}" for group, us in found["cpu_us"].items())
            yield at, _named(name, found), *numbers, others or "0", str(found["late_s"]), cpu


def _notes(report: Report) -> Iterator[str]:
    """Yield the reasons, and the ratios at each load."""
    yield from report["reasons"]
    for at, load in report["loads"].items():
        yield f"{at}, tabrank to fastapi: {_ratios(load)}"


def _ratios(load: Report) -> str:
    return ", ".join(f"{label} {_ratio(load['ratios'][key])}" for key, label in NUMBERS.items())


def _ratio(found: Report | None) -> str:
    if found is None:
        return "–"
    middle = "meaningless" if found["meaningless"] else f"{found['median']:.2f}"
    return f"{middle} ({found['lowest']:.2f} to {found['highest']:.2f})"


FOOTER = f"""{SAME_CORES}Closed loop × connections; open loop with Poisson arrivals, latency from the
due time. Numbers are medians over the rounds; requests/s and CPU count full answers. Seconds in which
the generator was late are excluded. A ratio is meaningless if it varies by more than 1.5 times."""
