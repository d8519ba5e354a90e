"""Request path of one FeatureFetch replica: admit, rank in a batch, record, answer. Without Ray."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from random import SystemRandom

from msgspec.structs import replace

from serve.config.diagnoses import DeclaredService
from serve.config.settings import BASELINE, AppArgs, Arm, UserConfig
from serve.contract.logs import SeldomWarning
from serve.contract.rankings import RankAnswer, RankRequest, candidate_ids, new_request_id, stated_fields
from serve.features.matrix import Features
from serve.features.rows import Schema
from serve.log.events import IngestResult
from serve.model.mirror import mirror_of
from serve.model.scorer_cache import ModelHolder
from serve.ranking.admission import Admission
from serve.ranking.assignment import assign
from serve.ranking.batches import Batches
from serve.ranking.circuit_breaker import guarded
from serve.ranking.exposure_buffer import ExposureBuffer
from serve.ranking.health import NOT_TAKEN, Health
from serve.ranking.in_process_scoring import InProcessScoring
from serve.ranking.live_settings import LiveSettings
from serve.ranking.peers import Peers
from serve.ranking.query import Query, Slate
from serve.ranking.ranker import Ranker
from serve.ranking.reasons import Explained, explain
from serve.ranking.responses import answer, exposure
from serve.ranking.telemetry import Metrics
from serve.ranking.utility import Weighings
from serve.rollout.active_models import ActiveModels
from serve.rollout.monitor import CallScorer, RolloutMonitor
from serve.storage.bucket import place
from serve.stores.candidate_table import CandidateTable

# The features of a live ranking are logged at least this often, so that an audit of a small service
# has enough of them after some hours. A replica logs 120 an hour, or 0.6 MB with 55 candidates.
LOG_FEATURES_EVERY_S = 30.0
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
        # True if requests and records set the time, as in replays and tests.
        self.event_clock = args.clock == "event"
        self.surface = args.load_surface(base)
        self.features = Features(Schema(self.surface))
        self.metrics = metrics or Metrics()
        self.warn = SeldomWarning()
        self._peers = peers
        declared = DeclaredService(args, base, self.features, UserConfig(), application, service)
        self.live = CandidateTable(self.features.schema, declared.open)
        mirror = mirror_of(place(args.models, base))
        self.models = ActiveModels(mirror.folder, self.features, peers.load)
        # Calls for reasons have a circuit breaker of their own: their failures must not stop
        # rankings.
        call, call_for_reasons = guarded(peers.score), guarded(peers.score)
        score, self._score_reasons = call, call_for_reasons
        if in_process is not None:
            score = self._in_process(call, in_process)
            self._score_reasons = self._in_process(call_for_reasons, in_process).aside
        self._weighings = Weighings(self.surface)
        self.rollout = RolloutMonitor(
            self.models, score, self._weighings.by_surface, peers.roll_back, self.warn, call
        )
        ranker = Ranker(self.features, self.live, self.rollout.score_and_watch, self.warn, self.metrics.batch)
        self.batches = Batches(ranker, self.warn)
        self.admission = Admission()
        self.exposure_buffer = ExposureBuffer(self.ingest, self.warn)
        self.settings = LiveSettings(
            self.models, self.rollout, self.batches, self.admission, self.warn, self.event_clock
        )
        self.health = Health(
            declared, self.settings, self.live, self.models, mirror, self.exposure_buffer, self.warn
        )
        self._surface_name = self.surface.short_fingerprint
        # From this time on, on the monotonic clock, the next live ranking logs its features.
        self._features_due_s = 0.0

    def _in_process(self, call: CallScorer, models: ModelHolder) -> InProcessScoring:
        # A version on trial may be slow, or end its process.
        return InProcessScoring(call, models, lambda version: self.models.trial(version) is None, self.warn)

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
        with self.admission.room(caller, query.num_scored) as has_room:
            slate = await self.batches.rank(query, deadline, self._refused(query.arm, has_room))
        if has_room:
            is_scored, is_late = slate.model is not None, slate.degraded == ("deadline",)
            self.admission.answered(arrived_s, is_scored=is_scored, is_late=is_late)
        slate = self._mark_stale(slate)
        total_ms = (time.perf_counter() - begun) * 1e3
        self.metrics.ranked(slate, total_ms)
        shown = [query.candidates[place] for place in slate.order[: query.limit].tolist()]
        self.exposure_buffer.put(exposure(slate, shown, total_ms, self._surface_name))
        artifact = self.models.artifact(slate.model) or self.models.current
        return answer(
            slate,
            shown,
            self.surface,
            self.features.columns,
            artifact.encoder if artifact else None,
            await self._explained(slate, len(shown), deadline),
            total_ms=total_ms,
            freshness_ms=self.health.freshness_ms,
        )

    def _admit(self, request: RankRequest, arm: Arm | None) -> Query:
        """Return what a request asks for, with the arm and the version that rank it."""
        now_ms = request.now_ms if request.now_ms is not None else int(time.time() * 1e3)
        config = self.settings.config
        if arm is None:
            arm, experiment = assign(config.experiment, request.viewer, now_ms)
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
            num_scored=min(len(ids), self.batches.most_scored) if arm.by_model else len(ids),
            asked=artifact.asked if artifact else (),
            weighing=self._weighings.of(arm.weights, artifact),
            pins={pins[name] - 1: i for i, name in enumerate(ids if pins else ()) if name in pins},
            # The report leaves test traffic out.
            declaration=None
            if experiment is None or request.traffic == "test"
            else self.settings.declaration,
        )

    def _logs_features(self, request: RankRequest) -> bool:
        """Return True to log the features: for a share, and for live rankings now and then."""
        share, now_s = self.settings.config.log_features, time.monotonic()
        if request.traffic == "live" and share and now_s >= self._features_due_s:
            self._features_due_s = now_s + LOG_FEATURES_EVERY_S
            return True
        return draw() < share

    def _refused(self, arm: Arm, has_room: bool) -> str | None:
        """Return why an arm may not rank now, or None; heuristics without features always may."""
        if self.settings.config.kill_switch:
            return "kill_switch"
        return "overload" if not has_room and (arm.by_model or arm.scorer == BASELINE) else None

    def _mark_stale(self, slate: Slate) -> Slate:
        """Mark the slate as degraded if its features are older than `stale_after_ms`."""
        age_ms = self.health.freshness_ms
        if age_ms is None or age_ms <= self.settings.config.stale_after_ms or self.event_clock:
            return slate
        rung = "partial" if slate.rung == "full" else slate.rung
        return replace(slate, rung=rung, degraded=(*slate.degraded, "stale_features"))

    async def _explained(self, slate: Slate, num_shown: int, deadline: float) -> Explained | None:
        """Return the reasons, if they are asked for and come in time."""
        # Load shedding drops reasons before scores.
        if slate.query.explain and not self.admission.load_shedder.level:
            try:
                async with asyncio.timeout_at(deadline):
                    return await explain(slate, self.features.columns, self._score_reasons, num_shown)
            # A ranking without reasons is still a ranking.
            except Exception as error:
                self.warn("no reasons", error, slate.query.request_id)
        return None

    async def ingest(self, payload: bytes) -> IngestResult:
        """Return once Ingest has made packed records durable."""
        taken = await self._peers.ingest(payload)
        self.warn.ended(NOT_TAKEN)
        return taken
