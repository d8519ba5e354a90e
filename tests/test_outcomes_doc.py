"""The guide on outcomes: its surfaces are valid, and its scores are what they say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from serve.features.surface import Surface, read_surface

GUIDE = (Path(__file__).parents[1] / "docs/outcomes.md").read_text()
# What a surface has besides events, outcomes and weights.
ABOVE = 'name = "guide"\npopular = "shown"\n'
BELOW = """
[candidate]
topic = "category"
[features]
shown = { kind = "count", entity = "candidate", event = "impression" }
"""


def blocks(language: str, text: str = GUIDE) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def sections() -> list[tuple[Surface, str]]:
    """Return each surface of the guide, and the text until the next one."""
    parts = re.split(r"(?=^```toml\n)", GUIDE, flags=re.M)[1:]
    return [(read_surface(ABOVE + blocks("toml", part)[0] + BELOW), part) for part in parts]


def test_the_guide_has_a_surface_for_rooms_and_one_for_a_shop():
    rooms, shop, _ = (surface for surface, _ in sections())
    assert list(rooms.predicted) == ["join", "stay", "hide"]
    assert list(shop.predicted) == ["spend", "buy", "return"]
    assert rooms.is_bad("hide")
    assert shop.is_bad("return")


@pytest.mark.parametrize("place", [0, 1])
def test_each_score_is_the_weighed_sum_of_its_predictions(place):
    surface, text = sections()[place]
    answers = [json.loads(block) for block in blocks("json", text) if '"score"' in block]
    assert answers
    for answer in answers:
        assert list(answer["predictions"]) == list(surface.predicted)
        worth = sum(surface.worth[name] * amount for name, amount in answer["predictions"].items())
        assert answer["score"] == pytest.approx(worth)
    scores = [answer["score"] for answer in answers]
    assert scores == sorted(scores, reverse=True)


def test_arms_and_metrics_name_outcomes_of_their_surface():
    (rooms, about_rooms), (shop, about_shop), _ = sections()
    (arms,) = map(yaml.safe_load, blocks("yaml", about_rooms))
    weighed = [arm["weights"] for arm in arms["arms"].values() if "weights" in arm]
    assert weighed
    assert all(set(weights) <= set(rooms.predicted) for weights in weighed)
    (settings,) = map(yaml.safe_load, blocks("yaml", about_shop))
    named = {settings["primary_metric"], *settings["guardrails"]}
    assert {name.removesuffix("_per_viewer") for name in named} <= set(shop.outcomes)


def test_the_event_with_a_value_is_one_that_the_service_takes():
    from msgspec import json as reader

    from serve.contract.records import EventsRequest

    _, (_, about_shop), _ = sections()
    (body,) = [block for block in blocks("json", about_shop) if '"records"' in block]
    (event,) = reader.decode(body.encode(), type=EventsRequest).records
    assert (event.kind, event.value) == ("buy", 39.9)


def test_what_the_guide_says_of_a_change_is_so():
    """Only what a model depends on changes the fingerprint by which a service accepts it."""
    text = ABOVE + blocks("toml")[0] + BELOW
    for old, new, needs_a_model in (
        ("hide = -5", "hide = -20", False),
        ('click = { event = "click", within = "5m" }', "", False),
        (
            'hide = { event = "hide", within = "30m" }',
            'hide = { event = "hide", within = "30m", bad = true }',
            False,
        ),
        ("hide = -5", "", True),
        ("[weights]\n", "[weights]\nclick = 0\n", True),
        ('cap = "60m"', 'cap = "90m"', True),
    ):
        assert old in text
        changed = read_surface(text.replace(old, new))
        assert (changed.fingerprint != read_surface(text).fingerprint) == needs_a_model, new
