"""The report of an experiment: from a served log to a verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd

from serve.contract.errors import TabrankError
from serve.features.experiment_metrics import EXPOSURES, metrics_of
from serve.features.surface import Surface
from training.experiment import fading, guardrails, segments
from training.experiment.comparison import comparisons, days_needed
from training.experiment.decision import Decision, Facts, decide
from training.experiment.declared import Declared
from training.experiment.in_force import in_force
from training.experiment.panel import Panel, panel
from training.experiment.served_log import read_events, read_exposures
from training.experiment.statistics import MIN_VIEWERS, sample_ratio
from training.experiment.verdict import faults, outlook, too_early
from training.experiment.window import ALL_VIEWERS, partial_days, utc, window

# What replaces missing values in the columns that say how an exposure was ranked.
MISSING = {"model": "no model", "weights": "{}", "rules": ""}
# What the numbers are if nothing judges them.
EXPLORATORY = (
    "nothing shows that a metric was chosen before its effect was seen, so the tables are exploratory"
)


def report(
    log: Path,
    of_file: Declared,
    surface: Surface,
    *,
    compare: tuple[str, str] | None = None,
    by: str | None = None,
) -> dict[str, Any]:
    """Analyse an experiment, and return the content of report.json.

    The declaration in the log judges, and without one there is no verdict; `of_file` is that of the
    file. `compare` names control and treatment. By default, the control is the arm that ranks by
    popularity, and the treatment is the only other arm. If the window ends before the declared end,
    it is judged by the interval for any look, because the data may have influenced who looks when.
    The effect on the primary metric is also given for each value of the field `by`, such as
    `viewer.country`.

    Raises:
        TabrankError: the log holds no exposure of the experiment, it is unclear which arms to
            compare, the declaration names a metric that the surface does not have, or the field
            gives no segments.
    """
    exposures, events = read_exposures(log, of_file.name), read_events(log)
    rows = exposures.rows
    declaration, changes, undeclared = in_force(rows, of_file, surface)
    for each in (of_file, declaration):
        for path, error in each.misfits(surface):
            raise TabrankError(f"{each.source}: experiment.{'.'.join(path)}: {error}")
    span = window(rows, declaration)
    people = panel(rows, events, span, surface.outcomes)
    in_window, partial = span.holds(rows["ts_ms"]), partial_days(span)
    here = rows[rows["ours"] & in_window]
    arms = _compared(people, declaration, compare)
    shares, source = _shares(here, arms, declaration)
    ratio = shares[arms[1]] / shares[arms[0]] if shares[arms[0]] else 0.0
    viewers = {arm: int((people.arm == arm).sum()) for arm in shares}
    p = sample_ratio(viewers[arms[0]], viewers[arms[1]], ratio) if ratio and any(viewers.values()) else None
    crossing_share = people.num_crossing / len(people.arm)
    invalid = faults(viewers, shares, p, crossing_share)
    last_ms = max(int(table["ts_ms"].max()) for table in (rows, events) if len(table))
    ended = declaration.end_ms is not None and last_ms >= declaration.end_ms and span.closed is None
    num_exposures = int(here["arm"].isin(arms).sum())
    num_days = span.whole_days(span.end_ms if ended else span.last_ms)
    early = too_early(declaration, num_days, num_exposures, viewers)
    every, kinds = metrics_of(surface), set(events["kind"].unique())
    absent = [metric for metric in every if not kinds.issuperset(metric.events)]
    # What is declared stays primary while it has no events, and so does what it is made of.
    declared = next((one.above for one in every if one.name == declaration.primary_metric), "")
    metrics = [metric for metric in every if metric not in absent or metric.above == declared]
    # By default, the log's first outcome per viewer.
    named = declaration.primary_metric or metrics[0].name
    primary = next(metric for metric in metrics if metric.name == named)
    if by is not None:
        segments.check(by, surface, primary)
    smallest = declaration.smallest_effect
    compared: list[dict[str, Any]] = []
    facts, divided = None, None
    of_answers = guardrails.tests(here, people, arms, ended=ended)
    decision, days = Decision("invalid", "; ".join(invalid)), None
    if not invalid:
        compared = comparisons(people, arms, metrics, ratio=ratio, smallest_effect=smallest, ended=ended)
        rows_of = {row["name"]: row for row in compared}
        per_viewer = rows_of[f"{primary.above}_per_viewer" if primary.below else primary.name]
        facts = Facts(
            primary,
            rows_of[primary.name],
            per_viewer,
            rows_of[EXPOSURES.name],
            guardrails.of_metrics(rows_of, every, declaration, people, arms, ended=ended) + of_answers,
            fading.by_period(people, arms, primary, per_viewer["effect"], ended=ended),
        )
        decision = decide(facts, arms, smallest, ended=ended)
        whole = [day not in partial for day in span.days]
        days = days_needed(people, arms, decision.wanted, whole, MIN_VIEWERS)
        if by is not None:
            split = segments.parts(by, log, surface, primary, (rows, events, span), people, arms)
            divided = segments.effects(by, split, arms, primary, ended=ended)
    if facts and early:
        reason = f"too early: {decision.reason}; {early}"
        decision = replace(decision, verdict="no difference shown", reason=reason, instead=None)
        missing = declaration.min_days - num_days
        days = None if days is None or num_exposures < declaration.min_exposures else max(days, missing)
    if facts and undeclared:
        decision, days = Decision("no verdict", undeclared), None
    instead = decision.instead
    if closed := span.closed or ("the declared end has passed" if ended and early else None):
        instead = f"no further days come: {closed}"
    fades = bool(facts and facts.lasting["fades"])
    ranked_by = _treatments(here, arms)
    return {
        "experiment": declaration.name,
        "verdict": decision.verdict,
        "reason": decision.reason,
        "days_needed": days,
        "outlook": EXPLORATORY
        if decision.verdict == "no verdict"
        else outlook(decision.verdict, days, decision.awaited, instead, fades=fades, ended=ended),
        "control": arms[0],
        "treatment": arms[1],
        "primary_metric": primary.name,
        "primary_declared": declaration.primary_metric is not None,
        "smallest_effect": smallest,
        "declared": declaration.logged and msgspec.to_builtins(declaration.logged),
        "warnings": [
            *changes,
            *_change_warnings(ranked_by),
            *guardrails.warnings(of_answers, arms),
            *_sample_warnings(here["request_id"]),
        ],
        "ranked_by": ranked_by,
        "window": {
            "start": utc(span.start_ms),
            "end": utc(span.end_ms),
            "last_exposure": utc(span.last_ms),
            "days": span.days,
            "partial_days": partial,
            "declared_in": declaration.source,
            "shares_changed": span.changed,
            "closed": span.closed,
            "exposures_left_out": int((rows["ours"] & ~in_window).sum()),
            "before": utc(span.before_ms),
            "assigned_alike": list(span.assigned_alike),
            "ended": ended,
            "whole_days": num_days,
            "exposures": num_exposures,
        },
        "sample_ratio": {
            "viewers": viewers,
            "shares": shares,
            "shares_from": source,
            "p": p,
            "crossing_viewers": people.num_crossing,
            "crossing_share": crossing_share,
        },
        "left_out": {
            "test_exposures": exposures.num_test,
            "anonymous_exposures": exposures.num_anonymous,
            "viewers_of_other_arms": len(people.arm) - sum(viewers.values()),
            "events_without_exposure": people.num_unattributed,
            "events_of_unknown_amount": {name: num for name, num in people.num_unknown.items() if num},
        },
        "viewers_seen_before": people.num_seen_before,
        "metrics": compared,
        "metrics_without_events": [metric.title for metric in absent],
        "guardrails": guardrails.by_arm(here, arms),
        "guardrail_tests": facts.tested if facts else of_answers,
        "fading": facts and facts.lasting,
        "segments": divided,
    }


def _compared(people: Panel, declaration: Declared, compare: tuple[str, str] | None) -> tuple[str, str]:
    """Return the names of the control and the treatment."""
    # An arm that has all viewers is a winner that was shipped, so it takes no part.
    asked = {name for name, share in declaration.shares.items() if 0 < share < ALL_VIEWERS}
    arms = sorted(set(people.arm) | asked)
    listed = ", ".join(arms)
    if len(arms) < 2:
        raise TabrankError(
            f"{declaration.name}: only the arm {listed} has a share or served anybody; give a second arm a share "
            "above 0 in user_config.experiment.arms, and let it serve"
        )
    # By default, popular is compared with the only other arm.
    found = compare or (declaration.popular, *(arm for arm in arms if arm != declaration.popular))
    if len(found) != 2 or found[0] == found[1] or not {*found} <= {*arms}:
        given = f" {' '.join(compare)}" if compare else ""
        raise TabrankError(
            f"--arms{given}: name the control and the treatment to compare; the arms of {declaration.name} are {listed}"
        )
    return found[0], found[1]


def _shares(here: pd.DataFrame, names: Sequence[str], declaration: Declared) -> tuple[dict[str, float], str]:
    """Return the intended share of each arm, and where the shares come from."""
    logged = here.groupby("arm", observed=True)["share"].last().dropna()
    if set(names) <= set(logged.index):
        return {name: float(logged[name]) for name in names}, "the log"
    declared = declaration.shares
    if all(declared.get(name) for name in names):
        return {name: declared[name] for name in names}, str(declaration.source)
    return dict.fromkeys(names, 1 / len(names)), "no source, assumed equal"


def _treatments(here: pd.DataFrame, names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Return by arm the model versions that ranked in the window, in the order of first exposures.

    A version with other weights or with other rules counts as another version. Each has its number
    of `exposures` and the times of the first and the last one. Fallbacks are left out. The log does
    not record which order an arm without a model used.
    """
    ranked = here[here["rung"] != guardrails.FALLBACK]
    ranked_by = {}
    for name in names:
        ours = ranked[ranked["arm"] == name]
        told = ours[["ts_ms", *MISSING]].astype(dict.fromkeys(MISSING, object)).fillna(MISSING)
        spans = told.groupby([*MISSING], sort=False)["ts_ms"].agg(["size", "first", "last"])
        ranked_by[name] = [
            {"model": model, "weights": json.loads(worth), "rules": lines.splitlines()}
            | {"exposures": num, "first": utc(first), "last": utc(last), "last_ms": last}
            for (model, worth, lines), num, first, last in spans.itertuples()
        ]
    return ranked_by


def _change_warnings(ranked_by: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return a warning, with a remedy, for each arm that ranked by several of `_treatments`.

    The effect of such an arm is a mixture of theirs.
    """
    warnings = []
    for arm, found in ranked_by.items():
        if len(found) > 1:
            *_, previous, newest = sorted(found, key=lambda one: one["last_ms"])
            since = utc((previous["last_ms"] // 1_000 + 1) * 1_000)
            models = ", ".join(
                f"{guardrails.ranker(one)} ({one['exposures']:,} exposures, {one['first']} to {one['last']})"
                for one in found
            )
            warnings.append(
                f"the treatment changed: arm {arm!r} ranked by {models}, and the effect is that of all of them; "
                f'declare `start: "{since}"` in cluster.yaml to analyse only {guardrails.ranker(newest)}'
            )
    return warnings


def _sample_warnings(requests: pd.Series[Any]) -> list[str]:
    """Return a warning if some exposures represent others that were not kept."""
    num_kept = requests.nunique()
    if num_kept == len(requests):
        return []
    return [
        f"{num_kept:,} exposures were kept of about {len(requests):,}, because Ingest did not keep up: each one, with "
        "its events, counts for those that it represents; viewers and days without a kept exposure are missing in both "
        "arms, so compare the arms, but do not read numbers per viewer as those of all viewers"
    ]
