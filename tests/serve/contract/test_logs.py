"""Log records take one line and carry their request id, also in Ray's JSON."""

from __future__ import annotations

import builtins
import io
import json
import logging
import warnings

import pytest
from ray._common.formatters import JSONFormatter

from serve.contract.logs import RAY_LOGGER, SERVICE_LOGGER, join_ray, of_request

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from ray.serve._private.logging_utils import ServeFormatter, redirected_print


@pytest.fixture
def handler():
    """Replace Ray's handlers by one with its own stream, and join Ray's logger."""
    ours, rays = logging.getLogger(SERVICE_LOGGER), logging.getLogger(RAY_LOGGER)
    before = ours.parent, ours.filters, rays.handlers, rays.filters, rays.level, rays.propagate
    handler = logging.StreamHandler(io.StringIO())
    rays.handlers, rays.filters, rays.propagate = [handler], [], False
    rays.setLevel(logging.INFO)
    join_ray("tab")
    yield handler
    ours.parent, ours.filters, rays.handlers, rays.filters, level, rays.propagate = before
    rays.setLevel(level)


@pytest.fixture
def lines(handler):
    """Return the JSON records that Ray's log of a replica receives from our logger."""
    handler.setFormatter(JSONFormatter())
    return lambda: [json.loads(line) for line in handler.stream.getvalue().splitlines()]


def test_our_lines_are_in_ray_s_log_with_level_application_and_request(lines):
    logging.getLogger(SERVICE_LOGGER).warning("%s: too slow", "scorer", extra=of_request("r1", "ab" * 16))
    logging.getLogger(SERVICE_LOGGER).info("ranking with model %s", "v1")
    slow, model = lines()
    assert slow["message"] == "scorer: too slow"
    assert (slow["request_id"], slow["trace_id"], slow["application"]) == ("r1", "ab" * 16, "tab")
    assert (slow["levelname"], model["levelname"]) == ("WARNING", "INFO")
    assert "request_id" not in model


def test_what_a_client_writes_begins_no_line_of_its_own(lines):
    forged = "r1\nINFO all is well\r\x1b[2J\u2028"
    logging.getLogger(SERVICE_LOGGER).warning("viewer %s", forged, extra=of_request(forged))
    (line,) = lines()
    assert line["message"] == "viewer r1\\nINFO all is well\\r\\x1b[2J\\x2028"
    assert line["request_id"] == "r1\\nINFO all is well\\r\\x1b[2J\\x2028"


def test_joining_twice_says_nothing_twice(lines):
    join_ray("tab")
    logging.getLogger(SERVICE_LOGGER).warning("once")
    assert len(lines()) == 1


@pytest.mark.parametrize("name", [SERVICE_LOGGER, RAY_LOGGER])
def test_a_traceback_is_readable_though_ray_replaces_print(handler, monkeypatch, name):
    monkeypatch.setattr(builtins, "print", redirected_print)
    handler.setFormatter(ServeFormatter("ServeReplica:tab:Ingest", "r1"))
    try:
        raise ValueError("bad id: x\nINFO all is well\x1b[2J")
    except ValueError:
        logging.getLogger(name).exception("request %s failed", "r1")
    head, opening, *_, message, forged = handler.stream.getvalue().splitlines()
    assert head.startswith("ERROR")
    assert head.endswith("request r1 failed")
    assert opening == "    Traceback (most recent call last):"
    assert message == "    ValueError: bad id: x"
    assert forged == "    INFO all is well\\x1b[2J"
