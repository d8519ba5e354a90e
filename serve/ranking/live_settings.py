"""Live settings of a replica: accept or refuse new ones, and pass on what follows from them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve.config.settings import UserConfig
from serve.config.yaml_positions import show
from serve.contract.errors import TabrankError
from serve.contract.logs import SeldomWarning
from serve.ranking.admission import Admission
from serve.ranking.batches import Batches
from serve.rollout.active_models import ActiveModels
from serve.rollout.monitor import RolloutMonitor

log = logging.getLogger("tabrank")


@dataclass(eq=False)
class LiveSettings:
    """Settings that change while rankings go on.

    `config` are the settings in force, and `declaration` is that of their experiment, for the log.
    `error` says why the last settings were refused; it is None if they were accepted.
    """

    models: ActiveModels
    rollout: RolloutMonitor
    batches: Batches
    admission: Admission
    warn: SeldomWarning
    event_clock: bool

    def __post_init__(self) -> None:
        self._surface = self.models.features.schema.surface
        self.error: TabrankError | None = None
        self._apply(UserConfig())

    def start(self, config: UserConfig, *, of_pointers: bool = False) -> None:
        """Take settings; by default those with which a replica starts, and which others have.

        A version that a pointer names now may then lack an outcome that an arm weighs: it may have
        been promoted after the others took these settings. `of_pointers` refuses it.

        Raises:
            TabrankError: an arm names a version that is not published, or a baseline that the
                surface does not have, or weighs an outcome that its version does not predict; the
                settings do not change.
        """
        for path, error in config.misfits(self._surface, self.models.folder, of_pointers=of_pointers):
            raise TabrankError(f"{show(('user_config', *path))}: {error}")
        self._apply(config)

    async def change(self, user_config: Mapping[str, Any]) -> None:
        """Take new settings while rankings go on; load the versions that they name first.

        Settings that are invalid, or that name a version that is refused, are logged and noted in
        `error`. The current ones then stay.
        """
        try:
            config = UserConfig.from_mapping(user_config)
            try:
                await self.models.follow(config)
            except TabrankError:
                raise
            # While a scorer is slow or gone, its arms fall back to the popular order.
            except Exception as error:
                self.warn("model_refused", error)
            self.start(config, of_pointers=True)
        except TabrankError as error:
            log.error("new settings refused, the current ones stay: %s", error)
            self.error = error

    def _apply(self, config: UserConfig) -> None:
        """Put settings in force; running batches are not affected."""
        self.config, self.error = config, None
        self.declaration = config.experiment.declaration(self._surface).text
        self.rollout.shadow = config.shadow
        self.models.limits = config.guard
        most = self.batches.resize(config.max_batches_in_flight, config.max_batch_candidates)
        self.admission.configure(
            enabled=config.load_shedding and not self.event_clock,
            deadline_ms=config.deadline_ms,
            # Candidates of the batches in progress, and of one that gathers.
            most=(config.max_batches_in_flight + 1) * most,
        )
