"""The guide on surfaces and features: its surfaces are valid, and its figures are what they say."""

from __future__ import annotations

import re

import pytest

from serve.contract.validation import UNITS_MS
from serve.features.registry import KINDS
from serve.features.rows import Schema
from serve.features.surface import read_surface
from tests.serve.features.test_matrix import World
from tests.support.write_options import GUIDE, written

TEXT = GUIDE.read_text()
# A surface with the fields and events of the examples from live rooms and from a shop.
EXAMPLES = """
name = "guide"
popular = "price_now"
events = ["click", "join", "leave", "buy", "return", "cart", "uncart"]
outcomes.join = { event = "join", within = "30m" }
[viewer]
language = "category"
follows = "set"
friends = "set"
interests = "set"
[candidate]
host = "category"
topic = "category"
language = "category"
tags = "set"
speakers = "number"
price = "number"
started_ms = "time"
[features]
price_now = { kind = "number", field = "candidate.price" }
"""


def blocks(text: str = TEXT) -> list[str]:
    return re.findall(r"^```toml\n(.*?)^```$", text, re.M | re.S)


def section(title: str) -> str:
    """Return the text below a heading, up to the next one."""
    return re.split(rf"^#+ {re.escape(title)}$", TEXT, flags=re.M)[1].split("\n#")[0]


def test_the_table_of_options_is_that_of_the_code():
    assert written(TEXT) == TEXT, "run python tests/support/write_options.py"


def test_the_surface_to_try_is_complete():
    surface = read_surface(blocks()[0])
    assert len(surface.features) == 9
    assert surface.popular == "audience"
    sort = blocks(section("The baseline"))[0]
    assert read_surface(blocks()[0] + sort).baseline


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_a_section_with_valid_examples(kind):
    text = section(kind)
    (examples,) = blocks(text)
    features = read_surface(EXAMPLES + examples).features
    assert {type(feature) for name, feature in features.items() if name != "price_now"} == {KINDS[kind]}
    assert "- State: " in text
    assert "- Missing: " in text


def test_all_other_examples_are_valid():
    examples = [block for block in blocks()[1:] if "kind =" in block]
    assert len(examples) == len(KINDS) + 2
    for block in examples:
        read_surface(EXAMPLES + block)


@pytest.mark.parametrize(
    ("kind", "options", "viewer", "candidate", "said"),
    [
        ("count", 'entity = "candidate", event = "join"', 0, 16, "16 bytes"),
        ("count", 'entity = "viewer", event = "join"', 16, 0, "16 bytes"),
        # The hash of a candidate's id takes 8 bytes, once for all maps of pairs.
        ("count", 'entity = ["viewer", "candidate"], event = "join"', 2_048, 8, "2,048 bytes"),
        ("rate", 'entity = "candidate", event = "join", over = "click", PRIOR', 0, 32, "32 bytes"),
        ("gauge", 'entity = "viewer", up = "join", down = "leave"', 200, 48, "200 bytes"),
        (
            "affinity",
            'event = "join", over = "click", field = "candidate.host", keep = 24, PRIOR',
            768,
            0,
            "768 bytes",
        ),
    ],
)
def test_state_takes_the_bytes_that_the_guide_names(kind, options, viewer, candidate, said):
    options = options.replace("PRIOR", "prior = { rate = 0.1, weight = 1 }")
    feature = f'x = {{ kind = "{kind}", {options} }}'
    plain, kept = (Schema(read_surface(EXAMPLES + more)) for more in ("", feature))
    taken = [kept.layout(one).itemsize - plain.layout(one).itemsize for one in ("viewer", "candidate")]
    assert taken == [viewer, candidate]
    assert said in section(kind)


def world_of(feature):
    """Return a world with candidate `a` on jazz, and `b` tagged jazz and news."""
    world = World(read_surface(f"{EXAMPLES}x = {{ {feature} }}"))
    world.state.upsert("viewer", "ann", {})
    world.state.upsert("candidate", "a", {"topic": "jazz", "tags": ["jazz"]})
    world.state.upsert("candidate", "b", {"topic": "news", "tags": ["news"]})
    world.state.upsert("candidate", "c", {"topic": "soul", "tags": ["jazz", "news"]})
    return world


def value(world, minute, candidate="a"):
    return float(world.values(["ann"], [[candidate]], int(minute * UNITS_MS["m"]))[0]["x"][0])


def test_the_worked_example_of_a_half_life_is_what_a_count_gives():
    rows = re.findall(r"^\| 12:(\d\d) \|.* ([\d.]+) \|$", TEXT, re.M)
    assert len(rows) == 4
    world = world_of('kind = "count", entity = "candidate", event = "join", half_life = "10m"')
    for minute, count in rows:
        if int(minute) < 30:
            world.happen("join", "ann", ["a"], int(int(minute) * UNITS_MS["m"]))
        assert value(world, int(minute)) == pytest.approx(float(count))


def test_the_worked_example_of_a_prior_is_what_a_rate_gives():
    rows = re.findall(r"^\| ([\d,]+) \| (\d+) \| .* = ([\d.]+) \|$", TEXT, re.M)
    assert len(rows) == 4
    for shown, joined, rate in rows:
        world = world_of(
            'kind = "rate", entity = "candidate", event = "join", over = "click", '
            "prior = { rate = 0.05, weight = 20 }"
        )
        for event, times in (("click", shown), ("join", joined)):
            for _ in range(int(times.replace(",", ""))):
                world.happen(event, "ann", ["a"], 1_000)
        assert value(world, 1) == pytest.approx(float(rate), abs=5e-4)


def test_the_worked_example_of_an_affinity_is_what_it_gives():
    rows = re.findall(r"^\| (jazz|news|any other topic) \| (\d+) \| (\d+) \| .* = ([\d.]+) \|$", TEXT, re.M)
    assert len(rows) == 3
    options = 'event = "join", over = "click", prior = { rate = 0.05, weight = 20 }, keep = 24'
    of_topic, of_tags = (
        world_of(f'kind = "affinity", {options}, field = "candidate.{field}"') for field in ("topic", "tags")
    )
    for (_, shown, joined, _), candidate in zip(rows, "abc", strict=True):
        for world in (of_topic, of_tags):
            for event, times in (("click", shown), ("join", joined)):
                for _ in range(int(times)):
                    world.happen(event, "ann", [candidate], 1_000)
    for (*_, rate), candidate in zip(rows, "abc", strict=True):
        assert value(of_topic, 1, candidate) == pytest.approx(float(rate), abs=5e-4)
    assert value(of_tags, 1, "c") == pytest.approx(0.075, abs=5e-4)
