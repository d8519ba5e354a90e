"""The guide on slate rules: its recipes are valid and do what they say, and its example is so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from serve.config.settings import UserConfig
from serve.config.slate import Rule
from serve.contract.hashing import hash64
from serve.contract.rankings import RankRequest
from serve.contract.typed_reader import read
from serve.features.surface import read_surface
from serve.operate.diff.meaning import SENTENCES
from serve.ranking.slate import rerank

GUIDE = (Path(__file__).parents[1] / "docs/slate.md").read_text()
# What a surface has besides the fields and the feature of the guide.
ABOVE = """
name = "guide"
popular = "shown"
events = ["join"]
[outcomes]
join = { event = "join", within = "30m" }
[viewer]
country = "category"
"""
BELOW = 'shown = { kind = "count", entity = "candidate", event = "impression" }\n'


def blocks(language: str, text: str = GUIDE) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


(FIELDS,) = blocks("toml")
SURFACE = read_surface(ABOVE + FIELDS + BELOW)
EXAMPLE, *OTHERS = map(yaml.safe_load, blocks("yaml"))


def rules_of(block: dict) -> tuple[Rule, ...]:
    return read(tuple[Rule, ...], block["slate"], "slate")


def section(title: str) -> tuple[Rule, ...]:
    """Return the rules of the recipe with this title."""
    text = GUIDE.partition(f"### {title}\n")[2].partition("\n#")[0]
    return rules_of(yaml.safe_load(blocks("yaml", text)[0]))


def arranged(rules, score, pins=(), **facts):
    """Return the rules' order of candidates that are given in the order by utility, from 0."""
    num = len(score)
    values = {
        f"candidate.{name}": np.array([hash64(word) if word else 0 for word in words], np.uint64)
        for name, words in facts.items()
        if name != "shown_before"
    }
    values["shown_before"] = np.array(facts.get("shown_before", [np.nan] * num), np.float32)
    scores, standing = np.array(score, np.float32), np.zeros(num, np.int8)
    return rerank(rules, dict(pins), np.arange(num), scores, standing, values.__getitem__, num, tells=True)


@pytest.mark.parametrize("block", [EXAMPLE, *OTHERS], ids=range(1 + len(OTHERS)))
def test_each_block_of_yaml_is_accepted_for_the_surface_of_the_guide(block, tmp_path):
    arms = block.get("arms") or {"model": {"scorer": "current", "share": 1.0, **block}}
    config = UserConfig.from_mapping({"experiment": {"name": "e", "salt": "e", "arms": arms}})
    assert list(config.misfits(SURFACE, tmp_path)) == []
    assert any(arm.slate for arm in config.experiment.arms)


def test_the_example_has_the_order_that_the_guide_shows():
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in GUIDE.splitlines()]
    shown = [row for row in rows if len(row) == 7 and len(row[0]) == 1]
    by_utility = sorted(shown, key=lambda row: int(row[4]))
    rules = rules_of(EXAMPLE["arms"]["model"])
    found = arranged(
        rules,
        [float(row[3]) for row in by_utility],
        host=[row[1] for row in by_utility],
        partner=[row[2] for row in by_utility],
    )
    assert [by_utility[i][0] for i in found.order] == [row[0] for row in shown] == list("adfbec")
    assert [int(row[5]) for row in shown] == list(range(1, 7))
    assert found.num_unmet == 1
    for place, row in enumerate(shown):
        i = int(found.order[place])
        words = " and ".join(f"the {rules[k].text.split()[0]}" for k in found.why.get(i, ()))
        assert row[6] == ("" if int(row[4]) == place + 1 else words or "others moved")
    (answer,) = (json.loads(block) for block in blocks("json") if '"moved"' in block)
    (row,) = (row for row in shown if row[0] == answer["candidate"])
    assert (answer["position"], answer["moved"]["position_before"]) == (int(row[5]), int(row[4]))
    assert answer["score"] == float(row[3])
    assert answer["moved"]["rules"] == [rules[1].text]


def test_at_most_three_rooms_of_a_host_are_in_the_first_ten():
    rules = section("At most three rooms of a host in the first ten")
    hosts = ["mia"] * 6 + [None] * 2 + [f"h{i}" for i in range(8)]
    shown = arranged(rules, np.linspace(1, 0, 16), host=hosts).order.tolist()
    assert shown[:11] == [0, 1, 2, 6, 7, 8, 9, 10, 11, 12, 3]


def test_one_sponsored_room_is_in_the_first_five():
    rules = section("One sponsored room in the first five")
    sponsored = ["yes", "yes", "no", None, "no", "no", "no"]
    found = arranged(rules, np.linspace(1, 0, 7), sponsored=sponsored)
    assert found.order.tolist() == [0, 2, 3, 4, 5, 1, 6]


def test_what_was_shown_three_times_goes_down():
    rules = section("What was shown three times goes down")
    found = arranged(rules, [0.30, 0.29, 0.28, 0.26], shown_before=[3, 2, np.nan, 0])
    assert found.order.tolist() == [1, 2, 3, 0]


def test_a_count_with_a_half_life_misses_the_third_time_as_the_guide_warns():
    rules = section("What was shown three times goes down")
    assert arranged(rules, [0.30, 0.29], shown_before=[2.99, 0]).order.tolist() == [0, 1]


def test_partners_go_up_by_about_three_positions_of_ten_and_boosts_add_up():
    rules = section("Partners a little higher")
    scores = np.linspace(0.12, 0.06, 10)
    for last in range(4, 10):
        partner = [None] * last + ["yes"] + [None] * (9 - last)
        assert arranged(rules, scores, partner=partner).order.tolist().index(last) in (last - 3, last - 2)
    both = (*rules, *section("What was shown three times goes down"))
    found = arranged(both, [0.30, 0.28, 0.26], partner=["yes", None, None], shown_before=[3, 0, 0])
    assert found.order.tolist() == [1, 0, 2]


def test_the_request_with_a_pin_is_one_that_the_service_takes():
    from msgspec import json as reader

    (body,) = [block for block in blocks("json") if '"pins"' in block]
    request = reader.decode(body.encode(), type=RankRequest)
    assert request.pins == {"s42": 1}
    assert set(request.pins) <= set(request.candidates)


def test_a_spread_counts_the_pinned_room():
    rules = rules_of(OTHERS[-1]["arms"]["spaced"])
    found = arranged(rules, [0.4, 0.3, 0.2, 0.1, 0.05], {0: 4}, host=["mia", "a", "b", "c", "mia"])
    assert found.order.tolist() == [4, 1, 2, 3, 0]


def test_the_note_of_a_change_is_the_one_that_diff_prints():
    (quoted,) = re.findall(r"^> note: (.*?)\n\n", GUIDE, re.M | re.S)
    told = "boost by {by} where candidate.partner = yes"
    news = f"gone: {told.format(by='+0.02')}; new: {told.format(by='+0.05')}"
    sentence = SENTENCES["slate"]["sentence"].format(arm="model", news=news, holds="", experiment="launch")
    assert " ".join(quoted.replace("\n> ", " ").split()) == sentence
