"""The service against its own OpenAPI document: whatever is sent, no server error and no status that is not told."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live import Live
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from tiny import tables

from serve.log.writer import write_log

pytestmark = [pytest.mark.integration, pytest.mark.no_ray]
many = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    write_log(folder / "log", tables())
    service = Live(folder, folder / "log", clock="wall")
    with pytest.MonkeyPatch.context() as patch, service.listening() as url:
        patch.setattr(
            "serve.ingest.writer.COMMIT_EVERY_S", 0.001
        )  # else each batch of records waits for its commit
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


def asked(case):
    response = case.call()
    case.validate_response(response, excluded_checks=beyond_words(case, response))
    assert response.status_code < 500, response.text


def beyond_words(case, response):
    """The checks that an answer is not held to: for what no JSON Schema can say, or says otherwise."""
    said = response.text
    if response.status_code == 422 and ("is there twice" in said or "got `float`" in said):
        return [positive_data_acceptance]  # an id by itself and again with fields; 1.0 for a whole number
    if response.status_code == 200 and case.path == "/v1/events" and response.json()["rejected"]:
        return [negative_data_rejection]  # the good records of a batch are taken, and the others named
    return [negative_data_rejection] if response.status_code == 413 else []  # it is a refusal, too


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", ["/v1/rank", "/v1/events"])
def test_whatever_is_posted_is_answered_as_the_document_says(described, path, mode):
    hold(described[path]["POST"], mode, num_examples=480)


@pytest.mark.parametrize("path", ["/v1/model", "/livez", "/readyz", "/openapi.json", "/docs"])
def test_whatever_is_asked_for_is_answered_as_the_document_says(described, path):
    for mode in GenerationMode:
        hold(described[path]["GET"], mode, num_examples=20)


def hold(operation, mode, num_examples):
    @settings(many, max_examples=num_examples)
    @given(case=operation.as_strategy(generation_mode=mode), as_tester=st.integers(0, 9))
    def answered(case, as_tester):
        if mode == GenerationMode.POSITIVE and as_tester and case.headers:
            case.headers.pop("X-Arm", None)  # which nobody may here, so that hardly any would be ranked
        asked(case)

    answered()
