"""The report of an experiment: from a served log to a verdict, whole or blocked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serve.config.settings import Experiment
from serve.contract.errors import TabrankError
from serve.log.atomic_files import draft_of
from training.experiment.comparison import comparisons, days_needed, told
from training.experiment.declared import Declared
from training.experiment.metrics import METRICS, Metric
from training.experiment.panel import Panel, panel
from training.experiment.served_log import Exposures, read_events, read_exposures
from training.experiment.statistics import sample_ratio
from training.experiment.treatments import changes, treatments
from training.experiment.verdict import claims, faults, outlook, verdict
from training.experiment.window import Window, partial_days, utc, window

NOT_IN_THE_LOG = (
    "requests that were refused or failed leave no exposure and have no arm: they are in Ray Serve's own metrics; "
    "ray_tabrank_latency_ms_total (labels experiment, arm, le) has the latencies as they come"
)


def report(
    log: Path,
    declaration: Declared,
    *,
    timezone: str = "UTC",
    control: str | None = None,
    treatment: str | None = None,
) -> dict[str, Any]:
    """What report.json holds. Arms that are not named: the one that is popular, and the one other.

    Raises:
        TabrankError: the log holds nothing of the experiment, or it cannot be told what to compare.
    """
    exposures, events = read_exposures(log, declaration.name), read_events(log)
    span = window(exposures, declaration, timezone)
    people = panel(exposures, events, span)
    names = _compared(exposures, people, declaration, control, treatment)
    codes = tuple(exposures.arms.index(name) if name in exposures.arms else -2 for name in names)
    here = exposures.rows(span.holds(exposures.ts_ms))
    shares, source = _shares(here, names, declaration)
    viewers = {name: int((people.arm == code).sum()) for name, code in zip(names, codes, strict=True)}
    ratio = shares[names[1]] / shares[names[0]] if shares[names[0]] else 0.0
    srm_p = (
        sample_ratio(viewers[names[0]], viewers[names[1]], ratio) if ratio and sum(viewers.values()) else None
    )
    crossing = int(people.crossing.sum())
    crossing_share = crossing / len(people.arm)
    why = faults(viewers, shares, srm_p, crossing_share)

    last_ms = max(int(exposures.ts_ms[-1]), int(events.ts_ms[-1]) if len(events) else 0)
    ended = declaration.end_ms is not None and last_ms >= declaration.end_ms
    metrics = told(events)
    primary = _primary(declaration, metrics)
    smallest = declaration.smallest_effect
    ranked_by = treatments(here, names, codes)
    rows: list[dict[str, Any]] = []
    days: int | None = None
    if why:
        result, reason = "invalid", "; ".join(why)
    else:
        rows = comparisons(
            people, (codes[0], codes[1]), metrics, ratio=ratio, smallest_effect=smallest, ended=ended
        )
        row = next(row for row in rows if row["name"] == primary.name)
        result, reason = verdict(row, smallest, ended=ended)
        short = set(partial_days(span))
        whole = [i for i, day in enumerate(span.days) if day not in short]
        days = 0 if result != "no difference shown" else None
        if days is None:
            days = days_needed(people, codes, row.get("viewers_needed"), whole)
    return {
        "experiment": declaration.name,
        "verdict": result,
        "reason": reason,
        "days_needed": days,
        "outlook": outlook(result, days, smallest, ended),  # type: ignore[arg-type]
        "control": names[0],
        "treatment": names[1],
        "primary_metric": primary.name,
        "primary_declared": declaration.primary is not None,
        "smallest_effect": smallest,
        "blocked": bool(why),
        "warnings": changes(ranked_by),
        "ranked_by": ranked_by,
        "window": _window(span, exposures, declaration) | {"ended": ended},
        "sample_ratio": {
            "viewers": viewers,
            "shares": shares,
            "shares_from": source,
            "p": srm_p,
            "crossing_viewers": crossing,
            "crossing_share": crossing_share,
        },
        "left_out": {
            "test_exposures": exposures.num_test,
            "anonymous_exposures": exposures.num_anonymous,
            "repeated_exposures": exposures.num_repeated,
            "viewers_of_other_arms": len(people.arm) - sum(viewers.values()),
            "events_without_exposure": people.num_unattributed,
        },
        "viewers_seen_before": people.num_seen_before,
        "metrics": rows,
        "untold": [metric.title for metric in METRICS if metric not in metrics],
        "claims": [] if why else claims(rows),
        "daily_viewers": _daily_viewers(people, names, codes, len(span.days)),
        "guardrails": _guardrails(here, names, codes),
        "not_in_the_log": NOT_IN_THE_LOG,
    }


def write_report(out: Path, result: Mapping[str, Any]) -> None:
    """Write report.json and report.html to a new folder, whole or not at all.

    Raises:
        TabrankError: if something is at `out`.
    """
    from training.experiment.page import page  # matplotlib

    with draft_of(out) as draft:
        text = json.dumps(result, indent=1, allow_nan=False) + "\n"
        (draft / "report.json").write_text(text, encoding="utf-8")
        (draft / "report.html").write_text(page(result), encoding="utf-8")


def _compared(
    exposures: Exposures, people: Panel, declaration: Declared, control: str | None, treatment: str | None
) -> tuple[str, str]:
    """The control's and the treatment's names."""
    seen = {exposures.arms[code] for code in np.unique(people.arm)}
    arms = sorted(seen | {arm for arm, share in declaration.shares.items() if share > 0})
    said = ", ".join(arms)
    if control is None and declaration.popular not in arms:
        raise TabrankError(
            f"--control: name the arm to compare with; no arm of {declaration.name} is known to be popular; "
            f"its arms are {said}"
        )
    control = control or declaration.popular
    if control not in arms:
        raise TabrankError(f"--control {control}: no arm of {declaration.name}; its arms are {said}")
    others = [arm for arm in arms if arm != control]
    if treatment is None and len(others) == 1:
        treatment = others[0]
    if treatment is None or treatment not in others:
        given = "" if treatment is None else f" {treatment}"
        raise TabrankError(
            f"--treatment{given}: name the arm to compare with {control}; {declaration.name} has {said}"
        )
    return control, treatment


def _shares(here: Exposures, names: Sequence[str], declaration: Declared) -> tuple[dict[str, float], str]:
    """What share of viewers each arm was to have, and who says so."""
    logged = {}
    for name in names:
        of_arm = here.share[here.arm == here.arms.index(name)] if name in here.arms else here.share[:0]
        known = of_arm[np.isfinite(of_arm)]
        if len(known):
            logged[name] = float(known[-1])
    if len(logged) == len(names):
        return logged, "the log"
    if all(declaration.shares.get(name) for name in names):
        return {name: declaration.shares[name] for name in names}, str(declaration.source)
    return dict.fromkeys(names, 1 / len(names)), "nobody: taken as equal"


def _primary(declaration: Declared, metrics: Sequence[Metric]) -> Metric:
    """The declared one; without one the join rate, or what a log without joins tells."""
    known = {metric.name: metric for metric in metrics}
    if declaration.primary is not None and declaration.primary not in known:
        names = ", ".join(known)
        raise TabrankError(
            f"{declaration.source}: primary {declaration.primary!r} is not told by this log; it tells {names}"
        )
    return known[declaration.primary] if declaration.primary else known.get(Experiment.primary) or metrics[-1]


def _window(span: Window, exposures: Exposures, declaration: Declared) -> dict[str, Any]:
    ours = exposures.ts_ms[(exposures.arm >= 0) & ~span.holds(exposures.ts_ms)]
    return {
        "start": utc(span.start_ms),
        "end": utc(span.end_ms),
        "last_exposure": utc(span.last_ms),
        "timezone": span.timezone,
        "days": span.days,
        "partial_days": partial_days(span),
        "declared_in": declaration.source,
        "shares_changed": span.changed,
        "exposures_left_out": len(ours),
        "before": utc(span.before_ms),
        "dealt_alike": list(span.dealt_alike),
    }


def _daily_viewers(
    people: Panel, names: Sequence[str], codes: Sequence[int], num_days: int
) -> dict[str, list[int]]:
    """How many viewers of each arm had an exposure on each day."""
    of_cell = people.arm[people.viewer]
    return {
        name: np.bincount(people.day[of_cell == code], minlength=num_days).tolist()
        for name, code in zip(names, codes, strict=True)
    }


def _guardrails(here: Exposures, names: Sequence[str], codes: Sequence[int]) -> dict[str, Any]:
    """By arm: exposures by rung, why they were degraded, and what answers took in the replica, in ms."""
    told = {}
    for name, code in zip(names, codes, strict=True):
        mine = here.rows(here.arm == code)
        num = max(len(mine), 1)
        shares = {rung: float((mine.rung == i).sum() / num) for i, rung in enumerate(here.rungs)}
        reasons = {why: float((mine.degraded == i).sum() / num) for i, why in enumerate(here.reasons)}
        took_ms = mine.latency_ms[np.isfinite(mine.latency_ms)]
        p50_ms, p99_ms = np.percentile(took_ms, (50, 99)).tolist() if len(took_ms) else (None, None)
        told[name] = {
            "exposures": len(mine),
            "rungs": shares,
            "degraded_share": 1.0 - shares.get("full", 0.0) if len(mine) and here.rungs else None,
            "reasons": {why: share for why, share in reasons.items() if share},
            "p50_ms": p50_ms,
            "p99_ms": p99_ms,
        }
    return told
