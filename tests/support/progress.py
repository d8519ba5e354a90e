"""Plugin of pytest that says each minute how far a lane of `make test` is.

The lanes run at once, and make shows the output of each when it has ended. So a lane writes its
progress to descriptor 9, which `make test` opens on the terminal.
"""

from __future__ import annotations

import os
import threading
import time

import pytest

PERIOD_S = 60.0


class Progress:
    """Progress of one lane: the numbers of its tests that have ended and that failed."""

    def __init__(self, lane: str, to: int = 9) -> None:
        self._lane, self._to = lane, to
        self._num, self._failed, self._all = 0, 0, 0
        self._over, self._begun_s = threading.Event(), time.monotonic()
        self._thread = threading.Thread(target=self._tell, daemon=True)

    def pytest_sessionstart(self) -> None:
        self._thread.start()

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self._all = len(ids)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._num += report.when == "teardown"
        self._failed += report.failed

    def pytest_sessionfinish(self) -> None:
        self._over.set()
        self._thread.join()

    def _tell(self) -> None:
        while not self._over.wait(PERIOD_S):
            minutes = (time.monotonic() - self._begun_s) / 60
            line = f"{self._lane}: {self._num} of {self._all or '?'} tests in {minutes:.0f} min, "
            os.write(self._to, f"{line}{self._failed} failed\n".encode())
