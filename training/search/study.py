"""Study: Optuna as the searcher of Ray Tune, with a limit on the serving cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from ray.tune.search import Searcher

from training.fit.loop import FitConfig
from training.network.network import NetworkConfig
from training.search.cost import SHAPE
from training.search.leaderboard import BoardEntry, Leaderboard
from training.search.space import SMALLEST, Space

# This many points are drawn at random before the sampler learns from results.
NUM_RANDOM = 8
# At most this many suggestions in a row are rejected because they cost too much or take too long.
MAX_SUGGESTIONS = 20


class Study(Searcher):  # type: ignore[misc]
    """Searcher that minimises validation logloss and serving cost, and writes the leaderboard.

    It measures the cost of a network before its training, in the driver process, beside which only
    trials run. A network that costs more than `max_us` is never trained. Optuna is told
    that it has the `worst` logloss, which is that of constant predictions.
    """

    def __init__(
        self,
        space: Space,
        base: FitConfig,
        leaderboard: Leaderboard,
        *,
        first: Sequence[FitConfig],
        cost: Callable[[NetworkConfig], float],
        max_us: float | None,
        worst: float,
        in_time: Callable[[FitConfig], bool],
        on_entry: Callable[[BoardEntry], None],
    ) -> None:
        """Create the study.

        The configurations `first` are tried before all others. `cost` returns µs per candidate, and
        `in_time` whether a training that starts now would end in time. `on_entry` is called with
        each new entry.
        """
        super().__init__(metric="valid_logloss", mode="min")
        self._space, self._base, self._leaderboard = space, base, leaderboard
        self._cost, self._max_us, self._in_time, self._on_entry = cost, max_us, in_time, on_entry
        self._worst = worst
        self._running: dict[str, tuple[optuna.trial.Trial, float]] = {}
        past = leaderboard.tried()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=NUM_RANDOM, multivariate=True, constant_liar=True, seed=base.seed + len(past)
        )
        self._study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
        for entry in past:
            failed = entry.valid_logloss is None
            self._study.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState.FAIL if failed else optuna.trial.TrialState.COMPLETE,
                    params=entry.point,
                    distributions=space.distributions,
                    values=None if failed else [entry.logloss, entry.us_per_candidate or 0.0],
                )
            )
        for config in first:
            self._study.enqueue_trial(space.point(config), skip_if_exists=True)

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Return the next point to train, or `FINISHED` if none fits cost and time."""
        for _ in range(MAX_SUGGESTIONS):
            if point := self._ask(trial_id):
                return point
        # Little of the space is affordable, so take the cheapest network with new optimiser
        # settings.
        self._study.enqueue_trial({name: getattr(SMALLEST, name) for name in SHAPE})
        return self._ask(trial_id) or str(Searcher.FINISHED)

    def _ask(self, trial_id: str) -> dict[str, Any] | None:
        """Return Optuna's next point, which is then run, or None if it does not fit."""
        trial = self._study.ask(self._space.distributions)
        config = self._space.config(trial.params, self._base)
        us = self._cost(config.network)
        if self._max_us is not None and us > self._max_us:
            self._study.tell(trial, (self._worst, us))
        elif not self._in_time(config):
            # A lack of time says nothing about the quality of the point.
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            self._running[trial_id] = (trial, us)
            return dict(trial.params)
        return None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Add a trial to the leaderboard, whether it finished, was stopped early or failed."""
        trial, us = self._running.pop(trial_id)
        result = result or {}
        logloss = result.get("valid_logloss")
        if error or logloss is None or not math.isfinite(logloss):
            logloss, rest = None, {"failed": result.get("failed", "its process died")}
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            kept = ("valid_auc", "valid_ndcg", "seconds", "rows", "share", "history", "losses")
            rest = {name: result[name] for name in kept if name in result}
            self._study.tell(trial, (logloss, us))
        name = f"TabNet {len(self._leaderboard.tried()) + 1}"
        entry = BoardEntry(name, "tabnet", logloss, us_per_candidate=us, point=dict(trial.params), **rest)
        self._leaderboard.add(entry)
        self._on_entry(entry)

    def __getstate__(self) -> dict[str, Any]:
        # Store nothing, because a search resumes from the leaderboard and never unpickles a study.
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Save nothing, see `__getstate__`."""
