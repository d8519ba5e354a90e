"""The report of an experiment: from a served log to a verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from serve.config.settings import Arm
from serve.contract.errors import TabrankError
from serve.features.experiment_metrics import EXPOSURES, Metric, metrics_of
from serve.features.surface import Surface
from training.evaluation.slate_cost import cost_of_arm
from training.experiment import fading, guardrails, segments
from training.experiment.comparison import comparisons, days_needed
from training.experiment.declared import Declared
from training.experiment.in_force import in_force
from training.experiment.panel import Panel, panel
from training.experiment.served_log import hashed, read_events, read_exposures
from training.experiment.statistics import MIN_VIEWERS, sample_ratio
from training.experiment.verdict import Verdict, by_denominator, by_limit, faults, outlook, too_early, verdict
from training.experiment.window import ALL_VIEWERS, Window, partial_days, utc, window
from training.terminal import print_progress

# What replaces missing values in the columns that say how an exposure was ranked.
MISSING = {"model": "no model", "weights": "{}", "rules": ""}
# What the numbers are if nothing judges them.
EXPLORATORY = (
    "nothing shows that a metric was chosen before its effect was seen, so the tables are exploratory"
)
# At most this many rows of an arm are ranked again to find what its rules cost. That takes seconds.
COST_ROWS = 100_000


def report(
    log: Path,
    declaration: Declared,
    surface: Surface,
    *,
    timezone: str = "UTC",
    control: str | None = None,
    treatment: str | None = None,
    until_ms: int | None = None,
    by: str | None = None,
) -> dict[str, Any]:
    """Analyse an experiment up to `until_ms`, and return the content of report.json.

    The declaration in the log judges, and without one there is no verdict. `declaration` is that of
    the file. By default, the control is the arm that ranks by popularity, and the treatment is the
    only other arm. If the window ends before the declared end, it is judged by the interval for any
    look, because the data may have influenced who looks when. The effect on the primary metric is
    also given for each value of the field `by`, such as `viewer.country`.

    Raises:
        TabrankError: the log holds no exposure of the experiment, it is unclear which arms to
            compare, the declaration names a metric that the surface does not have, or the field
            gives no segments.
    """
    exposures, events = read_exposures(log, declaration.name), read_events(log)
    rows, of_file = exposures.rows, declaration
    declaration, changes, undeclared = in_force(rows, of_file, surface, timezone, until_ms)
    for each in (of_file, declaration):
        for path, error in each.misfits(surface):
            raise TabrankError(f"{each.source}: experiment.{'.'.join(path)}: {error}")
    span = window(rows, declaration, timezone, until_ms)
    people = panel(rows, events, span, surface.outcomes)
    here = rows[rows["ours"] & span.holds(rows["ts_ms"])]
    arms = _compared(people, declaration, control, treatment)
    shares, source = _shares(here, arms, declaration)
    ratio = shares[arms[1]] / shares[arms[0]] if shares[arms[0]] else 0.0
    viewers = {arm: int((people.arm == arm).sum()) for arm in shares}
    p = sample_ratio(viewers[arms[0]], viewers[arms[1]], ratio) if ratio and any(viewers.values()) else None
    crossing_share = people.num_crossing / len(people.arm)
    why = faults(viewers, shares, p, crossing_share)
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
    primary = _primary(declaration, metrics)
    if by is not None:
        segments.check(by, surface, primary)
    smallest = declaration.smallest_effect
    compared: list[dict[str, Any]] = []
    lasting: dict[str, Any] | None = None
    divided: dict[str, Any] | None = None
    result: Verdict = "invalid"
    reason, days, instead = "; ".join(why), None, None
    awaited = f"an effect of {smallest:.1%} shows with 80 % probability{' at a look' * (not ended)}"
    tested = of_answers = guardrails.tests(here, people, arms, ended=ended)
    if not why:
        compared = comparisons(people, arms, metrics, ratio=ratio, smallest_effect=smallest, ended=ended)
        rows_of = {row["name"]: row for row in compared}
        row = rows_of[primary.name]
        tested = guardrails.of_metrics(rows_of, every, declaration, people, arms, ended=ended) + of_answers
        result, reason = verdict(row, smallest, ended=ended)
        per_viewer = rows_of[f"{primary.above}_per_viewer"] if primary.below else row
        lasting = fading.by_period(people, arms, primary, per_viewer["effect"], ended=ended)
        if by is not None:
            split = segments.parts(by, log, surface, primary, (rows, events, span), people, arms)
            divided = segments.effects(by, split, arms, primary, ended=ended)
        against = guardrails.harm(tested) if result == "won" else []
        if result in ("won", "lost"):
            sign = 1 if (result == "won") != primary.bad else -1
            against += by_limit(sign, row, *arms)
            if primary.below:
                against += by_denominator(sign, per_viewer, rows_of[EXPOSURES.name], ended=ended)
            against += fading.against(sign, lasting, ended=ended)
        wanted = row.get("viewers_needed")
        if row["few"] and not row["effect"]:
            awaited = "enough viewers have any"
        if against:
            result, reason = "no difference shown", f"not {result}: {'; '.join(against)}; {reason}"
            instead = "more days alone need not change this verdict"
        elif result == "won" and (unproven := guardrails.unproven(tested)):
            whys = (guardrails.why_unproven(one, arms[0]) for one in unproven)
            result, reason = "no difference shown", f"not won: {'; '.join(whys)}; {reason}"
            needed = [one["viewers_needed"] for one in unproven]
            wanted = None if None in needed else max(needed)
            awaited = "a guardrail that has not changed is shown to hold with 80 % probability"
        elif result in ("won", "lost"):
            wanted, awaited = 0, "the minimum run is reached"
        whole = [day not in partial_days(span) for day in span.days]
        days = days_needed(people, arms, wanted, whole, MIN_VIEWERS)
        if early:
            result, reason, instead = "no difference shown", f"too early: {reason}; {early}", None
            missing = declaration.min_days - num_days
            days = None if days is None or num_exposures < declaration.min_exposures else max(days, missing)
    if undeclared and not why:
        result, reason, days = "no verdict", undeclared, None
    if closed := span.closed or ("the declared end has passed" if ended and early else None):
        instead = f"no further days come: {closed}"
    ranked_by = _treatments(here, arms)
    return {
        "experiment": declaration.name,
        "verdict": result,
        "reason": reason,
        "days_needed": days,
        "outlook": EXPLORATORY
        if result == "no verdict"
        else outlook(result, days, awaited, instead, fades=bool(lasting and lasting["fades"]), ended=ended),
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
        "window": _window(span, rows, declaration)
        | {"ended": ended, "whole_days": num_days, "exposures": num_exposures},
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
        "guardrail_tests": tested,
        "fading": lasting,
        "segments": divided,
        "slate": {
            arm.name: _cost_of_rules(arm, here, surface, declaration.models, log)
            for arm in declaration.arms
            if declaration.models and arm.slate and arm.name in arms
        },
    }


def _compared(
    people: Panel, declaration: Declared, control: str | None, treatment: str | None
) -> tuple[str, str]:
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
    control = control or declaration.popular
    if control not in arms:
        raise TabrankError(
            f"--control: {declaration.name} has no arm {control!r}; name the one to compare with; "
            f"its arms are {listed}"
        )
    others = [arm for arm in arms if arm != control]
    if treatment is None and len(others) == 1:
        treatment = others[0]
    if treatment is None or treatment not in others:
        given = "" if treatment is None else f" {treatment}"
        raise TabrankError(
            f"--treatment{given}: name the arm to compare with {control}; the arms of {declaration.name} are {listed}"
        )
    return control, treatment


def _shares(here: pd.DataFrame, names: Sequence[str], declaration: Declared) -> tuple[dict[str, float], str]:
    """Return the intended share of each arm, and where the shares come from."""
    logged = here.groupby("arm", observed=True)["share"].last().dropna()
    if set(names) <= set(logged.index):
        return {name: float(logged[name]) for name in names}, "the log"
    declared = declaration.shares
    if all(declared.get(name) for name in names):
        return {name: declared[name] for name in names}, str(declaration.source)
    return dict.fromkeys(names, 1 / len(names)), "no source, assumed equal"


def _primary(declaration: Declared, metrics: Sequence[Metric]) -> Metric:
    """Return the declared primary metric, or by default the log's first outcome per viewer."""
    known = {metric.name: metric for metric in metrics}
    return known[declaration.primary_metric or metrics[0].name]


def _window(span: Window, rows: pd.DataFrame, declaration: Declared) -> dict[str, Any]:
    return {
        "start": utc(span.start_ms),
        "end": utc(span.end_ms),
        "last_exposure": utc(span.last_ms),
        "timezone": span.timezone,
        "days": span.days,
        "partial_days": partial_days(span),
        "declared_in": declaration.source,
        "shares_changed": span.changed,
        "closed": span.closed,
        "exposures_left_out": int((rows["ours"] & ~span.holds(rows["ts_ms"])).sum()),
        "before": utc(span.before_ms),
        "assigned_alike": list(span.assigned_alike),
    }


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


def _cost_of_rules(arm: Arm, here: pd.DataFrame, surface: Surface, models: Path, log: Path) -> dict[str, Any]:
    """Return what an arm's rules cost in its exposures, or the `reason` why that is unknown."""
    print_progress(f"ranking the exposures of arm {arm.name} again, with its rules and without")
    ours = here.loc[here["arm"] == arm.name, "request_id"]
    try:
        return cost_of_arm(
            arm, surface, models, log, kept=lambda ids: np.isin(hashed(ids), ours), most_rows=COST_ROWS
        )
    except TabrankError as error:
        return {"arm": arm.name, "reason": str(error)}


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
