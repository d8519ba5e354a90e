"""The project's errors: what a user can mend, and what a request is refused with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TabrankError(Exception):
    """Something that the user can mend: the message names the field, the value and the remedy.

    A command prints the message alone and exits with 2; no traceback is shown.
    """


class RequestError(TabrankError):
    """A request that is refused, as `application/problem+json`."""

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        pointer: str | None = None,
        *,
        retry_after_s: int | None = None,
        allow: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s
        self.allow = allow  # the methods that a 405 names
        self.status = status
        self.title = title
        self.detail = detail
        self.pointer = pointer


class Busy(Exception):
    """More is waiting than can be held; come again."""


class TooLarge(Exception):
    """A call between deployments is larger than gRPC takes; send less at once."""


class StoreUnavailable(TabrankError):
    """The store cannot be read now; the ranking goes on without it."""


class ScorerUnavailable(TabrankError):
    """The scorer has failed several times in a row and is left alone; the ranking goes on without it."""


class LeaseLost(TabrankError):
    """Another writer has taken over the store; this one's commits are refused from then on."""


class ArtifactRefused(TabrankError):
    """An artifact is incomplete, altered, or does not score its golden rows as it did when it was made."""


class ScoringFailed(TabrankError):
    """A version cannot score a batch, though its scorer is there: the fault of its artifact."""


def unknown_key(where: str, key: str, known: Iterable[str]) -> str:
    """The sentence that refuses an unknown key and names the nearest valid one."""
    names = sorted(known)
    hint = did_you_mean(key, names) or f"valid keys are {', '.join(names)}"
    return f"{where}: unknown key {key!r}; {hint}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The hint at the name that was meant; empty where none is like it."""
    near = nearest(name, known)
    return "" if near is None else f"did you mean {near!r}?"


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The known name most like another; `cutoff` is of difflib's ratio."""
    return next(iter(difflib.get_close_matches(name, list(known), 1, cutoff)), None)
