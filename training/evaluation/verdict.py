"""Turn an evaluation into sentences and table cells, for the report and the model card."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from serve.contract.validation import spelled
from serve.report.page import Tone
from training.evaluation.paired import EARNED, ENOUGH, ERRORS, shown, trails
from training.terminal import decimal

TITLES = {
    "model": "model",
    "current": "current model",
    "popular": "popular",
    "baseline": "the baseline",
    "lightgbm": "LightGBM",
}
MEASURES = {
    "expected_labels": "expected labels",
    "expected_utility": "expected utility",
    "ndcg@10": "NDCG@10",
    "auc": "AUC",
    "logloss": "logloss",
    "ece": "ECE",
}
OR_ELSE = "or the old ranker knew more than these features"
# What `shown` finds of a rival, in words with their colour: the gravest first.
FINDINGS: Mapping[str, tuple[Tone, str]] = {
    "worse order": ("bad", "the model orders worse than {}"),
    "worse predictions": ("bad", "the model predicts worse than {}"),
    "nothing": ("bad", "the model does not beat {} by two standard errors"),
    "doubtful, worse": ("unsure", f"the model orders worse than {{}}, {OR_ELSE}"),
    "doubtful": ("unsure", f"the model orders better than {{}}, {OR_ELSE}"),
    "undefined": ("unsure", "these rows do not show whether the model beats {}"),
    "better order, worse predictions": ("unsure", "the model orders better than {}, but predicts worse"),
    "better order": ("unsure", "the model orders better than {}; better predictions are not shown"),
    "better predictions": ("unsure", "the model predicts better than {}; a better order is not shown"),
    "better": ("good", "the model beats {}"),
}
DOUBT = (
    "the old ranker may have known more than these features, which `explore` of an arm, or an experiment whose arms "
    "order otherwise, would tell"
)
# What is said where nothing is shown of a rival that need not be beaten.
LEVEL = "the model and {} are level within two standard errors"
# Contenders that a model must beat.
GATES = ("popular", "baseline")
OUTCOME_MEASURES = {"auc": "AUC", "correlation": "correlation", "logloss": "logloss", "ece": "ECE"}
# What is said of the numbers of rows of which some were taken, in whole slates evenly over time.
SAMPLED = {
    "sampled_from": "the rows are a sample, evenly over time,",
    "lightgbm_sampled_from": "LightGBM learned from a sample, evenly over time,",
}
COUNTS = ("rows", "slates", "positives")
# What segments are judged to be.
SAME, FEW = "not shown to differ", "unknown, for want of rows or viewers,"
SLICE_COLUMNS = ("slice", *COUNTS, "NDCG@10", "popular's", "difference", "AUC", "logloss", "ECE")
BOARD_COLUMNS = ("", "logloss", "AUC", "NDCG@10", "µs a candidate", "in budget", "tie", "epochs")
Evaluation = Mapping[str, Any]
Rows = list[tuple[str, ...]]


def outcome(evaluation: Evaluation) -> tuple[Tone, str]:
    """Return the tone and the first words of a report: the gates that decide, and how."""
    if evaluation.get("suspects"):
        return "bad", "A column may know the future, so these figures are no evidence"
    pairs = {name: evaluation["paired"][f"model-{name}"] for name in evaluation["contenders"][1:]}
    if "bounds" in pairs.get("current", {}) and not holds(pairs["current"]):
        return "bad", "The model exceeds a bound against the current one"
    found = {TITLES[name]: shown(pairs[name]) for name in GATES if name in pairs}
    # The gravest outcome decides.
    gravest = min(found.values(), key=list(FINDINGS).index)
    tone, words = FINDINGS[gravest]
    which = " and ".join(title for title, one in found.items() if one == gravest)
    leads, worse = "; LightGBM leads" * bool(lead(evaluation)), worsened(evaluation)
    said = ", but ".join([_sentence(words.format(which)), *filter(None, [worse])])
    return "unsure" if tone == "good" and (leads or worse) else tone, said + leads


def tiles(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """Return the most important numbers: the deciding difference, and measures beside popular's."""
    pair, model, popular = (evaluation["paired"]["model-popular"], evaluation["model"], evaluation["popular"])
    by = pair["gate"]["by"]
    value, _, ends = _signed(pair[by], pair[ERRORS[by]]).partition(" ")
    note = ", ".join(filter(None, [ends and f"{ends} at 95\u00a0%", "lower is better" * (by == "logloss")]))
    return [(f"{MEASURES[by]}: model − popular", value, note)] + [
        (MEASURES[key], decimal(model[key]), f"popular: {decimal(popular.get(key))}")
        for key in ("ndcg@10", "auc", "logloss", "ece")
        if model.get(key) is not None
    ]


def verdict(evaluation: Evaluation) -> str:
    """Return the comparison with each rival, and what would improve it."""
    return " ".join([*answers(evaluation), *compared(evaluation), *support(evaluation)])


def compared(evaluation: Evaluation) -> list[str]:
    """Return a sentence for each rival, and one for the bad outcomes that rise."""
    pairs = {name: evaluation["paired"][f"model-{name}"] for name in evaluation["contenders"][1:]}
    found = [standing(pair) if "bounds" in pair else against(name, pair) for name, pair in pairs.items()]
    return [f"{_sentence(text)}." for text in filter(None, [*found, worsened(evaluation)])]


def worsened(evaluation: Evaluation) -> str:
    """Return by how much bad outcomes rise beside the current model or popular, if any do."""
    rival = "current" if "current" in evaluation["contenders"] else "popular"
    found = []
    for name, about in evaluation.get("outcomes", {}).items():
        pair, before = about["paired"][f"model-{rival}"], about[rival]["expected"]
        more, error = pair["expected"], pair["expected_se"]
        if about["is_bad"] and more is not None and 0 < ENOUGH * error <= more:
            found.append(f"{name} rises by {_relative(more, error, before) or _signed(more, error)}")
    the = "the " * (rival == "current")
    return f"{' and '.join(found)} beside {the}{TITLES[rival]}" if found else ""


def against(name: str, pair: Mapping[str, Any]) -> str:
    """Return what a pair shows of the model and a rival, with the difference."""
    found = shown(pair)
    words = LEVEL if found == "nothing" and name not in GATES else FINDINGS[found][1]
    return f"{words.format(TITLES[name])}: {difference(pair)}"


def not_beaten(paired: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each rival that a model must beat and does not, or not surely."""
    pairs = {name: paired[f"model-{name}"] for name in GATES if f"model-{name}" in paired}
    found = {name: pair for name, pair in pairs.items() if not pair["gate"]["beats"]}
    return [against(name, one) + f"; {DOUBT}" * ("doubtful" in shown(one)) for name, one in found.items()]


def support(evaluation: Evaluation) -> list[str]:
    """Return why the rows do not support what orders earn, or what would improve it, if known."""
    found, pair = evaluation["expected_labels"], evaluation["paired"]["model-popular"]
    if found["reason"]:
        earned = next(MEASURES[name] for name in EARNED if name in pair)
        return [f"{MEASURES[pair['gate']['by']]} decides and not {earned}: {found['reason']}."]
    return [f"{_sentence(found['note'])}."] if found["note"] else []


def answers(evaluation: Evaluation) -> list[str]:
    """Return what must be answered before the model is published, and what a person has said."""
    asked, known = evaluation.get("suspects", ()), ", ".join(evaluation.get("known_before", ()))
    head = ["Not to be published before it is answered what may know the future:"] * bool(asked)
    said = [f"Known before a list is shown, as the surface says: {known}."] * bool(known)
    return [*head, *(f"{each}." for each in asked), *said]


def lead(evaluation: Evaluation) -> str:
    """Return by what LightGBM leads by two standard errors, a sentence; empty if it does not."""
    pair = evaluation["paired"].get("model-lightgbm")
    found = " and by ".join(f"{abs(pair[by]):.4f} in {MEASURES[by]}" for by in trails(pair)) if pair else ""
    what = f"LightGBM leads by {found} on the rows that measure both: trees may suit this data better; "
    return f"{what}the network is what is served." if found else ""


def holds(pair: Mapping[str, Any]) -> bool:
    """Return whether the model is within all its bounds against the current model."""
    return all(bound["holds"] for bound in pair["bounds"])


def standing(pair: Mapping[str, Any]) -> str:
    """Return whether the model is not worse than the current one, and the exceeded bounds."""
    what = f"on {pair['rows']:,} rows that neither has seen, the model "
    margin = f"{100 * pair['margin']:.3g} %"
    if holds(pair):
        what += f"is not worse than the current model by more than {margin}"
    else:
        what += f"exceeds a bound against the current model (margin {margin})"
    exceeded, by = [bound for bound in pair["bounds"] if not bound["holds"]], pair["gate"]["by"]
    # How these bounds count the error of the estimate; the others do not.
    how = {"ndcg@10": "at least ", by: "up to "}
    told = []
    for bound in exceeded:
        name, outcome = bound["measure"], bound.get("outcome")
        title = f"{MEASURES[name]} of {outcome} at least" if outcome else MEASURES[name]
        size = f"{how.get(name, '')}{decimal(bound['worse'])}"
        told.append(f"{title} {size} worse, {bound['allowed']:.4f} allowed")
    # By a learned examination alone, the newcomer may pass for a wrong reason.
    broken = {bound["measure"] for bound in exceeded}
    if by in EARNED and by not in broken and "ndcg@10" in broken:
        told.append(DOUBT)
    if "outcomes" in pair:
        alone = f"the current model predicts {' and '.join(pair['outcomes'])} alone"
        told.append(f"of the weighed outcomes {alone}, and is ordered by that")
    return f"{what}: {'; '.join([difference(pair), *told])}"


def headline(evaluation: Evaluation) -> str:
    """Return a sentence about a search's winner, and what is level with it in validation."""
    search, board = evaluation["search"], evaluation["search"]["leaderboard"]
    point = search["config"]
    us = next(line["us_per_candidate"] for line in board if line["name"] == search["winner"])
    name = f"{search['winner']} ({point['width']} wide, {point['n_steps']} steps, {point['mask_type']}, "
    name += f"{us:.1f} µs a candidate)"
    tied = [line["name"] for line in board if line.get("tie") and line["name"] != search["winner"]]
    how = "won the search"
    if tied:
        named = ", ".join(tied[:3]) + f" and {len(tied) - 3} more" * (len(tied) > 3)
        how = f"was taken by validation logloss and cost; level with it there within two standard errors: {named}"
    return " ".join(filter(None, [f"{name} {how}.", lead(evaluation)]))


def order(evaluation: Evaluation) -> str:
    """Return how many slates the measures of order come from, and what was left out."""
    num, num_pinned = evaluation["slates"], evaluation.get("pinned_rows", 0)
    alone = f"{num:,} slates with a positive and another candidate, which alone have an order"
    alone += f"; {num_pinned:,} rows that requests pinned are left out" if num_pinned else ""
    if num_masked := evaluation.get("masked_rows"):
        alone += f"; {num_masked:,} rows are left out, whose outcome is not known yet or was not recorded"
    for name, what in SAMPLED.items():
        alone += f"; {what} of {evaluation[name]:,}" if name in evaluation else ""
    return alone


def measures(evaluation: Evaluation) -> Rows:
    """Return a header, then a row for each measure: its value and interval for each contender."""
    names = evaluation["contenders"]
    rows: Rows = [("", *(TITLES[name] for name in names))]
    for key, title in MEASURES.items():
        bounds = (evaluation["intervals"][name].get(key) for name in names)
        cells = [decimal(evaluation[n].get(key)) + _bounds(b) for n, b in zip(names, bounds, strict=True)]
        if set(cells) != {"–"}:
            rows.append((title, *cells))
    return rows


def differences(evaluation: Evaluation) -> Rows:
    """Return a header, then a row for each rival: the model's measures minus its own."""
    known = [by for by in ERRORS if by in evaluation["paired"]["model-popular"]]
    rows: Rows = [("model minus", *(MEASURES[by] for by in known))]
    for name in evaluation["contenders"][1:]:
        pair = evaluation["paired"][f"model-{name}"]
        rows.append((TITLES[name], *(_signed(pair[by], pair[ERRORS[by]]) for by in known)))
    return rows


def outcomes(evaluation: Evaluation) -> Rows:
    """Return a header, then a row for each outcome and contender, if outcomes were measured."""
    rows: Rows = [("", "expected per exposure", "model minus", *OUTCOME_MEASURES.values())]
    for name, about in evaluation.get("outcomes", {}).items():
        rows.append((f"{name}, weight {about['weight']:g}", *("" for _ in rows[0][1:])))
        for key in evaluation["contenders"]:
            one, pair = about[key], about["paired"].get(f"model-{key}", {})
            expected = decimal(one["expected"]) + _bounds(one["expected_interval"])
            more = _signed(pair.get("expected"), pair.get("expected_se"))
            if part := _relative(pair.get("expected"), pair.get("expected_se"), one["expected"]):
                more += f", {part}"
            rows.append((TITLES[key], expected, more, *(decimal(one.get(by)) for by in OUTCOME_MEASURES)))
    return rows


def declared(name: str, about: Mapping[str, Any]) -> str:
    """Return what an outcome of an evaluation is, in words."""
    within, what = spelled(about["within_ms"] / 1000), f"the event `{about['event']}`"
    if "until" in about:
        what = f"minutes from `{about['event']}` until `{about['until']}`, at most {about['cap']:g},"
    elif "sum" in about:
        what = f"the sum of `{about['event']}`, at most {about['cap']:g}{about.get('unit', '')},"
    return f"`{name}` (weight {about['weight']:g}): {what} within {within} of being shown"


def slices(parts: list[Mapping[str, Any]]) -> Rows:
    """Return a header, then a row for each slice."""
    rows: Rows = [SLICE_COLUMNS]
    for part in parts:
        ours, theirs, pair = part["model"] or {}, part["popular"] or {}, part["paired"] or {}
        cells = [f"{part['by']}: {part['value']}", *(f"{part[key]:,}" for key in COUNTS)]
        cells += [decimal(one.get("ndcg@10")) for one in (ours, theirs)]
        cells += [_signed(pair.get("ndcg@10"), pair.get("se"), pair.get("interval"))]
        cells += [decimal(ours.get(key)) for key in ("auc", "logloss", "ece")]
        rows.append(tuple(cells))
    return rows


def segmented(parts: list[Mapping[str, Any]]) -> str:
    """Return in which segments the model is shown to order better or worse, and how."""
    found: dict[str, list[str]] = {"better": [], "worse": [], SAME: [], FEW: []}
    for part in parts:
        pair = part["paired"] or {}
        how = pair["shown"] or SAME if pair.get("interval") else FEW
        found[how].append(part["value"])
    told = "; ".join(f"{how} in {', '.join(values)}" for how, values in found.items() if values)
    num = len(parts) - len(found[FEW])
    judged = f" The intervals of all {num} segments hold at once at 95 % (Bonferroni)." * bool(num)
    return f"By NDCG@10, the order of the model beside popular is {told}.{judged}"


def worst(parts: list[Mapping[str, Any]], most: int = 5) -> list[Mapping[str, Any]]:
    """Return the slices that can be compared where the model gains least over popular."""
    known = [p for p in parts if p["paired"] and p["paired"]["ndcg@10"] is not None]
    return sorted(known, key=lambda part: part["paired"]["ndcg@10"])[:most]


def leaderboard(search: Mapping[str, Any], most: int = 20) -> Rows:
    """Return a header, then the best `most` of a search; a tie is level with the winner."""
    rows: Rows = [BOARD_COLUMNS]
    for line in search["leaderboard"][:most]:
        us, epochs = line["us_per_candidate"], line["epochs"]
        cells = [decimal(line[key]) for key in ("valid_logloss", "valid_auc", "valid_ndcg")]
        cells.append("–" if us is None else f"{us:.2f}")
        cells += [{True: "yes", False: "no"}.get(line.get(key), "–") for key in ("fits", "tie")]
        rows.append((line["name"], *cells, "–" if epochs is None else str(epochs)))
    return rows


def span(first_ms: int, last_ms: int) -> str:
    """Return two times, to the minute."""
    times = (time.strftime("%Y-%m-%d %H:%M", time.gmtime(ms / 1000)) for ms in (first_ms, last_ms))
    return f"{' to '.join(times)} UTC"


def difference(pair: Mapping[str, Any]) -> str:
    """Return the difference in the measure of the gate, and in another if both tell, as text."""
    by, found = pair["gate"]["by"], shown(pair)
    name, beside = MEASURES[by], "ndcg@10" if by == "logloss" or "doubtful" in found else "logloss"
    if by == "logloss":
        name += " (lower is better; it decides because most slates have one candidate)"
    name += " per exposure" * (by in EARNED)
    text = f"{name} {_signed(pair[by], pair[ERRORS[by]])} at 95 %, paired, viewers as clusters"
    if pair[by] is None:
        text = f"too few viewers have slates that define the difference in {name}"
    if by == "logloss" or "predictions" in found or "doubtful" in found:
        text += f"; {MEASURES[beside]} {_signed(pair[beside], pair[ERRORS[beside]])}"
    return text


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _bounds(interval: list[float] | None, sign: str = "") -> str:
    return "" if interval is None else f" [{interval[0]:{sign}.4f}, {interval[1]:{sign}.4f}]"


def _relative(more: float | None, error: float | None, before: float | None) -> str:
    """Return a difference as a share of what was before, with its 95 % reach; empty if unknown."""
    if more is None or error is None or not before or before < 0:
        return ""
    return f"{100 * more / before:.3g} % ± {100 * ENOUGH * error / before:.2g} %"


def _signed(value: float | None, error: float | None, interval: list[float] | None = None) -> str:
    """Return a difference with its interval, by default of as many errors as a gate wants."""
    if value is None or error is None:
        return "–"
    return f"{value:+.4f}{_bounds(interval or [value - ENOUGH * error, value + ENOUGH * error], '+')}"
