"""What Ray's controller is taught: while an application is built anew, its ingress stays what it was.

Ray 2.60 forgets at each redeploy which deployment is the ingress, until the application is built. For these 2 s HAProxy
is told of no replica, though all run, and sends everything through Ray's Python proxy: 1,200 requests a second keep
that busy for half a minute, and a tenth of them are refused or too late.
"""

from __future__ import annotations

import logging
from functools import wraps
from typing import Any

log = logging.getLogger("ray.serve")


def keep_ingress() -> None:
    """What `RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH` names; Ray calls it once, in its controller."""
    from ray.serve._private.application_state import ApplicationState

    set_target = getattr(ApplicationState, "_set_target_state", None)
    if set_target is None:
        log.warning(
            "this Ray's applications are not known: at a redeploy requests may take Ray's Python proxy"
        )
        return

    @wraps(set_target)
    def keep(state: Any, deployment_infos: Any, **more: Any) -> None:
        before = state._ingress_deployment_name
        set_target(state, deployment_infos, **more)
        if deployment_infos is None:  # it is being built; what is deleted has none that run
            state._ingress_deployment_name = before

    ApplicationState._set_target_state = keep
