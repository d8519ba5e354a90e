"""Read a Prometheus metrics page: values by name and labels, and differences between two pages."""

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
"""Rows of each metric: labels and value."""


def read_page(url: str) -> Page:
    """Return the metrics of the page at a URL; empty if it does not answer."""
    parts = urlsplit(url)
    with contextlib.suppress(LoadtestError):
        status, body = ask(f"{parts.scheme}://{parts.netloc}", parts.path)
        if status == http.client.OK:
            return parse(body.decode("utf-8", "replace"))
    return {}


def parse(text: str) -> Page:
    """Return the rows of a page's text; skip comments and lines that do not parse."""
    page: dict[str, list[tuple[dict[str, str], float]]] = {}
    for line in text.splitlines():
        found = LINE.match(line)
        if found:
            with contextlib.suppress(ValueError):
                labels = dict(LABEL.findall(found[2] or ""))
                page.setdefault(found[1], []).append((labels, float(found[3])))
    return page


def total(page: Page, name: str, **labels: str) -> float:
    """Return the sum of a metric over all rows with these labels."""
    wanted = labels.items()
    return sum(value for has, value in page.get(name, ()) if wanted <= has.items())


def within(before: Page, after: Page, name: str, share: float) -> float | None:
    """Return the least bound `le` that covers a share of a cumulative histogram's increase.

    None: the histogram did not increase.
    """
    bounds = sorted({has["le"] for has, _ in after.get(name, ()) if "le" in has}, key=float)
    gained = [total(after, name, le=le) - total(before, name, le=le) for le in bounds]
    if not gained or gained[-1] <= 0:
        return None
    return next(float(le) for le, count in zip(bounds, gained, strict=True) if count >= share * gained[-1])
