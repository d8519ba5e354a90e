"""The original experiment, rerun: the simulated world's viewers at the running service, both arms at once."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

from serve.config.settings import CURRENT, POPULAR
from serve.contract.errors import TabrankError
from serve.contract.validation import refuse_existing
from serve.features.rows import Schema, State
from serve.features.surface import Surface, load_surface
from serve.log.reader import read_log
from serve.log.replay import Replay
from serve.model.artifact import Artifact
from serve.model.artifact import load as load_artifact
from serve.model.scorers import Scorer, load_scorer
from training.audit.http_replay import Service, check
from training.experiment.rerun.drive import Served, drive
from training.experiment.rerun.service import Alone, Remote
from training.experiment.rerun.simulator_state import LAST_MS, Scene
from training.experiment.rerun.truth import by_arm, control, effects, write_truth
from training.world.population import DAY_MS, Ints

SURFACE = "spaces"  # of the simulated world
Progress = Callable[[str], AbstractContextManager[Callable[[float], None]]]
"""Takes what is being done; while it is, answers who is told how much of it is."""


def simulate(
    log: Path,
    url: str,
    *,
    days: float,
    rankings: int,
    seed: int = 0,
    model: Path | None = None,
    out: Path | None = None,
    progress: Progress = lambda what: nullcontext(lambda share: None),
) -> dict[str, Any]:
    """Let the world of a simulated log go on for `days`, its viewers ranked by the service at `url`.

    The service has the event clock and a store filled from that log. It deals the viewers to its arms and writes its
    log; here is only noted which arm it says. `shown` holds the truth of what was shown, by arm and as the effect on
    the control. With `model`, the artifact that is served, `alone` holds the same where each arm ranks for everybody,
    over the same visits, computed here: arms that are served together share the audiences that both make.
    `out` gets all of that as `truth.json`, and `truth.parquet` with each exposure's.

    Raises:
        TabrankError: no such log, no service that could do it, or one that has done it already.
    """
    _refuse_impossible(days, rankings, seed)
    if out is not None:
        refuse_existing(out)
    surface = load_surface(SURFACE)
    artifact = None if model is None else load_artifact(model)
    with closing(Service(url)) as service:
        described = service.describe()
        check(described, surface, artifact, url)
        arms = _arms(described, url)
        scorers = {} if artifact is None else {arm["name"]: _scorer(arm, artifact) for arm in arms}
        with progress("the days before") as share:
            scene = Scene.after(log, days, seed, share)
        visits = scene.visits(rankings, seed)
        state = None if artifact is None else _state(log, surface)
        begun = time.perf_counter()
        with progress("experiment") as share:
            served = drive(deepcopy(scene), visits, Remote(service), seed, share)
        seconds = time.perf_counter() - begun
    result = _result(served, arms, service, seconds, scene) | {"alone": None}
    if state is not None:
        result["alone"] = _alone(scene, visits, state, scorers, seed, result["control"], progress)
    result["model"] = described["model"]
    if out is not None:
        out.mkdir(parents=True)
        write_truth(out / "truth.parquet", served)
        (out / "truth.json").write_text(json.dumps(result, indent=1, allow_nan=False), encoding="utf-8")
    return result


def _refuse_impossible(days: float, rankings: int, seed: int) -> None:
    if not 2 * LAST_MS <= days * DAY_MS <= 365 * DAY_MS:
        raise TabrankError(f"--days {days}: an experiment lasts from 0.01 to 365 days")
    if rankings < 1:
        raise TabrankError(f"--rankings {rankings}: nothing to ask for; ask for at least 1")
    if seed < 0:
        raise TabrankError(f"--seed {seed}: a seed is a whole number from 0 up")


def _arms(described: Mapping[str, Any], url: str) -> list[dict[str, Any]]:
    """The arms that have viewers."""
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


def _scorer(arm: Mapping[str, Any], artifact: Artifact) -> Scorer | None:
    if arm["scorer"] == POPULAR:
        return None
    if arm["scorer"] in (CURRENT, artifact.version):
        return load_scorer(artifact.path, "onnx")
    raise TabrankError(
        f"--model: the arm {arm['name']!r} ranks with {arm['scorer']!r}, which is not simulated alone; "
        "leave --model out"
    )


def _state(log: Path, surface: Surface) -> State:
    """What `serve load` puts into the store: the log of a simulated world knows all ids that are in it."""
    replay = Replay(Schema(surface), read_log(log, surface))
    replay.finish()
    return replay.state


def _result(
    served: Served, arms: list[dict[str, Any]], service: Service, seconds: float, scene: Scene
) -> dict[str, Any]:
    found = by_arm(served)
    base = control(arms)
    rungs = Counter(served.rung)
    return {
        "control": base,
        "start_ms": scene.origin.end_ms,
        "end_ms": scene.world.end_ms,
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


def _alone(
    scene: Scene,
    visits: tuple[Ints, Ints],
    state: State,
    scorers: Mapping[str, Scorer | None],
    seed: int,
    base: str,
    progress: Progress,
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for arm, scorer in scorers.items():
        service = Alone(arm, deepcopy(state), scorer)
        with progress(f"{arm} alone") as share:
            found |= by_arm(drive(deepcopy(scene), visits, service, seed, share))
    return {"arms": found, "effect": effects(found, base)}
