"""Request path of one FeatureFetch replica: admit, rank in a batch, record, answer. Without Ray."""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import SystemRandom

import msgspec

from serve.config.diagnoses import DeclaredService, Diagnosis, LogEnd
from serve.config.settings import BASELINE, AppArgs, Arm, UserConfig
from serve.config.yaml_positions import show
from serve.contract.errors import TabrankError
from serve.contract.logs import SeldomWarning
from serve.contract.rankings import RankAnswer, RankRequest, candidate_ids, new_request_id, stated_fields
from serve.features.matrix import Features
from serve.features.rows import Schema
from serve.features.slots import F32
from serve.log.events import MAX_CALL_BYTES, IngestResult
from serve.model.artifact import Artifact
from serve.model.mirror import mirror_of
from serve.model.scorer_cache import ModelHolder
from serve.ranking.admission import Admission
from serve.ranking.assignment import assign
from serve.ranking.batcher import Batcher
from serve.ranking.circuit_breaker import CircuitBreaker
from serve.ranking.exposure_buffer import WAITING, ExposureBuffer
from serve.ranking.in_process_scoring import InProcessScoring
from serve.ranking.peers import Peers
from serve.ranking.query import Query, Slate
from serve.ranking.ranker import Ranker
from serve.ranking.reasons import Explained, explain
from serve.ranking.responses import answer, exposure
from serve.ranking.telemetry import Metrics
from serve.ranking.utility import Weighings
from serve.rollout.active_models import ActiveModels
from serve.rollout.monitor import CallScorer, RolloutMonitor
from serve.storage.bucket import BucketError, place
from serve.stores.candidate_table import CandidateTable

# A batch of popular orders may be this many times as large as a scored one, because it computes no
# features.
POPULAR_BATCHES = 8
# The features of a live ranking are logged at least this often, so that an audit of a small service
# has enough of them after some hours. A replica logs 120 an hour, or 0.6 MB with 55 candidates.
LOG_FEATURES_EVERY_S = 30.0
NOT_DIAGNOSED = "not_diagnosed"
# Reasons of warnings that mean degraded answers or lost records while they last.
NOT_TAKEN = "events_unavailable"
FAILING_INGEST = (NOT_TAKEN, WAITING)
FAILING = ("scorer_unavailable", *FAILING_INGEST, NOT_DIAGNOSED)
# A generator that no module which a replica imports can seed.
draw = SystemRandom().random


class RankingService:
    """One replica of the request path, from an admitted request to its answer.

    `peers` are the other deployments. `in_process` holds the versions that this process scores
    itself, if it may. `application` is the name of the Serve application, and `service` tells it
    from those of other clusters.
    """

    def __init__(
        self,
        args: AppArgs,
        base: Path,
        peers: Peers,
        metrics: Metrics | None = None,
        in_process: ModelHolder | None = None,
        application: str = "",
        service: str = "",
    ) -> None:
        self.args = args
        self.base = base
        # Why the last settings were refused; None if they were accepted.
        self.settings_error: TabrankError | None = None
        # What was wrong with the store a few seconds ago.
        self._store_faults: list[Diagnosis] = []
        # Why the log's bucket could not be read; None if it could.
        self.log_error: BucketError | None = None
        # True if the store had no living writer, or the log had records that the store lacked.
        self.is_behind = False
        # True once the log's lease was that of this service.
        self._had_lease = False
        self.surface = args.load_surface(base)
        self.schema = Schema(self.surface)
        self._surface_name = self.surface.short_fingerprint
        self.config = UserConfig()
        self._declaration = self.config.experiment.declaration(self.surface).text
        self._weighings = Weighings(self.surface)
        # From this time on, on the monotonic clock, the next live ranking logs its features.
        self._features_due_s = 0.0
        self._peers = peers
        self.metrics = metrics or Metrics()
        self.warn = SeldomWarning()

        features = Features(self.schema)
        self.declared = DeclaredService(args, base, features, self.config, application, service)
        self.live = CandidateTable(self.schema, self.declared.open)
        # Score no more candidates in one call than its bytes allow.
        self._fit_a_call = MAX_CALL_BYTES // features.columns.row_bytes
        self._mirror = mirror_of(place(args.models, base))
        self.models = ActiveModels(self._mirror.folder, features, peers.load)
        # Calls for reasons have a circuit breaker of their own: their failures must not stop
        # rankings.
        call, call_for_reasons = _guarded(peers), _guarded(peers)
        score, self._score_reasons = call, call_for_reasons
        if in_process is not None:
            score = self._in_process(call, in_process)
            self._score_reasons = self._in_process(call_for_reasons, in_process).aside
        self.rollout = RolloutMonitor(
            self.models, score, lambda: self._scored.is_idle, peers.roll_back, self.warn, call
        )
        self.rollout.utility = self._surface_utility
        self.ranker = Ranker(features, self.live, self.rollout.score_and_watch, self.warn, self.metrics.batch)
        self.exposure_buffer = ExposureBuffer(self.ingest, self.warn)
        self.admission = Admission()
        cap = self.config.max_batch_candidates
        self._scored: Batcher[Query, Slate] = Batcher(self.ranker.rank, max_in_flight=2, cap=cap)
        # Arms without a scorer have a batcher of their own, because a batch is answered as a whole.
        self._unscored: Batcher[Query, Slate] = Batcher(self.ranker.rank, max_in_flight=1, cap=cap)
        # In batches of 16 a popular order takes a quarter of the time that it takes alone.
        self._popular: Batcher[tuple[Query, str], Slate] = Batcher(
            self._rank_by_popularity, max_in_flight=1, cap=POPULAR_BATCHES * cap
        )

    def _in_process(self, call: CallScorer, models: ModelHolder) -> InProcessScoring:
        # A version on trial may be slow, or end its process.
        return InProcessScoring(call, models, lambda version: self.models.trial(version) is None, self.warn)

    async def ingest(self, payload: bytes) -> IngestResult:
        """Return once Ingest has made packed records durable."""
        taken = await self._peers.ingest(payload)
        self.warn.ended(NOT_TAKEN)
        return taken

    @property
    def model(self) -> Artifact | None:
        """The promoted artifact."""
        return self.models.current

    def configure(self, config: UserConfig, *, of_pointers: bool = False) -> None:
        """Apply new live settings; running batches are not affected.

        If `of_pointers` is set, the versions that pointers name now must have the outcomes that
        arms weigh. A replica that starts does not set it: it must take the settings that other
        replicas have, whatever was promoted since.

        Raises:
            TabrankError: an arm names a version that is not published, or a baseline that the
                surface does not have, or weighs an outcome that its version does not predict; the
                settings do not change.
        """
        for path, error in config.misfits(self.surface, self._mirror.folder, of_pointers=of_pointers):
            raise TabrankError(f"{show(('user_config', *path))}: {error}")
        self.config, self.settings_error = config, None
        self._declaration = config.experiment.declaration(self.surface).text
        self.rollout.shadow = config.shadow
        self.models.limits = config.guard
        self._scored.max_in_flight = config.max_batches_in_flight
        self._scored.cap = self._unscored.cap = min(config.max_batch_candidates, self._fit_a_call)
        self._popular.cap = POPULAR_BATCHES * self._scored.cap
        self.admission.configure(
            enabled=config.load_shedding and not self.event_clock,
            deadline_ms=config.deadline_ms,
            # Candidates of the batches in progress, and of one that gathers.
            most=(config.max_batches_in_flight + 1) * self._scored.cap,
        )

    async def reconfigure(self, config: UserConfig) -> None:
        """Apply new live settings while rankings go on; load the versions that they name first.

        Raises:
            TabrankError: an arm's artifact is missing or was refused; the settings do not change.
        """
        try:
            await self.models.follow(config)
        except TabrankError:
            raise
        # If a scorer is slow or gone, its arms fall back to the popular order until it is ready.
        except Exception as error:
            self.warn("model_refused", error)
        self.configure(config, of_pointers=True)

    async def rank(
        self,
        request: RankRequest,
        deadline_ms: int | None = None,
        arm: Arm | None = None,
        caller: str = "",
        arrived_s: float | None = None,
    ) -> RankAnswer:
        """Rank one request: the model's order or, if there are no scores in time, the popular one.

        `arm` replaces the assigned arm; the ranking then counts for no experiment. Callers share
        the limit of load shedding in equal parts. `arrived_s` is when the request came, on the
        event loop's clock.
        """
        begun = time.perf_counter()
        if arrived_s is None:
            arrived_s = self.admission.arrived_s()
        deadline = self.admission.deadline(arrived_s, deadline_ms)
        query = self._admit(request, arm)
        # With the event clock, a ranking sees records with an earlier time, but not with an equal
        # one.
        if self.event_clock:
            await self.exposure_buffer.flush(before_ms=query.now_ms)
        slate = self._mark_stale(await self._slate(query, arrived_s, deadline, caller))
        total_ms = (time.perf_counter() - begun) * 1e3
        self.metrics.ranked(slate, total_ms)
        shown = [query.candidates[place] for place in slate.order[: query.limit].tolist()]
        self.exposure_buffer.put(exposure(slate, shown, total_ms, self._surface_name))
        artifact = self.models.artifact(slate.model) or self.model
        return answer(
            slate,
            shown,
            self.surface,
            self.ranker.features.columns,
            artifact.encoder if artifact else None,
            await self._explained(slate, len(shown), deadline),
            total_ms=total_ms,
            freshness_ms=self.freshness_ms,
        )

    async def _explained(self, slate: Slate, num_shown: int, deadline: float) -> Explained | None:
        """Return the reasons, if they are asked for and come in time."""
        # Load shedding drops reasons before scores.
        if slate.query.explain and not self.admission.load_shedder.level:
            try:
                async with asyncio.timeout_at(deadline):
                    return await explain(slate, self.ranker.features.columns, self._score_reasons, num_shown)
            # A ranking without reasons is still a ranking.
            except Exception as error:
                self.warn("no reasons", error, slate.query.request_id)
        return None

    async def _slate(self, query: Query, arrived_s: float, deadline: float, caller: str) -> Slate:
        with self.admission.room(caller, query.num_scored) as has_room:
            slate = await self._answered(query, deadline, has_room)
        if has_room:
            is_scored, is_late = slate.model is not None, slate.degraded == ("deadline",)
            self.admission.answered(arrived_s, is_scored=is_scored, is_late=is_late)
        return slate

    async def _answered(self, query: Query, deadline: float, has_room: bool) -> Slate:
        by_rule = query.arm.scorer == BASELINE
        if self.config.kill_switch:
            reason = "kill_switch"
        elif not has_room and (query.arm.by_model or by_rule):
            reason = "overload"
        else:
            try:
                batcher = self._scored if query.arm.by_model else self._unscored
                return await batcher.submit(query, query.num_scored, deadline)
            except TimeoutError:
                reason = "deadline"
            # This is an internal error, or an error of another request in the batch.
            except Exception as error:
                reason = "scorer_unavailable"
                self.warn(reason, error, query.request_id)
        try:
            # The popular order waits for nothing but the process itself.
            return await self._popular.submit((query, reason), query.num_scored, deadline=math.inf)
        # A query that cannot be ranked fails its whole batch, so rank this one by itself.
        except Exception:
            return self.ranker.popular([query], [reason])[0]

    async def _rank_by_popularity(self, asked: list[tuple[Query, str]]) -> list[Slate]:
        queries, reasons = zip(*asked, strict=True)
        return self.ranker.popular(queries, reasons)

    @property
    def event_clock(self) -> bool:
        """Return True if requests and records set the time, as in replays and tests."""
        return self.args.clock == "event"

    def _mark_stale(self, slate: Slate) -> Slate:
        """Mark the slate as degraded if its features are older than `stale_after_ms`."""
        freshness_ms = self.freshness_ms
        if freshness_ms is None or freshness_ms <= self.config.stale_after_ms or self.event_clock:
            return slate
        rung = "partial" if slate.rung == "full" else slate.rung
        return msgspec.structs.replace(slate, rung=rung, degraded=(*slate.degraded, "stale_features"))

    def _admit(self, request: RankRequest, arm: Arm | None) -> Query:
        now_ms = request.now_ms if request.now_ms is not None else int(time.time() * 1e3)
        if arm is None:
            arm, experiment = assign(self.config.experiment, request.viewer, now_ms)
        else:
            experiment = None
        ids, pins, model = candidate_ids(request), request.pins, self.models.version_for(arm)
        artifact = self.models.artifact(model)
        return Query(
            request_id=request.request_id or new_request_id(),
            viewer=request.viewer,
            candidates=ids,
            now_ms=now_ms,
            arm=arm,
            experiment=experiment,
            model=model,
            limit=request.limit or len(ids),
            context=request.context,
            stated={} if ids is request.candidates else stated_fields(request),
            explain=request.explain,
            traffic=request.traffic,
            keep_matrix=bool(request.explain) or self._logs_features(request),
            explore=arm.explore > 0 and draw() < arm.explore,
            num_scored=min(len(ids), self._fit_a_call) if arm.by_model else len(ids),
            asked=artifact.asked if artifact else (),
            weighing=self._weighings.of(arm.weights, artifact),
            pins={pins[name] - 1: i for i, name in enumerate(ids if pins else ()) if name in pins},
            # The report leaves test traffic out.
            declaration=None if experiment is None or request.traffic == "test" else self._declaration,
        )

    def _surface_utility(self, version: str, shares: F32) -> F32:
        """Return the utilities `[R]` of a version's shares with the weights of the surface."""
        return self._weighings.of({}, self.models.artifact(version)).utility(shares)

    def _logs_features(self, request: RankRequest) -> bool:
        """Return True to log the features: for a share, and for live rankings now and then."""
        share, now_s = self.config.log_features, time.monotonic()
        if request.traffic == "live" and share and now_s >= self._features_due_s:
            self._features_due_s = now_s + LOG_FEATURES_EVERY_S
            return True
        return draw() < share

    def diagnose_store(self, log_end: LogEnd | None) -> None:
        """Diagnose the store as it was last read; the end of the log was read before it."""
        is_silent = self.live.silent_s > 0 and not self.event_clock
        is_ahead = log_end is not None and (log_end.other != "" or log_end.seq > self.live.seq)
        self.is_behind = self.live.error is None and (is_silent or is_ahead)
        if log_end is not None:
            # During a rollout the lease names another store of this service. A lease that was there
            # before this service may be of a service that has ended.
            own = log_end.service == self.declared.service
            self._had_lease = self._had_lease or own
            if own or not (log_end.service and self._had_lease):
                log_end = log_end._replace(other="")
        if self.live.error is not None:
            self._store_faults = [self.declared.unavailable_store(self.live.error)]
        else:
            faults = self.declared.read_store_faults(self.live.seq, self.live.note, log_end)
            self._store_faults = list(faults)

    def diagnoses(self) -> Iterator[Diagnosis]:
        """Yield what is wrong with the service, as far as this replica knows."""
        models, config = self.models, self.config
        declared = replace(self.declared, config=config)
        if config.kill_switch:
            yield declared.diagnosis("kill_switch")
        if self.settings_error:
            yield declared.error_fault("settings_refused", self.settings_error)
        yield from self._store_faults
        for where, error in ((self.args.log, self.log_error), (self.args.models, self._mirror.error)):
            if error is not None:
                yield declared.unreachable(where, error)
        age_s = self._silent_s
        has_store = self.live.error is None
        # Without a store Ingest cannot do its work either, which needs no diagnosis of its own.
        if has_store and age_s * 1e3 > config.stale_after_ms and not self.event_clock:
            yield declared.diagnosis("stale_features", age_s=age_s)
        if self.exposure_buffer.one_in > 1:
            yield declared.diagnosis("exposures_thinned", one_in=self.exposure_buffer.one_in)
        for reason in (one for one in FAILING if has_store or one not in FAILING_INGEST):
            lasting, failure = self.warn.lasting(reason), self.warn.recent(reason)
            if reason == NOT_TAKEN and lasting:
                num, age_s, error = lasting
                yield declared.error_fault("events_failing", error, num=num, age_s=age_s)
            elif failure:
                yield declared.error_fault("failing", failure, reason=reason)
        for version, error in models.failures.items():
            yield declared.version_fault(version, error)
        if lost := models.lost:
            yield declared.diagnosis("current_lost", version=lost)
        named = [(arm, models.named_by(arm)) for arm in config.experiment.arms]
        yield from declared.arms_without_model(arm for arm, artifact in named if artifact is None)
        yield from declared.arms_without_outcomes(named)
        yield from declared.foreign_names()

    @property
    def freshness_ms(self) -> float | None:
        """Return the age of the features: since the last read, or since Ingest is silent."""
        age_s = self.live.age_s
        return None if age_s is None else round(max(age_s, self._silent_s) * 1e3, 1)

    @property
    def _silent_s(self) -> float:
        """Seconds for which Ingest has taken no exposures, or its heartbeat has been overdue."""
        return max(self.exposure_buffer.age_s, 0.0 if self.event_clock else self.live.silent_s)


def _guarded(peers: Peers) -> CallScorer:
    """Return the call of a scorer with a circuit breaker for each version."""
    breakers: defaultdict[str, CircuitBreaker] = defaultdict(partial(CircuitBreaker, peers.score))

    async def call(version: str, payload: bytes) -> bytes:
        return await breakers[version](version, payload)

    return call
