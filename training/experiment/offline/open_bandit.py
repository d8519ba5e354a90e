"""Check of the estimators on the Open Bandit Dataset, where two policies ran at the same time.

Saito, Aihara, Matsutani and Narita (2021, "Open Bandit Dataset and Pipeline"): recommendations
of a fashion shop by a uniformly random policy and by Bernoulli Thompson sampling (BTS), with one
row for each item shown, its click and the propensity of the choice. The estimate of a policy from
the other's log must agree with its own click rate. PyPI's `obp` holds 10,000 rows of each of three
campaigns.

* The random policy's value from BTS's log: its choice probabilities are known (1 / items), so the
  value is identified.
* BTS's value from the random log: its choice probabilities there are not logged. BTS ignores the
  context, so its mean choice at a position stands for its distribution: the frequencies in its
  own log, without the clicks. This assumes that an item's worth does not change while BTS learns;
  the interval includes the error of the frequencies.

Letters: N rows of the weighted log, M of the other, K items.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import sem

from serve.contract.errors import TabrankError
from training.evaluation.counterfactual import ESTIMATORS, MAX_WEIGHT, Z95, Sums
from training.examination.placements import F64, I64

CAMPAIGNS = ("all", "men", "women")
COLUMNS = ("item_id", "position", "click", "propensity_score")
POLICIES = ("random", "bts")
# Weight of the mean click rate in an item's rate, in rows, because clicks are rare.
PRIOR_ROWS = 200.0
NUM_FOLDS = 2
# Allow one of the six comparisons to fail: at 95 %, two or more fail in 3 % of data sets.
MAX_DISAGREEING = 1


class BanditLog(NamedTuple):
    """Rows of one policy in one campaign; positions count from 0."""

    item: I64
    position: I64
    click: F64
    propensity: F64


def open_bandit(path: Path) -> dict[str, Any]:
    """Estimate each policy's click rate from the other's log, and compare with its own.

    The result holds `comparisons`, each {policy, log, campaign, rows, clicks, on_policy {value,
    interval}, clipped, effective, `snips`, `dr` {value, interval, difference, agrees}}, where
    `difference` is the 95 % interval of the estimate less the on-policy value; the number that
    `agree` in both estimates; and `held`.

    Raises:
        TabrankError: `path` does not hold the data set.
    """
    comparisons = []
    for campaign in CAMPAIGNS:
        logs = {policy: _read(path, policy, campaign) for policy in POLICIES}
        for policy, other in (POLICIES, POLICIES[::-1]):
            found = _compare(logs[policy], logs[other], is_known=policy == "random")
            comparisons.append({"policy": policy, "log": other, "campaign": campaign} | found)
    agree = sum(all(one[how]["agrees"] for how in ESTIMATORS) for one in comparisons)
    held = agree >= len(comparisons) - MAX_DISAGREEING
    return {"comparisons": comparisons, "agree": agree, "held": held}


def _compare(own: BanditLog, log: BanditLog, *, is_known: bool) -> dict[str, Any]:
    """Evaluate the policy of `own` from `log`; `is_known` says that the policy is uniform."""
    num_items, num_positions = int(max(own.item.max(), log.item.max())) + 1, int(own.position.max()) + 1
    if is_known:
        choice = np.full((num_positions, num_items), 1.0 / num_items)
    else:
        choice = np.zeros((num_positions, num_items))
        np.add.at(choice, (own.position, own.item), 1.0)
        choice /= choice.sum(axis=1, keepdims=True)
    full = choice[log.position, log.item] / log.propensity
    weight = np.minimum(full, MAX_WEIGHT)
    fold = np.random.default_rng(0).integers(NUM_FOLDS, size=len(log.item))
    # [folds, K].
    rate = np.stack([_rates(log, fold != i, num_items) for i in range(NUM_FOLDS)])
    modelled = rate[fold, log.item]
    expected = (rate @ choice.T)[fold, log.position]
    parts = [weight * log.click, weight, np.ones(len(weight)), expected, weight * modelled]
    sums = Sums(
        parts=np.stack(parts),
        fixed=np.zeros(len(weight)),
        moved=np.zeros((5, len(weight))),
        effective=float(weight.sum() ** 2 / (weight**2).sum()),
        clipped=float(1.0 - weight.sum() / full.sum()),
    )
    on_policy = float(own.click.mean())
    result: dict[str, Any] = {
        "rows": len(weight),
        "clicks": int(log.click.sum()),
        "on_policy": {"value": on_policy, "interval": _interval(on_policy, sem(own.click))},
        "effective": round(sums.effective, 1),
        "clipped": sums.clipped,
    }
    # Estimated choice frequencies have an error too: each row of `own` contributes its item's rate.
    counted = np.zeros(len(own.item)) if is_known else rate.mean(axis=0)[own.item]
    for how, of in ESTIMATORS.items():
        estimate = of(sums)
        error = sem(estimate.influence)
        low, high = _interval(estimate.value - on_policy, np.hypot(error, sem(own.click - counted)))
        result[how] = {
            "value": estimate.value,
            "interval": _interval(estimate.value, np.hypot(error, sem(counted))),
            "difference": [low, high],
            "agrees": low <= 0.0 <= high,
        }
    return result


def _interval(value: float, error: float) -> list[float]:
    return [float(value - Z95 * error), float(value + Z95 * error)]


def _rates(log: BanditLog, chosen: Any, num_items: int) -> F64:
    """Return each item's click rate in the chosen rows `[K]`, shrunk to the mean."""
    item, click = log.item[chosen], log.click[chosen]
    num, clicks = np.bincount(item, minlength=num_items), np.bincount(item, click, num_items)
    return np.asarray((clicks + PRIOR_ROWS * click.mean()) / (num + PRIOR_ROWS), np.float64)


def _read(path: Path, policy: str, campaign: str) -> BanditLog:
    name = f"{policy}/{campaign}/{campaign}.csv"
    remedy = "get it with `pip download obp==0.4.1 --no-deps`, and give the wheel or its unpacked folder"
    files: list[Path | zipfile.Path]
    try:
        if path.is_dir():
            files = [*sorted(path.rglob(name))]
        else:
            wheel = zipfile.Path(path)
            files = [wheel / member for member in wheel.root.namelist() if member.endswith("/" + name)]
    except (OSError, zipfile.BadZipFile):
        raise TabrankError(f"--obp: {path} is neither a wheel nor a folder; {remedy}") from None
    if not files:
        raise TabrankError(f"--obp: {path} holds no {name} of the Open Bandit Dataset; {remedy}")
    try:
        with files[0].open("rb") as file:
            table = pd.read_csv(file, usecols=COLUMNS)
    # A damaged file, or one that lacks a column.
    except (OSError, zipfile.BadZipFile, zlib.error, ValueError) as error:
        raise TabrankError(f"--obp: {name} in {path} cannot be read ({error}); {remedy}") from None
    item, position = (table[name].to_numpy(np.int64) for name in ("item_id", "position"))
    click, propensity = (table[name].to_numpy(np.float64) for name in ("click", "propensity_score"))
    return BanditLog(item, position - position.min(), click, propensity)


def text(result: Mapping[str, Any]) -> str:
    """Format the result for people."""
    lines = ["Open Bandit Dataset, clicks a row:"]
    lines.append("policy  from    campaign  on policy  snips (95 %)               dr (95 %)")
    for one in result["comparisons"]:
        cells = []
        for found in (one[how] for how in ESTIMATORS):
            low, high = found["interval"]
            cells.append(f"{found['value']:.4f} [{low:.4f}, {high:.4f}]{'' if found['agrees'] else ' !'}")
        line = f"{one['policy']:<8}{one['log']:<8}{one['campaign']:<10}{one['on_policy']['value']:9.4f}  "
        lines.append(line + "  ".join(f"{cell:<25}" for cell in cells))
    lines.append(f"{result['agree']} of {len(result['comparisons'])} agree")
    return "\n".join(lines)
