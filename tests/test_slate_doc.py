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
BELOW = """
shown = { kind = "count", entity = "candidate", event = "impression" }
same_language = { kind = "match", viewer = "viewer.country", candidate = "candidate.topic" }
"""


def blocks(language: str, text: str = GUIDE) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


(FIELDS,) = blocks("toml")
SURFACE = read_surface(ABOVE + FIELDS + BELOW)
BLOCKS = [yaml.safe_load(block) for block in blocks("yaml")]
FACTS = {
    row[1]: {"host": row[2], "topic": row[3], "score": float(row[4])}
    for row in ([cell.strip() for cell in line.split("|")[1:-1]] for line in GUIDE.splitlines())
    if len(row) == 5 and re.fullmatch(r"r\d", row[1])
}


def rules_of(block: dict) -> tuple[Rule, ...]:
    """Return the rules of the last arm of a block, or of a block that is an arm's `slate`."""
    *_, arm = block.get("arms", {"": block}).values()
    return read(tuple[Rule, ...], arm["slate"], "slate")


def part(title: str) -> str:
    """Return the text below the heading, up to the next one."""
    return re.split(r"^#+ ", GUIDE.partition(f"# {title}\n")[2], maxsplit=1, flags=re.M)[0]


def table(text: str, num_columns: int) -> list[list[str]]:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    return [row for row in rows if len(row) == num_columns and re.fullmatch(r"\w\d?", row[0])]


def section(title: str) -> tuple[Rule, ...]:
    """Return the rules of the recipe with this title."""
    return rules_of(yaml.safe_load(blocks("yaml", part(title))[0]))


def arranged(rules, score, pins=(), num_shown=None, **facts):
    """Return the rules' order of candidates that are given in the order by utility, from 0."""
    num = len(score)
    values = {
        f"candidate.{name}": np.array([hash64(word) if word else 0 for word in words], np.uint64)
        for name, words in facts.items()
        if name != "shown_before"
    }
    values["shown_before"] = np.array(facts.get("shown_before", [np.nan] * num), np.float32)
    scores, standing = np.array(score, np.float32), np.zeros(num, np.int8)
    given = np.arange(num), scores, standing, values.__getitem__, num_shown or num
    return rerank(rules, dict(pins), *given, tells=True)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_each_block_of_yaml_is_accepted_for_the_surface_of_the_guide(block, tmp_path):
    arms = block.get("arms") or {"model": {"scorer": "current", "share": 1.0, **block}}
    config = UserConfig.from_mapping({"experiment": {"name": "e", "salt": "e", "arms": arms}})
    assert list(config.misfits(SURFACE, tmp_path)) == []
    assert any(arm.slate for arm in config.experiment.arms)


@pytest.mark.parametrize(
    ("title", "num_unmet"),
    [("One rule, before and after", 0), ("Boost", 0), ("Spread", 1), ("Limit", 0)],
)
def test_each_rule_moves_the_five_rooms_as_its_table_shows(title, num_unmet):
    rules, rooms = section(title), list(FACTS)
    found = arranged(
        rules,
        [one["score"] for one in FACTS.values()],
        host=[one["host"] for one in FACTS.values()],
        topic=[one["topic"] for one in FACTS.values()],
    )
    column = {"Boost": "topic", "Limit": "topic"}.get(title, "host")
    shown = table(part(title), 4)
    assert [rooms[i] for i in found.order] == [row[1] for row in shown]
    assert found.num_unmet == num_unmet
    for place, (position, room, fact, moved) in enumerate(shown):
        assert FACTS[room][column] == fact
        i = int(found.order[place])
        words = " and ".join(f"the {rules[k].text.split()[0]}" for k in found.why.get(i, ()))
        assert (int(position), moved) == (place + 1, "" if i == place else words or "others moved")


def test_a_boost_of_002_moves_none_of_the_five_rooms():
    small = read(tuple[Rule, ...], [{"boost": {"where": {"candidate.topic": "books"}, "by": 0.02}}], "slate")
    scores = [one["score"] for one in FACTS.values()]
    found = arranged(small, scores, topic=[one["topic"] for one in FACTS.values()])
    assert found.order.tolist() == list(range(5))


def test_the_answer_of_the_guide_tells_what_the_table_shows():
    (answer,) = (json.loads(block) for block in blocks("json") if '"moved"' in block)
    title = "One rule, before and after"
    (row,) = (row for row in table(part(title), 4) if row[1] == answer["candidate"])
    assert answer["position"] == int(row[0])
    assert answer["score"] == FACTS[answer["candidate"]]["score"]
    assert answer["moved"]["position_before"] == 1 + list(FACTS).index(answer["candidate"])
    assert answer["moved"]["rules"] == [section(title)[0].text]


def test_a_page_of_three_tells_what_a_rule_brought_in_and_a_longer_one_what_left():
    rules, rooms = section("One rule, before and after"), list(FACTS)
    scores, hosts = ([one[name] for one in FACTS.values()] for name in ("score", "host"))
    short, long = (arranged(rules, scores, num_shown=num, host=hosts) for num in (3, None))
    shown = [row for row in table(part("What left the page"), 4) if row[1] in rooms]
    assert [rooms[i] for i in short.order[:3]] == [row[1] for row in shown]
    before = [1 + int(i) for i in short.order[:3]]
    assert [row[2] for row in shown] == ["(`moved` is null)", *map(str, before[1:])]
    assert before[0] == 1
    assert long.order[:3].tolist() == short.order[:3].tolist()
    (left,) = {1, 2, 3} - set(before)
    assert f"position {left} is missing" in " ".join(part("What left the page").split())
    assert rooms[left - 1] == "r3"


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


def test_a_pin_is_above_a_spread_as_the_guide_says():
    rules, rooms = section("One rule, before and after"), list(FACTS)
    scores, hosts = ([one[name] for one in FACTS.values()] for name in ("score", "host"))
    found = arranged(rules, scores, {1: rooms.index("r2")}, host=hosts)
    assert ", ".join(rooms[i] for i in found.order) in " ".join(part("Pin").split())


def test_the_request_with_a_pin_is_one_that_the_service_takes():
    from msgspec import json as reader

    (body,) = [block for block in blocks("json") if '"pins"' in block]
    request = reader.decode(body.encode(), type=RankRequest)
    assert request.pins == {"r5": 1}
    assert set(request.pins) <= set(request.candidates)


def test_the_note_of_a_change_is_the_one_that_diff_prints():
    (quoted,) = re.findall(r"^> note: (.*?)\n\n", GUIDE, re.M | re.S)
    told = "boost by {by} where candidate.partner = yes"
    news = f"gone: {told.format(by='+0.02')}; new: {told.format(by='+0.05')}"
    sentence = SENTENCES["slate"]["sentence"].format(arm="model", news=news, holds="", experiment="launch")
    assert " ".join(quoted.replace("\n> ", " ").split()) == sentence
