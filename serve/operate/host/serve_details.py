"""Read the details that Ray Serve reports of an application: its state, and why it failed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from serve.operate.host.service_state import ApplicationState, DeploymentState

# Match the frames of a traceback with their lines of code, and the class of one of our own errors.
FRAMES = re.compile(r'^  File ".*\n(?: .*\n)*', re.MULTILINE)
OURS = re.compile(r"^serve\.[\w.]+: ")


def application_of(details: Mapping[str, Any]) -> ApplicationState:
    """Return the state of an application."""
    deployments = {
        name: DeploymentState(
            status=deployment["status"],
            message=deployment["message"],
            target=deployment["target_num_replicas"],
            replicas=dict(Counter(replica["state"] for replica in deployment["replicas"])),
            ids=sorted(replica["replica_id"] for replica in deployment["replicas"]),
        )
        for name, deployment in details["deployments"].items()
    }
    deployed = details.get("deployed_app_config") or {}
    args = deployed.get("args") or {}
    return ApplicationState(
        status=details["status"],
        route_prefix=details["route_prefix"],
        import_path=deployed.get("import_path"),
        **{key: args.get(key, "") for key in ("log", "models", "clock")},
        ingress=(details.get("deployment_topology") or {}).get("ingress_deployment"),
        deployments=deployments,
    )


def settled(applications: Mapping[str, ApplicationState]) -> bool:
    """Return True if all applications run, and no old replica, still draining, can answer."""
    return bool(applications) and all(
        app.status == "RUNNING" and not any("STOPPING" in one.replicas for one in app.deployments.values())
        for app in applications.values()
    )


def messages_of(details: Mapping[str, Any]) -> list[str]:
    """Return the messages of an application and of its deployments."""
    return [details["message"], *(deployment["message"] for deployment in details["deployments"].values())]


def cause(messages: list[str]) -> str:
    """Return the message of the error, without traceback, from Serve's messages."""
    given = [message.strip() for message in messages if message.strip()]
    raised = [message for message in given if FRAMES.search(message)]
    if not given:
        return "Serve gives no reason"
    lines = [line for line in given[-1].splitlines() if not line.startswith(" ")]
    message = FRAMES.split(raised[-1])[-1] if raised else lines[-1]
    # Our own errors are sentences; the name of their class adds nothing.
    return OURS.sub("", message)
