"""Reports in a browser: plots that answer the pointer, tables that sort, and no barrier."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from typer.testing import CliRunner

from serve.__main__ import app
from tests.support.browser import WIDTHS, browser, needs_axe, needs_chromium, page_at, violations
from tests.support.evaluation_rows import TRIALS, evaluation
from tests.support.experiment_log import SURFACE, write_experiment
from training.evaluation.report import report_page
from training.evaluation.what_if_page import write
from training.examination.examination import IGNORED
from training.experiment.declared import Declared
from training.experiment.page import page as experiment_page
from training.experiment.report import report

pytestmark = [
    pytest.mark.integration,
    pytest.mark.no_ray,
    needs_chromium,
    # Ray's warning at import.
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`"),
]
# Words of the first plot's values, by kind of page.
KINDS = {
    "model": ("NDCG@10", "interval"),
    "experiment": ("effect", "%", "interval"),
    "plan": ("second of the trace", "count"),
}
MANIFEST = {
    "version": "20260102T030405Z-0a1b",
    "created": "2026-01-02T03:04:05Z",
    "surface": "tiny",
    "measured_on": "test",
    "git": None,
    "outcomes": {"join": {"scale": 1.0, "calibration": {"a": 1.0, "b": 0.0}, "examination": asdict(IGNORED)}},
}
# The colour of the model in a plot.
STROKE = "getComputedStyle(document.querySelector('.plot [stroke=\"var(--model)\"]')).stroke"


@pytest.fixture(scope="module")
def pages(tmp_path_factory, surface):
    """Return a page of each kind, by its name."""
    folder = tmp_path_factory.mktemp("reports")
    (folder / "model").mkdir()
    found = json.loads(json.dumps(evaluation(surface)))
    found["search"]["trials"] = TRIALS
    (folder / "model" / "report.html").write_text(report_page(MANIFEST, found))
    log = write_experiment(folder / "log", uplift=0.5, days=3)
    found = report(log, Declared("launch"), SURFACE)
    write(folder / "experiment", found, experiment_page(found))
    trace = folder / "trace.csv"
    trace.write_text("t_s,offered_rps\n" + "".join(f"{at},{20 + 10 * at}\n" for at in range(6)))
    done = CliRunner().invoke(app, ["plan", "--trace", str(trace), "--out", str(folder / "plan")])
    assert done.exit_code == 0, done.output
    return {kind: folder / kind / "report.html" for kind in KINDS}


@pytest.fixture(scope="module", params=KINDS)
def page(request, pages):
    """Return an open page of one kind; its tests run in this order."""
    with browser() as chromium, page_at(chromium, pages[request.param].as_uri()) as opened:
        opened.wait_for_selector(".plot svg")
        opened.kind = request.param
        yield opened


def test_a_page_is_small_and_its_verdict_number_and_doubt_are_on_the_first_screen(page, pages):
    assert pages[page.kind].stat().st_size < 1_500_000
    for part in (".verdict strong", ".verdict .doubt", ".tiles .value >> nth=0", ".plot svg >> nth=0"):
        box = page.locator(part).bounding_box()
        assert box["y"] + min(box["height"], 150) <= WIDTHS[1440], part


def test_a_plot_shows_values_with_units_below_the_pointer(page):
    page.locator(".plot svg").first.hover()
    tip = page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    assert all(text in tip.inner_text() for text in KINDS[page.kind])
    assert any(letter.isdigit() for letter in tip.inner_text())


def test_tables_sort_by_mouse_and_keyboard(page):
    page.eval_on_selector_all("details", "all => all.forEach(one => one.open = true)")
    table = page.locator("table.sortable", has=page.locator("th.number")).last
    place = table.locator("th.number").first
    column = place.evaluate("cell => cell.cellIndex") + 1

    def numbers():
        cells = table.locator(f"tbody td:nth-child({column})").all_inner_texts()
        return [float(cell.replace(",", "").split()[0].strip("%")) for cell in cells if cell not in ("–", "")]

    place.locator("button").click()
    assert place.get_attribute("aria-sort") == "ascending"
    assert numbers() == sorted(numbers())
    page.keyboard.press("Enter")
    assert place.get_attribute("aria-sort") == "descending"
    assert numbers() == sorted(numbers(), reverse=True)
    assert table.locator("th[aria-sort]").count() == 1


@needs_axe
def test_a_page_has_no_barrier_at_any_width_in_light_and_dark(page):
    strokes = {}
    for width, height in WIDTHS.items():
        page.set_viewport_size({"width": width, "height": height})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert not violations(page), (width, scheme)
            # Plots take their colours from the page, without a redraw.
            strokes[scheme] = page.evaluate(STROKE)
        # Wide tables scroll by themselves.
        assert page.evaluate("document.documentElement.scrollWidth") == width
    page.emulate_media(color_scheme="dark", media="print")
    assert page.evaluate(STROKE) == strokes["light"] != strokes["dark"]
