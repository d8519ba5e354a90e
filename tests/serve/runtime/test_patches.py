"""A redeploy, in the class of Ray's controller that decides it."""

from __future__ import annotations

import warnings

import pytest

from serve.runtime.patches import keep_ingress

with warnings.catch_warnings():
    # Ray's own, about pydantic.
    warnings.simplefilter("ignore")
    from ray.serve._private.application_state import ApplicationState
    from ray.serve.schema import APIType

NEW = {"api_type": APIType.DECLARATIVE, "code_version": None, "target_config": None}


@pytest.fixture
def application(monkeypatch):
    monkeypatch.setattr(ApplicationState, "_set_target_state", ApplicationState._set_target_state)
    application = ApplicationState.__new__(ApplicationState)
    application._name = "spaces"
    application._ingress_deployment_name = "FeatureFetch"
    application._ingress_request_router_deployment_name = None
    application._update_status = lambda status: None
    return application


def test_ray_forgets_the_ingress_while_an_application_is_built(application):
    application._set_target_state(None, **NEW)
    assert application.ingress_deployment is None, "Ray remembers it now: `serve.runtime.patches` can go"


def test_the_patch_keeps_the_ingress_until_the_application_is_built(application):
    keep_ingress()
    application._set_target_state(deployment_infos=None, **NEW)
    assert application.ingress_deployment == "FeatureFetch"


def test_what_is_deleted_has_no_ingress(application):
    keep_ingress()
    application._set_target_state(deployment_infos={}, deleting=True, **NEW)
    assert application.ingress_deployment is None
