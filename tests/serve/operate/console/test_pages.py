"""The console's three pages in a browser, against a fake service that goes and comes back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import msgspec
import pytest

from tests.support.browser import browser, needs_axe, needs_chromium, page_at, violations
from tests.support.console_service import JOIN, MODEL, Service, degraded, gone, healthy, listening
from tests.support.screenshots import console

pytestmark = [pytest.mark.integration, pytest.mark.no_ray]
ROOT = Path(__file__).parents[4]
# Reads are as frequent as those of `python -m serve console`.
EVERY_S, WITHIN_S = 2.0, 5.0


class Stage:
    """Fake service whose state a test sets."""

    def __init__(self, service, folder):
        self.service, self.run, self.state = service, folder / "run", self.healthy
        # The folders of models and log are beside it.
        self.config = str(folder / "cluster.yaml")

    def healthy(self):
        return healthy(url=self.service.url, config=self.config)

    def degraded(self):
        return degraded(url=self.service.url, config=self.config)

    def look(self):
        return self.state()


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    with Service().running() as service:
        yield Stage(service, tmp_path_factory.mktemp("console"))


@pytest.fixture(scope="module")
def chromium():
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def url(stage):
    with listening(stage.look, stage.run, every_s=EVERY_S) as url:
        yield url


def words(page, selector):
    return " ".join(page.inner_text(selector).split())


@needs_chromium
@needs_axe
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1440, False)])
def test_every_page_is_accessible_and_as_wide_as_the_window(chromium, url, stage, width, dark):
    stage.state = stage.degraded
    with page_at(chromium, url, width=width, dark=dark) as page:
        for name, shown in (("now", ".causes"), ("try", "button.main"), ("models", ".command")):
            page.goto(f"{url}#{name}")
            page.wait_for_selector(shown)
            if name == "try":
                page.get_by_label("The whole request").fill('{"viewer": null, "candidates": ["s1", "s2"]}')
                page.get_by_role("button", name="Rank").click()
                page.wait_for_selector(".reasons")
            assert violations(page) == [], name
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name


@needs_chromium
def test_a_ranking_is_tried_by_keyboard_and_models_are_read(chromium, url, stage):
    stage.state = stage.healthy
    with page_at(chromium, url) as page:
        page.wait_for_selector(".verdict.good")
        assert page.text_content(".verdict strong") == "healthy"
        assert "903" in words(page, ".tiles")
        tiles = words(page, ".tiles")
        assert (
            "99.8 % ranked as their arm says; the others fallback 0.2 %, because of deadline 0.2 %" in tiles
        )
        assert "412 accepted by /v1/events; duplicates 1.5 /s, rejected 0.4 /s" in tiles
        assert "0.4 % 199 /s in live rankings; of the viewers 3.1 % are unknown" in tiles
        assert page.locator(".charts canvas").count() == 5
        page.get_by_role("link", name="Try").focus()
        page.keyboard.press("Enter")
        page.get_by_label("The whole request").fill('{"viewer": "ann", "candidates": ["s1", "s2"]}')
        page.get_by_label("Viewer").fill("bob")
        page.keyboard.press("Tab")
        page.get_by_role("button", name="Rank").focus()
        page.keyboard.press("Enter")
        page.wait_for_selector(".reasons")
        sent = stage.service.requests[-1][2]
        assert sent == {"viewer": "bob", "candidates": ["s1", "s2"], "traffic": "test", "explain": True}
        rows = [" ".join(row.split()) for row in page.locator("tbody tr").all_inner_texts()]
        assert "+0.83 joined this host's rooms (0.31 joins, typical 0.05)" in rows[0]
        assert "no model scored it" in rows[1]
        page.get_by_label("The whole request").fill("{")
        assert page.get_by_role("button", name="Rank").is_disabled()
        page.get_by_role("link", name="Models").click()
        page.wait_for_selector(".command")
        assert MODEL in words(page, "main")
        assert "python -m training experiment report" in words(page, "main")


# Keeps the charts that a page makes.
KEEP_CHARTS = """
let kept; window.charts = [];
Object.defineProperty(window, "uPlot", { get: () => kept, set: (made) => {
  kept = new Proxy(made, { construct: (one, given) => {
    const chart = Reflect.construct(one, given); window.charts.push(chart); return chart;
  } });
} });
"""


@needs_chromium
@pytest.mark.parametrize(("seconds", "width"), [(8, 1440), (66, 390), (599, 390), (3598, 1440)])
def test_a_chart_has_at_least_two_times(chromium, stage, seconds, width):
    stage.state = stage.healthy
    now_s = round(time.time())
    points = [[(now_s - ago_s) * 1e3, *[1.0] * 13] for ago_s in range(seconds, 0, -2)]
    with (
        listening(stage.look, stage.run, every_s=EVERY_S, points=points) as url,
        page_at(chromium, url, width=width) as page,
    ):
        page.add_init_script(KEEP_CHARTS)
        page.reload()
        page.wait_for_selector(".verdict")
        if seconds > 600:
            page.get_by_label("1 hour").check()
        page.wait_for_timeout(500)
        drawn = page.evaluate("charts.filter(one => one.data[0].length > 1).map(one => one.axes[0]._values)")
        assert drawn
        assert all(len(set(times)) >= 2 for times in drawn), drawn


@needs_chromium
def test_an_hour_is_shown_again_after_a_reload_and_a_legend_has_the_value_below_the_pointer(chromium, stage):
    stage.state = stage.healthy
    now_s = round(time.time())
    points = [[(now_s - ago_s) * 1e3, float(ago_s), *[1.0] * 12] for ago_s in range(3_590, 2, -10)]
    with (
        listening(stage.look, stage.run, every_s=EVERY_S, points=points) as url,
        page_at(chromium, url) as page,
    ):
        for _ in range(2):
            page.reload()
            page.get_by_label("1 hour").check()
            chart = page.locator(".charts figure").first
            page.wait_for_function("document.querySelector('.charts figcaption').innerText.includes('903')")
            box = chart.locator("canvas").bounding_box()
            page.mouse.move(box["x"] + 60, box["y"] + 50)
            page.wait_for_function("document.querySelector('.charts figcaption').innerText.includes(' at ')")
            shown = words(page, ".charts figcaption >> nth=0")
            # Near the left edge, almost an hour ago.
            assert float(shown.split("rate ")[1].split(" ")[0].replace(",", "")) > 3_000
            page.mouse.move(0, 0)
            page.wait_for_function("document.querySelector('.charts figcaption').innerText.includes(' now')")


@needs_chromium
@pytest.mark.parametrize(
    ("weight", "more", "shown"),
    [
        (1.0, {}, "9.2 %"),
        (1.0, {"until": "leave", "cap": 60.0}, "0.092"),
    ],
)
def test_a_score_is_a_percentage_only_if_it_is_a_probability(chromium, url, stage, weight, more, shown):
    def state():
        found = stage.healthy()
        about = found.surfaces["spaces"]
        arms = [arm | {"weights": {"join": weight}} for arm in about["experiment"]["arms"]]
        told = {"outcomes": {"join": JOIN | more}, "experiment": about["experiment"] | {"arms": arms}}
        return msgspec.structs.replace(found, surfaces={"spaces": about | told})

    stage.state = state
    with page_at(chromium, url) as page:
        page.wait_for_selector(".verdict.good")
        page.wait_for_timeout(1.5 * EVERY_S * 1e3)
        page.get_by_role("link", name="Try").click()
        page.get_by_label("The whole request").fill('{"viewer": "ann", "candidates": ["s1", "s2"]}')
        page.get_by_role("button", name="Rank").click()
        page.wait_for_selector(".reasons")
        first = page.locator("tbody tr").first.inner_text().split("\t")
        assert shown in first
        assert ("probability of join" in words(page, "caption")) == ("%" in shown)


VERSIONS = [
    {
        "version": name,
        "state": state,
        "current": state == "current",
        "metrics": {"test": {"logloss": logloss, "ndcg@10": None}},
        "about": {
            "measured_on": "test",
            "test_rows": 20_000,
            "outcomes": {
                "join": {"calibration": {"a": 1.0, "b": 0.0}, "examination": {"source": "learned"}},
                "minutes": {"calibration": {"a": 0.91, "b": -0.2}, "examination": {"source": "ignored"}},
            },
            "weights": {"join": 1.0, "minutes": 0.05},
            "rows": 31_625,
            "span_ms": [1_795_912_760_363, 1_796_064_826_344],
            "log": "s3://bucket/log",
            "teachers": 2,
            "seconds": 83.7,
            "features": [f"shared_{k}" for k in range(6)] + more,
            "us_per_candidate": us,
            "bytes": {"model.onnx": 25_400, "report.html": 900_000},
            "network": {"width": 8, "gamma": 1.3},
            "fit": {"weight_decay": 0.106951, "restore_best": False, "num_workers": 4},
        },
    }
    for name, state, logloss, more, us in (
        ("new", "published", 0.3, ["friends_inside"], 0.466),
        ("now", "current", 0.31, [], None),
        ("old", "previous", 0.31, [], None),
    )
]
SAME = {
    "measured on": "20,000 test rows",
    "NDCG@10": "–",
    "predicts": "join, minutes",
    "weight of join when measured": "1",
    "calibration of join": "none needed",
    "position bias of join": "learned",
    "weight of minutes when measured": "0.05",
    "calibration of minutes": "a 0.910, b -0.200",
    "position bias of minutes": "ignored",
    "training rows": "31,625",
    "training window": "2026-11-29 00:39 to 2026-11-30 18:53 UTC",
    "log": "s3://bucket/log",
    "teachers": "2",
    "network on disk": "25 kB",
    "all files on disk": "0.9 MB",
    "training took": "84 s",
    "setting width": "8",
    "setting gamma": "1.3",
    "setting weight_decay": "0.107",
    "setting restore_best": "false",
}


@needs_chromium
@needs_axe
@pytest.mark.parametrize("width", [390])
def test_versions_stand_side_by_side_and_their_differences_are_marked(chromium, url, stage, width):
    stage.state = stage.healthy
    app = {"name": "spaces", "models": "m", "versions": VERSIONS}
    with page_at(chromium, f"{url}#models", width=width) as page:
        data = {"applications": [app], "shifts": [], "options": ""}
        page.route("**/data/models", lambda route: route.fulfill(json=data))
        page.reload()

        def rows():
            return [row.split("\t") for row in page.locator(".beside tbody tr").all_inner_texts()]

        page.wait_for_selector(".beside")
        alike = SAME | {"logloss": "0.3100", "features": "6", "scoring on one core": "not measured"}
        assert sorted(rows()) == sorted(["=", name, told, told] for name, told in alike.items())
        page.get_by_label("new (published)").check()
        differ, same = rows()[:3], rows()[3:]
        assert differ == [
            ["≠", "logloss", "0.3000", "0.3100", "0.3100"],
            ["≠", "features", "7, of which not all versions have friends_inside", "6", "6"],
            ["≠", "scoring on one core", "0.47 µs a candidate", "not measured", "not measured"],
        ]
        assert same == [["=", name, *[told] * 3] for name, told in SAME.items()]
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.get_by_label("now (current)").uncheck()
        page.get_by_label("old (previous)").uncheck()
        assert page.locator(".beside").count() == 0
        assert "Choose another version" in words(page, "main")


@needs_chromium
def test_candidates_are_one_id_a_line_and_stay_while_one_types(chromium, url, stage):
    stage.state = stage.healthy
    with page_at(chromium, url) as page:
        page.get_by_role("link", name="Try").click()
        field = page.get_by_label("Candidates, one id a line")
        stated = {"candidate": "s1", "fields": {"price": 2.0}}
        page.get_by_label("The whole request").fill(json.dumps({"viewer": None, "candidates": [stated]}))
        assert "\n" in field.get_attribute("placeholder")
        field.press("End")
        field.type("\nroom, with a comma\n\n")
        # The page reads the state meanwhile.
        page.wait_for_timeout(1.5 * EVERY_S * 1e3)
        assert field.input_value() == "s1\nroom, with a comma\n\n"
        field.type("s 3")
        page.get_by_role("button", name="Rank").click()
        page.wait_for_selector(".reasons")
        assert stage.service.requests[-1][2]["candidates"] == [stated, "room, with a comma", "s 3"]
        assert field.input_value() == "s1\nroom, with a comma\ns 3"


MOVED = [
    {"position_before": 3, "rules": ["pin of the request"]},
    {"position_before": 1, "rules": []},
    {
        "position_before": 2,
        "rules": ["boost by +0.02 where candidate.partner = yes", "spread candidate.host"],
    },
    None,
]


@needs_chromium
@needs_axe
@pytest.mark.parametrize("width", [390])
def test_pins_are_typed_and_both_orders_are_shown_with_what_moved_a_candidate(
    chromium, url, stage, width, monkeypatch
):
    stage.state, made = stage.healthy, stage.service.answer["ranking"][0]
    ranking = [
        made | {"candidate": f"s{k}", "position": k, "moved": one} for k, one in enumerate(MOVED, start=1)
    ]
    with page_at(chromium, url, width=width) as page:
        page.get_by_role("link", name="Try").click()
        page.get_by_label("The whole request").fill('{"viewer": null, "candidates": ["s1", "s 2", "3"]}')
        pins = page.get_by_label("Pins, a position and an id a line")
        pins.fill("1 s 2\n2 ")
        # The page reads the state meanwhile.
        page.wait_for_timeout(1.5 * EVERY_S * 1e3)
        assert pins.input_value() == "1 s 2\n2 "
        pins.press("End")
        pins.type("3\ns1")
        page.get_by_role("button", name="Rank").click()
        page.wait_for_selector(".reasons")
        assert stage.service.requests[-1][2]["pins"] == {"3": 2, "s 2": 1, "s1": None}
        assert "by utility" not in words(page, "thead")
        assert "moved by" not in words(page, "thead")
        pins.fill("")
        monkeypatch.setattr(stage.service, "answer", stage.service.answer | {"ranking": ranking})
        page.get_by_role("button", name="Rank").click()
        page.wait_for_selector("th:text('by utility')")
        assert "pins" not in stage.service.requests[-1][2]
        cells = [row.split("\t") for row in page.locator("tbody tr").all_inner_texts()]
        assert [row[:3] for row in cells] == [
            ["1", "3", "s1"],
            ["2", "1", "s2"],
            ["3", "2", "s3"],
            ["4", "4", "s4"],
        ]
        told = ["pin of the request", "others moved", "; ".join(MOVED[2]["rules"]), ""]
        assert [row[5] for row in cells] == told
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@needs_chromium
def test_without_traffic_the_features_have_no_age(chromium, url, stage):
    stage.state = lambda: msgspec.structs.replace(
        stage.healthy(),
        traffic=msgspec.structs.replace(stage.healthy().traffic, freshness_ms=0.0, rate_rps=0.0),
    )
    with page_at(chromium, url) as page:
        page.wait_for_selector(".tiles >> text=no traffic")
        assert "0.0 ms" not in words(page, ".tiles")


@needs_chromium
def test_trials_are_those_of_the_application_and_a_cluster_at_an_address_has_no_folders(chromium, url, stage):
    stage.state = stage.healthy
    shift = {"new": "v2", "old": "v1", "rows": 8}
    shifts = [shift | {"application": "spaces"}, shift | {"application": "other", "new": "v3"}]
    data = {"applications": [], "shifts": shifts, "options": " --address http://h:1"}
    with page_at(chromium, url) as page:
        page.route("**/data/models", lambda route: route.fulfill(json=data))
        page.route("**/data/requests*", lambda route: route.fulfill(json={"requests": None}))
        page.wait_for_selector(".tiles")
        page.get_by_role("link", name="Models").click()
        page.wait_for_selector(".command")
        assert "reports: not known for a cluster at an address" in words(page, "main")
        assert "v2 v1 8" in words(page, "main")
        assert "v3" not in words(page, "main")
        assert "serve popular --address http://h:1" in words(page, "main")
        page.get_by_role("link", name="Try").click()
        page.wait_for_selector("option:text('not known for a cluster at an address')", state="attached")


@needs_chromium
def test_a_version_that_logloss_judged_is_said_to_predict_better_and_no_more(chromium, url, stage):
    stage.state = stage.healthy
    pair = {"logloss": -0.02, "logloss_se": 0.004, "ndcg@10": 0.03, "se": 0.01}
    names = {"logloss": "predicts better than popular", "ndcg@10": "beats popular"}
    versions = [
        {
            "version": f"by {by}",
            "state": "current",
            "measured_on": "test",
            "metrics": {"test": {"logloss": 0.3, "ndcg@10": 0.6}},
            "paired": {"model-popular": pair | {"gate": {"by": by, "beats": True}}},
        }
        for by in names
    ]
    data = {"applications": [{"name": "spaces", "models": "m", "versions": versions}], "shifts": []}
    with page_at(chromium, url) as page:
        page.route("**/data/models", lambda route: route.fulfill(json=data | {"options": ""}))
        page.wait_for_selector(".tiles")
        page.get_by_role("link", name="Models").click()
        page.wait_for_selector("td:text('by logloss')")
        for by, words_of in names.items():
            row = page.locator("tr", has_text=f"by {by}").first
            assert row.inner_text().count(words_of) == 1


@needs_chromium
def test_a_service_that_goes_is_shown_and_is_back_by_itself(chromium, url, stage):
    stage.state = stage.healthy
    with page_at(chromium, url) as page:
        page.wait_for_selector(".verdict.good")
        stage.state, went = gone, time.monotonic()
        page.wait_for_selector(".verdict.bad")
        assert time.monotonic() - went < WITHIN_S
        assert words(page, ".verdict strong") == gone().health.line
        assert "No answer since" in words(page, ".verdict")
        stage.state, back = stage.healthy, time.monotonic()
        page.wait_for_selector(".verdict.good")
        assert time.monotonic() - back < WITHIN_S


@needs_chromium
def test_a_console_that_ends_is_shown_and_is_back_and_breaks_no_policy(chromium, stage):
    stage.state = stage.healthy
    # Unlike `page_at`, without `bypass_csp`.
    context = chromium.new_context()
    page, problems = context.new_page(), []
    page.on("console", lambda line: problems.append(line.text) if "Policy" in line.text else None)
    with listening(stage.look, stage.run) as own:
        page.goto(own)
        page.wait_for_selector(".tiles")
    page.wait_for_selector(".verdict.neutral", timeout=10_000)
    assert "python -m serve console" in words(page, ".verdict")
    with listening(stage.look, stage.run, port=int(own.rstrip("/").rpartition(":")[2])):
        page.wait_for_selector(".verdict.good", timeout=WITHIN_S * 1e3)
    assert problems == []
    context.close()


@needs_chromium
def test_the_picture_of_the_readme_is_made_here_and_is_small(chromium, tmp_path):
    console(chromium, tmp_path / "console.png")
    assert 20_000 < (tmp_path / "console.png").stat().st_size < 150_000


def test_without_a_service_the_command_opens_its_page_and_ends_by_ctrl_c_without_a_word(tmp_path):
    command = subprocess.Popen(
        [sys.executable, "-m", "serve", "console"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    url = command.stderr.readline().split()[1]
    with urllib.request.urlopen(f"{url}data/state", timeout=20) as answer:
        assert b"No service runs in" in answer.read()
    command.send_signal(signal.SIGINT)
    _, rest = command.communicate(timeout=10)
    assert (command.returncode, rest) == (0, "")
