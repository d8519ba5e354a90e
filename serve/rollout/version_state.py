"""State machine of one version on one replica; docs/rollouts.md draws it.

All replicas share pointers and history. Each replica also knows whether it has loaded the version,
tries it, or has found it bad. Only the methods of `Version` change that.
"""

from __future__ import annotations

import time
from enum import Enum

from serve.config.settings import Limits
from serve.contract.errors import ArtifactRefused, TabrankError
from serve.model.artifact import Artifact
from serve.rollout.guard import Trial, Verdict


class State(Enum):
    """States of a version on a replica. Pointers never use a version in one of the last three."""

    PUBLISHED = "published"
    LOADED = "loaded"
    TRIAL = "on trial"
    # A trial ended with a verdict.
    QUARANTINED = "quarantined"
    # It could not be loaded because of its content, so it is not loaded again.
    REFUSED = "refused"
    # A pointer names it although the history says that it was rolled back.
    ROLLED_BACK = "rolled back"


class Version:
    """One version. Each method is a transition; it does nothing in states that it does not name.

    A loaded artifact is kept in all states, for arms that name the version. This is safe because
    published versions never change.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = State.PUBLISHED
        self.artifact: Artifact | None = None
        self.trial: Trial | None = None
        # Reason for a rollback, if the version itself is at fault.
        self.verdict: Verdict | None = None

    @property
    def is_bad(self) -> bool:
        """Return True if no pointer may use the version."""
        return self.state in (State.QUARANTINED, State.REFUSED, State.ROLLED_BACK)

    def hold(self, artifact: Artifact) -> None:
        """PUBLISHED → LOADED: a scorer holds the verified artifact."""
        # A concurrent load keeps the first artifact, which may rank already.
        self.artifact = self.artifact or artifact
        if self.state is State.PUBLISHED:
            self._enter(State.LOADED)

    def refuse(self, error: TabrankError) -> None:
        """PUBLISHED, ROLLED_BACK → REFUSED: broken, or of another surface (without a verdict)."""
        if self.artifact is None:
            is_broken = isinstance(error, ArtifactRefused)
            self._enter(State.REFUSED, verdict=Verdict("refused", str(error)) if is_broken else None)

    def try_against(self, incumbent: str | None, limits: Limits) -> None:
        """LOADED → TRIAL against `incumbent`, and TRIAL → LOADED without one.

        A running trial starts again if its incumbent or its limits change.
        """
        if self.trial is not None and (self.trial.incumbent, self.trial.limits) == (incumbent, limits):
            return
        if self.state in (State.LOADED, State.TRIAL):
            trial = Trial(self.name, incumbent, limits, time.monotonic()) if incumbent is not None else None
            self._enter(State.TRIAL if trial is not None else State.LOADED, trial=trial)

    def quarantine(self, verdict: Verdict) -> None:
        """TRIAL → QUARANTINED."""
        if self.state is State.TRIAL:
            self._enter(State.QUARANTINED, verdict=verdict)

    def roll_back(self) -> None:
        """PUBLISHED, LOADED, TRIAL → ROLLED_BACK; a verdict of this replica is kept."""
        if not self.is_bad:
            self._enter(State.ROLLED_BACK)

    def release(self) -> None:
        """QUARANTINED, REFUSED, ROLLED_BACK → LOADED or PUBLISHED: it may be tried again."""
        if self.is_bad:
            self._enter(State.LOADED if self.artifact is not None else State.PUBLISHED)

    def _enter(self, state: State, *, trial: Trial | None = None, verdict: Verdict | None = None) -> None:
        self.state, self.trial, self.verdict = state, trial, verdict
