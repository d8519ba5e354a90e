"""Rollout monitor of one replica: pass on all calls of scorers, and watch the versions on trial.

Answers are not delayed. A batch costs a look-up, and a batch of a version on trial a few
microseconds more. Rows are scored a second time with another version only after the answers, when
the replica is idle.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from serve.config.settings import CANARY, Shadow
from serve.features.matrix import Matrix
from serve.features.slots import F32, I64
from serve.model.artifact import Artifact
from serve.model.scorer_cache import ITS_OWN, untimed
from serve.rollout.active_models import ActiveModels
from serve.rollout.guard import Trial, Verdict
from serve.rollout.score_comparison import ScorePair, ScoreSums

log = logging.getLogger("tabrank")
# A version on trial gets at most one pair in this time.
PAIR_EVERY_S = 0.2
# The pair of a trial waits this long for an idle moment, and is then scored anyway.
PATIENCE_S = 0.25
# How often to look whether the replica is idle.
LOOK_EVERY_S = 0.005
RESCORE_S = 2.0
# How often bad versions are reported, and how long to wait for the writer.
REPORT_EVERY_S = 1.0
REPORT_TIMEOUT_S = 3.0

CallScorer = Callable[[str, bytes], Awaitable[bytes]]
RollBack = Callable[[str, Verdict], Awaitable[None]]
Warn = Callable[[str, Exception], None]
# (artifact, its shares `[R, O]`) → the worth `[R]` of the rows.
Utility = Callable[[Artifact | None, F32], F32]


class _Batch(NamedTuple):
    """A batch, the version that scores it for its answers, and the trial of that version."""

    version: str
    payload: bytes
    request_of_row: I64
    trial: Trial | None


class _Sample(NamedTuple):
    """A scored batch, and the version that scores it again."""

    batch: _Batch
    again: str
    shares: F32
    took_ms: float


@dataclass(eq=False)
class RolloutMonitor:
    """Score batches, and compare new versions with the versions that they replace.

    `utility` orders the rows of two versions. `roll_back(version, verdict)` reports to the single
    writer. It is called again until no pointer names the version. `rescore` scores a sample again
    in the place where versions on trial are scored, so that their times can be compared.
    """

    models: ActiveModels
    call_scorer: CallScorer
    utility: Utility
    roll_back: RollBack
    warn: Warn
    rescore: CallScorer
    # The live setting of a second version for a share of the current version's batches.
    shadow: Shadow | None = None
    # Sums of pairs since the last `take_sums`, by (new, old) version.
    sums: defaultdict[tuple[str, str], ScoreSums] = field(default_factory=lambda: defaultdict(ScoreSums))
    # When bad versions were last reported to the writer.
    _reported_s: float = 0.0
    # The sample that waits for an idle moment.
    _sample: _Sample | None = None
    _offered: asyncio.Event = field(default_factory=asyncio.Event)
    # When the last sample of a trial was offered.
    _paired_s: float = 0.0
    # A batch on trial that nobody waits for any more.
    _late: asyncio.Task[F32] | None = None

    async def score_and_watch(self, version: str, matrix: Matrix, request_of_row: I64) -> F32:
        """Score a batch with a version, and watch it if it is on trial; return shares `[R, O]`."""
        batch = _Batch(version, matrix.to_bytes(), request_of_row, self.models.trial(version))
        if batch.trial is None:
            return await self._score(batch)
        # A version on trial is measured even if its batch expires, but one such batch at a time.
        scoring = asyncio.ensure_future(self._score(batch))
        try:
            return await asyncio.shield(scoring)
        except asyncio.CancelledError:
            if self._late is not None and not self._late.done():
                scoring.cancel()
            else:
                self._late = scoring
                scoring.add_done_callback(_retrieve)
            raise

    async def _score(self, batch: _Batch) -> F32:
        """Score a batch, observe it for the trial, and offer it to a second version."""
        trial = batch.trial
        try:
            answer = await self.call_scorer(batch.version, batch.payload)
            shares, took_ms = untimed(answer, len(batch.request_of_row))
        except ITS_OWN as error:
            if trial is not None:
                trial.failed(error, time.monotonic())
                self._judge(trial)
            raise
        self._offer(batch, shares, took_ms)
        if trial is not None:
            trial.scored(shares, time.monotonic())
            self._judge(trial)
        return shares

    def _offer(self, batch: _Batch, shares: F32, took_ms: float) -> None:
        """Offer a batch to a second version. At most one waits; a trial replaces a shadow."""
        waiting, trial = self._sample, batch.trial
        if waiting is not None and (trial is None or waiting.batch.trial is not None):
            return
        again = self._shadow_of(batch.version) if trial is None else self._next_pair(trial)
        if again is not None:
            self._sample = _Sample(batch, again, shares, took_ms)
            self._offered.set()

    def _next_pair(self, trial: Trial) -> str | None:
        """Return the incumbent if it is time for a pair."""
        if time.monotonic() - self._paired_s < PAIR_EVERY_S:
            return None
        self._paired_s = time.monotonic()
        return trial.incumbent

    def _shadow_of(self, version: str) -> str | None:
        """Return the loaded shadow if this batch of the current version falls into its share."""
        shadow, current = self.shadow, self.models.current
        if shadow is None or current is None or version != current.version or random.random() >= shadow.share:
            return None
        shadowing = self.models.canary if shadow.version == CANARY else self.models.artifact(shadow.version)
        return shadowing.version if shadowing is not None else None

    async def run(self, is_idle: Callable[[], bool]) -> None:
        """Until cancelled, score offered batches again, one at a time while the replica is idle."""
        while True:
            await self._offered.wait()
            has_time = await _idle_moment(is_idle)
            sample, self._sample = self._sample, None
            self._offered.clear()
            if sample is None or not (has_time or sample.batch.trial is not None):
                continue
            try:
                await self._compare(sample)
            # No request waits for the comparison, so any failure is only logged.
            except Exception as error:
                self.warn("not_compared", error)

    async def _compare(self, sample: _Sample) -> None:
        """Score a sample again and compare the scores."""
        batch = sample.batch
        async with asyncio.timeout(RESCORE_S):
            answer = await self.rescore(sample.again, batch.payload)
            shares, took_ms = untimed(answer, len(batch.request_of_row))
        sides = [(batch.version, sample.shares, sample.took_ms), (sample.again, shares, took_ms)]
        # The sample of a trial has the scores of the new version, and that of a shadow those of the
        # current version.
        if batch.trial is None:
            sides.reverse()
        (new, of_new, new_ms), (old, of_old, old_ms) = sides
        its, other = self.models.artifact(new), self.models.artifact(old)
        by_new, by_old = _by_outcome(its, of_new), _by_outcome(other, of_old)
        both = {name: (by_new[name], by_old[name]) for name in by_new if name in by_old}
        scores = self.utility(its, of_new), self.utility(other, of_old)
        measures = ScorePair(*scores, new_ms, old_ms, batch.request_of_row, both).measures()
        self.sums[new, old].add(measures)
        if batch.trial is not None:
            batch.trial.compared(measures, time.monotonic())
            self._judge(batch.trial)

    def take_sums(self) -> dict[tuple[str, str], ScoreSums]:
        """Return the sums of the pairs since the last call, and reset them."""
        sums, self.sums = self.sums, defaultdict(ScoreSums)
        return sums

    def _judge(self, trial: Trial) -> None:
        """Quarantine the version if this trial has a verdict; it may have ended meanwhile."""
        if trial.verdict is not None and self.models.trial(trial.version) is trial:
            log.error("version %s is quarantined on this replica: %s: %s", trial.version, *trial.verdict)
            self.models.quarantine(trial.version, trial.verdict)

    async def report(self) -> None:
        """Report the bad versions that a pointer names to the writer, at most once a second."""
        if time.monotonic() - self._reported_s < REPORT_EVERY_S:
            return
        for version, verdict in self.models.at_fault:
            self._reported_s = time.monotonic()
            try:
                async with asyncio.timeout(REPORT_TIMEOUT_S):
                    await self.roll_back(version, verdict)
            # This replica does not use the version in any case; report it again later.
            except Exception as error:
                self.warn("not_rolled_back", error)


def _by_outcome(artifact: Artifact | None, shares: F32) -> dict[str, F32]:
    """Return the shares `[R]` of each outcome that a version predicts; none without a version."""
    return dict(zip(artifact.outcomes, shares.T, strict=True)) if artifact else {}


async def _idle_moment(is_idle: Callable[[], bool]) -> bool:
    """Wait for an idle moment; return False if none came in time."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        # Sleep first, so that the answers are sent.
        await asyncio.sleep(LOOK_EVERY_S)
        if is_idle():
            return True
    return False


def _retrieve(scoring: asyncio.Task[F32]) -> None:
    """Retrieve the exception of a batch that nobody waits for, so that asyncio does not log it."""
    if not scoring.cancelled():
        scoring.exception()
