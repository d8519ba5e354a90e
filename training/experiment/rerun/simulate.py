"""Rerun of the experiment: run simulated viewers at the service, and summarise the effects."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing
from copy import deepcopy
from pathlib import Path
from typing import Any

from serve.config.settings import BASELINE, CURRENT, POPULAR
from serve.contract.errors import TabrankError
from serve.contract.validation import refuse_existing
from serve.features.matrix import Features
from serve.features.rows import Schema, State
from serve.features.surface import Surface, load_surface
from serve.log.reader import read_log
from serve.log.replay import Replay
from serve.model.artifact import Artifact
from serve.model.artifact import load as load_artifact
from serve.model.scorers import load_scorer
from training.audit.http_replay import ReplayClient, check_service
from training.experiment.rerun.drive import Served, drive
from training.experiment.rerun.service import InProcessArm, Score
from training.experiment.rerun.simulator_state import SimulatorState
from training.experiment.rerun.truth import by_arm, effects, write_truth

# Surface of the simulated world.
SURFACE = "spaces"
# Opens a context for a named step; the context yields a function that takes the share done.
Progress = Callable[[str], AbstractContextManager[Callable[[float], None]]]


def simulate(
    log: Path,
    url: str,
    *,
    days: float,
    rankings: int,
    seed: int = 0,
    model: Path | None = None,
    out: Path | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """Continue the world of a simulated log for `days`, with rankings by the service at `url`.

    The service needs the event clock and a store filled from that log. It assigns the viewers to
    its arms and writes the log. In the result, `shown` holds the truth on the exposures, by arm
    and as effects on the control. With `model`, the served artifact, `alone` holds the same for
    each arm ranking for all viewers over the same visits, computed in this process; arms that are
    served together share their audiences. The result is written to `out`/truth.json, and the truth
    of each exposure to `out`/truth.parquet.

    Raises:
        TabrankError: the log does not exist, the service is not suitable, or it has already
            continued this log.
    """
    if out is not None:
        refuse_existing(out)
    surface = load_surface(SURFACE)
    artifact = None if model is None else load_artifact(model)
    with closing(ReplayClient(url)) as service:
        described = service.describe()
        check_service(described, surface, artifact, url)
        arms = _arms(described, url)
        scores = {} if artifact is None else {arm["name"]: score_of(arm, artifact, surface) for arm in arms}
        with progress("the days before") as share:
            simulator = SimulatorState.after(log, days, seed, share)
        visits = simulator.visits(rankings, seed)
        # Read the log before the service continues it, and keep only the state, which is that of
        # `serve load`: a simulated log declares all its ids.
        state = None if artifact is None else _state_after(log, surface)
        started_s = time.perf_counter()
        with progress("experiment") as share:
            served = drive(deepcopy(simulator), visits, service, seed, share)
        seconds = time.perf_counter() - started_s
    result = _result(served, arms, service, seconds, simulator) | {"alone": None}
    if state is not None:
        alone: dict[str, Any] = {}
        for arm, score in scores.items():
            in_process = InProcessArm(arm, deepcopy(state), score)
            with progress(f"{arm} alone") as share:
                alone |= by_arm(drive(deepcopy(simulator), visits, in_process, seed, share))
        result["alone"] = {"arms": alone, "effect": effects(alone, result["control"])}
    result["model"] = described["model"]
    if out is not None:
        out.mkdir(parents=True)
        write_truth(out / "truth.parquet", served)
        (out / "truth.json").write_text(json.dumps(result, indent=1, allow_nan=False), encoding="utf-8")
    return result


def _state_after(log: Path, surface: Surface) -> State:
    replay = Replay(Schema(surface), read_log(log, surface))
    replay.finish()
    return replay.state


def _arms(described: Mapping[str, Any], url: str) -> list[dict[str, Any]]:
    """Return the arms that have viewers."""
    arms = [arm for arm in described["experiment"]["arms"] if arm["share"] > 0]
    if len(arms) < 2:
        raise TabrankError(
            f"--url: all viewers of the service at {url} are in one arm; give two of them shares under "
            "user_config.experiment.arms in its cluster.yaml"
        )
    if described["model"] is None and any(arm["scorer"] == CURRENT for arm in arms):
        raise TabrankError(
            f"--url: the service at {url} has no model; publish one (`python -m training publish --model …`)"
        )
    return arms


def score_of(arm: Mapping[str, Any], artifact: Artifact, surface: Surface) -> Score | None:
    """Return what scores for an arm that ranks alone; None for the popular arm."""
    if arm["scorer"] == POPULAR:
        return None
    if arm["scorer"] in (CURRENT, artifact.version):
        return load_scorer(artifact.path, "onnx").score
    if arm["scorer"] == BASELINE and (rule := surface.baseline) is not None:
        names = Features(Schema(surface)).columns.numeric
        return lambda numeric, category: rule.worth(names, numeric)
    raise TabrankError(
        f"--model: the arm {arm['name']!r} ranks with {arm['scorer']!r}, which is not simulated alone; "
        "leave --model out"
    )


def _result(
    served: Served,
    arms: list[dict[str, Any]],
    service: ReplayClient,
    seconds: float,
    simulator: SimulatorState,
) -> dict[str, Any]:
    found = by_arm(served)
    # Compare with the arm that ranks by popularity, else with the first.
    base = next((arm for arm in arms if arm["scorer"] == POPULAR), arms[0])["name"]
    rungs = Counter(served.rung)
    return {
        "control": base,
        "start_ms": simulator.provenance.end_ms,
        "end_ms": simulator.world.end_ms,
        "rankings": len(served.arm),
        "seconds": round(seconds, 3),
        "rankings_per_s": round(len(served.arm) / seconds, 1),
        "requests": service.num_requests,
        "events": served.num_events,
        "exposures": {arm: of_arm["exposures"] for arm, of_arm in found.items()},
        "by_rung": dict(rungs),
        "not_full": len(served.rung) - rungs["full"],
        "shown": {"arms": found, "effect": effects(found, base) if base in found else {}},
        "held": set(rungs) == {"full"},
    }
