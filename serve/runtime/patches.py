"""Patch for Ray 2.60: keep the ingress deployment's name while an application is rebuilt.

At each redeploy, Ray 2.60 forgets which deployment is the ingress until the application is built.
For these 2 s, it reports no replicas to HAProxy although all of them run, and HAProxy sends every
request to Ray's Python proxy. At 1,200 requests per second, the proxy then stays overloaded for
half a minute, and a tenth of the requests are refused or late.
"""

from __future__ import annotations

from functools import wraps
from typing import Any


def keep_ingress() -> None:
    """Apply the patch; Ray calls it once in its controller.

    `RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH` names this function.
    """
    from ray.serve._private.application_state import ApplicationState

    set_target = ApplicationState._set_target_state

    @wraps(set_target)
    def keep(state: Any, deployment_infos: Any, **more: Any) -> None:
        before = state._ingress_deployment_name
        set_target(state, deployment_infos, **more)
        # The application is being built. A deleted application has no replicas to keep.
        if deployment_infos is None:
            state._ingress_deployment_name = before

    ApplicationState._set_target_state = keep
