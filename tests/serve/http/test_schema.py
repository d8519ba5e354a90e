"""The service against its own OpenAPI document: no server error, no undocumented status."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from serve.log.writer import write_log
from tests.support.live_service import Live
from tests.support.small_surface import tables

pytestmark = [pytest.mark.integration, pytest.mark.no_ray]
many = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    write_log(folder / "log", tables())
    service = Live(folder, folder / "log", clock="wall")
    with pytest.MonkeyPatch.context() as patch, service.listening() as url:
        # Otherwise each batch of records waits for its commit.
        patch.setattr("serve.ingest.writer.COMMIT_EVERY_S", 0.001)
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


def asked(case):
    response = case.call()
    case.validate_response(response, excluded_checks=beyond_words(case, response))
    assert response.status_code < 500, response.text


def beyond_words(case, response):
    """Return the checks that do not apply, because JSON Schema cannot express the rule."""
    text = response.text
    # The schema allows an id by itself and again with fields, and 1.0 for an integer.
    # Nor can it say that a pin is of a candidate, at a place of its own that is shown.
    beyond = ("duplicate candidate", "got a number", '"pointer":"/pins/')
    if response.status_code == 422 and any(words in text for words in beyond):
        return [positive_data_acceptance]
    # The valid records of a batch are accepted, and the others are named.
    if response.status_code == 207:
        return [negative_data_rejection]
    # 413 is a refusal, too.
    return [negative_data_rejection] if response.status_code == 413 else []


@pytest.mark.parametrize("num_examples", [60, pytest.param(480, marks=pytest.mark.proof)])
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", ["/v1/rank", "/v1/events"])
def test_whatever_is_posted_is_answered_as_the_document_says(described, path, mode, num_examples):
    hold(described[path]["POST"], mode, num_examples)


@pytest.mark.parametrize("path", ["/v1/model", "/livez", "/readyz", "/openapi.json", "/docs"])
def test_whatever_is_asked_for_is_answered_as_the_document_says(described, path):
    for mode in GenerationMode:
        hold(described[path]["GET"], mode, num_examples=20)


def hold(operation, mode, num_examples):
    @settings(many, max_examples=num_examples)
    @given(case=operation.as_strategy(generation_mode=mode), as_tester=st.integers(0, 9))
    def answered(case, as_tester):
        if mode == GenerationMode.POSITIVE and as_tester and case.headers:
            # No caller may choose an arm here, so that hardly any request would be ranked.
            case.headers.pop("X-Arm", None)
        # Nor would those with pins, which are hardly ever of a candidate.
        if mode == GenerationMode.POSITIVE and as_tester and isinstance(case.body, dict):
            case.body.pop("pins", None)
        asked(case)

    answered()
