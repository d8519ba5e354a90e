"""Fixtures for the tests of the stores."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait longer for Redis, which writes each commit to a disk that other tests keep busy."""
    monkeypatch.setattr("serve.stores.redis_client.TIMEOUT_S", 4.0)
