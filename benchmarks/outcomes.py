"""Compare one network of several outcomes with networks of one outcome, in simulated worlds.

In shapes, N is the number of rows and O of outcomes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.world import SURFACE, earned, simulated, trained
from serve.features.surface import Surface, load_surface, read_surface
from training.evaluation.slates import Slates, auc
from training.terminal import PARTS, decimal
from training.world.provenance import Provenance

JOIN, HIDE = "join", "hide"
WEIGHTS = {JOIN: 1.0, "stay": 0.02, HIDE: -5.0}
# Candidates are ordered with each of these weights of a hide, and the weights 1 of a join and 0 of
# a stay.
HIDE_WEIGHTS = (0, -5, -20, -50)
# Hides are rare, and it takes days until a host has enough of them to predict more.
DAYS = 7.0


def outcomes(rows: int, num_seeds: int) -> dict[str, Any]:
    """Return how well one network predicts joins, stays and hides, and what their weights do.

    On the first 80 % of each world, a network of all outcomes and one of each outcome alone are
    trained. The rest measures them. `outputs` has a line for each seed, outcome and network, with
    the `auc` of whether the outcome happened, and the `correlation` with its true expected amount.
    `orders` has the true joins, minutes and hides per ranking, if the network of all outcomes
    orders with each of `HIDE_WEIGHTS`, and if the network of joins alone orders.
    """
    outputs, orders = [], []
    for seed in range(num_seeds):
        with simulated(rows, seed, days=DAYS) as log:
            networks = {"all": WEIGHTS} | {f"{name} alone": {name: WEIGHTS[name]} for name in WEIGHTS}
            for network, weights in networks.items():
                PARTS.begin(f"seed {seed}, {network}")
                told, ordered = _measured(log, weights, seed)
                outputs += [{"seed": seed, "network": network, **line} for line in told]
                orders += [{"seed": seed, "network": network, **line} for line in ordered]
    outputs.sort(key=lambda line: (line["seed"], [*WEIGHTS].index(line["outcome"])))
    return {"rows": rows, "outputs": outputs, "orders": orders}


def table(result: Mapping[str, Any]) -> str:
    """Return the lines of `outputs` and of `orders` as text."""
    tables = (pd.DataFrame(result[name]) for name in ("outputs", "orders"))
    return "\n\n".join(lines.to_string(index=False, float_format=decimal) for lines in tables)


def weighed(weights: Mapping[str, float]) -> Surface:
    """Return the surface `spaces`, which weighs joins only, with these weights."""
    text = load_surface(SURFACE).text
    lines = "\n".join(f"{name} = {weight}" for name, weight in weights.items())
    return read_surface(text.replace("[weights]\njoin = 1\n", f"[weights]\n{lines}\n"))


def _measured(
    log: Path, weights: Mapping[str, float], seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return how well a network predicts these outcomes and, if joins are among them, orders."""
    _, data, scores, truth = trained(log, weighed(weights), log.with_name("-".join(weights)), seed)
    amounts = {JOIN: truth["p_join"], "stay": truth["p_join"] * truth["minutes"], HIDE: truth["p_hide"]}
    share = dict(zip(weights, scores.T.astype(np.float64), strict=True))
    told, orders = [], []
    for happened, (name, score) in zip(data.outcomes.T, share.items(), strict=True):
        known = ~np.isnan(happened)
        correlation = float(np.corrcoef(score[known], amounts[name][known])[0, 1])
        found = {"auc": auc(happened[known] > 0, score[known]), "correlation": correlation}
        told.append({"outcome": name, **found})
    world, slates = Provenance.read(log).world(), Slates(data.outcomes[:, 0], data.slate, data.viewer)
    for weight in HIDE_WEIGHTS if JOIN in share else ():
        if weight == 0 or HIDE in share:
            order = slates.order(share[JOIN] + (weight * share[HIDE] if weight else 0.0))
            made = zip(("joins", "minutes", "hides"), earned(order, slates, truth, world), strict=True)
            orders.append({"hide": weight} | {name: float(value) for name, value in made})
    return told, orders
