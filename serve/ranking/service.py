"""FeatureFetch: admits requests, batches them, answers, and passes on what comes in. No Ray in here."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import msgspec

from serve.config.settings import CANARY, AppArgs, Arm, UserConfig
from serve.contract.errors import Busy, RequestError, TabrankError
from serve.contract.logs import of_request
from serve.contract.rankings import RankAnswer, RankRequest, candidate_ids, new_request_id, stated_fields
from serve.contract.records import Event, EventsAnswer, Rejected
from serve.features.matrix import Features
from serve.features.rows import Schema
from serve.log.events import MAX_CALL_BYTES, Taken, decode_batch, pack
from serve.model.artifact import Artifact, require
from serve.ranking.admission import Admission
from serve.ranking.assignment import assign
from serve.ranking.batcher import Batcher
from serve.ranking.candidate_table import LiveTable
from serve.ranking.circuit_breaker import Breaker
from serve.ranking.exposure_buffer import IDLE_S, Outbox
from serve.ranking.ranker import Query, Ranker, Slate
from serve.ranking.responses import answer, exposure, ranking
from serve.ranking.telemetry import Metrics, Moment
from serve.rollout.active_models import LoadModel, Models
from serve.rollout.monitor import RollBack, Rollout, told_nobody
from serve.stores.factory import open_store

log = logging.getLogger("tabrank")
REFRESH_S = 0.2  # how often the live table is pulled where no ranking does it
TAKE_S = 3.0  # how long Ingest may take to have records durable; a rollout's new one opens the store first

CallScorer = Callable[[str, bytes], Awaitable[bytes]]
Ingest = Callable[[bytes], Awaitable[Taken]]  # takes packed records; answers once they are durable


class FeatureFetcher:
    """One replica of the request path, from an admitted request to its answer.

    `call_scorer(version, matrix)` answers float32 probabilities; `load_model(version)` returns when a scorer
    is ready for that version and raises where the artifact is refused; `ingest` takes events and exposures;
    `roll_back(version, verdict)` has the one writer take a version back.
    """

    def __init__(
        self,
        args: AppArgs,
        base: Path,
        call_scorer: CallScorer,
        load_model: LoadModel,
        ingest: Ingest,
        metrics: Metrics | None = None,
        roll_back: RollBack = told_nobody,
    ) -> None:
        self.args = args
        self.base = base
        self.surface = args.load_surface(base)
        self.schema = Schema(self.surface)
        self.config = UserConfig()
        self._ingest = ingest
        self._metrics = metrics or Metrics()
        self._warned: dict[str, float] = {}

        breakers: defaultdict[str, Breaker] = defaultdict(partial(Breaker, call_scorer))

        async def call(version: str, payload: bytes) -> bytes:
            return await breakers[version](version, payload)

        open_reader = partial(
            open_store, args.store, self.surface.name, self.schema.fingerprint, base=base, writable=False
        )
        self.live = LiveTable(self.schema, open_reader)
        features = Features(self.schema)
        # Score no more candidates in one call than its bytes allow.
        self._fit_a_call = MAX_CALL_BYTES // features.columns.row_bytes
        self.models = Models(base / args.models, features.columns, load_model)
        self.rollout = Rollout(self.models, call, lambda: self._scored.is_idle, roll_back, self._degraded)
        self.ranker = Ranker(features, self.live, self.rollout.score, self._degraded, self._metrics.batch)
        self.outbox = Outbox(ingest)
        self.admission = Admission()
        # What needs no scorer never waits for one: a batch is answered together.
        self._scored: Batcher[Query, Slate] = Batcher(self.ranker.rank, slots=2, cap=1760)
        self._unscored: Batcher[Query, Slate] = Batcher(self.ranker.rank, slots=1, cap=1760)

    @property
    def model(self) -> Artifact | None:
        """The promoted artifact."""
        return self.models.current

    def configure(self, config: UserConfig) -> None:
        """Take new live settings; batches under way are not disturbed.

        Raises:
            TabrankError: an arm names an artifact that is not published; the settings stay as they were.
        """
        for arm, version in config.experiment.versions.items():
            require(self.base / self.args.models, version, f"user_config.experiment.arms.{arm}.scorer")
        if config.shadow is not None and config.shadow.version != CANARY:
            require(self.base / self.args.models, config.shadow.version, "user_config.shadow.version")
        self.config = config
        self.admission.configure(
            enabled=config.ladder and not self.event_clock, deadline_ms=config.deadline_ms
        )
        self.rollout.configure(config)
        self._scored.slots = config.slots
        self._scored.cap = self._unscored.cap = min(config.batch_candidates, self._fit_a_call)

    async def reconfigure(self, config: UserConfig) -> None:
        """Take new live settings while rankings go on; the arms' artifacts are made ready first.

        Raises:
            TabrankError: an arm's artifact is not published, or refused; the settings stay as they were.
        """
        try:
            await self.models.follow(config.experiment, self.rollout.others())
        except TabrankError:
            raise
        except Exception as error:  # a scorer that is slow or gone: its arms fall back until it is there
            self._degraded("model_refused", error)
        self.configure(config)

    async def rank(
        self, request: RankRequest, deadline_ms: int | None = None, arm: Arm | None = None
    ) -> RankAnswer:
        """Rank one request: the model's order, or within its deadline the popular one with the reason.

        `arm` ranks in place of the one assigned; that counts for no experiment.
        """
        begun = time.perf_counter()
        waited_s = self.admission.waited_s()
        deadline = self.admission.deadline(waited_s, deadline_ms)
        query = self._admit(request, arm, waited_s)
        if self.event_clock:  # what came before is seen, and what comes at the same time is not
            await self.outbox.flush(before_ms=query.now_ms)
        slate = self._aged(await self._slate(query, deadline))
        total_ms = (time.perf_counter() - begun) * 1e3
        self._metrics.ranked(slate, total_ms)
        shown = [query.candidates[place] for place in slate.order[: query.limit].tolist()]
        self.outbox.put(exposure(slate, shown, total_ms))
        artifact = self.models.artifact(slate.model) or self.model
        ranked = ranking(slate, shown, self.ranker.features.columns, artifact.encoder if artifact else None)
        return answer(
            slate, ranked, surface=self.surface.name, total_ms=total_ms, freshness_ms=self.freshness_ms
        )

    async def _slate(self, query: Query, deadline: float) -> Slate:
        if self.config.kill_switch:
            return self.ranker.popular(query, "kill_switch")
        if not query.num_scored and query.candidates:
            return self.ranker.popular(query, "overload")
        begun_s = asyncio.get_running_loop().time()
        batcher = self._scored if query.arm.by_model else self._unscored
        try:
            slate = await batcher.submit(query, query.num_scored, deadline)
            if slate.model is not None:
                self.admission.scored(begun_s)
            return slate
        except TimeoutError:
            if query.arm.by_model:
                self.admission.late(begun_s, deadline)
            return self.ranker.popular(query, "deadline")
        except Exception as error:  # a fault of ours, or of a neighbour in the batch
            self._degraded("scorer_unavailable", error, query.request_id)
            return self.ranker.popular(query, "scorer_unavailable")

    async def take(self, body: bytes) -> EventsAnswer:
        """Take a batch of records; the answer comes when what was accepted is durable.

        Raises:
            RequestError: 400 or 422 for what is no batch; 503 where it may not have been taken.
        """
        good, rejected = decode_batch(body, self.surface, event_clock=self.event_clock)
        self._metrics.rejected(len(rejected))
        taken = Taken()
        if self.event_clock:  # at one time attributes come first, then rankings, then events, as in a replay
            has_events = any(isinstance(record, Event) for record in good.values())
            first_ms = min((record.ts_ms or 0 for record in good.values()), default=0)
            await self.outbox.flush(before_ms=None if has_events else first_ms)
        if good:
            payload = pack(list(good.values()))
            try:
                async with asyncio.timeout(TAKE_S):
                    taken = await self._ingest(payload)
            except Exception as error:
                self._degraded("events_unavailable", error)
                raise _not_taken(error) from None
        places = list(good)
        rejected += [Rejected(f"/records/{places[at]}", detail) for at, detail in taken.rejected.items()]
        num_accepted = len(good) - taken.duplicates - len(taken.rejected)
        return EventsAnswer(num_accepted, taken.duplicates, rejected)

    @property
    def event_clock(self) -> bool:
        """Whether time is what requests and records say it is: in replays and tests."""
        return self.args.clock == "event"

    def refused(self, took_ms: float) -> None:
        """A refusal has been answered, so long after its request was seen."""
        self._metrics.refused(took_ms)

    def _aged(self, slate: Slate) -> Slate:
        """The slate, saying so where its features are older than is allowed."""
        freshness_ms = self.freshness_ms
        if freshness_ms is None or freshness_ms <= self.config.stale_after_ms or self.event_clock:
            return slate
        rung = "partial" if slate.rung == "full" else slate.rung
        return msgspec.structs.replace(slate, rung=rung, degraded=(*slate.degraded, "stale_features"))

    def _admit(self, request: RankRequest, arm: Arm | None, waited_s: float) -> Query:
        now_ms = request.now_ms if request.now_ms is not None else int(time.time() * 1e3)
        if arm is None:
            arm, experiment = assign(self.config.experiment, request.viewer, now_ms)
        else:
            experiment = None
        ids = candidate_ids(request)
        num_scored = min(self.admission.num_scored(len(ids), waited_s), self._fit_a_call)
        return Query(
            request_id=request.request_id or new_request_id(),
            viewer=request.viewer,
            candidates=ids,
            now_ms=now_ms,
            arm=arm,
            experiment=experiment,
            model=self.models.version_for(arm),
            limit=request.limit or len(ids),
            context=request.context,
            stated={} if ids is request.candidates else stated_fields(request),
            explain=request.explain,
            traffic=request.traffic,
            keep_matrix=request.explain or random.random() < self.config.log_features,
            explore=arm.explore > 0 and random.random() < arm.explore,
            num_scored=num_scored if arm.by_model else len(ids),
        )

    @property
    def freshness_ms(self) -> float | None:
        """How old the features may be: since the table was read, and since what Ingest has not yet made durable."""
        age_s = self.live.age_s
        return None if age_s is None else round(max(age_s, self.outbox.age_s) * 1e3, 1)

    async def refresh_forever(self) -> None:
        """Keep the live table and the models fresh, follow the load and send exposures on, until cancelled.

        Each goes on its own: a scorer that is slow to load a version must not stop the pulling of the store. A fault of
        ours in one of them ends all, and is raised: half of them would look like the whole.
        """
        async with asyncio.TaskGroup() as together:
            together.create_task(self._follow_forever())
            together.create_task(self.outbox.run(IDLE_S if self.event_clock else 0.0))
            together.create_task(self.admission.run())
            together.create_task(self.rollout.run())
            while True:
                self.pull()
                self._metrics.tick(self._moment())
                await asyncio.sleep(REFRESH_S)

    async def _follow_forever(self) -> None:
        while True:
            await self.follow()
            await asyncio.sleep(REFRESH_S)

    def _moment(self) -> Moment:
        model = self.model.version if self.model else None
        return Moment(
            self.freshness_ms,
            self.outbox.num_dropped,
            self.outbox.num_too_large,
            self.config.kill_switch,
            model,
            self.admission.ladder.level,
            self.rollout.take_sums(),
        )

    async def refresh(self) -> None:
        """Pull what changed in the store, follow the models' pointer. What fails is tried again next time."""
        self.pull()
        await self.follow()

    def pull(self) -> None:
        """Bring the live table up to the store."""
        try:
            self.live.read([])
        except Exception as error:  # whatever it is, the loop goes on and the table serves what it has
            self._degraded("store_unavailable", error)

    async def follow(self) -> None:
        """Take up the models that the pointers and the arms name, and see to what is on trial."""
        try:
            await self.models.follow(self.config.experiment, self.rollout.others())
        except Exception as error:
            self._degraded("model_refused", error)
        try:
            await self.rollout.settle()
        except Exception as error:  # such as a history that cannot be read
            self._degraded("rollout_unsettled", error)

    def _degraded(self, reason: str, error: Exception, request_id: str | None = None) -> None:
        """Log a failure once every ten seconds, with a request that it befell: under load it would be every batch."""
        now = time.monotonic()
        if now - self._warned.get(reason, -10.0) >= 10.0:
            self._warned[reason] = now
            log.warning("%s: %s: %s", reason, type(error).__name__, error, extra=of_request(request_id))


def _not_taken(error: Exception) -> RequestError:
    if isinstance(error, Busy):
        return RequestError(429, "busy", "too much is waiting; send the records again", retry_after_s=1)
    detail = (
        "the records may not have been taken; send them again: an event that was is known by its id, "
        "and what else was is applied once more"
    )
    return RequestError(503, "not taken", detail, retry_after_s=1)
