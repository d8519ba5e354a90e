"""Run simulated viewers at a service with two arms, and compute the true effect of the model."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from benchmarks.rerun.drive import TIMEOUT_S, Served, drive
from benchmarks.rerun.simulator_state import SimulatorState
from serve.client import Client
from serve.contract.commands import API_KEY, key_header
from serve.contract.errors import TabrankError
from serve.contract.validation import refuse_existing
from serve.features.surface import load_surface
from training.data.dataset import Progress

# The surface of the simulated world. Below are the arms of cluster.yaml.
SURFACE = "spaces"
TREATMENT, CONTROL = "tabnet", "popular"


def simulate(
    log: Path,
    url: str,
    out: Path,
    *,
    days: float = 7.0,
    rankings: int = 50_000,
    progress: Progress = lambda share: None,
) -> dict[str, Any]:
    """Continue the world of a simulated log for `days`, with `rankings` visits to the service.

    The service assigns the viewers to its arms and writes the log. The result, which is also
    written to `out`/truth.json, holds the expected clicks and joins of each of the `arms`, and the
    relative `effect` of TREATMENT on them. `held` is true if every ranking was full.

    Raises:
        TabrankError: the log does not exist, the service is not suitable, or it has already
            continued this log.
    """
    refuse_existing(out)
    described = _described(url)
    with Client(url, timeout_s=TIMEOUT_S, api_key=os.environ.get(API_KEY)) as service:
        simulator = SimulatorState.after(log, days)
        start_s = time.perf_counter()
        served = drive(simulator, simulator.visits(rankings), service, progress)
        seconds = time.perf_counter() - start_s
    arms = {arm: expected(served, arm) for arm in (CONTROL, TREATMENT)}
    result = {
        "start_ms": simulator.provenance.end_ms,
        "end_ms": simulator.world.end_ms,
        "model": described["model"],
        "rankings": len(served.arm),
        "seconds": round(seconds, 3),
        "events": served.num_events,
        "by_rung": dict(Counter(served.rung)),
        "arms": arms,
        "effect": {
            name: value / arms[CONTROL][name] - 1
            for name, value in arms[TREATMENT].items()
            if "_per_" in name
        },
        "held": set(served.rung) == {"full"},
    }
    out.mkdir(parents=True)
    (out / "truth.json").write_text(json.dumps(result, indent=1, allow_nan=False), encoding="utf-8")
    return result


def _described(url: str) -> dict[str, Any]:
    """Return what the service says of its model; refuse one that this benchmark cannot use."""
    try:
        answer = httpx2.get(f"{url}/v1/model", headers=key_header(), timeout=TIMEOUT_S, trust_env=False)
        described: dict[str, Any] = answer.raise_for_status().json()
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        raise TabrankError(f"--url: {url} does not answer ({error}); start the service") from None
    names = {arm["name"] for arm in described["experiment"]["arms"] if arm["share"] > 0}
    is_same = described["surface_fingerprint"] == load_surface(SURFACE).fingerprint
    if (described["clock"], is_same, names) != ("event", True, {TREATMENT, CONTROL}) or not described[
        "model"
    ]:
        raise TabrankError(
            f"--url: the service at {url} has the arms {', '.join(sorted(names))}, the clock {described['clock']}, "
            f"the surface {described['surface']} and the model {described['model']}; start it with "
            "benchmarks/rerun/cluster.yaml and a published model"
        )
    return described


def expected(served: Served, arm: str) -> dict[str, float]:
    """Return the exposures and viewers of an arm, and its expected clicks and joins per each.

    These are true expectations, without noise. The expected clicks of an exposure are the sum over
    its candidates of P(examined) · P(click | examined). The same holds for joins.
    """
    is_mine = np.array(served.arm) == arm
    num = {"exposure": int(is_mine.sum()), "viewer": len(np.unique(served.viewer[is_mine]))}
    found: dict[str, float] = {f"{unit}s": size for unit, size in num.items()}
    rows = np.repeat(is_mine, [len(shown) for shown in served.record.shown])
    for name, chance in (("clicks", "p_click"), ("joins", "p_join")):
        total = float((served.record.flat("examination") * served.record.flat(chance))[rows].sum())
        found |= {f"{name}_per_{unit}": total / size for unit, size in num.items()}
    return found


def table(result: Mapping[str, Any]) -> str:
    """Format the result as text."""
    shown = ", ".join(f"{arm['exposures']} of {name}" for name, arm in result["arms"].items())
    rungs = ", ".join(f"{num} {rung}" for rung, num in result["by_rung"].items())
    return "\n".join(
        [
            f"{result['rankings']} rankings in {result['seconds']:.1f} s: {shown}; {rungs}",
            *(f"true effect on {name}: {effect:+.2%}" for name, effect in result["effect"].items()),
            "held" if result["held"] else "NOT held: not all rankings were full",
        ]
    )
