"""Exception classes of the project, and hints at the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass


class TabrankError(Exception):
    """Error that the user can fix; the message names the field, the value and the remedy.

    A command prints only the message, without a traceback, and exits with 2.
    """


@dataclass(eq=False)
class RequestError(TabrankError):
    """Refusal of an HTTP request, answered as `application/problem+json`.

    `allow` lists the methods that a 405 answer names.
    """

    status: int
    title: str
    detail: str
    pointer: str | None = None
    _: KW_ONLY
    retry_after_s: int | None = None
    allow: str | None = None

    def __str__(self) -> str:
        return self.detail


class Busy(Exception):
    """Queue full; retry later."""


class TooLarge(Exception):
    """A call between deployments exceeds gRPC's message limit; send less at once."""


class StoreUnavailable(TabrankError):
    """The store cannot be read or written: rankings continue, records are refused."""


class StoreMissing(StoreUnavailable):
    """No store of this surface and state exists; `others` are the stores that exist beside it."""

    def __init__(self, message: str, others: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.others = others


class ScorerUnavailable(TabrankError):
    """The circuit breaker of the scorer is open; rankings continue without it."""


class WriterFenced(TabrankError):
    """Another writer took a newer fencing epoch; the store refuses this writer's commits."""


class StateMismatch(TabrankError):
    """A model was trained on another state than the service keeps."""


class ArtifactRefused(TabrankError):
    """An artifact is incomplete, altered, or scores its golden rows differently than at export."""


class ScoringFailed(TabrankError):
    """A reachable scorer could not score a batch with this version: its artifact is at fault."""


# Names longer than this are not compared: they are no typos, and to compare a megabyte takes a
# second.
MAX_TYPO = 80


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """Return the message that refuses an unknown key or value and names the nearest valid one."""
    given, names = str(name), sorted(known)
    hint = did_you_mean(given, names) or f"; valid {what}s are {', '.join(names)}"
    return f"unknown {what} {given!r}{hint}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a message, a hint at the most similar known name, or ""."""
    near = nearest(name, known)
    return "" if near is None else f"; did you mean {near!r}?"


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the nearest name, or all names."""
    return did_you_mean(name, known) or f"; there are {', '.join(known)}"


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """Return the most similar known name, or None; `cutoff` is difflib's least ratio."""
    if len(name) > MAX_TYPO:
        return None
    return next(iter(difflib.get_close_matches(name, list(known), 1, cutoff)), None)
