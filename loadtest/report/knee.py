"""Report of `knee`: report.json and a page with a plot of latency against rate."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from loadtest.measure.verdict import WORDS, Verdict
from loadtest.report.plots import PERCENTILES, latency_against_rate
from loadtest.report.report import SAME_CORES, Report, Row, doubts, marked, verdict, write_report
from loadtest.workload.profiles import Slo
from serve.report.page import section, table, tiles
from serve.report.rows import number

PHASES = {"warm-up": "warm-up", "look": "look", "search": "", "confirm": "confirmation"}


def write_knee(folder: Path, report: Report) -> None:
    """Write the report of one service."""
    # The last step at a rate decides.
    steps = {step["rate_rps"]: step for step in report["steps"]}
    lines = {name: [(rate, step[f"{name}_ms"]) for rate, step in steps.items()] for name in PERCENTILES}
    slo, knee = Slo(**report["slo"]), number(report["knee_rps"])
    title = f"The knee: {knee} requests a second of {report['candidates']} candidates"
    word = knee_verdict(report)
    none = [] if word == "held" else [knee_summary(report), *_searched(report)[0]["reasons"]]
    held = f"The highest rate that held its limits in two of three last steps; p99 {_ms(report['p99_ms'])}"
    claim = f"a knee at {knee} requests/s" if word == "held" else "a rate within the limits"
    doubt = doubts(report, "Near the knee chance decides a step: the next search may end some percent off.")
    body = [
        verdict({**report, "verdict": word}, claim, held, none, doubt),
        tiles(marked(word, _numbers(report, slo)[:6])),
        section("Latency against rate", latency_against_rate(lines, slo)),
        section("Steps", _steps(report)),
        section("All numbers", table([("", "tabrank", "required"), *_numbers(report, slo)])),
    ]
    write_report(folder, report, title, body, FOOTER)


def knee_summary(report: Report) -> str:
    """Return the report as a few lines for a terminal."""
    if report["knee_rps"] is None:
        return f"no rate held; the lowest tried was {_searched(report)[0]['rate_rps']:g} req/s"
    return (
        f"knee: {number(report['knee_rps'])} req/s of {report['candidates']} candidates, "
        f"{number(report['candidates_per_s'])} candidates/s scored by the model\n"
        f"  p50 {_ms(report['p50_ms'])}  p90 {_ms(report['p90_ms'])}  p99 {_ms(report['p99_ms'])}, "
        f"{_share(report['full_share'])} full\n"
        f"  confirming steps, from the lowest p99 to the highest: {_each(report['confirming'])}"
    )


def knee_verdict(report: Report) -> Verdict:
    """Return held if there is a knee, and void if no step was a valid measurement."""
    if report["knee_rps"] is not None:
        return "held"
    return "void" if all(step["verdict"] == "void" for step in _searched(report)) else "not held"


def _searched(report: Report) -> list[Report]:
    """Return the steps without warm-ups, from the lowest rate, and at each rate from the last."""
    steps = (step for step in reversed(report["steps"]) if step["phase"] != "warm-up")
    return sorted(steps, key=lambda step: step["rate_rps"])


def step_line(step: Report) -> str:
    """Return one step as a line for a terminal."""
    phase = PHASES[step["phase"]]
    verdict = "" if step["phase"] == "warm-up" else f" {step['verdict']},"
    latencies = ", ".join(f"{name} {_ms(step[f'{name}_ms'])}" for name in ("p50", "p90", "p99"))
    reasons = f" ({'; '.join(step['reasons'])})" if step["reasons"] and verdict else ""
    return f"  {step['rate_rps']:g} req/s{f' ({phase})' if phase else ''}:{verdict} {latencies}{reasons}"


def _numbers(report: Report, slo: Slo) -> list[Row]:
    shown = (
        ("knee, requests a second", "knee_rps", number),
        ("candidates a second, scored by the model", "candidates_per_s", number),
        ("p50 at the knee", "p50_ms", _ms),
        ("p90 at the knee", "p90_ms", _ms),
        ("p99 at the knee", "p99_ms", _ms),
        ("full answers from a model", "full_share", _share),
        ("p99 and full answers of each confirming step", "confirming", _each),
        ("seconds to the first full answer", "start_s", number),
        ("memory when idle, MiB", "memory_mib", number),
        ("processes", "num_processes", number),
    )
    required = {"p90_ms": f"≤ {slo.p90_ms:g} ms", "p99_ms": f"≤ {slo.p99_ms:g} ms"}
    return [(title, show(report[key]), required.get(key, "")) for title, key, show in shown]


def _steps(report: Report) -> str:
    head = ("offered", "", "verdict", "p50", "p90", "p99", "full", "errors", "generator late", "reasons")
    rows = [
        (
            f"{step['rate_rps']:g}",
            PHASES[step["phase"]],
            WORDS[step["verdict"]],
            *(_ms(step[f"{name}_ms"]) for name in ("p50", "p90", "p99")),
            _share(step["full_share"]),
            str(step["errors"]),
            _ms(step["generator_late_ms_p99"]),
            "; ".join(step["reasons"]),
        )
        for step in report["steps"]
    ]
    return table([head, *rows])


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} ms"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3%}"


def _each(steps: Iterable[Report]) -> str:
    return ", ".join(f"{_ms(step['p99_ms'])} with {_share(step['full_share'])}" for step in steps) or "–"


FOOTER = f"""{SAME_CORES}Open loop, Poisson arrivals; latency counts from the due time of a request.
The knee is the highest rate that held its limits in two of three last, longer steps."""
