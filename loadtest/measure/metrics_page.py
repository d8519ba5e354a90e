"""A page of metrics as Prometheus reads it: counters by name and labels, and what was added between two looks."""

from __future__ import annotations

import contextlib
import http.client
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from loadtest.errors import LoadtestError
from loadtest.measure.service import ask

LINE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
Page = Mapping[str, list[tuple[dict[str, str], float]]]
"""The rows of each metric: their labels and value."""


def read_page(url: str) -> Page:
    """What the page at a URL says now; nothing where it does not answer."""
    parts = urlsplit(url)
    with contextlib.suppress(LoadtestError):
        status, said = ask(f"{parts.scheme}://{parts.netloc}", parts.path)
        if status == http.client.OK:
            return parse(said.decode("utf-8", "replace"))
    return {}


def parse(text: str) -> Page:
    """The rows of a page's text; comments and what cannot be read are left out."""
    page: dict[str, list[tuple[dict[str, str], float]]] = {}
    for line in text.splitlines():
        found = LINE.match(line)
        if found:
            with contextlib.suppress(ValueError):
                labels = dict(LABEL.findall(found[2] or ""))
                page.setdefault(found[1], []).append((labels, float(found[3])))
    return page


def total(page: Page, name: str, **labels: str) -> float:
    """The sum of a metric over all rows with these labels."""
    wanted = labels.items()
    return sum(value for has, value in page.get(name, ()) if wanted <= has.items())


def within(before: Page, after: Page, name: str, share: float) -> float | None:
    """The least bound `le` within which a share of what a cumulative histogram gained lies; None: it gained nothing."""
    bounds = sorted({float(has["le"]) for has, _ in after.get(name, ()) if "le" in has})
    gained = [
        total(after, name, le=_le(after, name, le)) - total(before, name, le=_le(after, name, le))
        for le in bounds
    ]
    if not gained or gained[-1] <= 0:
        return None
    return next(le for le, count in zip(bounds, gained, strict=True) if count >= share * gained[-1])


def _le(page: Page, name: str, bound: float) -> str:
    """How the page writes a bound."""
    return next(has["le"] for has, _ in page[name] if "le" in has and float(has["le"]) == bound)
