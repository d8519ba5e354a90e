"""The rollout in one replica: every call of the scorer goes through here, and versions on trial are watched.

What answers rankings is not held up: a batch costs a look-up, and one of a version on trial a few microseconds more.
The rest, scoring rows a second time with another version, comes after the answers and while nothing waits.
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
from serve.rollout.active_models import Models
from serve.rollout.guard import Trial, Verdict
from serve.rollout.score_comparison import F32, I64, Pair, Sums

log = logging.getLogger("tabrank")
PAIR_EVERY_S = 0.2  # of a version on trial, so often at most
PATIENCE_S = 0.25  # for a moment in which nothing waits; then a trial's pair is scored all the same
RESCORE_S = 2.0
TELL_S = 3.0
TELL_EVERY_S = 1.0
LOOK_EVERY_S = 0.005
ITS_OWN = (ArtifactRefused, ScoringFailed)  # errors that are the version's fault, where others are an outage

CallScorer = Callable[[str, bytes], Awaitable[bytes]]
RollBack = Callable[[str, Verdict], Awaitable[None]]
Warn = Callable[[str, Exception], None]


@dataclass(frozen=True)
class _Sample:
    """A batch that was scored, and the version that is to score it again."""

    version: str
    again: str
    payload: bytes
    scores: F32
    took_ms: float
    request_of_row: I64
    trial: Trial | None


async def told_nobody(version: str, verdict: Verdict) -> None:
    """For a service without a writer: the version stays where it is, and is not used here."""


class Rollout:
    """Scores batches, and holds what is new against what it replaces.

    `roll_back(version, verdict)` tells the one writer; it is called again until no pointer names the version.
    """

    def __init__(
        self,
        models: Models,
        call_scorer: CallScorer,
        is_idle: Callable[[], bool],
        roll_back: RollBack,
        warn: Warn,
    ) -> None:
        self.sums: dict[tuple[str, str], Sums] = {}  # by new and old version, since `take_sums`
        self._models = models
        self._call = call_scorer
        self._is_idle = is_idle
        self._roll_back = roll_back
        self._warn = warn
        self._limits = Limits()
        self._shadow: Shadow | None = None
        self._trials: dict[str, Trial] = {}
        self._condemned: dict[str, Verdict] = {}
        self._told_s: dict[str, float] = {}  # when a condemned version was told of last
        self._sample: _Sample | None = None
        self._is_scoring = False  # the sample a second time
        self._paired_s = 0.0  # when a trial's sample was offered last
        self._late: asyncio.Future[bytes] | None = None
        self._offered = asyncio.Event()

    def configure(self, config: UserConfig) -> None:
        """Take new live settings; running trials begin anew where their limits change."""
        if config.guard != self._limits:
            self._trials.clear()
        self._limits, self._shadow = config.guard, config.shadow

    def others(self) -> list[str]:
        """The versions that must be ready though no pointer and no arm names them: to come back to, and the shadow."""
        names = [self._incumbent(version) for version in self._models.named]
        if self._shadow is not None and self._shadow.version != CANARY:
            names.append(self._shadow.version)
        return [name for name in names if name is not None]

    async def score(self, version: str, matrix: Matrix, request_of_row: I64) -> F32:
        """A version's scores `[R]` of a batch."""
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
        """The answer of a version on trial. One that is given up at its deadline is waited for, to know its time."""
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
        """The version that is to score this batch too, if any."""
        if trial is not None:
            return trial.incumbent if time.monotonic() - self._paired_s >= PAIR_EVERY_S else None
        shadow, current = self._shadow, self._models.current
        if shadow is None or current is None or version != current.version or random.random() >= shadow.share:
            return None
        if shadow.version != CANARY:
            return shadow.version if self._models.artifact(shadow.version) else None
        return self._models.canary.version if self._models.canary else None

    def _has_room(self, trial: Trial | None) -> bool:
        """Whether a batch may be offered: one waits at most, and the shadow's gives way to a trial's."""
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
        """Score again what is offered, one batch at a time and while nothing waits, until cancelled."""
        while True:
            await self._offered.wait()
            is_idle = await self._idle_moment()
            sample = self._sample
            if sample is not None and (is_idle or sample.trial is not None):
                self._is_scoring = True
                try:
                    await self._score_again(sample)
                except Exception as error:  # whatever befell it, nobody waits for it
                    self._warn("not_compared", error)
                finally:
                    self._is_scoring = False
            self._sample = None
            self._offered.clear()

    async def _idle_moment(self) -> bool:
        """Wait for a moment in which nothing waits; whether one came."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            await asyncio.sleep(LOOK_EVERY_S)  # the answers go first
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
        if trial is not None:  # scored by the version on trial, and now by the one before it
            pair = Pair(sample.scores, scores, sample.took_ms, took_ms, sample.request_of_row)
            versions = (sample.version, sample.again)
        else:
            pair = Pair(scores, sample.scores, took_ms, sample.took_ms, sample.request_of_row)
            versions = (sample.again, sample.version)
        self.sums.setdefault(versions, Sums()).add(pair)
        if trial is not None:
            trial.compared(pair, time.monotonic())
            self._judge(trial)

    def take_sums(self) -> dict[tuple[str, str], Sums]:
        """What pairs came to since the last call."""
        sums, self.sums = self.sums, {}
        return sums

    def _judge(self, trial: Trial) -> None:
        if trial.verdict is not None and self._trials.get(trial.version) is trial:
            del self._trials[trial.version]
            self._condemn(trial.version, trial.verdict)

    def _condemn(self, version: str, verdict: Verdict) -> None:
        log.error("version %s is used no more here: %s: %s", version, verdict.kind, verdict.reason)
        self._condemned[version] = verdict
        self._models.condemn(version)

    async def settle(self) -> None:
        """After the pointers were followed: begin and end trials, and tell of what was condemned or is broken."""
        models = self._models
        wanted = {version: self._incumbent(version) for version in models.named}
        ready = {new: old for new, old in wanted.items() if old is not None and models.artifact(old)}
        for version in list(self._trials):
            if ready.get(version) != self._trials[version].incumbent:
                del self._trials[version]
        for version, incumbent in ready.items():
            if version not in self._trials and version not in self._condemned and models.artifact(version):
                self._trials[version] = Trial(version, incumbent, self._limits, time.monotonic())
        if self._limits.enabled:
            for version, why in models.broken.items():
                self._condemned.setdefault(version, Verdict("refused", why))
        for version, verdict in list(self._condemned.items()):
            if version not in models.named:
                del self._condemned[version]  # if it is named again, it is by somebody
                continue
            if time.monotonic() - self._told_s.get(version, -TELL_EVERY_S) < TELL_EVERY_S:
                continue
            self._told_s[version] = time.monotonic()
            try:
                async with asyncio.timeout(TELL_S):
                    await self._roll_back(version, verdict)
            except Exception as error:  # it is not used here, and is told again
                self._warn("not_rolled_back", error)

    def _incumbent(self, version: str) -> str | None:
        """The version to which one on trial would give way; None for one that is on none."""
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
