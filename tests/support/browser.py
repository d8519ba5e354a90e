"""Open pages in Debian's Chromium, and judge their accessibility with axe-core."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
AXE = Path(__file__).parents[1] / "web/node_modules/axe-core/axe.min.js"
# The flags keep Chromium from calling its maker's hosts.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDTHS = {390: 844, 1440: 900}
GRAVE = {"serious", "critical"}
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
needs_axe = pytest.mark.skipif(not AXE.exists(), reason="needs axe-core: npm ci --prefix tests/web")


@contextmanager
def browser() -> Iterator[Any]:
    """Yield a headless browser of Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)


@contextmanager
def page_at(browser: Any, url: str, *, width: int = 1440, dark: bool = False) -> Iterator[Any]:
    """Yield a page at a URL; fail afterwards if it had an error or loaded from another host."""
    context = browser.new_context(
        viewport={"width": width, "height": WIDTHS[width]},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
    )
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("console", lambda line: wrong.append(f"console: {line.text}") if line.type == "error" else None)
    origin = "/".join(url.split("/")[:3])
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith((origin, "data:", "blob:")) else wrong.append(request.url)
        ),
    )
    try:
        page.goto(url)
        yield page
        assert not wrong, wrong
    finally:
        context.close()


def violations(page: Any, ignored: Iterable[str] = ()) -> list[str]:
    """Return what axe-core calls serious or critical on a page, with the elements.

    `ignored` names rules of axe-core that are not checked, for pages of another project.
    """
    page.evaluate(AXE.read_text())
    rules = {rule: {"enabled": False} for rule in ignored}
    found = page.evaluate("rules => axe.run({rules}).then(result => result.violations)", rules)
    return [
        f"{one['id']}: {one['help']}: {[node['target'] for node in one['nodes']][:5]}"
        for one in found
        if one["impact"] in GRAVE
    ]
