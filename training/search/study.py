"""The study: Optuna's choice of what to try next, as a searcher of Ray Tune that knows what serving costs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import optuna
from ray.tune.search import Searcher

from training.fit.loop import FitConfig
from training.network.network import NetworkConfig
from training.search.cost import SHAPE
from training.search.leaderboard import Entry, Leaderboard
from training.search.space import SMALLEST, Space

NUM_RANDOM = 8
"""Points drawn at random before the sampler learns from those that it has seen."""
NUM_ASKED = 20
"""How often the sampler may name a network that is too dear or takes too long."""


class Study(Searcher):  # type: ignore[misc]
    """Asks Optuna for points of least validation logloss and least µs a candidate, and keeps the leaderboard.

    A network's cost is measured before it is trained, here, where nothing else runs but other trials: one that
    is dearer than `most_us` is told to Optuna as no better than the constant `rate`, and never trained.
    """

    def __init__(
        self,
        space: Space,
        base: FitConfig,
        leaderboard: Leaderboard,
        *,
        first: Sequence[FitConfig],
        cost: Callable[[NetworkConfig], float],
        most_us: float | None,
        rate: float,
        in_time: Callable[[FitConfig], bool],
        told: Callable[[Entry], None],
    ) -> None:
        """`cost` gives µs a candidate; `in_time` says whether what is trained from now on would end in time."""
        super().__init__(metric="valid_logloss", mode="min")
        self._space, self._base, self._leaderboard = space, base, leaderboard
        self._cost, self._most_us, self._in_time, self._told = cost, most_us, in_time, told
        self._worst = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
        self._cheapest = replace(base, network=SMALLEST)
        self._running: dict[str, tuple[optuna.trial.Trial, float]] = {}
        past = leaderboard.tried()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=NUM_RANDOM, multivariate=True, constant_liar=True, seed=base.seed + len(past)
        )
        self._study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
        for entry in past:
            self._remember(entry)
        for point in map(space.point, first):
            if all(entry.point != point for entry in past):
                self._study.enqueue_trial(point)

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next point to train, or `FINISHED` where none that fits the cost would end in time."""
        for _ in range(NUM_ASKED):
            asked = self._study.ask(self._space.distributions)
            if self._fits(asked) and self._starts(trial_id, asked):
                return dict(asked.params)
        # The budget leaves little of the space: the cheapest network, with another optimiser each time.
        self._study.enqueue_trial({n: v for n, v in self._space.point(self._cheapest).items() if n in SHAPE})
        asked = self._study.ask(self._space.distributions)
        if self._fits(asked) and self._starts(trial_id, asked):
            return dict(asked.params)
        return str(Searcher.FINISHED)

    def _fits(self, asked: optuna.trial.Trial) -> bool:
        us = self._cost(self._space.config(asked.params, self._base).network)
        if self._most_us is None or us <= self._most_us:
            return True
        self._study.tell(asked, (self._worst, us))
        return False

    def _starts(self, trial_id: str, asked: optuna.trial.Trial) -> bool:
        config = self._space.config(asked.params, self._base)
        if self._in_time(config):
            self._running[trial_id] = (asked, self._cost(config.network))
            return True
        self._study.tell(asked, state=optuna.trial.TrialState.FAIL)  # says nothing of the point
        return False

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Puts a trial on the leaderboard, whether it ran to its end, was stopped early or failed."""
        asked, us = self._running.pop(trial_id)
        result = result or {}
        logloss = result.get("valid_logloss")
        if error or logloss is None or not math.isfinite(logloss):
            entry = self._entry(asked, us, None, failed=result.get("failed", "its process died"))
            self._study.tell(asked, state=optuna.trial.TrialState.FAIL)
        else:
            known = ("valid_auc", "valid_ndcg", "seconds", "rows", "share", "history", "calibration")
            rest = {name: result[name] for name in known if name in result}
            entry = self._entry(asked, us, float(logloss), **rest)
            self._study.tell(asked, (float(logloss), us))
        self._leaderboard.add(entry)
        self._told(entry)

    def get_state(self) -> dict[str, Any]:
        """Nothing: the leaderboard is what a search goes on from, and no pickle is ever read."""
        return {}

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing, see `get_state`."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see `get_state`."""

    def _entry(self, asked: optuna.trial.Trial, us: float, logloss: float | None, **rest: Any) -> Entry:
        name = f"TabNet {len(self._leaderboard.tried()) + 1}"
        return Entry(name, "tabnet", logloss, us_per_candidate=us, point=dict(asked.params), **rest)

    def _remember(self, entry: Entry) -> None:
        """Tells Optuna of a trial of an earlier run."""
        failed = entry.valid_logloss is None
        with contextlib.suppress(ValueError):  # another release's space may have held other points
            self._study.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState.FAIL if failed else optuna.trial.TrialState.COMPLETE,
                    params=entry.point,
                    distributions=self._space.distributions,
                    values=None if failed else [entry.logloss, entry.us_per_candidate or 0.0],
                )
            )
