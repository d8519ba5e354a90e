"""A log line is one line, under the request that it is about, in Ray's JSON too."""

from __future__ import annotations

import io
import json
import logging

import pytest
from ray._common.formatters import JSONFormatter

from serve.logs import OURS, RAYS, join_ray, of_request


@pytest.fixture
def lines():
    """What Ray's log of a replica gets, as JSON, from our logger."""
    ours, rays = logging.getLogger(OURS), logging.getLogger(RAYS)
    before = ours.parent, ours.filters, rays.handlers, rays.level, rays.propagate
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONFormatter())
    rays.handlers, rays.propagate = [handler], False
    rays.setLevel(logging.INFO)
    join_ray("tab")
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    ours.parent, ours.filters, rays.handlers, level, rays.propagate = before
    rays.setLevel(level)


def test_our_lines_are_in_ray_s_log_with_level_application_and_request(lines):
    logging.getLogger(OURS).warning("%s: too slow", "scorer", extra=of_request("r1", "ab" * 16))
    logging.getLogger(OURS).info("ranking with model %s", "v1")
    slow, model = lines()
    assert slow["message"] == "scorer: too slow"
    assert (slow["request_id"], slow["trace_id"], slow["application"]) == ("r1", "ab" * 16, "tab")
    assert (slow["levelname"], model["levelname"]) == ("WARNING", "INFO")
    assert "request_id" not in model


def test_what_a_client_writes_begins_no_line_of_its_own(lines):
    forged = "r1\nINFO all is well\r\x1b[2J\u2028"
    logging.getLogger(OURS).warning("viewer %s", forged, extra=of_request(forged))
    (line,) = lines()
    assert line["message"] == "viewer r1\\nINFO all is well\\r\\x1b[2J\\x2028"
    assert line["request_id"] == "r1\\nINFO all is well\\r\\x1b[2J\\x2028"


def test_joining_twice_says_nothing_twice(lines):
    join_ray("tab")
    logging.getLogger(OURS).warning("once")
    assert len(lines()) == 1
