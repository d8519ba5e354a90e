"""Estimate an artifact's reward before it gets any traffic, from a served log with exploration.

The artifact is compared with `served`, the ranking by the logged scores, which viewers get without
exploration. If an arm has slate rules, viewers get that ranking as the rules change it; here,
neither ranking applies rules. Candidates that requests pinned keep their places in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serve.contract.errors import TabrankError
from serve.ranking.exploration import log_weight
from serve.report.rows import columns
from training.data.dataset import Progress
from training.evaluation.attraction import attraction, ranked
from training.evaluation.counterfactual import MIN_EFFECTIVE, Counterfactual, Drawn, Estimate
from training.evaluation.evaluate import opened
from training.evaluation.metrics import is_shown
from training.examination.placements import F64, Bins, place_counts
from training.experiment.offline.explored import explored
from training.experiment.offline.interference import effect_of_above
from training.terminal import longer

# An effect of the candidates above is reported from this number of standard errors on.
DOUBTFUL = 3.0
SHOWN_PLACES = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1_000)
SEED = 0


def offline(folder: Path, model: Path, progress: Progress = lambda share: None) -> dict[str, Any]:
    """Estimate how many candidates per exposure get the primary outcome's event in a ranking.

    The result holds that of `compare`, what `Explored` says `about` the exposures, `event` and
    `version`. No ranking here applies the arms' rules, and pins keep their places in each.

    Raises:
        TabrankError: the artifact or the log is invalid, the log has no propensities, or it has too
            few events.
    """
    artifact, surface = opened(model)
    found = explored(folder, artifact, surface, progress)
    return {
        "event": surface.primary.event,
        "version": artifact.version,
        **found.about,
        **compare(found.drawn, found.score, is_probability=found.is_probability),
    }


def compare(drawn: Drawn, score: F64, *, is_probability: bool = True) -> dict[str, Any]:
    """Compare the ranking by `score` `[N, C]` with the ranking by the logged scores.

    Candidates are in the order shown. The result holds

    * `exposures`, `viewers` and `events` of the drawn exposures.
    * `model`, `served`: the estimate, {value, interval}; `effective_events`; and `clipped`, the
      share of the weight that was clipped.
    * `drawn`: {value, interval}, the actual reward of the drawn orders.
    * `difference`: {value, interval, relative, more_log}, the model's value minus that of `served`,
      and how many times this log it would take to show it, as
      `training.evaluation.metrics.more_log` says.
    * `examination`: {position: θ}.
    * `above`: {value, interval, `matters`}, the effect of the candidates above, as
      `training.experiment.offline.interference` defines it, or null if the log holds no information
      on it.
    * `verdict`: better, worse, or no difference shown.

    Raises:
        TabrankError: there are too few events, or too few effective events.
    """
    bins = Bins(drawn.weight.shape[1])
    known = Counterfactual(drawn, bins, place_counts(drawn.weight, bins, np.random.default_rng(SEED)))
    places = {"model": ranked(score, known.is_drawn), "served": ranked(drawn.weight, known.is_drawn)}
    weight = log_weight(score, is_probability=is_probability)
    worth = attraction(known, np.stack([drawn.weight, weight], axis=2))
    values = {name: known.value(place, worth) for name, place in places.items()}
    for name, one in values.items():
        if one.effective < MIN_EFFECTIVE:
            raise TabrankError(
                f"the ranking by {name} has {one.effective:.0f} effective events, but needs at least "
                f"{MIN_EFFECTIVE:.0f}; collect more, or raise the arm's `explore`"
            )
    rankings = {
        name: _summary(one.estimate, drawn)
        | {"effective_events": round(one.effective, 1), "clipped": one.clipped}
        for name, one in values.items()
    }
    ours, theirs = values["model"].estimate, values["served"].estimate
    apart, theta = ours.minus(theirs), known.examination
    difference = _summary(apart, drawn) | {
        "relative": ours.value / theirs.value - 1.0 if theirs.value > 0 else None,
        "more_log": apart.more_log(drawn.cluster),
    }
    above = effect_of_above(drawn, bins, np.random.default_rng(SEED))
    matters = above and (above.more_log(drawn.cluster, DOUBTFUL) or np.inf) <= 1
    return {
        "exposures": len(drawn),
        "viewers": len(np.unique(drawn.cluster)),
        "events": int(drawn.reward.sum()),
        **rankings,
        "drawn": _summary(known.logged(), drawn),
        "difference": difference,
        "examination": {str(at): float(theta[at - 1]) for at in SHOWN_PLACES if at <= len(theta)},
        "above": above and _summary(above, drawn) | {"matters": matters},
        "verdict": called(difference),
    }


def called(difference: Mapping[str, Any]) -> str:
    """Return the verdict on a difference, which is shown if `more_log` is at most 1."""
    if not is_shown(difference):
        return "no difference shown"
    return "better" if difference["value"] > 0 else "worse"


def _summary(estimate: Estimate, drawn: Drawn) -> dict[str, Any]:
    low, high = estimate.interval(drawn.cluster)
    if not np.isfinite(low + high):
        raise TabrankError("all drawn orders are of one viewer, and an interval needs several; collect more")
    return {"value": estimate.value, "interval": [low, high]}


def text(result: Mapping[str, Any]) -> str:
    """Format the result as text, with the verdict first."""
    against = result["difference"]
    relative = "" if against["relative"] is None else f" ({against['relative']:+.1%})"
    what = result.get("event", "event")
    rows = [["ranking", "value", "95 %", "effective events", "weight clipped"]]
    for name in ("model", "served"):
        one = result[name]
        rows.append([name, *_cells(one), f"{one['effective_events']:.0f}", f"{one['clipped']:.1%}"])
    rows.append(["as drawn", *_cells(result["drawn"]), "", ""])
    lines = [
        f"{result['verdict']}: {against['value']:+.4f}{relative} {what}s an exposure, 95 % "
        f"{_span(against['interval'])}, against the ranking that was served",
        f"{result['exposures']} exposures with a drawn order, {result['viewers']} viewers, "
        f"{result['events']} {what}s",
        columns(rows),
    ]
    if against["more_log"] and not is_shown(against):
        lines.insert(1, f"as it stands, it takes {longer(against['more_log'])} to show a difference")
    places = "  ".join(f"{place}: {theta:.2f}" for place, theta in result["examination"].items())
    lines.append(f"examination by position: {places}")
    if result["above"] and result["above"]["matters"]:
        change = "raises" if result["above"]["value"] > 0 else "lowers"
        lines.append(
            f"doubtful: what is expected further up {change} the chance of one {what}, which the model assumes not to "
            "depend on it: trust at most the direction, not the size"
        )
    if result.get("seen_in_training"):
        lines.append(
            f"{result['seen_in_training']} of the exposures are from the training period of the model: the estimate "
            "is too optimistic; use a later log"
        )
    if rules := result.get("rules"):
        lines.append(
            f"no ranking here has the rules of the arm ({'; '.join(rules)}): without a draw, viewers see the served "
            "ranking as these rules change it"
        )
    if num_pinned := result.get("pinned_candidates"):
        lines.append(f"{num_pinned} candidates that requests pinned keep their places in each ranking")
    left = {name: num for name, num in result.get("left_out", {}).items() if num}
    if left:
        lines.append("left out: " + ", ".join(f"{num} {name}" for name, num in left.items()))
    return "\n".join(lines)


def _span(interval: list[float]) -> str:
    return f"[{interval[0]:.4f}, {interval[1]:.4f}]"


def _cells(one: Mapping[str, Any]) -> list[str]:
    return [f"{one['value']:.4f}", _span(one["interval"])]
