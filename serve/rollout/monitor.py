"""Rollout monitor of one replica: pass on all scorer calls, and watch the versions on trial.

Answers are not delayed: a batch costs a lookup, and a batch of a version on trial a few
microseconds more. Scoring rows a second time with another version happens after the answers, on an
idle replica.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from serve.config.settings import CANARY, Limits, Shadow, UserConfig
from serve.contract.errors import ArtifactRefused, ScoringFailed
from serve.features.matrix import Matrix
from serve.model.scorer_cache import untimed
from serve.rollout.active_models import ActiveModels
from serve.rollout.guard import Trial, Verdict
from serve.rollout.score_comparison import F32, I64, ScorePair, ScoreSums

log = logging.getLogger("tabrank")
# Score at most one pair of a version on trial in 200 ms.
PAIR_EVERY_S = 0.2
# Wait this long for an idle moment; then score the pair of a trial anyway.
PATIENCE_S = 0.25
# Check every 5 ms if the replica is idle.
LOOK_EVERY_S = 0.005
RESCORE_S = 2.0
# Report a quarantined version once a second, and wait at most 3 s for the writer.
REPORT_EVERY_S = 1.0
REPORT_TIMEOUT_S = 3.0
# Errors that are the version's fault; other errors are an outage.
ITS_OWN = (ArtifactRefused, ScoringFailed)

CallScorer = Callable[[str, bytes], Awaitable[bytes]]
RollBack = Callable[[str, Verdict], Awaitable[None]]
Warn = Callable[[str, Exception], None]


@dataclass(frozen=True)
class _Sample:
    """A scored batch, and the version that scores it again."""

    version: str
    again: str
    payload: bytes
    scores: F32
    took_ms: float
    request_of_row: I64
    trial: Trial | None


async def no_rollback(version: str, verdict: Verdict) -> None:
    """Do nothing: without a writer the version stays named, but it is not used here."""


class RolloutMonitor:
    """Score batches, and compare new versions with the versions that they replace.

    `roll_back(version, verdict)` reports to the single writer. It is called again until no pointer
    names the version.
    """

    def __init__(
        self,
        models: ActiveModels,
        call_scorer: CallScorer,
        is_idle: Callable[[], bool],
        roll_back: RollBack,
        warn: Warn,
    ) -> None:
        # By (new, old) version, since the last `take_sums`.
        self.sums: dict[tuple[str, str], ScoreSums] = {}
        self._models = models
        self._call = call_scorer
        self._is_idle = is_idle
        self._roll_back = roll_back
        self._warn = warn
        self._limits = Limits()
        self._shadow: Shadow | None = None
        self._trials: dict[str, Trial] = {}
        self._quarantined: dict[str, Verdict] = {}
        # When each quarantined version was last reported to the writer.
        self._reported_s: dict[str, float] = {}
        self._sample: _Sample | None = None
        # True while the sample is being scored a second time.
        self._is_scoring = False
        # When the last sample of a trial was offered.
        self._paired_s = 0.0
        self._late: asyncio.Future[bytes] | None = None
        self._offered = asyncio.Event()

    def configure(self, config: UserConfig) -> None:
        """Apply new live settings; restart the running trials if their limits change."""
        if config.guard != self._limits:
            self._trials.clear()
        self._limits, self._shadow = config.guard, config.shadow

    def others(self) -> list[str]:
        """Return further versions to load: the incumbents of trials, and the shadow."""
        names = [self._incumbent(version) for version in self._models.named]
        if self._shadow is not None and self._shadow.version != CANARY:
            names.append(self._shadow.version)
        return [name for name in names if name is not None]

    async def score(self, version: str, matrix: Matrix, request_of_row: I64) -> F32:
        """Score a batch with a version; return the scores `[R]`."""
        payload = matrix.to_bytes()
        trial = self._trials.get(version)
        begun = time.perf_counter()
        if trial is None:
            answer = await self._call(version, payload)
        else:
            answer = await self._tried(trial, payload, request_of_row)
        scores, took_ms = untimed(answer, len(matrix.numeric))
        again = self._again(version, trial) if self._has_room(trial) else None
        if again is not None and len(scores) == len(matrix.numeric):
            took_ms = (time.perf_counter() - begun) * 1e3 if took_ms is None else took_ms
            self._offer(_Sample(version, again, payload, scores, took_ms, request_of_row, trial))
        if trial is not None:
            trial.scored(scores, time.monotonic())
            self._judge(trial)
        return scores

    async def _tried(self, trial: Trial, payload: bytes, request_of_row: I64) -> bytes:
        """Call a version on trial; measure its time even if the batch expires."""
        begun = time.perf_counter()
        call = asyncio.ensure_future(self._call(trial.version, payload))
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            if self._late is None:
                self._late = call
                call.add_done_callback(
                    lambda call: self._came_late(call, trial, payload, request_of_row, begun)
                )
            else:
                call.cancel()
            raise
        except ITS_OWN as error:
            trial.failed(error, time.monotonic())
            self._judge(trial)
            raise

    def _came_late(
        self, call: asyncio.Future[bytes], trial: Trial, payload: bytes, request_of_row: I64, begun: float
    ) -> None:
        self._late = None
        if call.cancelled():
            return
        if error := call.exception():
            if isinstance(error, ITS_OWN):
                trial.failed(error, time.monotonic())
                self._judge(trial)
            return
        scores, took_ms = untimed(call.result(), len(request_of_row))
        took_ms = (time.perf_counter() - begun) * 1e3 if took_ms is None else took_ms
        if self._has_room(trial) and len(scores) == len(request_of_row):
            sample = _Sample(trial.version, trial.incumbent, payload, scores, took_ms, request_of_row, trial)
            self._offer(sample)

    def _again(self, version: str, trial: Trial | None) -> str | None:
        """Return the version that scores this batch too, or None."""
        if trial is not None:
            return trial.incumbent if time.monotonic() - self._paired_s >= PAIR_EVERY_S else None
        shadow, current = self._shadow, self._models.current
        if shadow is None or current is None or version != current.version or random.random() >= shadow.share:
            return None
        if shadow.version != CANARY:
            return shadow.version if self._models.artifact(shadow.version) else None
        return self._models.canary.version if self._models.canary else None

    def _has_room(self, trial: Trial | None) -> bool:
        """Return True if a batch may be offered: at most one waits; a trial replaces a shadow."""
        waiting = self._sample
        if waiting is None:
            return True
        return trial is not None and waiting.trial is None and not self._is_scoring

    def _offer(self, sample: _Sample) -> None:
        self._sample = sample
        if sample.trial is not None:
            self._paired_s = time.monotonic()
        self._offered.set()

    async def run(self) -> None:
        """Score offered batches again, one at a time on an idle replica, until cancelled."""
        while True:
            await self._offered.wait()
            is_idle = await self._idle_moment()
            sample = self._sample
            if sample is not None and (is_idle or sample.trial is not None):
                self._is_scoring = True
                try:
                    await self._score_again(sample)
                # No request waits for the comparison, so any failure is only logged.
                except Exception as error:
                    self._warn("not_compared", error)
                finally:
                    self._is_scoring = False
            self._sample = None
            self._offered.clear()

    async def _idle_moment(self) -> bool:
        """Wait for an idle moment; return False if none came in time."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            # Sleep first, so that the answers are sent.
            await asyncio.sleep(LOOK_EVERY_S)
            if self._is_idle():
                return True
        return False

    async def _score_again(self, sample: _Sample) -> None:
        begun = time.perf_counter()
        async with asyncio.timeout(RESCORE_S):
            answer = await self._call(sample.again, sample.payload)
        scores, took_ms = untimed(answer, len(sample.scores))
        took_ms = (time.perf_counter() - begun) * 1e3 if took_ms is None else took_ms
        trial = sample.trial
        # Of a trial, the sample has the new version's scores; of a shadow, the current version's.
        if trial is not None:
            pair = ScorePair(sample.scores, scores, sample.took_ms, took_ms, sample.request_of_row)
            versions = (sample.version, sample.again)
        else:
            pair = ScorePair(scores, sample.scores, took_ms, sample.took_ms, sample.request_of_row)
            versions = (sample.again, sample.version)
        self.sums.setdefault(versions, ScoreSums()).add(pair)
        if trial is not None:
            trial.compared(pair, time.monotonic())
            self._judge(trial)

    def take_sums(self) -> dict[tuple[str, str], ScoreSums]:
        """Return the sums of the pairs since the last call, and reset them."""
        sums, self.sums = self.sums, {}
        return sums

    def _judge(self, trial: Trial) -> None:
        if trial.verdict is not None and self._trials.get(trial.version) is trial:
            del self._trials[trial.version]
            self._quarantine(trial.version, trial.verdict)

    def _quarantine(self, version: str, verdict: Verdict) -> None:
        log.error("version %s is quarantined on this replica: %s: %s", version, verdict.kind, verdict.reason)
        self._quarantined[version] = verdict
        self._models.quarantine(version)

    async def settle(self) -> None:
        """Reconcile trials with the version pointers; report quarantined and broken versions."""
        models = self._models
        wanted = {version: self._incumbent(version) for version in models.named}
        ready = {new: old for new, old in wanted.items() if old is not None and models.artifact(old)}
        for version in list(self._trials):
            if ready.get(version) != self._trials[version].incumbent:
                del self._trials[version]
        for version, incumbent in ready.items():
            if version not in self._trials and version not in self._quarantined and models.artifact(version):
                self._trials[version] = Trial(version, incumbent, self._limits, time.monotonic())
        if self._limits.enabled:
            for version, why in models.broken.items():
                self._quarantined.setdefault(version, Verdict("refused", why))
        for version, verdict in list(self._quarantined.items()):
            if version not in models.named:
                # If a pointer names the version again, an operator promoted it again.
                del self._quarantined[version]
                continue
            if time.monotonic() - self._reported_s.get(version, -REPORT_EVERY_S) < REPORT_EVERY_S:
                continue
            self._reported_s[version] = time.monotonic()
            try:
                async with asyncio.timeout(REPORT_TIMEOUT_S):
                    await self._roll_back(version, verdict)
            # The version is not used here; report it again later.
            except Exception as error:
                self._warn("not_rolled_back", error)

    def _incumbent(self, version: str) -> str | None:
        """Return the version that a trial would roll back to; None if `version` is not on trial."""
        if not self._limits.enabled:
            return None
        models = self._models
        promoted_ms = models.history.promoted_ms(version)
        if promoted_ms is not None:
            is_new = time.time() * 1e3 - promoted_ms < self._limits.watch_s * 1e3
            return models.before(version) if is_new else None
        current = models.current
        is_canary = models.canary is not None and version == models.canary.version
        return current.version if is_canary and current is not None and current.version != version else None
