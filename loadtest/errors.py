"""Errors that stop a load test before it starts: unusable input, or no service to load."""

from __future__ import annotations

from serve.contract.errors import TabrankError

# Message of a run that Ctrl-C or SIGTERM ended.
INTERRUPTED = "interrupted: no verdict, and no report is written"


class LoadtestError(TabrankError):
    """The run is impossible; the command exits with 2.

    The message names the option or field, its value, and what to do.
    """
