"""Pages of the report kit: their parts, their size, and that they are whole in themselves."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from serve.report.charts import MOST_VALUES, Axis, Limit, Series, plot
from serve.report.page import banner, bullets, details, footer, paragraph, section, table, tiles, whole_page
from tests.support.page_parser import Page

TEXT = "<b>&'\"</script>"


def spec(figure):
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', figure)[1])


def test_texts_are_escaped_and_empty_parts_left_out():
    parts = [
        banner("bad", TEXT, TEXT, TEXT),
        tiles([(TEXT, TEXT, TEXT)]),
        plot(TEXT, Axis(TEXT), Axis(""), [Series(TEXT, [TEXT], [1])], [Limit(TEXT, y=1)], caption=TEXT),
        section(TEXT, table([(TEXT, "n"), (TEXT, "1")], TEXT), bullets([TEXT])),
        details(TEXT, paragraph(TEXT)),
        footer({"cpu": TEXT}, "", []),
    ]
    page = whole_page(TEXT, parts)
    assert "<b>&" not in page
    # Vega's three, the page's own, and the data of the plot.
    assert page.count("</script>") == page.count("<script") == 5
    assert section("empty", "", table([("head",)]), bullets([])) == ""
    assert details("empty", "") == tiles([]) == table([]) == plot("", Axis(""), Axis(""), []) == ""


def test_a_page_carries_the_scripts_that_its_parts_use_and_loads_nothing():
    plain, sorts = whole_page("t", ["<p>x</p>"]), whole_page("t", [table([("a", "b"), ("1", "x")])])
    plots = whole_page("t", [plot("p", Axis("x"), Axis("y"), [Series("model", [1, 2], [3, 4])])])
    assert "<script" not in plain
    assert sorts.count("<script>") == 1
    assert plots.count("<script>") == 4
    assert len(plain) < len(sorts) < 40_000 < len(plots) < 900_000
    for page in (plain, sorts, plots):
        read = Page(page)
        assert not read.links
        assert not {"link", "img", "iframe"} & set(read.tags)
        assert "@import" not in page.split("</style>")[0]
        assert "url(" not in page.split("</style>")[0]


@pytest.mark.parametrize("tone", ["good", "bad", "unsure", "neutral"])
def test_the_verdict_and_the_doubt_come_first_in_words(tone):
    page = whole_page(
        "title", [banner(tone, "It held", "p99 18 ms", "one machine"), tiles([("p99", "18 ms", "")])]
    )
    order = [page.index(text) for text in ("<h1>title", "It held", "p99 18 ms", "one machine", "<dl")]
    assert order == sorted(order)
    assert "What this does not say:" in page


def test_columns_of_numbers_are_aligned_and_others_are_not():
    rows = [
        ("", "ms", "share", "interval", "day", "version", "gone"),
        ("p50", "1,234.5 ms", "+1.2%", "[-0.1, 0.2]", "2026-01-02", "3a", "–"),
        ("p99", "–", "99 %", "1.2 ± 0.3", "2026-01-03", "1.2.3", ""),
    ]
    html = table(rows, "caption")
    assert [
        kind == ' class="number"' for kind in re.findall(r"<t[hd](?: scope=col)?( class=\"number\")?>", html)
    ][:7] == [False, True, True, True, False, False, False]
    assert 'tabindex="0" role="region" aria-label="caption"' in html
    with pytest.raises(ValueError, match="zip"):
        table([("a", "b"), ("1",)])


def test_the_data_of_a_plot_is_plain_short_and_breaks_where_it_is_missing():
    x, y = np.arange(3), np.array([1 / 3, np.nan, np.inf])
    line = Series("model", x, y, low=[None, 1, np.float32(0.1)], high=(1, 2, 3), notes=["a", "b", "c"])
    found = spec(plot("t", Axis("x", log=True), Axis("y"), [line, Series("gone", [], [])], [Limit("l", y=2)]))
    assert found["series"] == [
        {
            "name": "model",
            "x": [0, 1, 2],
            "y": [0.3333333, None, None],
            "kind": "line",
            "low": [None, 1, 0.1],
            "high": [1, 2, 3],
            "dashed": False,
            "notes": ["a", "b", "c"],
        }
    ]
    assert found["x"]["log"] is True
    assert found["limits"] == [{"name": "l", "x": None, "y": 2, "until": None, "colour": "limit"}]


def test_a_long_line_is_thinned_and_keeps_its_peaks_and_gaps():
    y = [1.0] * 9_000
    y[4_000], y[5_000] = 9.0, -9.0
    y[6_000:6_100] = [None] * 100
    found = spec(plot("t", Axis("s"), Axis("ms"), [Series("p99", range(9_000), y)]))["series"][0]
    assert len(found["x"]) == len(found["y"]) <= MOST_VALUES
    assert found["x"] == sorted(found["x"])
    at = dict(zip(found["x"], found["y"], strict=True))
    assert at[4_000] == 9.0
    assert at[5_000] == -9.0
    assert None in at.values()
    assert (
        len(spec(plot("t", Axis("s"), Axis("ms"), [Series("a", range(700), y[:700])]))["series"][0]["x"])
        == 700
    )


@pytest.mark.parametrize("gap", [4_003, 7_000, 8_999])
def test_a_long_line_keeps_a_gap_of_one_value(gap):
    y = [float(i % 7) for i in range(9_000)]
    y[gap] = None
    found = spec(plot("t", Axis("s"), Axis("ms"), [Series("p99", range(9_000), y)]))["series"][0]
    assert len(found["x"]) <= MOST_VALUES
    assert found["x"][found["y"].index(None)] == gap


@pytest.mark.parametrize(
    ("texts", "label"),
    [(("t", "c"), "Plot: t"), (("", "c"), "Plot: c"), (("", ""), "Plot: ms by second")],
)
def test_a_plot_is_named_for_a_screen_reader_by_its_title_its_caption_or_its_axes(texts, label):
    title, caption = texts
    html = plot(title, Axis("second"), Axis("ms"), [Series("p99", [1], [2])], caption=caption)
    assert f'aria-label="{label}"' in html


def test_a_reason_that_begins_with_a_name_keeps_its_letter():
    assert "<p class=name>p99 5.0 ms" in banner("good", "Held", "p99 5.0 ms", "")
    assert "<p>the load generator" in banner("unsure", "No verdict", "the load generator was late", "")


def test_the_same_data_gives_the_same_bytes():
    made = [plot("t", Axis("x"), Axis("y"), [Series("a", np.arange(9) / 7, np.arange(9))]) for _ in "ab"]
    assert made[0] == made[1]
