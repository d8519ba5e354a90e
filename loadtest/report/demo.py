"""Report of the demo: claims and findings, the load, one viewer's rankings, the model's quality."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from math import inf
from pathlib import Path
from typing import Any

import msgspec

from loadtest.measure.measure import milliseconds
from loadtest.measure.verdict import MIN_ACHIEVED, WORDS, Verdict
from loadtest.report.plots import PERCENTILES, latency_over_time
from loadtest.report.report import SAME_CORES, Report, doubts, marked, verdict, write_report
from loadtest.report.run import latency_distribution
from loadtest.workload.profiles import Slo, load_profile, load_slo
from serve.contract.rankings import Reason
from serve.contract.reasons import in_words, sentence
from serve.report.charts import Axis, Series, plot, reliability
from serve.report.page import paragraph, section, table, tiles
from serve.report.rows import columns, number

CLAIMED_RPS, CLAIMED_CANDIDATES = 900, 50_000
YES: Mapping[bool, str] = {True: "✓ yes", False: "✗ no"}
FIGURES = ("rps", "candidates_per_s", "p90_ms", "p99_ms")
NOT_COMPARED, OPPOSITE = "– not compared", "✗ opposite direction"
HOLDS: Mapping[Verdict, str] = {"held": YES[True], "not held": YES[False], "void": "– no verdict"}
CLAIMED_BY = "Claimed by the case study of the original system. Popular ranks the most popular rooms first."
COMPARED = "The model is compared with popular on logged rankings, not with people."
LINKS = {
    "load-headline/report.html": "The load test at 900 requests/s",
    "load-modest/report.html": "The load test at 300 requests/s, which decides where 900 did not hold",
    "model/report.html": "The model: measures, slices, features",
    "model/MODEL_CARD.md": "The model's card",
}
COMMANDS = {
    "make up": "start the service alone, with its API at /docs",
    "make experiment": "an A/B test of the model against popular, in the simulated world",
    "python -m loadtest knee": "the highest rate that this machine holds",
    "python -m training surface --log my-log --out my": "begin with your own log",
}
SIDES = ("model", "popular")
MEASURES = {"expected_labels": "joins expected per ranking", "ndcg@10": "NDCG@10, on joins as logged"}


def demo_verdict(report: Report) -> Verdict:
    """Return the verdict: the new room has to rise, and the load to hold."""
    word: Verdict = report["load"]["verdict"]
    return word if report["topic"]["rose"] else "not held"


def write_demo(report: Report, folder: Path) -> str:
    """Write `report.json` and `report.html` into `folder`; return the table of claims as text."""
    rows, load, topic, train = claims(report), report["load"], report["topic"], report["train"]
    # A load that could not run has no numbers.
    slo, rate = Slo(**load["slo"]) if "slo" in load else load_slo(), load_profile(load["profile"]).target_rps
    claim = f"{rate:g} rankings/s in time, and rankings that follow the viewer"
    claim += "; the model loses against popular" if OPPOSITE in rows[6] else ""
    first = []
    if (tried := report["headline"]) != load:
        failed = "gave no verdict" if tried["verdict"] == "void" else "did not hold on this machine"
        first = [f"{CLAIMED_RPS} rankings/s {failed}: {'; '.join(tried['reasons'])}"]
    rose = f"A new room went from {_rise(topic)} of five joins on its topic; model − popular: {rows[6][3]}"
    reasons = ["the new room did not rise for the viewer in time"] * (not topic["rose"]) + load["reasons"]
    reasons = [*reasons, *first] if reasons else [". ".join([*first, rose])]
    took = f" and the load took {load['seconds']:g} s" if "seconds" in load else ""
    doubt = doubts(report, f"The world is simulated{took}.", COMPARED)
    offered = ". ".join([f"{rate:g} rankings/s of 55 candidates, in an open loop", *first])
    over_time = _over_time(folder / f"load-{load['profile']}" / "requests.csv", slo)
    spread = latency_distribution(load, slo) if "latency_tail" in load else ""
    body = [
        verdict({**report, "verdict": demo_verdict(report)}, claim, "", reasons, doubt),
        tiles(_tiles(report, slo)),
        section("Claimed and found", paragraph(CLAIMED_BY), table(rows)),
        section("Latency under load", paragraph(offered), over_time, spread),
        section(f"One viewer joins five rooms on {topic['topic']}", *_story(topic)),
        section("The model against popular", *_quality(train)),
        section("How far the probabilities are right", reliability(train["reliability"])),
        section("Where to go next", _next(folder)),
    ]
    write_report(folder, report, "tabrank: the demo", body, SAME_CORES, new=False)
    return columns(rows)


def claims(report: Report) -> list[tuple[str, str, str, str]]:
    """Return rows of (name, does it hold, claim about the original system, finding of this run)."""
    load, topic, cores = report["load"], report["topic"], report["machine"]["cores"]
    rate, first = load_profile(load["profile"]).target_rps, report["headline"]["verdict"]
    found, scored, p90, p99 = _figures(load)
    found += f" of {rate:g} offered, {WORDS[load['verdict']]}"
    found += f"; {WORDS[first]} at {CLAIMED_RPS} /s" if rate < CLAIMED_RPS else ""
    # A lower rate does not show that a claim holds at the claimed one.
    other = HOLDS["void"] if load["verdict"] == "void" else f"– at {rate:g} /s only" * (rate < CLAIMED_RPS)
    many = other or YES[load["candidates_per_s"] >= MIN_ACHIEVED * CLAIMED_CANDIDATES]
    fast = [other or YES[(load[f"{name}_ms"] or inf) < most] for name, most in (("p90", 50), ("p99", 100))]
    errors = f"{load['errors']:,}; {load['full_share']:.2%} full answers" if "errors" in load else "–"
    name, gain, error = _gain(report["train"])
    lift = "–" if gain is None else f"{gain:+.3f} ± {2 * error:.3f} {name}, logged rankings"
    rise = f"{_rise(topic)}; for a control viewer {topic['control']['before']} → {topic['control']['after']}"
    # The claim has another unit, so that only the direction is compared.
    signs = ("– no clear difference", "– same direction", OPPOSITE)
    better = NOT_COMPARED if gain is None else signs[(gain > 2 * error) - (gain < -2 * error)]
    return [
        ("", "holds", "claimed", "found here"),
        ("rankings", HOLDS[first], f"{CLAIMED_RPS} /s", found),
        ("candidates", many, f"about {CLAIMED_CANDIDATES:,} /s", f"{scored} scored by the model"),
        ("p90", fast[0], "< 50 ms", p90),
        ("p99", fast[1], "< 100 ms", p99),
        ("errors", NOT_COMPARED, "–", errors),
        ("against most popular", better, "+1.99 % join rate (A/B test)", lift),
        ("adapts to the viewer", YES[topic["rose"]], "new rooms rise for viewers of their topic", rise),
        ("machine", NOT_COMPARED, "a fleet on several clouds", f"{cores} cores, load generator included"),
    ]


def _figures(load: Report) -> list[str]:
    """Return the figures of a load with units; dashes if it could not run."""
    units = {key: milliseconds if "ms" in key else "{:,.0f} /s".format for key in FIGURES}
    return [units[key](load[key]) if key in load else "–" for key in FIGURES]


def _rise(topic: Report) -> str:
    within = "" if topic["seconds"] is None else f" within {topic['seconds']:.2f} s"
    return f"place {topic['viewer']['before']} → {topic['viewer']['after']}{within}"


def _gain(train: Report) -> tuple[str, float | None, float]:
    """Return what the model gains on popular: the measure's name, the difference, its error."""
    paired = train["paired"]
    if paired.get("expected_labels") is not None:
        return "joins per ranking", paired["expected_labels"], paired["expected_labels_se"]
    return "NDCG@10", paired["ndcg@10"], paired.get("se") or 0.0


def _tiles(report: Report, slo: Slo) -> Iterator[tuple[str, str, str]]:
    load, viewer = report["load"], report["topic"]["viewer"]
    claimed = (f"claimed {CLAIMED_RPS} /s", f"claimed about {CLAIMED_CANDIDATES:,} /s")
    notes = (*claimed, *(f"at most {limit:g} ms" for limit in (slo.p90_ms, slo.p99_ms)))
    names = ("rankings", "scored candidates", "p90", "p99")
    yield from marked(load["verdict"], zip(names, _figures(load), notes, strict=True))
    yield "new room's place", f"{viewer['before']} → {viewer['after']}", "after five joins on its topic"
    name, gain, error = _gain(report["train"])
    if gain is not None:
        yield f"{name}, model − popular", f"{gain:+.3f}", f"± {2 * error:.3f} (2 standard errors)"


def _over_time(file: Path, slo: Slo) -> str:
    """Plot the percentiles of a load test's seconds; empty if it left none."""
    if not file.exists():
        return ""
    rows = list(csv.DictReader(file.read_text().splitlines()))
    lines = {name: [float(row[f"{name}_ms"] or "nan") for row in rows] for name in PERCENTILES}
    return latency_over_time([int(row["second"]) for row in rows], lines, slo)


def _story(topic: Report) -> Iterator[str]:
    """Yield the new room's reasons before and after, and the viewer's first places side by side."""
    first, last = topic["rankings"]["before"], topic["rankings"]["after"]
    for when, ranking in (("Before the joins", first), ("After the joins", last)):
        new = next(room for room in ranking if room["candidate"] == "new-space")
        why = sentence(new["position"], _reasons_of(new)) if new["reasons"] else f"Place {new['position']}."
        yield paragraph(f"{when}, the new room on {topic['topic']}: {why}")
    before = {room["position"]: _named(room) for room in first}
    rows = []
    for room in last:
        place, was, score = room["position"], room["was"], number(room["score"], ".3f")
        moved = "–" if was == place else f"{'↑' if was > place else '↓'} {abs(was - place)}, from {was}"
        reasons = _reasons_of(room)[:3]
        why = "; ".join(f"{in_words(reason)} {reason.contribution:+.2f}" for reason in reasons)
        rows.append((str(place), before.get(place, "–"), _named(room), moved, score, why))
    head = ("place", "before", "after", "moved", "P(join | looked at)", "what moves it most, in log-odds")
    shown = [head, *rows] if any(room["reasons"] for room in last) else [row[:-1] for row in [head, *rows]]
    yield table(shown)
    yield paragraph(
        "A score is the probability that the viewer joins the room if they look at it. Reasons compare a room "
        "with the typical one of the same ranking."
    )


def _named(room: Mapping[str, Any]) -> str:
    return f"{room['candidate']} ({room['topic']})"


def _reasons_of(room: Mapping[str, Any]) -> list[Reason]:
    return msgspec.convert(room["reasons"] or [], list[Reason])


def _quality(train: Report) -> Iterator[str]:
    """Yield each measure of both contenders with 95 % intervals, and the paired differences."""
    rows: list[Sequence[str]] = [("measure", "model", "popular", "difference")]
    for key, title in MEASURES.items():
        values, spans = train["measures"][key], train["intervals"][key]
        if None in values.values():
            continue
        ends = {name: ([low], [high]) for name, (low, high) in spans.items()}
        series = [Series(name, [values[name]], [name], "points", *ends[name]) for name in SIDES]
        yield plot(title[0].upper() + title[1:], Axis(title, zero=True), Axis(""), series, height=90)
        error = train["paired"]["expected_labels_se" if key == "expected_labels" else "se"]
        difference = f"{train['paired'][key]:+.3f} ± {2 * error:.3f}"
        rows.append((title, *(f"{values[name]:.3f}" for name in SIDES), difference))
    yield table(rows)
    yield paragraph(
        f"On {train['test_rows']:,} rows of rankings after those that trained the model. ± two standard errors of "
        "the paired difference; bars are 95 % intervals. Expected joins correct for how often a place is looked "
        "at; NDCG on the logged order favours popular, which made that order."
    )


def _next(folder: Path) -> str:
    found = {file: what for file, what in LINKS.items() if (folder / file).exists()}
    pages = [f'<li><a href="{file}">{escape(what)}</a></li>' for file, what in found.items()]
    commands = [f"<li><code>{escape(line)}</code>: {escape(what)}</li>" for line, what in COMMANDS.items()]
    return f"<ul>{''.join((*pages, *commands))}</ul>"
