"""Close the stores that the services of these tests opened."""

from __future__ import annotations

import pytest

from serve.ranking import service


@pytest.fixture(autouse=True)
def _stores_are_closed(monkeypatch):
    """Close them after each test: the files of hundreds would be too many for `select`."""
    tables, make = [], service.CandidateTable

    def made(*arguments):
        tables.append(make(*arguments))
        return tables[-1]

    monkeypatch.setattr(service, "CandidateTable", made)
    yield
    for table in tables:
        table.close()
