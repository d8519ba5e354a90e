"""Make the pictures of the documentation: `python tests/support/screenshots.py [REPORT.html]`.

It writes docs/images/console.png, from a console around a fake service. If a report is named, it
also writes a picture of it, docs/images/report.png.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from pathlib import Path

from tests.support.browser import browser, page_at
from tests.support.console_service import healthy, listening

IMAGES = Path(__file__).parents[2] / "docs/images"
NUM_POINTS, EVERY_S = 295, 2.0


def points():
    """Return ten minutes of history. The rate rises, and a replica restarts.

    The restart costs a few full answers. Some ids are unknown, and a few events come twice or are
    rejected.
    """
    end_ms, found = time.time() * 1e3, []
    for i in range(NUM_POINTS):
        wave, dip = math.sin(i / 9) + math.sin(i / 4), math.exp(-(((i - 190) / 6) ** 2))
        rate, p99_ms = 620 + i + 8 * wave, 21 + 2 * wave + 30 * dip
        at_ms = end_ms - (NUM_POINTS - i) * EVERY_S * 1e3
        shares = [0.001 * dip, 0.0, 0.0, 0.004 + 0.001 * wave, 0.031 + 0.004 * wave, 0.001 + 0.02 * dip]
        records = [0.46 * rate - 4 * wave, 1.5 + 0.5 * wave, 0.4]
        found.append([at_ms, rate, 5.8 + dip, 11.9 + 4 * dip, p99_ms, *shares, *records])
    return found


def console(chromium, out):
    """Write a picture of the console's first page."""
    with (
        tempfile.TemporaryDirectory() as folder,
        listening(healthy, Path(folder), every_s=EVERY_S, points=points()) as url,
        page_at(chromium, url) as page,
    ):
        page.wait_for_selector(".tiles")
        page.screenshot(path=out, clip={"x": 0, "y": 0, "width": 1440, "height": 790})


def report(chromium, html, out):
    """Write a picture of the first screen of a report."""
    with page_at(chromium, html.resolve().as_uri()) as page:
        page.wait_for_load_state("networkidle")
        page.screenshot(path=out)


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    with browser() as chromium:
        console(chromium, IMAGES / "console.png")
        if sys.argv[1:]:
            report(chromium, Path(sys.argv[1]), IMAGES / "report.png")
