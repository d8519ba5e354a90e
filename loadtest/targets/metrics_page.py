"""Sums of tabrank's metrics on a Prometheus page, and differences between two pages."""

from __future__ import annotations

from serve.operate.status.scrape import Page, read_pages


def read_page(url: str) -> Page:
    """Return the metrics of the page at a URL; empty if it does not answer."""
    return read_pages([url])


def total(page: Page, name: str, **labels: str) -> float:
    """Return the sum of a metric over all series with these labels."""
    wanted = labels.items()
    return sum(value for (metric, has), value in page.values.items() if metric == name and wanted <= has)


def gained(before: Page, after: Page, name: str, **labels: str) -> float:
    """Return the increase of that sum between two pages."""
    return total(after, name, **labels) - total(before, name, **labels)


def within(before: Page, after: Page, name: str, share: float) -> float | None:
    """Return the least bound `le` that covers a share of a cumulative histogram's increase.

    None: the histogram did not increase.
    """
    bounds = {dict(has)["le"] for metric, has in after.values if metric == name}
    gains = {le: gained(before, after, name, le=le) for le in bounds}
    most = max(gains.values(), default=0.0)
    if most <= 0:
        return None
    return min(float(le) for le, count in gains.items() if count >= share * most)
