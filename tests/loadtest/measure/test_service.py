"""Tests of the address of the service, and of the request before a run."""

from __future__ import annotations

import socket

import pytest

from loadtest.errors import LoadtestError
from loadtest.measure.service import probe, read_address

BODY = b'{"viewer": "v", "candidates": ["c"]}'


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:8000", ("127.0.0.1", 8000)),
        ("http://rank.example", ("rank.example", 80)),
        ("https://rank.example/", ("rank.example", 443)),
        ("http://[::1]:9", ("::1", 9)),
    ],
)
def test_an_address_is_read_from_a_url(url, address):
    assert read_address(url) == address


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://host:1", "http://", "http://host:99999", "http://h?x=1"]
)
def test_what_is_no_url_of_a_service_is_refused(url):
    with pytest.raises(LoadtestError, match="--url"):
        read_address(url)


def test_a_service_that_answers_passes(stub):
    probe(stub.url, BODY)
    assert len(stub.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_service_in_trouble_is_left_to_the_run(stub, status):
    stub.status = status
    probe(stub.url, BODY)


def test_a_refused_request_ends_the_run_with_the_services_own_words(stub):
    stub.status = 422
    with pytest.raises(LoadtestError, match="rejects the requests of this run: 422 as the test says"):
        probe(stub.url, BODY)


def test_no_service_says_how_to_start_one():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        with pytest.raises(LoadtestError, match=r"no service answers there .*python -m serve up"):
            probe(url, BODY)
